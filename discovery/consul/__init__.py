"""Consul: a source over blocking queries to an agent."""

from discovery.consul.source import Consul

__all__ = ["Consul"]
