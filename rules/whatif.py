"""What-if over operations: how slow the job is against its own ideal, and what would give the time back.

S = T / T_ideal, where every operation of the ideal takes what its kind takes on average: the mean for computation, the
median for communication. M_W = (T - T_without the slowest 3 % of workers) / (T - T_ideal); M_S the same for the last
stage. The definitions are those of Lin et al., "Understanding Stragglers in Large Model Training Using What-if
Analysis", OSDI 2025.

A computation's duration is also split into factors - its stage, its worker within the stage, the microbatch - and each
is taken out alone: what comes back is the share of that cause, whichever other causes there are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rankscope.rules.frame import FloatArray, IntArray
from rankscope.rules.whatif_chunks import BACKWARD, FORWARD
from rankscope.rules.whatif_operations import Operations, OperationsError
from rankscope.rules.whatif_pipeline import Model, is_communication, model
from rankscope.rules.whatif_replay import ends_of, replay

#: Share of workers that are idealised for M_W.
SLOWEST_SHARE = 0.03
#: Workers whose price is replayed one by one; the others have the score that chose these.
_PRICED = 16
_MS = 1e3


@dataclass(frozen=True, slots=True)
class Worker:
    """One (data-parallel rank, stage)."""

    dp_rank: int
    stage: int
    rank: int | None
    #: The ideal job with this worker's rank and stage as they are, against the ideal job.
    slowdown: float
    #: ms a step that come back if it were like its peers; None where it was not replayed.
    ms_per_step: float | None
    #: How much longer than its stage's peers it computes, by operation type.
    against_peers: dict[str, float]

    @property
    def over_peers(self) -> float:
        """The most that it computes longer than its peers; 1 where it has none."""
        return max(self.against_peers.values(), default=1.0)


@dataclass(frozen=True, slots=True)
class Cause:
    """One way of being slow, and what comes back when it alone is taken away."""

    kind: str
    share: float
    ms_per_step: float


@dataclass(slots=True)
class WhatIf:
    """The answer. Times are ms a step, means over the steps that were replayed."""

    steps: int
    dp_ranks: int
    stages: int
    workers: int
    #: As the operations say, as the model replays them with and without their launch delays, and the ideal.
    recorded_ms: float
    replayed_ms: float
    actual_ms: float
    ideal_ms: float
    slowdown: float
    m_w: float | None
    m_s: float | None
    #: Slowest first.
    slowest: list[Worker]
    #: Slowdown if one stage, or one operation type, were as it is and all else ideal.
    by_stage: dict[int, float]
    by_optype: dict[str, float]
    #: ms a step that come back with one operation type ideal.
    optype_ms: dict[str, float]
    #: Dearest first.
    causes: list[Cause]
    #: How forward and backward go together over the microbatches of a worker; None with too few of them.
    correlation: float | None
    #: Spread of computation over the microbatches of a worker (standard deviation by mean).
    microbatch_spread: float
    step_slowdown: dict[int, float]
    #: ms a step that come back with all workers of a place (a host) ideal, where places were given.
    by_place: dict[str, float] = field(default_factory=dict)
    #: ms a step that come back with one stage, or the exchanges of one process group, ideal; the latter of recordings.
    stage_ms: dict[int, float] = field(default_factory=dict)
    by_group: dict[str, float] = field(default_factory=dict)
    #: As M_W, but of those workers that compute longest against their stage's others, which need not be the slowest
    #: by rank and stage; None where nothing is lost or there are no others.
    m_longest: float | None = None
    #: How far workers of a stage lie apart for how much their own operations scatter: the F statistic; None where
    #: there is nothing to compare.
    workers_apart: float | None = None
    #: From a recording of ours: its counters and logs, not this, say why.
    recorded: bool = False
    notes: list[str] = field(default_factory=list)


Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class _Replayer:
    """Replays one model with some of its operations ideal."""

    def __init__(self, of: Model) -> None:
        self.of = of
        nodes = of.operations.nodes
        lanes = of.operations.lane_stages
        self.optype = np.array([node.optype for node in nodes])
        self.shape = (len(nodes), len(of.operations.dp_ranks))
        #: Stage of each operation, node x data-parallel rank.
        own = np.array([node.stage for node in nodes])[:, np.newaxis] if lanes is None else lanes[np.newaxis]
        self.stage = np.broadcast_to(own, self.shape)
        self.ideal = np.zeros(len(nodes))
        for name in np.unique(self.optype):
            values = (of.transfer_s if of.well_s is None else of.well_s)[self.optype == name]
            self.ideal[self.optype == name] = np.median(values) if is_communication(str(name)) else values.mean()
        self.actual_s = self.mean(of.transfer_s)
        self.ideal_s = float(replay(of.plan, lambda node: self.ideal[node : node + 1])[()].item())
        if self.ideal_s <= 0:
            raise OperationsError("the ideal job takes no time: half of its operations have no duration")

    def mean(self, durations_s: FloatArray) -> float:
        """Mean step (s) with these durations."""
        return float(replay(self.of.plan, lambda node: durations_s[node]).mean())

    def without(self, idealised: Mask) -> float:
        """Mean step (s) with the operations of the mask (node x data-parallel rank) ideal."""
        return float(replay(self.of.plan, lambda node: self._mixed(node, idealised[node])).mean())

    def only(self, real: Mask) -> float:
        """Mean step (s) with the operations of the mask as they are and all others ideal."""
        return self.without(~real)

    def of_optype(self, name: str) -> Mask:
        """All operations of one type."""
        return np.broadcast_to((self.optype == name)[:, np.newaxis], self.shape)

    def _mixed(self, node: int, ideal: Mask) -> FloatArray:
        own: FloatArray = self.of.transfer_s[node]
        if ideal.all():
            return np.asarray(self.ideal[node : node + 1, np.newaxis])
        return np.where(ideal[np.newaxis], self.ideal[node], own) if ideal.any() else own

    def each_rank_alone(self) -> FloatArray:
        """Mean step (s) with one data-parallel rank as it is and all others ideal, by rank."""
        return self._each_of_a_copy() if self.of.replica is not None else self._each_with_an_ideal_one()

    def _each_with_an_ideal_one(self) -> FloatArray:
        """Ideal ranks are all alike, so one stands for them: the lanes are (rank, step) and two of them meet in a
        collective, the rank itself and an ideal one."""
        transfer = self.of.transfer_s

        def pair(node: int) -> FloatArray:
            own = transfer[node].T
            return np.stack([own, np.full_like(own, self.ideal[node])], axis=-1)

        return np.asarray(replay(self.of.plan, pair).mean(axis=1), dtype=np.float64)

    def _each_of_a_copy(self) -> FloatArray:
        """Ranks of one copy of the model one after the other, those of all copies at once: up to the exchange in which
        all meet, which is the last operation, copies do not feel each other."""
        replica = self.of.replica
        assert replica is not None
        order = np.argsort(replica, kind="stable")
        begins = np.searchsorted(replica[order], np.arange(int(replica.max()) + 1))
        place = np.empty(len(replica), dtype=np.int64)
        place[order] = np.arange(len(replica)) - begins[replica[order]]
        found = np.zeros(len(replica))
        for number in range(int(place.max()) + 1):
            real = np.broadcast_to(place == number, self.shape)
            ends = ends_of(self.of.plan, lambda node, real=real: self._mixed(node, ~real[node]))  # type: ignore[misc]
            arrived = np.broadcast_to(ends[-2], (len(self.of.operations.steps), len(replica)))
            slowest = np.maximum.reduceat(arrived[:, order], begins, axis=1)
            latest = np.maximum(slowest + self.ideal[-1], self.ideal_s).mean(axis=0)
            found[place == number] = latest[replica[place == number]]
        return found

    def share(self, without_s: float) -> float | None:
        """What part of all that is lost comes back; None where nothing is lost."""
        lost = self.actual_s - self.ideal_s
        return (self.actual_s - without_s) / lost if lost > 1e-9 * self.actual_s else None


def slowest_count(workers: int) -> int:
    """How many workers M_W takes: 3 % of them, at least one."""
    return math.ceil(SLOWEST_SHARE * workers)


def whatif(of: Operations) -> WhatIf:
    """Replay these operations and say what slows them. Raises OperationsError."""
    return analysed(model(of))


def analysed(
    built: Model,
    places: Mapping[str, Collection[int]] | None = None,
    groups: Mapping[str, tuple[str, Collection[int]]] | None = None,
) -> WhatIf:
    """Replay a model and say what slows it. Raises OperationsError.

    `places` names sets of data-parallel ranks, such as hosts; `groups` process groups: (operation type, ranks).
    """
    of = built.operations
    run = _Replayer(built)
    by_rank = run.each_rank_alone() / run.ideal_s
    by_stage = np.array([run.only(run.stage == stage) for stage in range(of.stages)]) / run.ideal_s
    workers = _workers(run)
    # A worker is as suspect as the less suspect of its rank and its stage: both must show it.
    score = np.minimum(by_rank[workers[:, 0]], by_stage[workers[:, 1]])
    order = np.argsort(-score, kind="stable")
    slowest = [(int(lane), int(stage)) for lane, stage in workers[order]]
    chosen = np.zeros(run.shape, dtype=bool)
    for lane, stage in slowest[: slowest_count(len(slowest))]:
        chosen[:, lane] |= run.stage[:, lane] == stage
    step_s = replay(built.plan, lambda node: built.transfer_s[node])
    correlation, spread = _microbatches(of)
    with_delays = replay(built.plan, lambda node: built.transfer_s[node], lambda node: built.delay_s[node])
    recorded_s = of.end_s.max(axis=(0, 2)) if of.step_s is None else of.step_s
    told = [
        _worker(run, lane, stage, float(score[order[place]]), priced=place < _PRICED)
        for place, (lane, stage) in enumerate(slowest)
    ]
    return WhatIf(
        steps=len(of.steps),
        dp_ranks=len(of.dp_ranks),
        stages=of.stages,
        workers=len(workers),
        recorded_ms=float(recorded_s.mean()) * _MS,
        replayed_ms=float(with_delays.mean()) * _MS,
        actual_ms=run.actual_s * _MS,
        ideal_ms=run.ideal_s * _MS,
        slowdown=run.actual_s / run.ideal_s,
        m_w=run.share(run.without(chosen)),
        m_s=run.share(run.without(run.stage == of.stages - 1)) if of.stages > 1 else None,
        slowest=told,
        by_stage={stage: float(value) for stage, value in enumerate(by_stage)},
        by_optype=_by_optype(run),
        optype_ms=_without_optype(run),
        causes=_causes(run),
        correlation=correlation,
        microbatch_spread=spread,
        step_slowdown={step: float(value) for step, value in zip(of.steps, step_s / run.ideal_s, strict=True)},
        by_place={name: _returned(run, _lanes(run, members)) for name, members in (places or {}).items()},
        stage_ms={stage: _returned(run, run.stage == stage) for stage in range(of.stages)} if of.stages > 1 else {},
        by_group={
            name: _returned(run, run.of_optype(optype) & _lanes(run, members))
            for name, (optype, members) in (groups or {}).items()
        },
        m_longest=_m_longest(run, told),
        workers_apart=_apart(run),
        recorded=of.recorded,
        notes=of.notes,
    )


def longest(workers: Sequence[Worker]) -> list[Worker]:
    """As many workers as M_W takes, those that compute longest against their stage's others."""
    return sorted(workers, key=lambda worker: -worker.over_peers)[: slowest_count(len(workers))]


