"""What a suspect costs: the steps replayed with its excess taken away, and everything else as it was.

By the dependency model of a step (whatif_groups): ranks that share layers or stages meet inside a copy of the model,
the copies meet once a step. A suspect on few ranks is replayed within its own copies and held against the latest of the
others, so that its price does not grow with the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from rankscope.rules.frame import BoolArray, FloatArray, Frame, IntArray
from rankscope.rules.whatif_groups import Groups, groups_of, inner_wait_ms, layers_ms, step_plan
from rankscope.rules.whatif_replay import ends_of

#: Values that are replayed at once: some megabytes an array.
_VALUES = 500_000


class Prices:
    """Prices suspects of one frame. Times are ms."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    @cached_property
    def groups(self) -> Groups:
        """Who waits for whom."""
        return groups_of(self.frame)

    def returned_ms(
        self,
        mask: BoolArray,
        rows: Sequence[int],
        *,
        layers_ms: FloatArray | float = 0.0,
        rest_ms: FloatArray | float = 0.0,
    ) -> float:
        """ms a step that come back over the steps of `mask` if these ranks worked that much less.

        `layers_ms` is taken from forward and backward, `rest_ms` from all else; ranks (of `rows`) by steps (of `mask`),
        or one number for all. Negative relief costs.
        """
        whole = self._with_their_copies(rows)
        places = np.searchsorted(whole, np.asarray(rows))
        steps = np.flatnonzero(mask)
        others = self._latest_of_others(whole, steps)
        now = np.maximum(others, self._latest[steps])
        lessened = np.full(len(steps), -np.inf)
        size = max(1, _VALUES // max(1, len(whole)))
        for begin in range(0, len(steps), size):
            part = slice(begin, begin + size)
            inside, outside = self._own(whole, steps[part])
            inside[places] -= _part(layers_ms, part)
            outside[places] -= _part(rest_ms, part)
            lessened[part] = self._arrivals(self.groups.on(whole), inside, outside, steps[part], whole).max(axis=0)
        with np.errstate(invalid="ignore"):
            gain = now - np.maximum(others, lessened)
        gain = gain[np.isfinite(gain)]
        return float(gain.mean()) if gain.size else 0.0

    def _with_their_copies(self, rows: Sequence[int]) -> IntArray:
        """These rows and all that share a copy of the model with one of them, in order."""
        if self.groups.plain:
            return np.unique(np.asarray(rows, dtype=np.int64))
        replica = self.groups.replica
        return np.flatnonzero(np.isin(replica, replica[np.asarray(rows)]))

    def _own(self, rows: IntArray, steps: IntArray) -> tuple[FloatArray, FloatArray]:
        """(own time inside the layers, the rest of it) of some rows and steps; minus infinity where none is known."""
        own = self.frame.own_ms[np.ix_(rows, steps)]
        own = np.where(np.isfinite(own), own, -np.inf)
        if self.groups.plain:
            return own, np.zeros_like(own)
        inside = np.nan_to_num(self._layers[np.ix_(rows, steps)])
        return inside, own - inside

    @cached_property
    def _layers(self) -> FloatArray:
        return layers_ms(self.frame)

    @cached_property
    def _inner(self) -> FloatArray:
        return inner_wait_ms(self.frame)

    def _arrivals(
        self, groups: Groups, inside: FloatArray, outside: FloatArray, steps: IntArray, rows: IntArray
    ) -> FloatArray:
        """When each rank is there for the exchange in which all meet."""
        if groups.plain:
            return inside + outside
        durations: list[FloatArray] = [inside.T]
        for place, each in enumerate(groups.inner):
            # Whoever came last waited for nothing but the transfer; one clock does not tell several exchanges apart.
            durations.append(each.least(self._inner[np.ix_(rows, steps)].T) if not place else np.zeros(1))
        if groups.pipeline is not None:
            durations.append(np.zeros(1))
        durations += [outside.T, np.zeros(1)]
        plan = step_plan(groups, 1, 1)
        ends = ends_of(plan, lambda node: durations[node])
        return np.broadcast_to(ends[-2], outside.T.shape).T

    @cached_property
    def _latest(self) -> FloatArray:
        """When the last copy is there, by step."""
        return self._leaders[0]

    @cached_property
    def _leaders(self) -> tuple[FloatArray, IntArray, FloatArray]:
        """By step: when the last copy is there, which it is, and when the last of the others is."""
        count = self.frame.shape[1]
        replica = self.groups.replica
        rows = np.arange(len(replica))
        first, second = np.full(count, -np.inf), np.full(count, -np.inf)
        who = np.zeros(count, dtype=np.int64)
        size = max(1, _VALUES // max(1, len(rows)))
        for begin in range(0, count, size):
            steps = np.arange(begin, min(begin + size, count))
            arrived = self._arrivals(self.groups, *self._own(rows, steps), steps, rows)
            top = np.argmax(arrived, axis=0)
            first[steps] = arrived[top, np.arange(len(steps))]
            who[steps] = replica[top]
            arrived = np.where(replica[:, np.newaxis] == who[steps], -np.inf, arrived)
            second[steps] = arrived.max(axis=0)
        return first, who, second

    def _latest_of_others(self, whole: IntArray, steps: IntArray) -> FloatArray:
        """When the last of all other copies is there; minus infinity where there is none."""
        replica = self.groups.replica
        copies = np.unique(replica[whole])
        if len(copies) == int(replica.max(initial=-1)) + 1:
            return np.full(len(steps), -np.inf)
        first, who, second = self._leaders
        if len(copies) == 1:
            return np.where(who[steps] == copies[0], second[steps], first[steps])
        others = np.flatnonzero(~np.isin(replica, copies))
        found = np.full(len(steps), -np.inf)
        size = max(1, _VALUES // max(1, len(others)))
        for begin in range(0, len(steps), size):
            part = steps[begin : begin + size]
            arrived = self._arrivals(self.groups.on(others), *self._own(others, part), part, others)
            found[begin : begin + size] = arrived.max(axis=0)
        return found


def _part(relief: FloatArray | float, part: slice) -> FloatArray | float:
    if isinstance(relief, np.ndarray) and relief.ndim == 2 and relief.shape[1] > 1:
        return relief[:, part]
    return relief
