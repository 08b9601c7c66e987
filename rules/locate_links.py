"""A slow link of one rank, where process groups cross: all of its groups exchange slowly, and no group without it does.

A rank waits in a collective for those who come later, and for the transfer. The least wait of a group's members is at
most the transfer; groups of one kind do alike work, so those of their transfers that take longer cross a slow link. In
one group alone nothing tells whose link it is.
"""

from __future__ import annotations

import numpy as np

from rankscope.records import GroupKind
from rankscope.rules.change import LEAST_STEPS, Shift
from rankscope.rules.frame import NS_PER_MS, FloatArray, Frame, column_of, kind_of_group
from rankscope.rules.suspect import Suspect, suspect_of
from rankscope.rules.table import Symptom
from rankscope.window import Columns

#: A group's transfers are slow where they take longer than those of any other group of its kind by this factor: sizes
#: of shards and places in a rack differ by less.
_SLOW = 1.2
#: Share of the steps in which they do.
_STEADY = 0.8
#: Kinds whose groups do alike work; stages of a pipeline hand on what differs.
_ALIKE = (GroupKind.DATA, GroupKind.SHARD, GroupKind.TENSOR, GroupKind.CONTEXT, GroupKind.EXPERT)


def slow_links(frame: Frame) -> list[Suspect]:
    """The one rank whose every group exchanges slowly, as far as the device's clock tells waits by group."""
    if frame.shape[0] < 4 or not frame.on_device or int(frame.usable.sum()) < 2 * LEAST_STEPS:
        return []
    excess_ms = 0.0
    slow: list[frozenset[int]] = []
    clean: set[int] = set()
    for kind in _ALIKE:
        groups = _groups(frame, kind)
        longer = _longer(frame, list(groups.values()))
        slow += [rows for rows, more in zip(groups, longer, strict=True) if more > 0]
        clean |= {row for rows, more in zip(groups, longer, strict=True) if more == 0 for row in rows}
        excess_ms += max(longer, default=0.0)
    common = frozenset.intersection(*slow) - clean if slow else frozenset()
    if len(slow) < 2 or len(common) != 1:
        return []
    shift = Shift.without_past(frame.usable, excess_ms)
    parts = {"transfer": excess_ms}
    suspect = suspect_of(frame, Symptom.TRANSFER_SLOW, tuple(common), shift, parts, excess_ms, located=True)
    return [suspect] if suspect is not None else []


def _groups(frame: Frame, kind: GroupKind) -> dict[frozenset[int], FloatArray]:
    """By the rows of its members, the least wait in ms of each of several groups of a kind, by steps."""
    members: dict[str, list[tuple[int, Columns]]] = {}
    for row in range(frame.shape[0]):
        of = frame.of(row)
        for name, columns in of.groups.items():
            if kind_of_group(columns) == kind and len(column_of(columns, "wait_ns")):
                members.setdefault(of.members.get(name) or name, []).append((row, columns))
    several = [group for group in members.values() if len(group) > 1]
    if len(several) < 2:
        return {}
    found = {}
    for group in several:
        least = np.full(frame.shape[1], np.inf, np.float32)
        for _, columns in group:
            _lower(frame, least, column_of(columns, "step"), column_of(columns, "wait_ns"))
        found[frozenset(row for row, _ in group)] = least
    return found


def _lower(frame: Frame, least: FloatArray, steps: FloatArray, waits_ns: FloatArray) -> None:
    places = np.minimum(np.searchsorted(frame.steps, steps.astype(np.int64)), len(frame.steps) - 1)
    known = (frame.steps[places] == steps) & np.isfinite(waits_ns)
    least[places[known]] = np.minimum(least[places[known]], waits_ns[known] / NS_PER_MS)


def _longer(frame: Frame, least_ms: list[FloatArray]) -> list[float]:
    """ms a step by which each group's transfers take longer than the quickest other group's, 0 where they do not."""
    if not least_ms:
        return []
    least = np.stack(least_ms)[:, frame.usable]
    quickest, next_to = np.partition(least, 1, axis=0)[:2]
    found = []
    for own in least:
        usual = np.where(own == quickest, next_to, quickest)
        there = np.isfinite(own) & np.isfinite(usual)
        mine, theirs = own[there], usual[there]
        steady = len(mine) >= 2 * LEAST_STEPS and float(np.mean(mine >= _SLOW * theirs)) >= _STEADY
        found.append(max(0.0, float(np.median(mine) - np.median(theirs))) if steady else 0.0)
    return found