def _m_longest(run: _Replayer, workers: Sequence[Worker]) -> float | None:
    chosen = np.zeros(run.shape, dtype=bool)
    places = {number: lane for lane, number in enumerate(run.of.operations.dp_ranks)}
    for worker in longest(workers):
        if worker.against_peers:
            lane = places[worker.dp_rank]
            chosen[:, lane] |= run.stage[:, lane] == worker.stage
    return run.share(run.without(chosen)) if chosen.any() else None


def _apart(run: _Replayer) -> float | None:
    """Variance between the workers of a stage against that within them, over forward and backward (Fisher)."""
    between = within = 0.0
    free_between = free_within = 0
    for name in (FORWARD, BACKWARD):
        for stage in range(run.of.operations.stages):
            nodes, lanes = _own(run, run.optype == name, stage)
            if not nodes.size or lanes.size < 2:
                continue
            values = run.of.transfer_s[nodes][:, :, lanes].reshape(-1, lanes.size)
            values = values / values.mean() if values.mean() > 0 else values
            means = values.mean(axis=0)
            between += len(values) * float(((means - means.mean()) ** 2).sum())
            within += float(((values - means) ** 2).sum())
            free_between += lanes.size - 1
            free_within += values.size - lanes.size
    if not free_within or not within:
        return None
    return (between / free_between) / (within / free_within)


