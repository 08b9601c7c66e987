"""Rules: pure functions from windows of a recording to findings with evidence."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankscope.rules.table import FaultClass
    from rankscope.rules.verdict import CLASSES, THRESHOLD, diagnose, judge

__all__ = ["CLASSES", "THRESHOLD", "FaultClass", "diagnose", "judge"]


def __getattr__(name: str) -> Any:
    """Load the rules when the first of them is asked for: the analysis of traces beside them needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'table' if name == 'FaultClass' else 'verdict'}"), name)
