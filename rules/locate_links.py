"""A slow link of one rank, where process groups cross: all of its groups exchange slowly, and no group without it does.

A rank waits in a collective for those who come later, and for the transfer. The least wait of a group's members is at
most the transfer; groups of one kind do alike work, so those of their transfers that take longer cross a slow link. In
one group alone nothing tells whose link it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rankscope.records import GroupKind
from rankscope.rules.change import LEAST_STEPS, Shift
from rankscope.rules.frame import NS_PER_MS, BoolArray, FloatArray, Frame, column_of, kind_of_group
from rankscope.rules.suspect import Suspect, suspect_of
from rankscope.rules.table import Symptom

#: A group's transfers are slow where they take longer than those of any other group of its kind by this factor: sizes
#: of shards and places in a rack differ by less.
_SLOW = 1.2
#: Share of the steps in which they do.
_STEADY = 0.8
#: Kinds whose groups do alike work; stages of a pipeline hand on what differs.
_ALIKE = (GroupKind.DATA, GroupKind.SHARD, GroupKind.TENSOR, GroupKind.CONTEXT, GroupKind.EXPERT)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows of the members, and the least wait of any of them in each step, ms."""

    rows: frozenset[int]
    least_ms: FloatArray


def slow_links(frame: Frame) -> list[Suspect]:
    """The one rank whose every group exchanges slowly, as far as the device's clock tells waits by group."""
    if frame.shape[0] < 4 or not frame.on_device or int(frame.usable.sum()) < 2 * LEAST_STEPS:
        return []
    excess_ms, slow, clean = 0.0, [], set()
    for kind in _ALIKE:
        groups = list(_groups(frame, kind))
        grown = [_longer(frame, groups, place) for place in range(len(groups))]
        slow += [group.rows for group, more in zip(groups, grown, strict=True) if more > 0]
        clean |= {row for group, more in zip(groups, grown, strict=True) if more == 0 for row in group.rows}
        excess_ms += max(grown, default=0.0)
    common = frozenset.intersection(*slow) - clean if slow else frozenset()
    if len(slow) < 2 or len(common) != 1:
        return []
    mask = frame.usable.copy()
    shift = Shift(
        mask=mask,
        baseline=np.zeros_like(mask),
        excess=excess_ms,
        level=excess_ms,
        begin=int(np.flatnonzero(mask)[0]),
        needed=2 * LEAST_STEPS,
        from_start=True,
    )
    parts = {"transfer": excess_ms}
    suspect = suspect_of(frame, Symptom.TRANSFER_SLOW, tuple(common), shift, parts, excess_ms, located=True)
    return [suspect] if suspect is not None else []


def _groups(frame: Frame, kind: GroupKind) -> Iterator[_Group]:
    """The groups of a kind with two members or more whose waits were told."""
    rows: dict[str, set[int]] = {}
    least: dict[str, FloatArray] = {}
    for row in range(frame.shape[0]):
        of = frame.of(row)
        for name, columns in of.groups.items():
            if kind_of_group(columns) != kind:
                continue
            key = of.members.get(name) or name
            steps, waits_ns = column_of(columns, "step"), column_of(columns, "wait_ns")
            if not len(steps) or len(waits_ns) != len(steps):
                continue
            waits = _waits(frame, steps, waits_ns)
            rows.setdefault(key, set()).add(row)
            least[key] = np.fmin(least[key], waits) if key in least else waits
    for key, members in rows.items():
        if len(members) > 1:
            yield _Group(frozenset(members), least[key])


def _waits(frame: Frame, steps: FloatArray, waits_ns: FloatArray) -> FloatArray:
    found = np.full(frame.shape[1], np.nan)
    places = np.minimum(np.searchsorted(frame.steps, steps.astype(np.int64)), len(frame.steps) - 1)
    known = frame.steps[places] == steps
    found[places[known]] = waits_ns[known] / NS_PER_MS
    return found


def _longer(frame: Frame, groups: list[_Group], place: int) -> float:
    """ms a step by which a group's transfers take longer than the quickest other group's, 0 where they do not."""
    if len(groups) < 2:
        return 0.0
    others = np.stack([group.least_ms for number, group in enumerate(groups) if number != place])
    usable: BoolArray = frame.usable
    with np.errstate(all="ignore"):
        usual = np.fmin.reduce(others)[usable]
        own = groups[place].least_ms[usable]
        slow = own >= _SLOW * usual
    there = np.isfinite(own) & np.isfinite(usual)
    if int(there.sum()) < 2 * LEAST_STEPS or float(slow[there].mean()) < _STEADY:
        return 0.0
    return max(0.0, float(np.median(own[there]) - np.median(usual[there])))
