"""Simulation of clients and servers in virtual time, with the production balancer and policies.

    scenarios: Plan -> engine: Record -> results: Result -> report and plots

`candidates` are the policies that are compared, `runs` spreads the work over processes.
"""
