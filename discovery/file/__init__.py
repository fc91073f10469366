"""Files: a source over JSON and YAML."""

from discovery.file.source import File

__all__ = ["File"]
