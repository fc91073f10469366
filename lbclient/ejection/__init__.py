"""Taking nodes out of service when they fail, and letting them back in."""

from lbclient.ejection.ejection import Ejection

__all__ = ["Ejection"]
