"""Collectives that the communication library timed on the device, joined over the ranks of a window, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.window import Columns, RankWindow

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
_NS_PER_MS = 1e6
#: Steps with joined collectives that tell who comes last, and the share of its peers' wait that the last one may have.
_LEAST_STEPS = 5
_LAST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class TimedSteps:
    """What the joined collectives of each step say, ms; NaN where none of the step was seen on all of its ranks.

    Where only a sample of the collectives is recorded, waits are those of the sample: compare ranks, not steps.
    """

    #: How long each rank waited in them for the last one, ranks by steps.
    wait_ms: FloatArray
    #: What the transfers of each group took alone, groups by steps: the last one's kernels. Sums of a sample are made
    #: comparable: what a usual step takes, times how much longer those seen took than is usual for their size.
    transfer_ms: FloatArray
    groups: tuple[str, ...]
    #: Rows of the frame that are in each group.
    rows: tuple[tuple[int, ...], ...]

    def last(self, row: int, mask: NDArray[np.bool_]) -> bool | None:
        """Whether the rank on `row` is the one that the others wait for in these steps; None where too few tell."""
        waits = self.wait_ms[:, mask]
        seen = np.isfinite(waits[row])
        if int(seen.sum()) < _LEAST_STEPS:
            return None
        others = np.delete(waits[:, seen], row, axis=0)
        others = others[np.isfinite(others).any(axis=1)]
        if not len(others):
            return None
        own, theirs = float(np.median(waits[row, seen])), float(np.median(np.nanmedian(others, axis=1)))
        return own < _LAST_SHARE * theirs

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Steps of which some collective was joined."""
        covered: NDArray[np.bool_] = np.isfinite(self.transfer_ms).max(axis=0)
        return covered


def timed_steps(ranks: Sequence[RankWindow], steps: IntArray) -> TimedSteps | None:
    """Join them; None where no collective was seen on all of its ranks. `steps` are the frame's, in order."""
    keys = sorted({key for of in ranks for key in of.timed})
    wait = np.full((len(ranks), len(steps)), np.nan)
    groups: dict[str, list[tuple[tuple[int, ...], FloatArray]]] = {}
    for key in keys:
        rows = tuple(row for row, of in enumerate(ranks) if key in of.timed)
        joined = _joined([ranks[row].timed[key] for row in rows])
        if joined is None:
            continue
        numbers, durations, sizes = joined
        places = np.minimum(np.searchsorted(steps, numbers), max(0, len(steps) - 1))
        known = steps[places] == numbers if len(steps) else np.zeros(0, dtype=bool)
        places, durations, sizes = places[known], durations[:, known], sizes[known]
        shortest = durations.min(axis=0, initial=np.inf)
        for row, own in zip(rows, durations, strict=True):
            added = np.zeros(len(steps))
            np.add.at(added, places, (own - shortest) / _NS_PER_MS)
            seen = np.zeros(len(steps), dtype=bool)
            seen[places] = True
            wait[row, seen] = np.nan_to_num(wait[row, seen]) + added[seen]
        groups.setdefault(key[0], []).append((rows, _transfer(shortest, sizes, places, len(steps))))
    if not groups:
        return None
    transfers = [_added([each for _, each in of]) for of in groups.values()]
    return TimedSteps(wait, np.stack(transfers), tuple(groups), tuple(of[0][0] for of in groups.values()))


def _joined(columns: Sequence[Columns]) -> tuple[IntArray, FloatArray, FloatArray] | None:
    """(step, durations by rank, size) of the collectives that all members of the group were seen in."""
    members = int(np.frombuffer(columns[0].columns["ranks"])[0])
    if len(columns) != members or members < 2:
        return None
    numbers = [np.frombuffer(of.columns["sequence"]) for of in columns]
    common, counts = np.unique(np.concatenate([np.unique(each) for each in numbers]), return_counts=True)
    common = common[counts == members]
    if not common.size:
        return None
    places = [np.searchsorted(each, common) for each in numbers]
    told = [np.frombuffer(of.columns["step"])[place] for of, place in zip(columns, places, strict=True)]
    durations = [np.frombuffer(of.columns["duration_ns"])[place] for of, place in zip(columns, places, strict=True)]
    sizes = np.frombuffer(columns[0].columns["size_bytes"])[places[0]]
    # Each rank's agent says in which step it ended, by its own clock: the middle of them is meant.
    return np.round(np.median(told, axis=0)).astype(np.int64), np.stack(durations), sizes


def _transfer(shortest: FloatArray, sizes: FloatArray, places: IntArray, count: int) -> FloatArray:
    """What the transfers of each step took, ms: of a usual step, scaled by those that were seen of this one."""
    usual = np.ones(len(shortest))
    for size in np.unique(sizes):
        usual[sizes == size] = np.median(shortest[sizes == size])
    longer, total, number = np.zeros(count), np.zeros(count), np.zeros(count)
    np.add.at(longer, places, shortest / usual)
    np.add.at(total, places, shortest / _NS_PER_MS)
    np.add.at(number, places, 1.0)
    seen = number > 0
    transfer = np.full(count, np.nan)
    if seen.any():
        transfer[seen] = longer[seen] / number[seen] * np.median(total[seen])
    return transfer


def _added(parts: Sequence[FloatArray]) -> FloatArray:
    """Sum of what is known; NaN where nothing is."""
    total: FloatArray = np.where(
        np.any([np.isfinite(part) for part in parts], axis=0),
        np.sum([np.nan_to_num(part) for part in parts], axis=0),
        np.nan,
    )
    return total
