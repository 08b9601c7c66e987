"""Clocks of several hosts in one window: what their wall clocks are apart by, told by the steps in which ranks met."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from rankscope.offset import ClockOffset, Operations, Stay, offset_between
from rankscope.records import GroupKind
from rankscope.window import Columns, HostClock, RankWindow

#: Steps at each end of what is recorded that are looked at: two stretches tell how far clocks drift in between.
_STRETCH_STEPS = 256
#: Pairs of ranks that are tried until one tells.
_PAIRS = 16
#: A rank stamps the end of its own work after it handed over the last bucket: this much later at most, but for a
#: scheduler that takes it off its core just there.
_STAMP_NS = 1_000_000
_AVERAGING = (GroupKind.UNKNOWN, GroupKind.DATA, GroupKind.SHARD)
_WORLD = "world"


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of a host's clock before ranks are asked: all of it is in its recording."""

    host: str
    boot_id: str
    #: Largest error of its wall clock; None where nothing disciplines it, or nobody could ask.
    wall_error_ns: int | None


def host_clock(first: Told, other: Told, mine: Mapping[int, RankWindow], theirs: Mapping[int, RankWindow]) -> HostClock:
    """How the other host's clock stands to the first one's. Times of both are on one clock already, as far as known.

    Where bounds from operations rule out that they agree, or nothing else says how well they do, operations decide.
    """
    one_kernel = bool(other.boot_id) and first.boot_id == other.boot_id
    errors = (first.wall_error_ns, other.wall_error_ns)
    known_ns = 0 if one_kernel else None if None in errors else sum(error for error in errors if error is not None)
    found = _offset(mine, theirs)
    source = "one kernel" if one_kernel else "wall clocks"
    if found is None:
        return HostClock(other.host, 0, known_ns, None, source, 0)
    offset, exact = found
    error_ns = offset.error_ns if exact else offset.bound_ns
    agree = offset.low_ns <= 0 <= offset.high_ns
    if agree and known_ns is not None and known_ns <= error_ns:
        return HostClock(other.host, 0, known_ns, offset.bound_ns, source, offset.operations)
    return HostClock(other.host, offset.estimate_ns, error_ns, offset.bound_ns, "collectives", offset.operations)


def _offset(mine: Mapping[int, RankWindow], theirs: Mapping[int, RankWindow]) -> tuple[ClockOffset, bool] | None:
    """The offset by the first pair of ranks that tells, and whether it was told by moments of leaving."""
    for this, other in islice(product(sorted(mine), sorted(theirs)), _PAIRS):
        group = _common(mine[this], theirs[other])
        if group is None:
            continue
        stays = [_stays(of, group) for of in (mine[this], theirs[other])]
        if group == _WORLD and not all(of.exact for of in stays):
            # Nothing says that they met at all.
            continue
        common = sorted(stays[0].operations.keys() & stays[1].operations.keys())
        stretches = [common[:_STRETCH_STEPS], common[-_STRETCH_STEPS:]] if len(common) > _STRETCH_STEPS else [common]
        found = [
            offset_between(*({key: of.operations[key] for key in stretch} for of in stays)) for stretch in stretches
        ]
        told = [each for each in found if each is not None]
        if len(told) == len(found):
            return _over(told), stays[0].exact and stays[1].exact
    return None


def _over(told: Sequence[ClockOffset]) -> ClockOffset:
    """One offset for the whole of a window whose ends differ by what the clocks drifted apart meanwhile."""
    if len(told) == 1:
        return told[0]
    first, last = told
    middle = (first.estimate_ns + last.estimate_ns) // 2
    drifted = abs(last.estimate_ns - first.estimate_ns) // 2
    return ClockOffset(
        middle,
        min(first.low_ns, last.low_ns),
        max(first.high_ns, last.high_ns),
        first.operations + last.operations,
        max(first.spread_ns, last.spread_ns) + drifted,
    )


