"""DNS: a source over addresses and SRV records."""

from discovery.dns.source import Dns

__all__ = ["Dns"]
