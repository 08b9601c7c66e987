"""What-if over operations: the replay, the published definitions, and the cause named on jobs whose cause is known."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pipeline_job import Duration, Row, job, noisy

from rankscope.rules.whatif import WhatIf, whatif
from rankscope.rules.whatif_operations import Operations, OperationsError, operations
from rankscope.rules.whatif_pipeline import model
from rankscope.rules.whatif_replay import Schedule, Unit, replay, schedule
from rankscope.rules.whatif_verdict import (
    COMMUNICATION,
    FEW_WORKERS,
    MICROBATCH,
    NONE,
    SEQUENCE,
    STAGE,
    read,
)

NOISE = noisy(7)


def columns(rows: list[Row]) -> dict[str, np.ndarray]:
    """Rows as the columns of a file."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def even(dp: int, stage: int, chunk: int, microbatch: int, step: int, backward: bool) -> float:
    """A healthy computation, with one per cent of noise."""
    return (0.2 if backward else 0.1) * NOISE(dp, stage, chunk, microbatch, step, backward)


def analysed(duration: Duration, **shape: object) -> WhatIf:
    """The analysis of a job."""
    return whatif(operations(columns(job(duration, **shape))))  # type: ignore[arg-type]


def slow_worker(dp: int, stage: int, factor: float) -> Duration:
    """One worker computes `factor` as long."""
    return lambda d, s, *rest: even(d, s, *rest) * (factor if (d, s) == (dp, stage) else 1.0)


def sequences(seed: int, spread: float) -> Duration:
    """Microbatches of unequal length, the same in forward and backward and on every stage."""

    def duration(dp: int, stage: int, chunk: int, microbatch: int, step: int, backward: bool) -> float:
        length = random.Random(f"{seed} {dp} {microbatch} {step}").lognormvariate(0, spread)
        return even(dp, stage, chunk, microbatch, step, backward) * length

    return duration


@pytest.mark.parametrize(
    "shape",
    [
        {"dp": 3, "stages": 4, "microbatches": 6},
        {"dp": 2, "stages": 2, "microbatches": 4, "virtual": 2},
        {"dp": 2, "stages": 4, "microbatches": 8, "virtual": 2, "idle_messages": True},
        {"dp": 4, "stages": 1, "microbatches": 2},
        {"dp": 1, "stages": 3, "microbatches": 5},
    ],
    ids=str,
)
def test_the_replay_gives_the_recorded_step_back(shape: dict[str, int]) -> None:
    """With its own durations and delays the model ends when the job did: plain, interleaved and unpipelined."""
    of = operations(columns(job(slow_worker(0, 0, 1.4), **shape)))  # type: ignore[arg-type]
    built = model(of)
    again = replay(built.plan, lambda node: built.transfer_s[node], lambda node: built.delay_s[node])
    assert again == pytest.approx(of.end_s.max(axis=(0, 2)), rel=1e-9)


@pytest.mark.parametrize("shape", [{"virtual": 1}, {"virtual": 2}, {"virtual": 2, "idle_messages": True}], ids=str)
@pytest.mark.parametrize("place", [(0, 0), (3, 1), (1, 3)])
def test_a_slow_worker_is_named_wherever_it_is(place: tuple[int, int], shape: dict[str, int]) -> None:
    """One worker of 16 at 1.5 times: it is named, explains what is lost, and its price is what the job loses."""
    slow = analysed(slow_worker(*place, 1.5), dp=4, stages=4, microbatches=8, **shape)
    healthy = analysed(even, dp=4, stages=4, microbatches=8, **shape)
    worst = slow.slowest[0]
    assert (worst.dp_rank, worst.stage) == place
    assert worst.against_peers["backward-compute"] == pytest.approx(1.5, abs=0.03)
    assert slow.m_w is not None
    assert slow.m_w > 0.9
    assert worst.ms_per_step == pytest.approx(slow.actual_ms - healthy.actual_ms, rel=0.15)
    reading = read(slow)
    assert (reading.cause, reading.looks_like) == (FEW_WORKERS, "hardware")


