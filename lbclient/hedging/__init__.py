"""Hedging: a second attempt for requests that take long, and the first useful answer wins."""

from lbclient.hedging.hedge import Hedge
from lbclient.hedging.race import Hedging
from lbclient.hedging.raced import Raced

__all__ = ["Hedge", "Hedging", "Raced"]