def _workers(run: _Replayer) -> IntArray:
    """(place of the data-parallel rank, stage) of every worker, a row each."""
    of = run.of.operations
    if of.lane_stages is not None:
        return np.stack([np.arange(len(of.dp_ranks)), of.lane_stages], axis=1)
    return np.stack(np.divmod(np.arange(len(of.dp_ranks) * of.stages), of.stages), axis=1)


def _lanes(run: _Replayer, members: Collection[int]) -> Mask:
    inside = np.array([rank in members for rank in run.of.operations.dp_ranks])
    return np.broadcast_to(inside, run.shape)


def _returned(run: _Replayer, idealised: Mask) -> float:
    """ms a step that come back with these operations ideal."""
    return (run.actual_s - run.without(idealised)) * _MS


def _worker(run: _Replayer, lane: int, stage: int, slowdown: float, *, priced: bool) -> Worker:
    of = run.of.operations
    price = None
    if priced:
        mine = run.stage == stage
        price = _returned(run, mine & (np.arange(len(of.dp_ranks)) == lane))
    against = {}
    for name in (FORWARD, BACKWARD):
        nodes, peers = _own(run, run.optype == name, stage)
        peers = peers[peers != lane]
        if nodes.size and peers.size:
            usual = float(np.median(of.duration_s[nodes][:, :, peers].mean(axis=(0, 1))))
            if usual > 0:
                against[name] = float(of.duration_s[nodes][:, :, lane].mean()) / usual
    number = of.dp_ranks[lane]
    return Worker(number, stage, of.ranks.get((number, stage)), slowdown, price, against)


