"""The docs say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_defaults_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("defaults", DOCS / "defaults.py")
    assert spec is not None
    assert spec.loader is not None
    defaults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(defaults)
    assert (DOCS / "defaults.md").read_text(encoding="utf-8") == defaults.text(), "run `make docs`"
