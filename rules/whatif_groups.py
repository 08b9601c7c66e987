"""Who waits for whom inside a recorded step: the ranks of a window by their process groups.

Ranks of a tensor-, context- or expert-parallel group meet inside the layers; stages of a pipeline hand microbatches on;
all meet in the exchange of gradients. What ranks do not share a group with within the layers are copies of the model:
one is late, and the others wait for it there only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rankscope.records import GroupKind
from rankscope.rules.frame import NS_PER_MS, FloatArray, Frame, IntArray, group_key, numbered
from rankscope.rules.whatif_replay import Schedule, Unit

#: Kinds of groups whose members meet inside the layers, in the order in which they do.
_INNER = (GroupKind.TENSOR, GroupKind.CONTEXT, GroupKind.EXPERT)
#: Kinds of groups whose members exchange gradients or parameters.
_COPIES = (GroupKind.DATA, GroupKind.SHARD)
#: More microbatches than this change nothing: the slowest stage sets the pace.
_MOST_MICROBATCHES = 512.0


@dataclass(frozen=True, slots=True)
class Partition:
    """All groups of one kind; `of[row]` is the number of the row's group. Values have the ranks on their last axis."""

    kind: GroupKind
    of: IntArray
    #: How each group is called, by number: its members, as the ranks told them.
    names: tuple[str, ...]

    def largest(self, values: FloatArray) -> FloatArray:
        """For each rank the largest value within its group."""
        if len(self.names) == 1 or values.shape[-1] == 1:
            return np.asarray(np.max(values, axis=-1, keepdims=True))
        return np.asarray(np.maximum.reduceat(values[..., self._order], self._begins, axis=-1)[..., self.of])

    def least(self, values: FloatArray) -> FloatArray:
        """For each rank the least value within its group."""
        return -self.largest(-values)

    def total(self, values: FloatArray) -> FloatArray:
        """For each rank the sum over its group."""
        values = np.broadcast_to(values, (*values.shape[:-1], len(self.of)))
        return np.asarray(np.add.reduceat(values[..., self._order], self._begins, axis=-1)[..., self.of])

    def on(self, rows: IntArray) -> Partition:
        """The same groups among some of the rows."""
        kept, dense = np.unique(self.of[rows], return_inverse=True)
        return Partition(self.kind, dense.astype(np.int64), tuple(self.names[number] for number in kept))

    @property
    def _order(self) -> IntArray:
        return np.argsort(self.of, kind="stable")

    @property
    def _begins(self) -> IntArray:
        return np.searchsorted(self.of[self._order], np.arange(len(self.names)))


@dataclass(frozen=True, slots=True)
class Groups:
    """Every kind of group that a window's ranks have, by row."""

    inner: tuple[Partition, ...]
    pipeline: Partition | None
    copies: tuple[Partition, ...]
    #: Pipeline stage of each row; None without a pipeline.
    stage: IntArray | None
    #: Number of the copy of the model that each row belongs to.
    replica: IntArray
    #: Microbatches that a pipeline hands on in a step; infinite where nothing tells.
    microbatches: float

    @property
    def plain(self) -> bool:
        """Whether each rank is a copy of its own: nothing is waited for inside the layers."""
        return not self.inner and self.pipeline is None

    def on(self, rows: IntArray) -> Groups:
        """The groups of some rows, which hold every member of the copies they belong to."""
        return Groups(
            inner=tuple(each.on(rows) for each in self.inner),
            pipeline=None if self.pipeline is None else self.pipeline.on(rows),
            copies=tuple(each.on(rows) for each in self.copies),
            stage=None if self.stage is None else self.stage[rows],
            replica=self.replica[rows],
            microbatches=self.microbatches,
        )

    def pipelined(self, ends: FloatArray) -> FloatArray:
        """When a pipeline is through, from how long each stage computes: filled once, then paced by the slowest stage.

        sum(t) / m + (m - 1) / m x max(t): GPipe and 1F1B over m equal microbatches (Huang et al. 2019).
        """
        chain = self.pipeline
        if chain is None:
            return ends
        share = 1.0 / self.microbatches
        return chain.total(ends) * share + chain.largest(ends) * (1.0 - share)


