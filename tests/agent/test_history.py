"""Past jobs of a site: a fault that follows the GPU or the rank is said so, and the file is guarded."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rankscope.agent.history import History, keep_run, past_runs
from rankscope.errors import RecordingError
from rankscope.finding import Evidence, Overhead, Verdict
from rankscope.rules import judge
from rankscope.rules.evidence import Observation
from rankscope.rules.explain import explain, with_record
from rankscope.rules.history import PastRun, record_of
from rankscope.rules.table import Symptom
from rankscope.rules.verdict import TABLE
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario import Fault, Node, Scenario, Workload
from rankscope.window import Window

SLOW = Fault(class_slug="gpu-thermal-slowdown", gpu=2, severity=1.3, from_step=80, to_step=240, counters=False)


HOT = replace(SLOW, counters=True)


def window_of(job: str, *, fault: Fault | None = SLOW, attempt: int = 0, seed: int = 1) -> Window:
    """One run of four ranks on four GPUs; another seed has other GPUs."""
    workload = Workload(ranks=4, steps=240, step_ms=200.0)
    faults = () if fault is None else (fault,)
    window = generate(Scenario(name=job, seed=seed, workload=workload, node=Node(gpus=4), faults=faults))
    for of in window.ranks.values():
        of.identity = replace(of.identity, attempt=attempt)
    return window


def swapped(window: Window, one: int, other: int) -> Window:
    """The same run with two ranks on each other's GPUs, their counters with them."""
    first, second = (window.ranks[rank].identity for rank in (one, other))
    window.ranks[one].identity = replace(first, gpu_uuid=second.gpu_uuid)
    window.ranks[other].identity = replace(second, gpu_uuid=first.gpu_uuid)
    names = {str(first.gpu_uuid): str(second.gpu_uuid), str(second.gpu_uuid): str(first.gpu_uuid)}

    def renamed(device: str) -> str:
        uuid = next((uuid for uuid in names if device.startswith(uuid)), None)
        return device if uuid is None else names[uuid] + device.removeprefix(uuid)

    series = {replace(key, device=renamed(key.device)): values for key, values in window.series.items()}
    return replace(window, series=series)


@pytest.fixture
def site(tmp_path: Path) -> Callable[[Window], Verdict]:
    """A site that judges with its history and keeps every run."""
    file = str(tmp_path / "history.db")

    def told(window: Window) -> Verdict:
        verdict = judge(window, Overhead(), past=past_runs(file, window))
        keep_run(file, window, verdict)
        return verdict

    return told


def record(verdict: Verdict) -> Evidence | None:
    """What the history adds to the first finding."""
    return next((piece for piece in verdict.findings[0].evidence if piece.family == "history"), None)


def test_a_board_convicted_before_is_surer_the_next_time(site) -> None:
    """The same GPU hot in other jobs under other ranks: more sure than the first time, with the ratio shown."""
    first = site(window_of("one", fault=HOT))
    site(swapped(window_of("two", fault=replace(HOT, gpu=1)), 1, 2))
    third = site(window_of("three", fault=HOT))
    assert record(first) is None
    told = record(third)
    assert told is not None
    assert told.log_odds > 1.5
    assert told.value == pytest.approx(np.exp(told.log_odds), rel=0.02)
    assert "2 of 2 other jobs (gpu-thermal-slowdown)" in told.what
    assert third.findings[0].confidence >= first.findings[0].confidence
    assert third.verdict == first.verdict == "hardware"


def test_a_doubtful_finding_moves_with_the_record() -> None:
    """Evidence that leaves a cause at seven tenths: with a bad record it is told, with the rank's own it is not, and
    the ratio lies between 1/20 and 20 however long the record is."""
    table, symptom = TABLE, Symptom.ONE_RANK_SLOW
    # Strong enough to lead, too weak to be told.
    strengths = np.linspace(0, 1, 201)
    seen = next(
        found
        for strength in strengths
        if 0.6 < explain(table, symptom, found := {"thermal": Observation(float(strength), "warm")}).confidence(
            table.classes["gpu-thermal-slowdown"]
        ) < 0.79
    )  # fmt: skip
    of = table.classes["gpu-thermal-slowdown"]
    alone = explain(table, symptom, seen)
    window = window_of("now")
    uuid = window.ranks[2].identity.gpu_uuid
    assert uuid is not None

    def runs(count: int, **change: object) -> list[PastRun]:
        base = PastRun(uuid, "job", 0, 0, "node000", 1, "gpu-thermal-slowdown", "hardware", 0.2)
        return [replace(base, job=f"job{number}", **change) for number in range(count)]

    assert alone.told is None
    bad, seen_bad = with_record(table, symptom, seen, record_of(window, 2, runs(50)))
    assert bad.told is of
    assert 0.9 < bad.confidence(of) < 20 * alone.confidence(of) / (1 - alone.confidence(of))
    assert seen_bad["history"].value == pytest.approx(np.exp(3.0), rel=0.01)
    clean, _ = with_record(table, symptom, seen, record_of(window, 2, runs(50, class_slug=None, side=None)))
    assert alone.confidence(of) - 0.2 < clean.confidence(of) < alone.confidence(of)
    moved = [replace(run, job="now", attempt=number + 1, gpu_uuid=f"GPU-{number}", rank=2)
             for number, run in enumerate(runs(3, class_slug="slow-rank-unexplained", side="unknown"))]  # fmt: skip
    follows, _ = with_record(table, symptom, seen, record_of(window, 2, moved))
    assert follows.confidence(of) < 0.2


