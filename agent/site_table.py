"""The evidence table as a site has it: the one that comes along, with the site's own numbers in their places."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rankscope.rules.table import Table, load


@lru_cache(maxsize=4)
def site_table(classes_file: str = "") -> Table:
    """The table with the overrides of a file, or as it comes for "". Raises ConfigurationError."""
    return load(overrides=Path(classes_file) if classes_file else None)
