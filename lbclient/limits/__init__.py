"""How much of a service one client uses: limits, waiting, throttling."""

from lbclient.limits.limits import Limits
from lbclient.limits.throttle import Throttle

__all__ = ["Limits", "Throttle"]
