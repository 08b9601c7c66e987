"""The dependency model of a step of pipeline-parallel training (faults.md, "What-if"), from the order it ran in.

On each worker computation is one stream, in the order in which it ran; each kind of point-to-point message another,
parameters and gradients one more; what follows the last backward runs in order. A receive is posted once the
computation before the one it feeds has ended, a send once its own has. Between workers: a send with its receive,
data-parallel collectives over the ranks of a stage, the embedding's gradients over first and last stage, gradient
clipping over all.
The order within a pipeline may be any (1F1B, interleaved virtual stages, GPipe): it is read from the operations.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rankscope.rules.frame import FloatArray, IntArray
from rankscope.rules.whatif_chunks import BACKWARD, FORWARD
from rankscope.rules.whatif_operations import Node, Operations, OperationsError
from rankscope.rules.whatif_replay import Schedule, Unit, schedule

GATHER, SCATTER = "params-all-gather", "grads-reduce-scatter"
LATE_GRADIENTS = "separate-grads-all-reduce"
EMBEDDING, CLIP = "embedding-grads-all-reduce", "optimizer-clip-main-grad"
#: Point-to-point messages: (direction, whether it receives).
MESSAGES = {
    "forward-send": (FORWARD, False),
    "forward-recv": (FORWARD, True),
    "backward-send": (BACKWARD, False),
    "backward-recv": (BACKWARD, True),
}
#: Collectives of one stage's data-parallel ranks.
_DATA_PARALLEL = frozenset({GATHER, SCATTER, LATE_GRADIENTS})
#: What runs once a step, behind the last computation.
_AFTER = frozenset({"gc", "layernorm-grads-all-reduce", EMBEDDING, SCATTER, LATE_GRADIENTS, CLIP, "optimizer"})
#: Work of the worker alone that a recording of ours names; it holds up what comes behind it.
_OWN = frozenset({"data-wait", "checkpoint", "evaluation", "other"})
#: Words by which an operation of a name that is not known here is taken for communication.
_COMMUNICATION = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "broadcast", "send", "recv", "barrier")
#: Clocks of two streams agree this well (s).
_CLOCK_S = 5e-5


def is_communication(optype: str) -> bool:
    """Whether an operation moves data (its ideal is the median) rather than computes (the mean)."""
    return optype == CLIP or any(word in optype for word in _COMMUNICATION)


@dataclass(slots=True)
class Model:
    """Operations with their dependencies; `transfer_s` replaces the duration of what runs together."""

    operations: Operations
    plan: Schedule
    #: What each operation takes once everybody is there: node x step x data-parallel rank.
    transfer_s: FloatArray
    #: What passed before each operation though nothing held it.
    delay_s: FloatArray
    #: Of recordings: which copy of the model each lane belongs to; None where every lane is a copy.
    replica: IntArray | None = None
    #: Of recordings: the same operations in steps that were well, from which the ideal is taken; None for these.
    well_s: FloatArray | None = None


def model(of: Operations) -> Model:
    """The dependency model of these operations. Raises OperationsError where they contradict it."""
    builder = _Builder(of)
    units = builder.units()
    plan = schedule(units, builder.depends)
    if isinstance(plan, int):
        node = of.nodes[plan]
        raise OperationsError(f"{node.optype} {node.number} of stage {node.stage} waits for itself: no such schedule")
    transfer, ends = of.duration_s.copy(), of.end_s
    for unit in units:
        if unit.collective:
            members = list(unit.members)
            latest = of.start_s[members].max(axis=0)
            if unit.across:
                latest = latest.max(axis=-1, keepdims=True)
            transfer[members] = np.maximum(0.0, ends[members] - latest)
    return Model(of, plan, transfer, _delays(of, plan, ends))


def _delays(of: Operations, plan: Schedule, ends: FloatArray) -> FloatArray:
    delay = of.start_s.copy()
    for node, before in enumerate(plan.depends):
        if before:
            delay[node] -= ends[list(before)].max(axis=0)
    return np.maximum(0.0, delay)


class _Builder:
    """Dependencies and groups of one step, from the lane that is most usual."""

    def __init__(self, of: Operations) -> None:
        self._of = of
        self._nodes = of.nodes
        # Times of the first lane stand for all; the order of computation is the one most lanes have.
        self._start, self._end = of.start_s[:, 0, 0], of.end_s[:, 0, 0]
        self._last_chunk = max((node.chunk for node in of.nodes), default=-1)
        self.depends: list[list[int]] = [[] for _ in of.nodes]
        self._by_type: list[dict[str, list[int]]] = [defaultdict(list) for _ in range(of.stages)]
        for place, node in sorted(enumerate(of.nodes), key=lambda item: item[1].number):
            self._by_type[node.stage][node.optype].append(place)
        self._pairs: dict[tuple[str, int], list[list[int]]] = defaultdict(lambda: [[], []])
        self._unknown: set[str] = set()
        self._late_gradients = any(node.optype == LATE_GRADIENTS for node in of.nodes)

    def units(self) -> list[Unit]:
        """Fill in `depends` and give the units."""
        if not any(node.optype in (FORWARD, BACKWARD) for node in self._nodes):
            types = ", ".join(sorted({node.optype for node in self._nodes})[:8])
            raise OperationsError(f"has no {FORWARD} or {BACKWARD} operation", todo=f"its operation types are {types}")
        for stage, by_type in enumerate(self._by_type):
            computation = self._computation(by_type)
            self._messages(stage, by_type)
            self._data_parallel(by_type)
            self._after(by_type, computation)
        if self._unknown:
            names = ", ".join(sorted(self._unknown))
            self._of.notes.append(f"replayed in the worker's own order, without peers: {names}")
        return self._groups()

    def _chain(self, nodes: list[int]) -> None:
        for before, after in pairwise(nodes):
            self.depends[after].append(before)

    def _in_order(self, nodes: list[int]) -> list[int]:
        """Nodes by start, in the order that most lanes have."""
        if len(nodes) < 2:
            return nodes
        starts = self._of.start_s[nodes].reshape(len(nodes), -1)
        middles = starts + self._of.duration_s[nodes].reshape(len(nodes), -1) / 2
        # What took no time comes before what began with it.
        orders, count = np.unique(np.lexsort((middles, starts), axis=0), axis=1, return_counts=True)
        usual: IntArray = orders[:, int(np.argmax(count))]
        return [nodes[int(place)] for place in usual]

    def _computation(self, by_type: dict[str, list[int]]) -> list[int]:
        inside = [node for name in (FORWARD, BACKWARD) for node in by_type.get(name, ())]
        last = max((float(self._end[node]) for node in inside), default=0.0)
        for name, nodes in by_type.items():
            if name not in _AFTER and name not in MESSAGES and name not in (FORWARD, BACKWARD, GATHER):
                if name not in _OWN:
                    self._unknown.add(name)
                # In the way of the computation: loading, evaluation, an exchange between experts.
                inside += [node for node in nodes if float(self._start[node]) < last]
        ordered = self._in_order(inside)
        self._chain(ordered)
        return ordered

    def _messages(self, stage: int, by_type: dict[str, list[int]]) -> None:
        """Streams of messages, each tied to the computation that it feeds or that feeds it."""
        for name, (direction, receives) in MESSAGES.items():
            messages = by_type.get(name, [])
            self._chain(messages)
            work = by_type.get(direction, [])
            tied = self._tied(stage, name, messages, work, receives=receives)
            for message, place in tied.items():
                node = work[place]
                if receives:
                    self.depends[node].append(message)
                    if place:
                        self.depends[message].append(work[place - 1])
                else:
                    self.depends[message].append(node)
                if self._alone(self._nodes[node], direction, receives=receives):
                    continue
                ahead = 1 if direction == FORWARD else -1
                boundary = self._nodes[node].chunk - (ahead if receives else 0)
                self._pairs[direction, boundary][int(receives)].append(message)

    def _alone(self, work: Node, direction: str, *, receives: bool) -> bool:
        """Whether nobody is at the other end: before the model's first chunk and behind its last."""
        return work.chunk == (0 if (direction == FORWARD) == receives else self._last_chunk)

    def _tied(self, stage: int, name: str, messages: list[int], work: list[int], *, receives: bool) -> dict[int, int]:
        """Message -> place among the computations of its direction. Messages that were never sent are left out."""
        if not messages or not work:
            return {}
        direction = MESSAGES[name][0]
        alone = [self._alone(self._nodes[node], direction, receives=receives) for node in work]
        needing = [place for place, one in enumerate(alone) if not one]
        for real in (self._real(messages, work, receives=receives), messages):
            if len(real) == len(work):
                return dict(zip(real, range(len(work)), strict=True))
            if len(real) == len(needing):
                return dict(zip(real, needing, strict=True))
            if receives and len(real) == len(work) - 1:
                # The first was not recorded.
                return dict(zip(real, range(1, len(work)), strict=True))
        raise OperationsError(
            f"stage {stage} has {len(messages)} {name} for {len(work)} {direction}",
            todo="a step must hold every message, or none of those that have no peer",
        )

    def _real(self, messages: list[int], work: list[int], *, receives: bool) -> list[int]:
        """Messages less those that some recorders write and nobody sends: received after the last computation has
        begun, sent before the first has ended."""
        if receives:
            last = float(self._start[work].max())
            return [node for node in messages if self._start[node] <= last + _CLOCK_S]
        first = float(self._end[work].min())
        return [node for node in messages if self._end[node] >= first - _CLOCK_S]

    def _data_parallel(self, by_type: dict[str, list[int]]) -> None:
        """Gathered parameters before their chunk's first forward; scattered gradients after its last backward."""
        stream = self._in_order([*by_type.get(GATHER, ()), *by_type.get(SCATTER, ())])
        self._chain(stream)
        for node in self._per_chunk(by_type.get(GATHER, []), by_type.get(FORWARD, []), last=False):
            collective, work = node
            self.depends[work].append(collective)
        if self._late_gradients:
            for collective, work in self._per_chunk(by_type.get(SCATTER, []), by_type.get(BACKWARD, []), last=True):
                self.depends[collective].append(work)

    def _per_chunk(self, collectives: list[int], work: list[int], *, last: bool) -> list[tuple[int, int]]:
        """(collective, computation) of each chunk: the last gather before its first forward, or the first scatter
        after its last backward."""
        if not collectives or not work:
            return []
        ordered = self._in_order(work)
        tied: dict[int, tuple[int, int]] = {}
        for node in collectives if last else reversed(collectives):
            chunk = self._nodes[node].chunk
            own = [place for place in ordered if chunk in (-1, self._nodes[place].chunk)]
            if own and chunk not in tied:
                tied[chunk] = (node, own[-1] if last else own[0])
        return list(tied.values())

    def _after(self, by_type: dict[str, list[int]], computation: list[int]) -> None:
        """What follows the last computation, one after the other in the order in which it ran."""
        elsewhere = {*computation, *(node for name in (GATHER, *MESSAGES) for node in by_type.get(name, ()))}
        if self._late_gradients:
            elsewhere.update(by_type.get(SCATTER, ()))
        after = self._in_order([node for nodes in by_type.values() for node in nodes if node not in elsewhere])
        if not after:
            return
        self._chain(after)
        if computation:
            self.depends[after[0]].append(computation[-1])
        if self._late_gradients and by_type.get(SCATTER):
            self.depends[after[0]].append(self._in_order(by_type[SCATTER])[-1])

    def _groups(self) -> list[Unit]:
        units: list[Unit] = []
        grouped: set[int] = set()

        def add(members: list[int], *, across: bool) -> None:
            units.append(Unit(tuple(members), collective=True, across=across))
            grouped.update(members)

        for (direction, boundary), (sends, receives) in self._pairs.items():
            if len(sends) != len(receives):
                raise OperationsError(
                    f"{len(sends)} sends and {len(receives)} receives of {direction} after model chunk {boundary}",
                    todo="a step must hold both ends of every message",
                )
            for send, receive in zip(sends, receives, strict=True):
                add([send, receive], across=False)
        clip = [node for by_type in self._by_type for node in by_type.get(CLIP, ())]
        if clip:
            add(clip, across=True)
        ends = [self._by_type[stage].get(EMBEDDING, []) for stage in sorted({0, len(self._by_type) - 1})]
        for members in zip(*ends, strict=False):
            add(list(members), across=False)
        for place, node in enumerate(self._nodes):
            if place not in grouped:
                across = node.optype in _DATA_PARALLEL
                message = node.optype in MESSAGES
                units.append(Unit((place,), collective=across or message, across=across))
        return units
