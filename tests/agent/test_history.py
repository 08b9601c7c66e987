"""Past jobs of a site: a fault that follows the GPU or the rank is said so, and the file is guarded."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from rankscope.agent.history import History, judged_with
from rankscope.errors import RecordingError
from rankscope.finding import Overhead, Verdict
from rankscope.rules import judge
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario import Fault, Node, Scenario, Workload
from rankscope.window import Window

SLOW = Fault(class_slug="gpu-thermal-slowdown", gpu=2, severity=1.3, from_step=80, to_step=240, counters=False)


def ran(job: str, *, slow: bool = True, attempt: int = 0, rank: int = 2, seed: int = 1) -> tuple[Window, Verdict]:
    """One run of four ranks whose GPU 2 is slow without a word, and its verdict; another seed has other GPUs."""
    faults = (replace(SLOW, gpu=rank),) if slow else ()
    workload = Workload(ranks=4, steps=240, step_ms=200.0)
    window = generate(Scenario(name=job, seed=seed, workload=workload, node=Node(gpus=4), faults=faults))
    for of in window.ranks.values():
        of.identity = replace(of.identity, attempt=attempt)
    return window, judge(window, Overhead())


def test_the_same_gpu_in_other_jobs_is_said(tmp_path: Path) -> None:
    """Twice before, in other jobs: it follows the GPU. The first time nothing is said."""
    file = str(tmp_path / "history.db")
    first = judged_with(file, *ran("one"), keep=True)
    assert "follows" not in first.findings[0].summary
    judged_with(file, *ran("two"), keep=True)
    third = judged_with(file, *ran("three"), keep=True)
    assert "It follows the GPU" in third.findings[0].summary
    assert third.findings[0].evidence[-1].family == "history"


def test_a_gpu_that_is_mostly_well_is_not_said_to_be_bad(tmp_path: Path) -> None:
    """Slow in two of six other jobs: no pattern."""
    file = str(tmp_path / "history.db")
    for number in range(6):
        judged_with(file, *ran(f"job{number}", slow=number < 2), keep=True)
    assert "follows" not in judged_with(file, *ran("last"), keep=False).findings[0].summary


def test_after_a_restart_on_other_hardware_it_follows_the_rank(tmp_path: Path) -> None:
    """The same rank of the same job, slow on another GPU: the rank."""
    file = str(tmp_path / "history.db")
    judged_with(file, *ran("train", attempt=0, seed=1), keep=True)
    again = judged_with(file, *ran("train", attempt=1, seed=2), keep=True)
    assert "It follows the rank, not the GPU" in again.findings[0].summary


def test_the_same_run_twice_is_one_row(tmp_path: Path) -> None:
    """Judged again, a run is not its own past."""
    history = History(tmp_path / "history.db")
    window, verdict = ran("one")
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
