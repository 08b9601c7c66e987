"""Jobs whose S, M_W and M_S are known: each is simulated again with parts of it ideal, and the analysis must agree.

Heavy stages, uneven sequences, slow workers and mixtures, on plain, interleaved and all-forwards-first pipelines and
without one; with every column and with those alone that a file must have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from pipeline_job import Duration, Row, job, noisy

from rankscope.rules.whatif import WhatIf, slowest_count, whatif
from rankscope.rules.whatif_operations import operations
from rankscope.rules.whatif_verdict import COMMUNICATION, FEW_WORKERS, SEQUENCE, STAGE, read

NOISE = noisy(3)
EVERYTHING: tuple[str, ...] = ()
MADE_UP = ("seq_id", "mc", "gmc", "mb_id", "rank")
UNNAMED = ("seq_id", "mc", "gmc")


def even(dp: int, stage: int, chunk: int, microbatch: int, step: int, backward: bool) -> float:
    """A healthy computation."""
    return (0.2 if backward else 0.1) * NOISE(dp, stage, chunk, microbatch, step, backward)


def stages(*factors: float) -> Duration:
    """Stages of unequal work."""
    return lambda dp, stage, *rest: even(dp, stage, *rest) * factors[stage]


def chunks(factors: Mapping[int, float]) -> Duration:
    """Chunks of the model of unequal work: the embedding, the loss."""
    return lambda dp, stage, chunk, *rest: even(dp, stage, chunk, *rest) * factors.get(chunk, 1.0)


def sequences(spread: float) -> Duration:
    """Packed sequences: a cost that is linear in the length, and attention that is quadratic."""

    def duration(dp: int, stage: int, chunk: int, microbatch: int, step: int, backward: bool) -> float:
        length = random.Random(f"{dp} {microbatch} {step}").lognormvariate(0, spread)
        return even(dp, stage, chunk, microbatch, step, backward) * (0.7 * length + 0.3 * length**2)

    return duration


def workers(factors: Mapping[tuple[int, int], float]) -> Duration:
    """Workers that compute longer."""
    return lambda dp, stage, *rest: even(dp, stage, *rest) * factors.get((dp, stage), 1.0)


def both(one: Duration, other: Duration) -> Duration:
    """Two causes at once."""
    return lambda *key: one(*key) * other(*key) / even(*key)


def step_s(rows: Sequence[Row]) -> float:
    """Mean length of a step."""
    ends: dict[int, float] = {}
    for row in rows:
        ends[row["step"]] = max(ends.get(row["step"], 0.0), row["start_ts"] + row["duration"])
    return sum(ends.values()) / len(ends)


def analysed(rows: Sequence[Row], without: Sequence[str] = ()) -> WhatIf:
    """The analysis of these rows, some columns left out."""
    return whatif(operations({name: np.array([row[name] for row in rows]) for name in rows[0] if name not in without}))


PLAIN = {"dp": 4, "stages": 4, "microbatches": 8, "steps": 2}
INTERLEAVED = PLAIN | {"virtual": 2}
GPIPE = PLAIN | {"all_forwards_first": True}
WIDE = {"dp": 8, "stages": 2, "microbatches": 6, "steps": 4}
UNPIPED = {"dp": 16, "stages": 1, "microbatches": 4, "steps": 4}
LARGE = {"dp": 16, "stages": 4, "microbatches": 6, "steps": 1}
JOBS: dict[str, tuple[Duration, dict[str, int], str]] = {
    "last stage heavy": (stages(1, 1, 1, 1.5), PLAIN, STAGE),
    "first stage heavy": (stages(1.4, 1, 1, 1), PLAIN, STAGE),
    "uneven stages": (stages(1.1, 1, 0.9, 1.3), PLAIN, STAGE),
    "all forwards first, last heavy": (stages(1, 1, 1, 1.5), GPIPE, STAGE),
    "interleaved, last heavy": (stages(1, 1, 1, 1.4), INTERLEAVED, STAGE),
    "interleaved, the loss": (chunks({0: 0.5, 7: 1.8}), INTERLEAVED, STAGE),
    "sequences": (sequences(0.35), WIDE, SEQUENCE),
    "interleaved, sequences": (sequences(0.3), INTERLEAVED, SEQUENCE),
    "sequences without a pipeline": (sequences(0.4), UNPIPED, SEQUENCE),
    "sequences and a heavy stage": (both(sequences(0.25), stages(1, 1.2)), WIDE, SEQUENCE),
    "one worker": (workers({(1, 2): 2.0}), PLAIN, FEW_WORKERS),
    "interleaved, one worker": (workers({(2, 0): 1.5}), INTERLEAVED, FEW_WORKERS),
    "two workers apart": (workers({(9, 1): 1.6, (3, 2): 1.6}), LARGE, FEW_WORKERS),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_figures_are_those_of_the_job_simulated_again(name: str) -> None:
    """S within 1 %, M_W and M_S within 0.03 of the job with those parts at the mean of their kind; and the cause."""
    duration, shape, cause = JOBS[name]
    rows = job(duration, **shape)  # type: ignore[arg-type]
    kinds = {back: f"{'backward' if back else 'forward'}-compute" for back in (False, True)}
    usual = {back: np.mean([row["duration"] for row in rows if row["optype"] == kinds[back]]) for back in kinds}

    def lost_without(ideal: Callable[[int, int], bool]) -> float:
        def mixed(dp: int, stage: int, *rest: object) -> float:
            return float(usual[rest[-1]]) if ideal(dp, stage) else duration(dp, stage, *rest)  # type: ignore[arg-type,call-arg]

        return step_s(rows) - step_s(job(mixed, **shape))  # type: ignore[arg-type]

    found = analysed(rows)
    lost = lost_without(lambda _dp, _stage: True)
    slowest = {(worker.dp_rank, worker.stage) for worker in found.slowest[: slowest_count(found.workers)]}
    assert found.slowdown == pytest.approx(step_s(rows) / (step_s(rows) - lost), rel=0.01)
    assert found.m_w == pytest.approx(lost_without(lambda dp, stage: (dp, stage) in slowest) / lost, abs=0.03)
    if shape["stages"] > 1:
        assert found.m_s == pytest.approx(
            lost_without(lambda _dp, stage: stage == shape["stages"] - 1) / lost, abs=0.03
        )
    assert found.replayed_ms == pytest.approx(found.recorded_ms, rel=1e-3)
    assert read(found).cause == cause
    for without in (MADE_UP, UNNAMED):
        less = analysed(rows, without)
        assert (less.slowdown, less.m_w, less.m_s) == pytest.approx((found.slowdown, found.m_w, found.m_s), abs=0.01)
        assert read(less).cause == cause


def test_workers_that_are_few_and_far_apart_are_named() -> None:
    """Two slow workers on different ranks and stages: the four that share rank and stage with them are not named."""
    reading = read(analysed(job(*JOBS["two workers apart"][:1], **LARGE)))  # type: ignore[arg-type]
    assert "rank 9, stage 1" in reading.sentences[0]
    assert "rank 3, stage 2" in reading.sentences[0]
    assert "stage 1, rank 19:" not in reading.sentences[0]
    assert (reading.pattern, reading.looks_like) == ("A", "hardware")


@pytest.mark.parametrize(
    ("name", "pattern"), [("last stage heavy", "E"), ("sequences", "D"), ("one worker", "A"), ("even", None)]
)
def test_the_pattern_of_each_cause(name: str, pattern: str | None) -> None:
    """How it lies across the workers; nothing for a job that is even."""
    duration, shape, _ = JOBS.get(name, (even, PLAIN, ""))
    assert read(analysed(job(duration, **shape))).pattern == pattern  # type: ignore[arg-type]


def test_long_transfers_are_pattern_b() -> None:
    """Gradients of one stage that take half a second longer."""
    reading = read(analysed(job(even, dp=4, stages=4, microbatches=4, transfer=lambda _n, _d, s: 0.5 * (s == 1))))
    assert (reading.cause, reading.pattern) == (COMMUNICATION, "B")


def test_chunks_are_made_up_only_where_there_are_several() -> None:
    """A plain pipeline says nothing of chunks; an interleaved one that they were told by the order."""
    assert not analysed(job(even, **PLAIN), MADE_UP).notes  # type: ignore[arg-type]
    assert "2 model chunks a stage" in analysed(job(even, **INTERLEAVED), MADE_UP).notes[0]  # type: ignore[arg-type]
