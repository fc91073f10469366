"""Which nodes are chosen among: filters, subsets, priorities, zones, panic, and how new ones are warmed up."""

from lbclient.routing.portion import Portion
from lbclient.routing.routing import Routing
from lbclient.routing.slow_start import SlowStart

__all__ = ["Portion", "Routing", "SlowStart"]
