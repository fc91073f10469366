"""What others registered: records, and the formats that they are in."""

from discovery.records.formats import FORMATS, reader
from discovery.records.records import Flaw, Reader, Records, Weight

__all__ = ["FORMATS", "Flaw", "Reader", "Records", "Weight", "reader"]