def _own(run: _Replayer, chosen: Mask, stage: int) -> tuple[IntArray, IntArray]:
    """(nodes, places of data-parallel ranks) of those operations that a stage has."""
    inside = chosen[:, np.newaxis] & (run.stage == stage)
    return np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))


def _by_optype(run: _Replayer) -> dict[str, float]:
    found = {str(name): run.only(run.of_optype(str(name))) / run.ideal_s for name in np.unique(run.optype)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _without_optype(run: _Replayer) -> dict[str, float]:
    found = {str(name): _returned(run, run.of_optype(str(name))) for name in np.unique(run.optype)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _causes(run: _Replayer) -> list[Cause]:
    """Factors of computation, and communication, each taken out alone."""
    of, transfer = run.of.operations, run.of.transfer_s
    chunk = np.array([node.chunk for node in of.nodes])
    without = {name: transfer.copy() for name in ("worker", "stage", "microbatch", "communication")}
    for name in np.unique(run.optype):
        mine = run.optype == name
        if is_communication(str(name)):
            without["communication"][mine] = run.ideal[mine][:, np.newaxis, np.newaxis]
            continue
        # A chunk is a stage's share of the model: with virtual stages a stage has several.
        parts = [(stage, int(part)) for part in np.unique(chunk[mine]) for stage in range(of.stages)]
        owns = [each for stage, part in parts if (each := _own(run, mine & (chunk == part), stage))[0].size]
        cells = [np.ix_(nodes, np.arange(len(of.steps)), lanes) for nodes, lanes in owns]
        of_workers = [transfer[cell].mean(axis=(0, 1), keepdims=True) for cell in cells]
        # The lower median: of two ranks the faster one is what the stage can do.
        of_stages = [float(np.quantile(of_worker, 0.5, method="lower")) for of_worker in of_workers]
        usual = float(np.mean(of_stages))
        for cell, of_worker, of_stage in zip(cells, of_workers, of_stages, strict=True):
            if of_stage <= 0 or not (of_worker > 0).all():
                continue
            without["worker"][cell] = transfer[cell] * (of_stage / of_worker)
            without["stage"][cell] = transfer[cell] * (usual / of_stage)
            without["microbatch"][cell] = np.broadcast_to(of_worker, transfer[cell].shape)
    causes = []
    for kind, durations in without.items():
        gain = run.actual_s - run.mean(durations)
        share = run.share(run.actual_s - gain)
        if share is not None:
            causes.append(Cause(kind, share, gain * _MS))
    return sorted(causes, key=lambda cause: -cause.share)


def _microbatches(of: Operations) -> tuple[float | None, float]:
    """(correlation of forward and backward over the microbatches of a worker and step, spread of their durations)."""
    pairs: dict[tuple[int, int, int], list[int | None]] = {}
    seen: dict[tuple[int, int, str], int] = {}
    for place, node in enumerate(of.nodes):
        if node.optype in (FORWARD, BACKWARD):
            # The k-th of a chunk, forward or backward, is the same microbatch.
            key = (node.stage, node.chunk, node.optype)
            number = seen[key] = seen.get(key, -1) + 1
            pairs.setdefault((node.stage, node.chunk, number), [None, None])[int(node.optype == BACKWARD)] = place
    both = [(f, b) for f, b in pairs.values() if f is not None and b is not None]
    if not both:
        return None, 0.0
    forward, backward = (_relative(of, [pair[side] for pair in both]) for side in (0, 1))
    spread = float(np.std(backward))
    if forward.size < 8 or float(np.std(forward)) < 1e-6 or spread < 1e-6:
        return None, spread
    return float(np.corrcoef(forward.reshape(-1), backward.reshape(-1))[0, 1]), spread


def _relative(of: Operations, nodes: list[int]) -> FloatArray:
    """Durations against the mean of their worker and step, so that neither a slow worker nor a slow step shows."""
    values = of.duration_s[nodes]
    groups: dict[tuple[int, int], list[int]] = {}
    for place, node in enumerate(nodes):
        groups.setdefault((of.nodes[node].stage, of.nodes[node].chunk), []).append(place)
    relative = np.zeros_like(values)
    for places in groups.values():
        own = values[places]
        mean = own.mean(axis=(0, 1) if len(places) < 2 else 0, keepdims=True)
        relative[places] = own / np.where(mean > 0, mean, 1.0) - 1.0
    return relative