def test_a_heavy_last_stage_is_no_slow_worker() -> None:
    """The last stage heavy on both ranks: M_S says so, M_W stays low, and the side is code."""
    found = analysed(lambda d, s, *rest: even(d, s, *rest) * (1.4 if s == 3 else 1.0), dp=2, stages=4, microbatches=8)
    assert found.m_s is not None
    assert found.m_w is not None
    assert found.m_s > 0.9
    assert found.m_w < 0.2
    reading = read(found)
    assert (reading.cause, reading.looks_like) == (STAGE, "code")
    assert "Stage 3" in reading.sentences[0]


def test_with_one_rank_a_heavy_stage_is_not_called_code() -> None:
    """Nothing tells a heavy stage from a slow worker where each stage has one."""
    found = analysed(lambda d, s, *rest: even(d, s, *rest) * (1.4 if s == 2 else 1), dp=1, stages=4, microbatches=8)
    reading = read(found)
    assert reading.looks_like == "unknown"
    assert "Stage 2" in reading.sentences[0]


def test_uneven_sequences_go_together_forward_and_backward() -> None:
    """Lengths that set both directions are told from pauses that set neither, and from workers."""
    uneven = analysed(sequences(3, 0.35), dp=8, stages=2, microbatches=6, steps=4)
    assert uneven.correlation is not None
    assert uneven.correlation > 0.95
    assert read(uneven).cause == SEQUENCE
    pauses = random.Random(5)
    stalled = analysed(
        lambda *key: even(*key) * (2.5 if pauses.random() < 0.08 else 1.0), dp=8, stages=2, microbatches=6, steps=4
    )
    assert read(stalled).cause == MICROBATCH


def test_long_transfers_are_communication() -> None:
    """Everybody is there and the transfer takes long: the environment's."""
    found = analysed(
        even,
        dp=4,
        stages=4,
        microbatches=4,
        transfer=lambda _name, _dp, stage: 0.5 * (stage == 1),
    )
    reading = read(found)
    assert (reading.cause, reading.looks_like) == (COMMUNICATION, "environment")
    assert "grads-reduce-scatter" in reading.sentences[0]


def test_an_even_job_is_not_accused() -> None:
    """One per cent of noise is no straggler."""
    assert read(analysed(even, dp=4, stages=4, microbatches=8)).cause == NONE


def test_a_step_cut_short_and_a_rank_that_is_absent_are_left_out_and_said() -> None:
    """Steps that are not whole on every rank do not count, and neither does a rank that lacks operations throughout."""
    rows = job(slow_worker(1, 0, 1.5), dp=3, stages=2, microbatches=4, steps=5)
    cut = [row for row in rows if not (row["step"] == 2 and row["dp_rank"] == 1 and row["seq_id"] == 3)]
    cut = [row for row in cut if not (row["dp_rank"] == 2 and row["optype"] == "optimizer")]
    of = operations(columns(cut))
    assert (of.steps, of.dp_ranks) == ([0, 1, 3, 4], [0, 1])
    assert [note.split(" ")[0] for note in of.notes] == ["1", "1"]
    assert whatif(of).slowest[0].dp_rank == 1


def test_what_can_be_counted_need_not_be_in_the_file() -> None:
    """Numbers within a type, chunks and global ranks come from the order of operations where they are absent."""
    rows = job(slow_worker(1, 1, 1.5), dp=2, stages=3, microbatches=4)
    bare = [{name: row[name] for name in row if name not in ("seq_id", "mc", "gmc", "rank")} for row in rows]
    whole, less = whatif(operations(columns(rows))), whatif(operations(columns(bare)))
    assert less.slowdown == pytest.approx(whole.slowdown)
    assert less.m_w == pytest.approx(whole.m_w)


