"""A window as arrays, ranks by steps: what each rank worked itself, what it waited, and how long the step took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.finding import Basis
from rankscope.identity import RankIdentity
from rankscope.records import GroupKind
from rankscope.rules.enqueue_order import enqueue_order
from rankscope.rules.kernel_windows import KernelWindow, kernel_windows
from rankscope.rules.lateness import Ranking
from rankscope.rules.timed_steps import TimedSteps, timed_steps
from rankscope.window import Columns, RankWindow, Window

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
#: Stretches of one host's CLOCK_MONOTONIC, in ns.
Intervals = tuple[tuple[int, int], ...]

NS_PER_MS = 1e6
#: Fields of StepRecord that are moments, not durations.
_MOMENTS = ("start_ns", "end_ns")
#: Parts of a step that are the rank's own, by the fields that hold them. Waiting for peers is in none.
DEVICE_PARTS: Mapping[str, str] = {
    "data_wait": "data_wait_ns",
    "copy": "h2d_ns",
    "forward": "forward_ns",
    "backward": "backward_own_ns",
    "optimizer": "optimizer_ns",
    "other": "other_ns",
}
HOST_PARTS: Mapping[str, str] = {
    "data_wait": "data_wait_ns",
    "copy": "h2d_ns",
    "forward": "forward_ns",
    "backward": "backward_own_ns",
    "optimizer": "optimizer_ns",
    "checkpoint": "checkpoint_ns",
    "evaluation": "evaluation_ns",
    "other": "other_ns",
}
#: Parts in which a device or a core computes.
COMPUTE = ("forward", "backward", "optimizer")
#: Parts that recur every step. The others (checkpoint, evaluation) are stalls and priced as such.
STEADY = (*COMPUTE, "other")
#: Steps that are never judged: allocator, autotuning, lazily made process groups, rebuilt buckets.
WARM_UP_STEPS = 3
#: Leading steps may be this much longer than those after them before they count as warm-up too.
_WARM_UP_FACTOR = 1.5
_WARM_UP_SHARE = 0.1
#: A step that compiled for longer than this share of a usual step is not judged.
_COMPILE_SHARE = 0.05
#: Share of the steps that must have device times before the device's clock is the basis.
_DEVICE_SHARE = 0.6
_MOSTLY = 0.5


def median(values: FloatArray, axis: int = 0) -> FloatArray:
    """Median along an axis without the missing values; NaN where all are missing."""
    ordered = np.sort(values, axis=axis)
    count = np.isfinite(values).sum(axis=axis, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0), axis)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[axis] - 1), axis)
    middle: FloatArray = ((low + high) / 2).squeeze(axis)
    return middle


def middle(values: FloatArray) -> float:
    """Median of all that is there, or NaN."""
    there = values[np.isfinite(values)]
    return float(np.median(there)) if there.size else float("nan")


def mean(values: FloatArray) -> float:
    """Mean of all that is there, or NaN."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else float("nan")


def peers_median(values: FloatArray, roles: IntArray | None = None) -> FloatArray:
    """For each rank and step the median of the other ranks; with `roles`, of those that have the same role."""
    if roles is not None and roles.size and roles.max() > 0:
        result = np.full_like(values, np.nan)
        for role in range(int(roles.max()) + 1):
            rows = np.flatnonzero(roles == role)
            result[rows] = peers_median(values[rows])
        return result
    count = len(values)
    if count < 2:
        return np.full_like(values, np.nan)
    if count > 8:
        # One of many hardly moves the median; leaving each out in turn would cost a sort a rank.
        return np.broadcast_to(median(values), values.shape)
    return np.stack([median(np.delete(values, index, axis=0)) for index in range(count)])