def groups_of(frame: Frame) -> Groups:
    """The groups of a window, as its ranks told them; a rank that told of none waits for the others at the end only."""
    inner = tuple(each for kind in _INNER if (each := _partition(frame, kind)) is not None)
    pipeline = _partition(frame, GroupKind.PIPELINE)
    copies = tuple(each for kind in _COPIES if (each := _partition(frame, kind)) is not None)
    replica = _replicas(frame.shape[0], [*inner, *([pipeline] if pipeline is not None else [])])
    microbatches = float("inf") if pipeline is None else _microbatches(frame, pipeline)
    return Groups(inner, pipeline, copies, frame.stages, replica, microbatches)


def _replicas(ranks: int, meeting: Sequence[Partition]) -> IntArray:
    """The copy of the model that each row belongs to: rows that share a group with a member of a group, and so on."""
    least: FloatArray = np.arange(ranks, dtype=np.float64)
    changed = bool(meeting)
    while changed:
        before = least
        for each in meeting:
            least = np.broadcast_to(each.least(least), least.shape)
        changed = not np.array_equal(before, least)
    _, dense = np.unique(least, return_inverse=True)
    return dense.astype(np.int64)


def _partition(frame: Frame, kind: GroupKind) -> Partition | None:
    """Groups of one kind; None where no rank shares one with another."""
    keys = [group_key(frame.of(row), kind) for row in range(frame.shape[0])]
    told = [f"rank {frame.ranks[row]}" if key is None else key for row, key in enumerate(keys)]
    of = numbered(told)
    names = tuple(dict.fromkeys(told))
    return Partition(kind, of, names) if len(names) < len(told) else None


def _microbatches(frame: Frame, chain: Partition) -> float:
    """As the ranks counted them; else such that the pipeline's own formula gives the waits that were recorded."""
    counted = frame.host("microbatches")
    known = counted[np.isfinite(counted) & (counted > 0)]
    if known.size:
        return float(np.median(known))
    bubble = (frame.device("bubble_ns") if frame.on_device else frame.host("bubble_ns")) / NS_PER_MS
    if not np.isfinite(bubble).any():
        return float("inf")
    layers = np.nan_to_num(layers_ms(frame) + inner_wait_ms(frame))[:, frame.usable].T
    waited = np.nan_to_num(bubble)[:, frame.usable].T
    slowest, together = chain.largest(layers), chain.total(layers)
    fill = chain.largest(layers + waited) - slowest
    with np.errstate(divide="ignore", invalid="ignore"):
        guess = (together - slowest) / fill
    guess = guess[np.isfinite(guess) & (guess > 0)]
    return float(np.clip(np.median(guess), 1.0, _MOST_MICROBATCHES)) if guess.size else float("inf")


def layers_ms(frame: Frame) -> FloatArray:
    """Own time inside the layers, where groups meet: forward and backward."""
    return frame.sum_of(("forward", "backward"))


def inner_wait_ms(frame: Frame) -> FloatArray:
    """Exposed communication inside the layers; nothing where no clock told it apart."""
    return np.asarray(np.nan_to_num(frame.device("inner_wait_ns")) / NS_PER_MS)


def step_plan(groups: Groups, inside: int, outside: int) -> Schedule:
    """The dependency model of a step: `inside` parts of the layers, the exchanges in them, the pipeline, `outside`
    parts of the step's rest, and the exchange in which all meet. Nodes are numbered in that order.

    The rest of a step (optimizer, loading, checkpoints) lies between two meetings, before or after the layers alike.
    """
    units = [Unit((node,)) for node in range(inside)]
    meetings: list[Callable[[FloatArray], FloatArray]] = [each.largest for each in groups.inner]
    if groups.pipeline is not None:
        meetings.append(groups.pipelined)
    for meets in meetings:
        units.append(Unit((len(units),), collective=True, meets=meets))
    units += [Unit((len(units) + place,)) for place in range(outside)]
    units.append(Unit((len(units),), collective=True, across=True))
    return Schedule(tuple(units), tuple(() if not node else (node - 1,) for node in range(len(units))))
