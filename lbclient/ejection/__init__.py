"""Taking nodes out of service when they fail, and letting them back in."""

from lbclient.ejection.ejection import Ejection
from lbclient.ejection.outlier_detector import OutlierDetector

__all__ = ["Ejection", "OutlierDetector"]
