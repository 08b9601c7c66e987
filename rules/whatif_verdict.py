"""What a what-if analysis means, in words: few slow workers, a heavy stage, uneven sequences, or communication."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.finding import Pattern
from rankscope.rules.whatif import Cause, WhatIf, Worker, longest, slowest_count
from rankscope.rules.whatif_pipeline import is_communication

#: Below this slowdown there is no straggler to speak of: a replay reproduces steps to within 5 % (the same study leaves
#: out jobs that it does not).
LEAST_SLOWDOWN = 1.05
#: Share of the lost time from which few workers, or the last stage, are the cause (the same study).
_EXPLAINS = 0.5
#: A further cause is named from this share on.
_ALSO = 0.2
#: Forward and backward over microbatches correlate this well where the length of sequences sets both. The same study
#: takes 0.9 over raw durations; within one worker and step, as here, noise weighs more.
_TOGETHER = 0.8
#: A worker that computes this much longer than its peers stands out: beyond silicon's own spread of 8 %.
_STANDS_OUT = 1.08
#: Workers differ by more than their own operations' scatter explains from this F statistic on.
_APART = 4.0
#: A replay this far off the record says little.
_MODEL_ERROR = 0.05

FEW_WORKERS, STAGE, SEQUENCE, MICROBATCH, COMMUNICATION = (
    "few slow workers",
    "stage imbalance",
    "sequence-length imbalance",
    "uneven microbatches",
    "communication",
)
NONE, MANY_WORKERS, UNEXPLAINED = "no straggler", "many uneven workers", "unexplained"
_PATTERNS = {
    FEW_WORKERS: Pattern.FIXED_RANK,
    COMMUNICATION: Pattern.TRANSFER,
    SEQUENCE: Pattern.WANDERING,
    MICROBATCH: Pattern.WANDERING,
    STAGE: Pattern.STAGE,
}
#: What stands in place of a guess where counters and logs were recorded too.
_REPORT = "Why, say the counters and logs of the recording: `rankscope report` weighs them."


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer: the main cause, whose fault that looks like, and sentences for a person."""

    cause: str
    #: "hardware", "code", "environment" or "unknown": what such a pattern usually is. Counters settle it.
    looks_like: str
    sentences: tuple[str, ...]
    also: tuple[str, ...] = ()

    @property
    def pattern(self) -> Pattern | None:
        """How it lies across the ranks; None where no pattern fits."""
        return _PATTERNS.get(self.cause)


def read(found: WhatIf) -> Reading:
    """Say what these figures mean."""
    doubt = []
    error = abs(found.replayed_ms - found.recorded_ms) / found.recorded_ms if found.recorded_ms else 0.0
    if error > _MODEL_ERROR:
        doubt.append(f"The replay is {error:.0%} off the recorded step, so all of this is doubtful.")
    if found.slowdown < LEAST_SLOWDOWN:
        text = f"The job is within {max(0.0, found.slowdown - 1):.1%} of its own ideal: nothing here holds it up."
        return Reading(NONE, "unknown", (text, *doubt))
    share = {cause.kind: cause for cause in found.causes}
    candidates = _candidates(found, share)
    main = max(candidates, key=lambda name: candidates[name], default=UNEXPLAINED)
    if not candidates or candidates[main] < _ALSO:
        text = "No single cause gives much of it back: several small ones add up, or what the operations do not show."
        return Reading(UNEXPLAINED, "unknown", (text, *doubt))
    also = tuple(
        f"{name}: {value:.0%} of the lost time comes back without it"
        for name, value in sorted(candidates.items(), key=lambda item: -item[1])
        if name != main and value >= _ALSO
    )
    told = main in (FEW_WORKERS, STAGE) or any(line.startswith(STAGE) for line in also)
    if not told and found.m_s is not None and found.m_s >= _EXPLAINS:
        also += (f"the last stage: {found.m_s:.0%} of the lost time comes back if all of it were ideal (M_S)",)
    words, looks_like = _words(found, main, share)
    if found.recorded:
        # A pattern alone never accuses where evidence lies beside it.
        words, looks_like = (*words[:1], _REPORT), "unknown"
    return Reading(main, looks_like, (*words, *doubt), also)


def _candidates(found: WhatIf, share: dict[str, Cause]) -> dict[str, float]:
    worker, stage = share.get("worker"), share.get("stage")
    candidates: dict[str, float] = {}
    # Uneven microbatches leave workers apart too, by chance.
    apart = found.workers_apart is None or found.workers_apart >= _APART
    if apart and found.dp_ranks > 1 and _few(found)[0]:
        # They are enough: what else they could be called - a heavy stage, a slow kind of operation - is them.
        return {FEW_WORKERS: _few(found)[1]}
    if worker is not None and found.dp_ranks > 1 and apart:
        candidates[MANY_WORKERS] = worker.share
    if stage is not None:
        candidates[STAGE] = stage.share
    if "microbatch" in share:
        together = found.correlation is not None and found.correlation >= _TOGETHER
        candidates[SEQUENCE if together else MICROBATCH] = share["microbatch"].share
    if "communication" in share:
        candidates[COMMUNICATION] = share["communication"].share
    return candidates


