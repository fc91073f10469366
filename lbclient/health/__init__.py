"""Active health checks."""

from lbclient.health.health_check import HealthCheck

__all__ = ["HealthCheck"]
