"""The hot path as it runs here: compiled where it was built and is not declined, else in Python."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rankscope.records import DeviceRecord, GroupRecord, StepRecord
from rankscope.torch_hooks import reference

#: Environment variable: "python" keeps to Python.
CHOICE_VARIABLE = "RANKSCOPE_BOUNDARIES"


def choose(environ: Mapping[str, str] = os.environ) -> ModuleType:
    """The module to take the hot path from: `_native`, or `reference`."""
    if environ.get(CHOICE_VARIABLE) == "python":
        return reference
    try:
        native: Any = importlib.import_module("rankscope.torch_hooks._native")
    except ImportError:
        return reference
    # One left over from an older source tree writes other records, or lacks what came since.
    layouts = (StepRecord.layout.size, DeviceRecord.layout.size, GroupRecord.layout.size)
    fits = getattr(native, "LAYOUTS", None) == layouts and all(hasattr(native, name) for name in reference.__all__)
    return native if fits else reference


if TYPE_CHECKING:
    from rankscope.torch_hooks.reference import (
        Boundaries,
        DeviceTimeline,
        GroupState,
        HotCollectives,
        HotLoop,
        Listener,
        backward_gate,
        collate_gate,
        next_gate,
        operation_gate,
        wait_gate,
    )
else:
    _chosen = choose()
    Boundaries, DeviceTimeline = _chosen.Boundaries, _chosen.DeviceTimeline
    GroupState, HotLoop, Listener = _chosen.GroupState, _chosen.HotLoop, _chosen.Listener
    backward_gate, collate_gate, next_gate = _chosen.backward_gate, _chosen.collate_gate, _chosen.next_gate
    HotCollectives, operation_gate, wait_gate = _chosen.HotCollectives, _chosen.operation_gate, _chosen.wait_gate

#: "python" or "compiled", as recordings and `doctor` say it.
NAME = "python" if issubclass(Boundaries, reference.Boundaries) else "compiled"

__all__ = [
    "NAME",
    "Boundaries",
    "DeviceTimeline",
    "GroupState",
    "HotCollectives",
    "HotLoop",
    "Listener",
    "backward_gate",
    "choose",
    "collate_gate",
    "next_gate",
    "operation_gate",
    "wait_gate",
]