def _few(found: WhatIf) -> tuple[list[Worker], float]:
    """(workers that do compute longer than their peers, the share that comes back with them), where that is most.

    The slowest by rank and stage, which M_W takes, are not always those that compute longest: two slow workers on
    different ranks and stages make four that look slow.
    """
    count = slowest_count(found.workers)
    for workers, share in ((found.slowest[:count], found.m_w), (longest(found.slowest), found.m_longest)):
        few = [worker for worker in workers if worker.over_peers >= _STANDS_OUT]
        if few and share is not None and share >= _EXPLAINS:
            return few, share
    return [], 0.0


def _words(found: WhatIf, main: str, share: dict[str, Cause]) -> tuple[tuple[str, ...], str]:
    """(sentences, what it looks like) of the main cause."""
    if main == FEW_WORKERS:
        return _few_workers(found)
    if main == STAGE:
        return _stage(found, share["stage"])
    if main == COMMUNICATION:
        return _communication(found, share["communication"])
    if main == MANY_WORKERS:
        back = f"{share['worker'].ms_per_step:,.1f} ms a step"
        count = slowest_count(found.workers)
        text = (
            f"Workers of one stage differ, but the slowest {count} of them do not explain it (M_W {found.m_w or 0:.2f})"
        )
        return (f"{text}; as fast as the middle one, they would return {back}.",), "unknown"
    spread = f"{found.microbatch_spread:.0%}"
    back = f"would return {share['microbatch'].ms_per_step:,.1f} ms a step"
    if main == SEQUENCE:
        what = (
            f"Forward and backward of a microbatch grow together (correlation {found.correlation:.2f}, spread {spread})"
        )
        advice = "balance by the cost of a sequence (its length and its square), not by tokens"
        return (
            f"{what}: microbatches hold sequences of unequal length.",
            f"Microbatches of equal work {back}: {advice}.",
        ), "code"
    how = "" if found.correlation is None else f" (correlation {found.correlation:.2f})"
    what = f"Computation varies by {spread} from one microbatch to the next, forward and backward not together{how}"
    return (
        f"{what}: pauses, such as garbage collection or contention, and not the length of sequences.",
        f"Evenly spread it {back}.",
    ), "unknown"


def _few_workers(found: WhatIf) -> tuple[tuple[str, ...], str]:
    few, share = _few(found)
    named = "; ".join(worker_text(worker, found.actual_ms, recorded=found.recorded) for worker in few)
    advice = "look at its clocks, throttle reasons and cores; move the rank to other hardware to be sure"
    return (
        f"{len(few)} of {found.workers} workers explain {share:.0%} of the lost time: {named}.",
        f"One place in every step is what a slow GPU or host looks like: {advice}.",
    ), "hardware"


def _stage(found: WhatIf, cause: Cause) -> tuple[tuple[str, ...], str]:
    heavy = max(found.by_stage, key=lambda stage: found.by_stage[stage])
    last = heavy == found.stages - 1
    place = "the last stage, which also computes the loss" if last else f"stage {heavy}"
    what = f"Stage {heavy} of 0..{found.stages - 1} is the heavy one on every data-parallel rank"
    words = [
        f"{what}; stages of equal work would return {cause.ms_per_step:,.1f} ms a step.",
        f"The model is divided unevenly: move layers away from {place}.",
    ]
    if found.dp_ranks == 1:
        words.append("With one data-parallel rank a heavy stage and a slow worker look alike: swap two to tell.")
    return tuple(words), "code" if found.dp_ranks > 1 else "unknown"


def _communication(found: WhatIf, cause: Cause) -> tuple[tuple[str, ...], str]:
    alone = {name: value for name, value in found.by_optype.items() if is_communication(name)}
    dear = max(alone, key=lambda name: alone[name])
    cost = f"Transfers longer than usual cost {cause.ms_per_step:,.1f} ms a step, most in {dear}"
    return (
        f"{cost}: everybody is there, and the transfer itself takes long.",
        "That is the network or its configuration: look at link errors and at who else uses the path.",
    ), "environment"


def worker_text(worker: Worker, step_ms: float, *, recorded: bool = False) -> str:
    """A worker as one names it, and what of a step of `step_ms` comes back with it."""
    rank = "" if worker.rank is None else f", rank {worker.rank}"
    text = f"rank {worker.rank}" if recorded else f"data-parallel rank {worker.dp_rank}, stage {worker.stage}{rank}"
    if worker.ms_per_step is not None:
        text += f": {worker.ms_per_step:,.1f} ms a step ({worker.ms_per_step / step_ms:.0%}) come back"
    if worker.against_peers:
        text += (
            " (" + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in worker.against_peers.items()) + " its peers')"
        )
    return text