class Frame:
    """The ranks of a window on one axis of steps. Times in ms; missing is NaN.

    Durations are kept as 32-bit numbers (a part in ten million), moments as 64-bit ones: a thousand ranks over an hour
    are dozens of arrays of millions.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.ranks: tuple[int, ...] = tuple(sorted(rank for rank, of in window.ranks.items() if len(of.steps)))
        numbers = [column_of(self.of(index).steps, "step") for index in range(len(self.ranks))]
        self.steps: IntArray = np.unique(np.concatenate(numbers)).astype(np.int64) if numbers else np.zeros(0, np.int64)
        self._places = [np.searchsorted(self.steps, of.astype(np.int64)) for of in numbers]
        self._cache: dict[tuple[str, str], FloatArray] = {}

    def of(self, index: int) -> RankWindow:
        """Everything known of the rank on row `index`."""
        return self.window.ranks[self.ranks[index]]

    def identity(self, index: int) -> RankIdentity:
        """Who the rank on row `index` is."""
        return self.of(index).identity

    @property
    def shape(self) -> tuple[int, int]:
        """Ranks and steps."""
        return len(self.ranks), len(self.steps)

    def host(self, field: str) -> FloatArray:
        """A field of StepRecord, ranks by steps."""
        key = ("host", field)
        if key not in self._cache:
            columns = [column_of(self.of(row).steps, field) for row in range(len(self.ranks))]
            if any(len(column) for column in columns):
                values = np.full(self.shape, np.nan, dtype=np.float64 if field in _MOMENTS else np.float32)
                for row, column in enumerate(columns):
                    if len(column):
                        values[row, self._places[row]] = column
                self._cache[key] = values
            else:
                self._cache[key] = np.broadcast_to(np.float32(np.nan), self.shape)
        return self._cache[key]

    def device(self, field: str) -> FloatArray:
        """A field of DeviceRecord, ranks by steps; steps that the host did not record are left out."""
        key = ("device", field)
        if key not in self._cache:
            self._cache[key] = self._device(field)
        return self._cache[key]

    def _device(self, field: str) -> FloatArray:
        """The same, made anew: for what is kept in another form."""
        columns = [column_of(self.of(row).device, field) for row in range(len(self.ranks))]
        if not any(len(column) for column in columns):
            return np.broadcast_to(np.float32(np.nan), self.shape)
        values = np.full(self.shape, np.nan, dtype=np.float32)
        for row, column in enumerate(columns):
            if len(column):
                places, known = self._device_places[row]
                values[row, places] = column[known]
        return values

    @cached_property
    def _device_places(self) -> list[tuple[IntArray, BoolArray]]:
        """For each row where its device records lie on the axis of steps, and which of them do."""
        found = []
        for row in range(len(self.ranks)):
            numbers = column_of(self.of(row).device, "step").astype(np.int64)
            places = np.minimum(np.searchsorted(self.steps, numbers), max(0, len(self.steps) - 1))
            known = self.steps[places] == numbers if len(numbers) else np.zeros(0, dtype=bool)
            found.append((places[known], known))
        return found

    @cached_property
    def on_device(self) -> bool:
        """Whether the step is told on the device's clock; else the host's must do."""
        seen = np.isfinite(self._device("backward_own_ns"))
        return bool(self.ranks) and bool((seen.mean(axis=1) >= _DEVICE_SHARE).all())

    @property
    def basis(self) -> Basis:
        """What a comparison of own times rests on here."""
        if self.cleaned:
            return Basis.DEVICE_COLLECTIVE
        return Basis.DEVICE_COMPUTE if self.on_device else Basis.HOST

    @cached_property
    def step_ms(self) -> FloatArray:
        """Length of each rank's step."""
        if self.on_device:
            return self._device("step_ns") / NS_PER_MS
        return (self.host("end_ns") - self.host("start_ns")) / NS_PER_MS

    @cached_property
    def timed(self) -> TimedSteps | None:
        """Collectives that the communication library timed, joined over ranks; None where none was."""
        return timed_steps([self.of(row) for row in range(len(self.ranks))], self.steps)

    @cached_property
    def kernel_windows(self) -> list[KernelWindow]:
        """Windows of the profiler that ranks recorded."""
        return kernel_windows(self.window.events)

    def kernel_window(self, rows: Sequence[int], mask: BoolArray) -> KernelWindow | None:
        """The latest one of the ranks on `rows` in the steps of `mask`."""
        rank_rows = {self.ranks[row]: row for row in rows} if self.kernel_windows else {}
        steps = set(self.steps[mask].tolist()) if rank_rows else set()
        for found in reversed(self.kernel_windows):
            if found.rank not in rank_rows:
                continue
            if found.step is not None:
                within = found.step in steps
            else:
                spans = self.intervals(rank_rows[found.rank], mask)
                within = any(begin <= found.time_ns <= end for begin, end in spans)
            if within:
                return found
        return None

    def enqueue_order(self, mask: BoolArray) -> Ranking[int] | None:
        """Whose host enqueued last in the steps of `mask`, as flight recorders tell; None where none was asked then."""
        told = frozenset(self.steps[mask].tolist())
        return enqueue_order([self.of(row) for row in range(len(self.ranks))], told, self.window.clocks)

    @cached_property
    def contaminated(self) -> BoolArray:
        """For each row whether ranks may have waited for each other inside its "own" times, unseen, in most steps."""
        if self.on_device:
            told = self._device("contaminated")
        else:
            told = np.full(self.shape, np.nan, dtype=np.float32)
            for row in range(len(self.ranks)):
                for columns in self.of(row).groups.values():
                    flags = column_of(columns, "contaminated")
                    if np.nanmax(np.nan_to_num(flags), initial=0.0) > 0:
                        told[row] = np.fmax(told[row], middle(flags))
        most: BoolArray = np.nan_to_num(median(told, axis=1)) > _MOSTLY if self.ranks else np.zeros(0, dtype=bool)
        return most

    @cached_property
    def cleaned(self) -> bool:
        """Whether waits inside own times were taken out again, by collectives that the library timed."""
        return bool(self.contaminated.any()) and self.timed is not None and self.timed_share >= _DEVICE_SHARE

    @cached_property
    def timed_share(self) -> float:
        """Share of the usable steps that timed collectives cover."""
        return (
            0.0 if self.timed is None else float(self.timed.covered[self.usable].mean()) if self.usable.any() else 0.0
        )

    @cached_property
    def parts(self) -> dict[str, FloatArray]:
        """The rank's own time by phase, less waits that lie in forward and backward where those are known."""
        parts = self._told_parts()
        if not self.cleaned or self.timed is None:
            return parts
        both = np.nan_to_num(parts["forward"]) + np.nan_to_num(parts["backward"])
        # Waits that the hooks saw are in neither part; the rest of what the library timed may lie in both.
        hidden = np.maximum(0.0, np.nan_to_num(self.timed.wait_ms) - np.nan_to_num(self.wait_ms))
        waited = hidden * self.contaminated[:, np.newaxis]
        with np.errstate(invalid="ignore", divide="ignore"):
            kept = np.where(both > 0, np.clip(1 - waited / both, 0.0, 1.0), 1.0).astype(np.float32)
        for name in ("forward", "backward"):
            parts[name] = parts[name] * kept
        return parts

    def _told_parts(self) -> dict[str, FloatArray]:
        if self.on_device:
            parts = {name: self._device(field) / NS_PER_MS for name, field in DEVICE_PARTS.items()}
            # What the device did meanwhile is part of "other" in its records; it is known, and no work of every step.
            for name in ("checkpoint", "evaluation"):
                parts[name] = self._device(f"{name}_ns") / NS_PER_MS
                parts["other"] = np.maximum(0.0, parts["other"] - np.nan_to_num(parts[name]))
        else:
            parts = {name: self.host(field) / NS_PER_MS for name, field in HOST_PARTS.items()}
            # Where no own backward time is known (no gradient all-reduce), all of backward is the rank's own.
            unknown = np.isnan(parts["backward"])
            whole = self.host("backward_ns") / NS_PER_MS
            parts["backward"] = np.where(unknown, whole, parts["backward"])
        return parts

    def sum_of(self, names: tuple[str, ...]) -> FloatArray:
        """Some parts together; a part that is missing where others are known counts as none."""
        total: FloatArray = np.zeros(self.shape, dtype=np.float32)
        known = np.zeros(self.shape, dtype=bool)
        for name in names:
            if name in self.parts:
                there = np.isfinite(self.parts[name])
                np.add(total, self.parts[name], out=total, where=there)
                known |= there
        total[~known] = np.nan
        return total

    @cached_property
    def own_ms(self) -> FloatArray:
        """All that the rank worked or stalled by itself."""
        return self.sum_of(tuple(self.parts))

    @cached_property
    def steady_ms(self) -> FloatArray:
        """Own work that recurs every step."""
        return self.sum_of(STEADY)

    @cached_property
    def compute_ms(self) -> FloatArray:
        """Own time in forward, backward and optimizer."""
        return self.sum_of(COMPUTE)

    @cached_property
    def wait_ms(self) -> FloatArray:
        """Exposed wait for others."""
        if self.on_device:
            return (self.device("backward_wait_ns") + np.nan_to_num(self.device("inner_wait_ns"))) / NS_PER_MS
        in_backward = self.host("backward_ns") - self.host("backward_own_ns")
        everywhere = self.host("collective_wait_ns")
        return np.where(np.isfinite(everywhere), everywhere, in_backward) / NS_PER_MS

    @cached_property
    def roles(self) -> IntArray:
        """For each row the number of its role: rows of one role do the same work (one stage's copies of one shard)."""
        return numbered([_role(self.of(row)) for row in range(len(self.ranks))])

    @cached_property
    def hosts(self) -> IntArray:
        """For each row the number of its host, in the order of ranks."""
        return numbered([self.identity(row).host for row in range(len(self.ranks))])

    @cached_property
    def stages(self) -> IntArray | None:
        """For each row its pipeline stage; None where there is no pipeline."""
        found = [_stage(self.of(row), self.ranks[row]) for row in range(len(self.ranks))]
        known = [stage for stage in found if stage is not None]
        return np.array(known, dtype=np.int64) if found and len(known) == len(found) else None

    @cached_property
    def inner(self) -> IntArray | None:
        """For each row the number of the group it exchanges with inside forward and backward: tensor, else expert."""
        for kind in (GroupKind.TENSOR, GroupKind.EXPERT):
            keys = [group_key(self.of(row), kind) for row in range(len(self.ranks))]
            if all(key is not None for key in keys) and keys:
                return numbered([str(key) for key in keys])
        return None

    def in_group(self, row: int, kind: GroupKind) -> int:
        """Size of the row's largest process group of a kind; 0 where it has none."""
        sizes = [
            middle(column_of(columns, "size"))
            for columns in self.of(row).groups.values()
            if kind_of_group(columns) == kind and len(columns)
        ]
        return int(max(sizes, default=0))

    @cached_property
    def job_ms(self) -> FloatArray:
        """Length of the job's step: the median over its ranks, which a collective makes alike."""
        return median(self.step_ms)

    @cached_property
    def usable(self) -> BoolArray:
        """Steps that may be judged: neither warm-up nor compiling."""
        job = self.job_ms
        usable = np.isfinite(job)
        usable[: self._warm_up(job)] = False
        compiled = np.nanmax(np.nan_to_num(self.host("compile_ns")), axis=0, initial=0.0) / NS_PER_MS
        busy = compiled > _COMPILE_SHARE * middle(job)
        if busy.mean() < 0.5:
            usable &= ~busy
        return usable

    @staticmethod
    def _warm_up(job: FloatArray) -> int:
        ahead = min(WARM_UP_STEPS, len(job))
        limit = max(ahead, int(len(job) * _WARM_UP_SHARE))
        while ahead < limit and middle(job[ahead : ahead + 3]) > _WARM_UP_FACTOR * middle(job[ahead + 3 : ahead + 23]):
            ahead += 1
        return ahead

    @cached_property
    def typical_ms(self) -> float:
        """The job's usual step."""
        return middle(self.job_ms[self.usable])

    def intervals(self, index: int, mask: BoolArray) -> Intervals:
        """When, on its own host's clock, the rank on row `index` ran the steps of `mask`."""
        begin, end = self.host("start_ns")[index], self.host("end_ns")[index]
        chosen = mask & np.isfinite(begin) & np.isfinite(end)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], chosen, [False])).astype(np.int8)))
        return tuple(
            (int(begin[first]), int(end[last - 1])) for first, last in zip(edges[::2], edges[1::2], strict=True)
        )


