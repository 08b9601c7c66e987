"""Whether rows of a recording are what an agent may have written: damage must not pass for evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from math import isfinite
from typing import Any

from rankscope.reading import Event, Severity
from rankscope.records import LARGEST, DeviceRecord, GroupRecord, StepRecord, required_names


def _columns(names: str) -> frozenset[str]:
    return frozenset(names.split())


_TEXTS = _columns(
    "job host boot_id name operation metric device kind text severity attributes probe outcome"
    " reason blocks free_blocks"
)
_TEXTS_OR_NOTHING = _columns("gpu_uuid device_clock members")
#: Whatever is measured: any number that is one.
_MEASURED = _columns("value loss gradient_norm")
_TIMES = _columns("start_ns end_ns time_ns enqueued_ns started_ns ended_ns anchor_monotonic_ns anchor_wall_ns")
#: What no row goes without.
_NEEDED = _columns(
    "id attempt rank world_size local_rank pid start_ticks step value start_ns end_ns time_ns enqueued_ns"
    " anchor_monotonic_ns anchor_wall_ns"
)
_NEEDED_IN = {
    "steps": frozenset(required_names(StepRecord)),
    "device_steps": frozenset(required_names(DeviceRecord)),
    "groups": frozenset(required_names(GroupRecord)),
}
_NOTHING = type(None)


def plausible(names: Sequence[str], rows: list[Any], table: str = "") -> list[Any]:
    """The rows of these columns that hold what an agent writes: all of them, unless the file was damaged."""
    needed = _NEEDED | _NEEDED_IN.get(table, frozenset())
    checks = [partial(_is_plausible, label, label in needed) for label in map(_label, names)]
    if not rows or all(check(column) for check, column in zip(checks, zip(*rows, strict=True), strict=True)):
        return rows
    return [row for row in rows if all(check((value,)) for check, value in zip(checks, row, strict=True))]


def _label(name: str) -> str:
    """What a column is called, without its table or what it was made of."""
    return name.rpartition(" ")[2].rpartition(".")[2]


def _is_plausible(name: str, needed: bool, column: Sequence[Any]) -> bool:
    kinds = set(map(type, column))
    if name in _TEXTS:
        return kinds <= {str}
    if name in _TEXTS_OR_NOTHING:
        return kinds <= {str, _NOTHING}
    if name in _MEASURED:
        fit = kinds <= {int, float, _NOTHING} and all(value is None or isfinite(value) for value in column)
        return fit and not (needed and _NOTHING in kinds)
    if not kinds <= {int, _NOTHING} or (needed and _NOTHING in kinds):
        return False
    present = [value for value in column if value is not None] if _NOTHING in kinds else column
    return not present or (max(present) <= LARGEST and min(present) >= (0 if name in _TIMES else -LARGEST))


def event_of(row: Sequence[Any], host: str, shift: int) -> Event | None:
    """The event of a row (kind, time, text, severity, device, rank, attributes); None where it is none."""
    kind, time_ns, text, severity, device, rank, attributes = row
    try:
        details = json.loads(attributes)
        if not (_are_texts(kind, text, device) and _is_time(time_ns) and (rank is None or _is_time(rank))):
            return None
        if not (isinstance(details, dict) and all(_is_scalar(value) for value in details.values())):
            return None
        return Event(kind, time_ns + shift, text, Severity(severity), device, rank, host, details)
    except (ValueError, TypeError, RecursionError):
        return None


def _are_texts(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_time(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))


def texts(document: Any) -> list[str]:
    """A list of texts as a recording keeps one; [] for anything else."""
    try:
        found = json.loads(document)
    except (ValueError, TypeError, RecursionError):
        return []
    return found if isinstance(found, list) and _are_texts(*found) else []


def counts(document: Any, size: int) -> tuple[int, ...] | None:
    """So many counts as a recording keeps them; None for anything else."""
    try:
        found = json.loads(document)
    except (ValueError, TypeError, RecursionError):
        return None
    fit = isinstance(found, list) and len(found) == size and all(type(each) is int and each >= 0 for each in found)
    return tuple(found) if fit else None
