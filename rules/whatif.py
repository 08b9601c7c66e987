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
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from rankscope.rules.frame import FloatArray
from rankscope.rules.whatif_operations import Operations, OperationsError
from rankscope.rules.whatif_pipeline import BACKWARD, FORWARD, Model, is_communication, model
from rankscope.rules.whatif_replay import replay

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
    #: From a recording of ours: its counters and logs, not this, say why.
    recorded: bool = False
    notes: list[str] = field(default_factory=list)


Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class _Replayer:
    """Replays one model with some of its operations ideal."""

    def __init__(self, of: Model) -> None:
        self.of = of
        nodes = of.operations.nodes
        self.optype = np.array([node.optype for node in nodes])
        self.stage = np.array([node.stage for node in nodes])
        self.ideal = np.zeros(len(nodes))
        for name in np.unique(self.optype):
            values = of.transfer_s[self.optype == name]
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
        return float(
            replay(
                self.of.plan,
                lambda node: np.where(idealised[node][np.newaxis], self.ideal[node], self.of.transfer_s[node]),
            ).mean()
        )

    def only(self, real: Callable[[int], bool]) -> float:
        """Mean step (s) with these nodes as they are and all others ideal."""
        return float(
            replay(
                self.of.plan,
                lambda node: self.of.transfer_s[node] if real(node) else self.ideal[node : node + 1, np.newaxis],
            ).mean()
        )

    def each_rank_alone(self) -> FloatArray:
        """Mean step (s) with one data-parallel rank as it is and all others ideal, by rank.

        Ideal ranks are all alike, so one stands for them: the lanes are (rank, step) and two of them meet in a
        collective, the rank itself and an ideal one.
        """
        transfer = self.of.transfer_s

        def pair(node: int) -> FloatArray:
            own = transfer[node].T
            return np.stack([own, np.full_like(own, self.ideal[node])], axis=-1)

        return np.asarray(replay(self.of.plan, pair).mean(axis=1))

    def share(self, without_s: float) -> float | None:
        """What part of all that is lost comes back; None where nothing is lost."""
        lost = self.actual_s - self.ideal_s
        return (self.actual_s - without_s) / lost if lost > 1e-9 * self.actual_s else None


def slowest_count(workers: int) -> int:
    """How many workers M_W takes: 3 % of them, at least one."""
    return math.ceil(SLOWEST_SHARE * workers)


def whatif(of: Operations, places: Mapping[str, Collection[int]] | None = None) -> WhatIf:
    """Replay these operations and say what slows them; `places` names groups of data-parallel ranks, such as hosts.

    Raises OperationsError.
    """
    built = model(of)
    run = _Replayer(built)
    ranks, stages = len(of.dp_ranks), of.stages
    by_rank = run.each_rank_alone() / run.ideal_s
    by_stage = np.array([run.only(lambda node, s=stage: run.stage[node] == s) for stage in range(stages)]) / run.ideal_s  # type: ignore[misc]
    # A worker is as suspect as the less suspect of its rank and its stage: both must show it.
    score = np.minimum(by_rank[:, np.newaxis], by_stage[np.newaxis])
    order = np.argsort(-score, axis=None, kind="stable")
    slowest = [divmod(int(place), stages) for place in order]
    count = slowest_count(len(slowest))
    chosen = np.zeros((ranks, stages), dtype=bool)
    for dp, stage in slowest[:count]:
        chosen[dp, stage] = True
    step_s = replay(built.plan, lambda node: built.transfer_s[node])
    correlation, spread = _microbatches(of)
    with_delays = replay(built.plan, lambda node: built.transfer_s[node], lambda node: built.delay_s[node])
    last = np.broadcast_to((run.stage == stages - 1)[:, np.newaxis], (len(of.nodes), ranks))
    return WhatIf(
        steps=len(of.steps),
        dp_ranks=ranks,
        stages=stages,
        workers=ranks * stages,
        recorded_ms=float(of.end_s.max(axis=(0, 2)).mean()) * _MS,
        replayed_ms=float(with_delays.mean()) * _MS,
        actual_ms=run.actual_s * _MS,
        ideal_ms=run.ideal_s * _MS,
        slowdown=run.actual_s / run.ideal_s,
        m_w=run.share(run.without(chosen[:, run.stage].T)),
        m_s=run.share(run.without(last)) if stages > 1 else None,
        slowest=[
            _worker(run, dp, stage, float(score[dp, stage]), priced=place < _PRICED)
            for place, (dp, stage) in enumerate(slowest)
        ],
        by_stage={stage: float(value) for stage, value in enumerate(by_stage)},
        by_optype=_by_optype(run),
        optype_ms=_without_optype(run),
        causes=_causes(run),
        correlation=correlation,
        microbatch_spread=spread,
        step_slowdown={step: float(value) for step, value in zip(of.steps, step_s / run.ideal_s, strict=True)},
        by_place={name: _place_price(run, members) for name, members in (places or {}).items()},
        recorded=of.recorded,
        notes=of.notes,
    )