def test_stages_may_bear_any_numbers() -> None:
    """A file of two stages of a larger job is replayed with them numbered from 0, and it is said."""
    rows = job(slow_worker(1, 1, 1.5), dp=2, stages=2, microbatches=4)
    moved = [row | {"stage": row["stage"] * 10**9 + 4} for row in rows]
    of = operations(columns(moved))
    assert whatif(of).slowdown == pytest.approx(whatif(operations(columns(rows))).slowdown)
    assert any("numbered from 0" in note for note in of.notes)


def test_tensor_parallel_ranks_of_one_worker_are_folded() -> None:
    """Two ranks in lockstep are one worker, and it is said."""
    rows = job(even, dp=2, stages=2, microbatches=2)
    both = [row | {"rank": 2 * row["rank"] + twin} for row in rows for twin in (0, 1)]
    of = operations(columns(both))
    assert whatif(of).slowdown == pytest.approx(whatif(operations(columns(rows))).slowdown)
    assert any("the first was taken" in note for note in of.notes)


def test_an_operation_of_unknown_name_is_replayed_and_said() -> None:
    """Loading between two computations holds the pipeline up as it did."""
    rows = job(even, dp=2, stages=2, microbatches=3, steps=2)
    for row in [row for row in rows if row["optype"] == "forward-compute"]:
        half = row["duration"] / 2
        row["duration"] = half
        loading = row | {"optype": "data-load", "start_ts": row["start_ts"] + half, "duration": half}
        rows.append(loading)
    of = operations(columns(rows))
    built = model(of)
    again = replay(built.plan, lambda node: built.transfer_s[node], lambda node: built.delay_s[node])
    assert again == pytest.approx(of.end_s.max(axis=(0, 2)), rel=1e-9)
    assert any("data-load" in note for note in of.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.pop("stage"), "no column 'stage'"),
        (lambda table: table.update(duration=-table["duration"]), "negative"),
        (lambda table: table.update(step=table["step"] + 0.5), "not whole"),
        (lambda table: table.update(step=table["step"] + 1e20), "beyond"),
        (lambda table: table.update(seq_id=table["seq_id"] - 5), "negative"),
        (lambda table: table.update(duration=table["duration"] * 0), "any time"),
        (lambda table: table.update(start_ts=table["start_ts"] * np.nan), "no number in row 1"),
        (lambda table: table.update(dp_rank=np.array(["x"] * len(table["step"]))), "no number"),
        (lambda table: table.update(seq_id=table["seq_id"] * 0), "comes twice"),
        (lambda table: table.update(optype=np.array(["kernel"] * len(table["step"]))), "comes twice"),
        (lambda table: table.update({name: values[:0] for name, values in table.items()}), "no operations"),
        (lambda table: table.update({n: v[table["optype"] != "forward-recv"] for n, v in table.items()}), "receives"),
    ],
)
def test_what_cannot_be_replayed_is_said(change: object, said: str) -> None:
    """One line names the column or the contradiction."""
    table = columns(job(even, dp=2, stages=2, microbatches=2))
    change(table)  # type: ignore[operator]
    with pytest.raises(OperationsError, match=said):
        whatif(operations(table))


def test_a_circle_is_no_schedule() -> None:
    """Dependencies that wait for each other are found, not looped over."""
    assert schedule([Unit((0,)), Unit((1,))], [[1], [0]]) in (0, 1)
    plan = schedule([Unit((0,)), Unit((1, 2), collective=True)], [[], [0], []])
    assert isinstance(plan, Schedule)
    ends = replay(plan, lambda node: np.array([[1.0, 3.0]]) if node == 0 else np.array([[0.5, 0.5]]))
    assert ends.tolist() == [3.5]


def test_shape_of_the_arrays() -> None:
    """Node x step x rank, each step counted from its own begin."""
    of: Operations = operations(columns(job(even, dp=2, stages=2, microbatches=2, steps=3)))
    assert of.start_s.shape == (len(of.nodes), 3, 2)
    assert of.start_s.min(axis=(0, 2)).tolist() == [0.0, 0.0, 0.0]
