"""Registering a server, and keeping it registered."""

from discovery.registrar.registrar import Registrar

__all__ = ["Registrar"]