def _common(this: RankWindow, other: RankWindow) -> str | None:
    """A group in which every member waits for the last and that both ranks are in; None where there is none."""
    for name in this.groups.keys() & other.groups.keys():
        kind = this.groups[name].columns.get("group_kind")
        members = this.members.get(name, "")
        if (kind is None or not len(kind) or math.isnan(kind[0]) or int(kind[0]) in _AVERAGING) and (
            members == other.members.get(name, "")
        ):
            return name
    return None if this.groups or other.groups else _WORLD


@dataclass(frozen=True, slots=True)
class _Stays:
    operations: Operations
    #: Whether moments of leaving are known, and not only the step that they lie in.
    exact: bool


def _stays(of: RankWindow, group: str) -> _Stays:
    """When a rank was in the step's last meeting: from its own times of the step."""
    steps = of.steps
    start, end = _column(steps, "start_ns"), _column(steps, "end_ns")
    optimizer, numbers = np.nan_to_num(_column(steps, "optimizer_ns")), _column(steps, "step")
    before = sum(np.nan_to_num(_column(steps, f"{name}_ns")) for name in ("data_wait", "forward"))
    backward, own = _column(steps, "backward_ns"), _column(steps, "backward_own_ns")
    if len(of.device):
        left, entered, slack, exact = _on_device(of, end, numbers)
    elif np.isfinite(own).mean() > 0.5:
        left = start + before + backward
        entered = left - (backward - own)
        # What else is in the step may have come before or after: that much the moments are uncertain by.
        slack = np.maximum(0.0, end - optimizer - left) + _STAMP_NS
        exact = True
    else:
        left, entered, slack, exact = end, start, np.zeros(len(start)), False
    met = set(of.groups[group].columns["step"]) if group in of.groups else None
    found = {
        (group, int(number)): Stay(int(begin), int(finish), int(loose))
        for number, begin, finish, loose in zip(numbers, entered, left, slack, strict=True)
        if math.isfinite(begin + finish + loose) and (met is None or number in met)
    }
    return _Stays(found, exact)


def _on_device(
    of: RankWindow, end: NDArray[np.float64], numbers: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], bool]:
    """The same on a device that runs behind its host: as far behind as it was last seen, above the nearest it came.

    Where it never caught up with its host that nearest is not known; it is less than a step or two.
    """
    device = of.device
    places = {number: place for place, number in enumerate(_column(device, "step"))}
    chosen = np.array([places.get(number, -1) for number in numbers])

    def of_step(name: str) -> NDArray[np.float64]:
        values = np.nan_to_num(_column(device, name))
        return np.where(chosen >= 0, values[chosen], np.nan)

    left = end + of_step("lead_end_ns") - of_step("optimizer_ns") - of_step("other_ns")
    drained = np.nansum(_column(device, "drained")) > 0
    slack = np.full(len(end), float(_STAMP_NS) if drained else 2 * float(np.nanmedian(_column(device, "step_ns"))))
    return left, left - of_step("backward_wait_ns"), slack, bool(drained)


def _column(columns: Columns, name: str) -> NDArray[np.float64]:
    values = columns.columns.get(name)
    if values is None or not len(values):
        return np.full(len(columns), np.nan)
    return np.array(values, dtype=np.float64)


def clock_lines(clocks: Iterable[HostClock]) -> list[str]:
    """What a person should know of clocks that cannot be trusted, one line each."""
    lines = []
    for clock in clocks:
        if clock.error_ns is None:
            lines.append(f"clock of {clock.host}: nothing says how well it agrees with the others'")
        elif clock.source == "steps":
            ahead, error = f"{clock.correction_ns / 1e9:+.1f} s", f"{clock.error_ns / 1e9:g} s"
            lines.append(f"clock of {clock.host}: it was {ahead} off; its steps set it right to within {error}")
        elif clock.source == "collectives" and abs(clock.correction_ns) > max(clock.error_ns, 100_000_000):
            ahead, error = f"{clock.correction_ns / 1e9:+.3f} s", f"{clock.error_ns / 1e6:.1f} ms"
            lines.append(f"clock of {clock.host}: it was {ahead} off; collectives set it right to within {error}")
    return lines
