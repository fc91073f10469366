"""Which nodes are chosen among: filters, subsets, priorities, zones, panic, and how new ones are warmed up."""

from lbclient.routing.announcer import Announcer
from lbclient.routing.lines import Lines
from lbclient.routing.portion import Portion
from lbclient.routing.routing import Routing
from lbclient.routing.slow_start import SlowStart
from lbclient.routing.subset import Subset
from lbclient.routing.warm_up import Pace, WarmUp

__all__ = ["Announcer", "Lines", "Pace", "Portion", "Routing", "SlowStart", "Subset", "WarmUp"]