def _place_price(run: _Replayer, members: Collection[int]) -> float:
    of = run.of.operations
    inside = np.array([rank in members for rank in of.dp_ranks])
    return (run.actual_s - run.without(np.broadcast_to(inside, (len(of.nodes), len(of.dp_ranks))))) * _MS


def _worker(run: _Replayer, dp: int, stage: int, slowdown: float, *, priced: bool) -> Worker:
    of = run.of.operations
    price = None
    if priced:
        mask = np.zeros((len(of.nodes), len(of.dp_ranks)), dtype=bool)
        mask[run.stage == stage, dp] = True
        price = (run.actual_s - run.without(mask)) * _MS
    against = {}
    for name in (FORWARD, BACKWARD):
        nodes = (run.optype == name) & (run.stage == stage)
        others = [place for place in range(len(of.dp_ranks)) if place != dp]
        if nodes.any() and others:
            peers = float(np.median(of.duration_s[nodes][:, :, others].mean(axis=(0, 1))))
            if peers > 0:
                against[name] = float(of.duration_s[nodes][:, :, dp].mean()) / peers
    number = of.dp_ranks[dp]
    return Worker(number, stage, of.ranks.get((number, stage)), slowdown, price, against)


def _by_optype(run: _Replayer) -> dict[str, float]:
    found = {}
    for name in np.unique(run.optype):
        real = run.optype == name
        found[str(name)] = run.only(lambda node, mask=real: bool(mask[node])) / run.ideal_s  # type: ignore[misc]
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _without_optype(run: _Replayer) -> dict[str, float]:
    ranks = len(run.of.operations.dp_ranks)
    found = {}
    for name in np.unique(run.optype):
        mask = np.broadcast_to((run.optype == name)[:, np.newaxis], (len(run.optype), ranks))
        found[str(name)] = (run.actual_s - run.without(mask)) * _MS
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
        parts = sorted({(int(s), int(c)) for s, c in zip(run.stage[mine], chunk[mine], strict=True)})
        owns = [mine & (run.stage == stage) & (chunk == part) for stage, part in parts]
        of_workers = [transfer[own].mean(axis=(0, 1), keepdims=True) for own in owns]
        # The lower median: of two ranks the faster one is what the stage can do.
        of_stages = [float(np.quantile(of_worker, 0.5, method="lower")) for of_worker in of_workers]
        usual = float(np.mean(of_stages))
        for own, of_worker, of_stage in zip(owns, of_workers, of_stages, strict=True):
            if of_stage <= 0 or not (of_worker > 0).all():
                continue
            without["worker"][own] = transfer[own] * (of_stage / of_worker)
            without["stage"][own] = transfer[own] * (usual / of_stage)
            without["microbatch"][own] = np.broadcast_to(of_worker, transfer[own].shape)
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