def test_history_alone_never_accuses(site) -> None:
    """A silent slow GPU that was convicted nine times before stays unknown: the job itself shows no cause."""
    for number in range(9):
        site(swapped(window_of(f"job{number}", fault=replace(HOT, gpu=1)), 1, 2))
    last = site(window_of("last"))
    assert (last.verdict, last.findings[0].class_slug) == ("unknown", "slow-rank-unexplained")
    told = record(last)
    assert told is not None
    assert "It follows the GPU" in last.findings[0].summary
    assert site(window_of("well", fault=None)).verdict == "healthy"


def test_a_gpu_that_is_mostly_well_is_not_said_to_be_bad(site) -> None:
    """Slow in two of six other jobs: no pattern."""
    for number in range(6):
        site(window_of(f"job{number}", fault=SLOW if number < 2 else None))
    last = site(window_of("last"))
    assert "follows" not in last.findings[0].summary


def test_the_same_job_run_every_night_on_the_same_place_hardly_tells(site) -> None:
    """Code that is slow at one rank looks like a bad board where that rank always has the same one: one night more
    adds little, other ranks on the board add much."""
    site(window_of("night-1"))
    placed_alike = record(site(window_of("night-2")))
    site(swapped(window_of("other", fault=replace(SLOW, gpu=1)), 1, 2))
    elsewhere = record(site(window_of("night-3")))
    assert placed_alike is not None
    assert elsewhere is not None
    assert placed_alike.log_odds < 1.0
    assert elsewhere.log_odds > placed_alike.log_odds + 1.0


def test_a_cause_elsewhere_says_nothing_of_the_board(site) -> None:
    """Past runs whose rank was slow for its clocks' setting are no record of a bad board, and none of a good one."""
    for number in range(3):
        site(window_of(f"job{number}", fault=Fault(
            class_slug="gpu-clocks-locked", gpu=2, severity=1.3, from_step=80, to_step=240)))  # fmt: skip
    assert record(site(window_of("last"))) is None


def test_after_a_restart_on_other_hardware_it_follows_the_rank(site) -> None:
    """The same rank of the same job, slow on another GPU: the rank."""
    site(window_of("train", attempt=0, seed=1))
    again = site(window_of("train", attempt=1, seed=2))
    assert "It follows the rank, not the GPU" in again.findings[0].summary
    told = record(again)
    assert told is not None
    assert told.value < 0.3  # type: ignore[operator]


def test_after_a_swap_it_follows_the_gpu(site) -> None:
    """The same GPU under another rank of the same job, slow again, and the rank well on its new one: the GPU."""
    site(window_of("train", attempt=0))
    again = site(swapped(window_of("train", attempt=1, fault=replace(SLOW, gpu=1)), 1, 2))
    assert "It follows the GPU" in again.findings[0].summary
    told = record(again)
    assert told is not None
    assert told.value > 5  # type: ignore[operator]
    assert again.findings[0].where.rank == 1


def test_the_same_run_twice_is_one_row(tmp_path: Path) -> None:
    """Judged again, a run is not its own past."""
    history = History(tmp_path / "history.db")
    window = window_of("one")
    verdict = judge(window, Overhead())
    assert history.keep(window, verdict) == history.keep(window, verdict) == 4
    assert history.of(window) == []
    history.close()


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    """Another SQLite file, or none at all, is left alone and named in one line."""
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE cats (name)")
    connection.commit()
    connection.close()
    with pytest.raises(RecordingError, match="not a history of this version"):
        History(foreign)
    (tmp_path / "text.db").write_text("no database at all, but long enough to be read as one" * 40)
    with pytest.raises(RecordingError, match="cannot be used"):
        History(tmp_path / "text.db")