def kind_of_group(columns: Columns) -> int:
    """What a process group is for, by its records: one of GroupKind."""
    kinds = columns.columns.get("group_kind")
    return int(kinds[0]) if kinds is not None and len(kinds) and kinds[0] == kinds[0] else GroupKind.UNKNOWN


def group_key(of: RankWindow, kind: GroupKind) -> str | None:
    """What names a rank's group of a kind: its members where they were told, else its name; None without one."""
    for name, columns in of.groups.items():
        if kind_of_group(columns) == kind:
            return of.members.get(name) or name
    return None


def _role(of: RankWindow) -> str:
    """Whom a rank shares its role with: the members of its data-parallel group; all where it has no other groups."""
    kinds = {name: kind_of_group(columns) for name, columns in of.groups.items()}
    if not any(kind in (GroupKind.PIPELINE, GroupKind.TENSOR) for kind in kinds.values()):
        return ""
    copies = [name for name, kind in kinds.items() if kind in (GroupKind.DATA, GroupKind.SHARD)]
    if not copies:
        return str(of.identity.rank)
    return of.members.get(copies[0]) or copies[0]


def _stage(of: RankWindow, rank: int) -> int | None:
    for name, columns in of.groups.items():
        if kind_of_group(columns) == GroupKind.PIPELINE:
            members = ranks_of(of.members.get(name, ""))
            return members.index(rank) if rank in members else None
    return None


def ranks_of(text: str) -> list[int]:
    """Ranks of a text like "0-3,8"; what was cut off at its end is left out."""
    ranks: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            ranks += range(int(first), int(last or first) + 1)
    return ranks


def numbered(keys: list[str]) -> IntArray:
    """For each key its number among the distinct ones, in their order."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def column_of(columns: Columns, field: str) -> FloatArray:
    """A field as an array; empty where there is none."""
    values = columns.columns.get(field)
    return np.frombuffer(values, dtype=values.typecode) if values is not None and len(values) else np.zeros(0)
