"""Columns of a rank from cumulative histograms: each row the mean over the steps between two exports."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankscope.records import DeviceRecord, GroupKind, GroupRecord, StepRecord, field_names
from rankscope.window import Columns

FloatArray = NDArray[np.float64]
_NS = 1e9
_Key = tuple[str, str, str]
#: Phases that StepRecord always has: one that was never counted took no time.
_ALWAYS = ("data_wait", "forward", "optimizer", "checkpoint", "evaluation", "other")
_STALLS = ("gc", "compile", "runqueue")
_DEVICE_ALWAYS = ("data_wait", "forward", "backward_own", "backward_wait", "optimizer", "other")
_GROUP_FIELDS = tuple(name for name in field_names(GroupRecord) if name not in ("group", "members"))


def grown(values: FloatArray) -> FloatArray:
    """How far a cumulative value moved since the point before; one that fell began anew."""
    moved = np.full(len(values), np.nan)
    if len(values) > 1:
        moved[1:] = np.diff(values)
        moved[1:] = np.where(moved[1:] < 0, values[1:], moved[1:])
    return moved


class Means:
    """Mean durations a step of one rank on one clock, in ns, a point of the grid each."""

    def __init__(self, sums: Mapping[_Key, FloatArray], counts: Mapping[_Key, FloatArray], clock: str) -> None:
        self._sums, self._counts, self.clock = sums, counts, clock
        counted = counts.get(("step", clock, ""))
        self._length = len(counted) if counted is not None else 0
        moved = grown(counted) if counted is not None else np.zeros(0)
        #: Steps since the point before; NaN where there was none.
        self.steps: FloatArray = np.where(moved > 0, moved, np.nan)

    @property
    def known(self) -> bool:
        """Whether this rank has steps on this clock."""
        return self._length > 0

    def step(self) -> FloatArray:
        """Mean length of a step."""
        return self._mean(self._sums.get(("step", self.clock, "")))

    def of(self, what: str, name: str) -> FloatArray | None:
        """Mean over all steps of a phase, stall, own time or wait; None where it was never counted."""
        clock = "host" if what == "stall" else self.clock
        sums = self._sums.get((what, clock, name))
        return None if sums is None else self._mean(sums)

    def share(self, name: str) -> FloatArray | None:
        """Share of the steps that had a stall."""
        counts = self._counts.get(("stall", "host", name))
        return None if counts is None else self._mean(counts) / _NS

    def where_counted(self, stall: str) -> FloatArray | None:
        """Mean of a stall over the steps in which it was looked at and not over all of them."""
        sums, counts = (each.get(("stall", "host", stall)) for each in (self._sums, self._counts))
        if sums is None or counts is None:
            return None
        seen = _since_begin(counts)
        return _since_begin(sums) * _NS / np.where(seen > 0, seen, np.nan)

    def latest(self, what: str) -> FloatArray | None:
        """What a gauge said at each point; None where it was never told."""
        return self._sums.get((what, "", ""))

    def all_steps(self, what: str, name: str) -> FloatArray | None:
        """Mean a step of what was summed on no clock of its own; None where it was never told."""
        sums = self._sums.get((what, "", name))
        return None if sums is None else self._mean(sums)

    def groups(self) -> list[str]:
        """Process groups that were told of on this clock."""
        return list(
            dict.fromkeys(name for what, clock, name in self._sums if what in ("own", "wait") and clock == self.clock)
        )

    def _mean(self, sums: FloatArray | None) -> FloatArray:
        if sums is None:
            return np.full(self._length, np.nan)
        return _since_begin(sums) * _NS / self.steps


def _since_begin(values: FloatArray) -> FloatArray:
    """How far a cumulative value moved; a series that begins within the window began at zero."""
    first = np.flatnonzero(np.isfinite(values))
    if len(first) and first[0] > 0:
        values = values.copy()
        values[: first[0]] = 0.0
    return grown(values)


def _packed(fields: tuple[str, ...], columns: Mapping[str, FloatArray | None], rows: NDArray[np.intp]) -> Columns:
    absent = np.full(len(rows), np.nan)
    return Columns(
        {name: array("d", absent if (column := columns.get(name)) is None else column[rows]) for name in fields}
    )


def _rows(means: Means, numbers: FloatArray) -> NDArray[np.intp]:
    if not means.known:
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(np.isfinite(means.steps) & np.isfinite(means.step()) & np.isfinite(numbers))


def _or_zero(column: FloatArray | None, length: int) -> FloatArray:
    return np.zeros(length) if column is None else np.nan_to_num(column)


def step_columns(host: Means, numbers: FloatArray, at_ns: FloatArray) -> Columns:
    """Fields of StepRecord; a row ends at its export and lasts as long as its mean step."""
    rows = _rows(host, numbers)
    length = len(host.steps)
    columns: dict[str, FloatArray | None] = {f"{name}_ns": _or_zero(host.of("phase", name), length) for name in _ALWAYS}
    columns |= {f"{name}_ns": host.of("stall", name) for name in _STALLS}
    # Copies are looked at in a few steps only.
    columns["h2d_ns"] = host.where_counted("h2d")
    own, waited = host.of("phase", "backward_own"), host.of("phase", "backward_wait")
    inner, whole = host.of("phase", "inner_wait"), host.of("phase", "backward")
    columns["bubble_ns"] = host.of("phase", "bubble")
    columns["backward_own_ns"] = own
    columns["backward_ns"] = _or_zero(whole, length) if own is None else own + _or_zero(waited, length)
    if inner is not None:
        columns["collective_wait_ns"] = np.nan_to_num(inner) + _or_zero(waited, length)
    sync = host.of("phase", "sync")
    columns["sync_ns"] = sync if sync is not None else host.of("stall", "sync")
    # Steps that had one are known, and not how many each had.
    columns["sync_count"] = host.share("sync")
    columns["gc_count"] = host.share("gc")
    for name in ("work", "alloc_retries"):
        counted = host.all_steps(name, "")
        # Sums of durations are in seconds, these are numbers.
        columns[name] = None if counted is None else counted / _NS
    columns["step"], columns["end_ns"] = numbers, at_ns
    columns["start_ns"] = at_ns[:length] - host.step() if length else None
    return _packed(field_names(StepRecord), columns, rows)


def device_columns(device: Means, host: Means, numbers: FloatArray) -> Columns:
    """Fields of DeviceRecord, for the rows that the host has, too."""
    rows = np.intersect1d(_rows(device, numbers), _rows(host, numbers))
    if not len(rows):
        return Columns({})
    length = len(device.steps)
    columns: dict[str, FloatArray | None] = {
        f"{name}_ns": _or_zero(device.of("phase", name), length) for name in _DEVICE_ALWAYS
    }
    columns["inner_wait_ns"] = device.of("phase", "inner_wait")
    columns["bubble_ns"] = device.of("phase", "bubble")
    columns["h2d_ns"] = host.where_counted("h2d")
    # What the device did meanwhile is part of "other"; the host's clock says how much of it.
    for name in ("checkpoint", "evaluation"):
        spent = host.of("phase", name)
        if spent is not None:
            columns[f"{name}_ns"] = np.minimum(np.nan_to_num(spent), _or_zero(device.of("phase", "other"), length))
    columns |= {f"lead_{phase}_ns": device.all_steps("lead", phase) for phase in ("forward", "backward")}
    columns["contaminated"] = device.latest("contaminated")
    columns["step"], columns["step_ns"] = numbers, device.step()
    return _packed(field_names(DeviceRecord), columns, rows)


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """What a store says of a process group of a rank."""

    size: int
    kind: GroupKind
    members: str


def group_columns(
    host: Means, device: Means, numbers: FloatArray, groups: Mapping[str, StoredGroup]
) -> dict[str, Columns]:
    """Fields of GroupRecord by group, on the device's clock where there is one."""
    found: dict[str, Columns] = {}
    for means, on_device in ((host, 0.0), (device, 1.0)):
        rows = _rows(means, numbers)
        for name in means.groups() if len(rows) else ():
            columns: dict[str, FloatArray | None] = {
                "step": numbers,
                "count": np.ones(len(numbers)),
                "own_ns": means.of("own", name),
                "wait_ns": means.of("wait", name),
                "on_device": np.full(len(numbers), on_device),
            }
            if (known := groups.get(name)) is not None:
                columns["size"] = np.full(len(numbers), float(known.size))
                columns["group_kind"] = np.full(len(numbers), float(known.kind))
            found[name] = _packed(_GROUP_FIELDS, columns, rows)
    return found
