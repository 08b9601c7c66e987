"""Flight recorders asked while ranks run: joined over ranks into who enqueues last, and never waited for."""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankscope.agent.flight_watch import FIRST_STEPS, PAUSE_NS, PERIOD_NS, FlightWatch
from rankscope.agent.load import load_window
from rankscope.agent.rank_state import RankState
from rankscope.agent.ranks import RankWatcher
from rankscope.agent.recording import Recording
from rankscope.clock import ClockAnchor, boot_id
from rankscope.identity import RankIdentity
from rankscope.records import MarkKind, MarkRecord, StepRecord
from rankscope.ring import SUFFIX, RingWriter
from rankscope.rules.enqueue_order import enqueue_order
from rankscope.testing.clock import FakeClock
from rankscope.window import HostClock, Window

MS = 1_000_000
STEPS = 60
#: Rank 1 enqueues this much after the others.
LATE_NS = 4 * MS


class Taker:
    """Answers at the next look, as the real one does at some later one."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.asked: list[int] = []
        self.answers: queue.SimpleQueue[RankState] = queue.SimpleQueue()

    def take(self, row: int, _pid: int, flight: Path | None) -> None:
        assert flight is not None
        self.asked.append(row)
        self.answers.put(RankState(row, self.job.flight(row - 1), "", "", ""))

    def done(self) -> list[RankState]:
        found = []
        while not self.answers.empty():
            found.append(self.answers.get_nowait())
        return found


class Job:
    """Three ranks of 50 ms steps on a clock that the test moves, with two collectives in each step."""

    def __init__(self, rings: Path, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.recording = Recording.create(path, job="j", host="here", clock=self.clock)
        self.taker = Taker(self)
        self.flights = FlightWatch(self.clock, taker=self.taker)  # type: ignore[arg-type]
        self.watcher = RankWatcher(rings, self.recording, clock=self.clock, owners=frozenset({os.getuid()}))
        self.begin_ns = self.clock.monotonic_ns()
        self.steps = 0
        self.nonsense = ""
        self.writers = []
        for rank in range(3):
            identity = RankIdentity("j", 0, rank, 3, rank, "here", os.getpid(), 0, boot_id(), None, "host")
            self.writers.append(RingWriter(rings / f"{rank}{SUFFIX}", identity, ClockAnchor.take(self.clock)))
            self.writers[-1].append_record(MarkRecord(self.begin_ns, 0, MarkKind.ATTACHED, "flight=1"))
        self.watcher.scan()
        self.watcher.poll()

    def run(self, steps: int) -> None:
        """Take some steps."""
        for _ in range(steps):
            start = self.clock.monotonic_ns()
            self.clock.advance(50 * MS)
            for rank, writer in enumerate(self.writers):
                record = StepRecord(self.steps, start, start + 50 * MS, 0, 50 * MS, 0, 0, 0, 0, 0, 0)
                writer.append_record(record)
                self.flights.heard(rank + 1, record)
            self.steps += 1
        self.watcher.poll()

    def flight(self, rank: int) -> str:
        """What a rank's recorder holds: wall times, as torch has them."""
        if self.nonsense:
            return self.nonsense
        ahead = self.clock.wall_ns() - self.clock.monotonic_ns()
        entries: list[dict[str, Any]] = []
        for sequence in range(1, 2 * self.steps + 1):
            at = self.begin_ns + (sequence - 1) * 25 * MS + 10 * MS + LATE_NS * (rank == 1) + rank * 1_000 + ahead
            entries.append(
                {
                    "record_id": sequence, "pg_id": 0, "process_group": ["0", "default_pg"], "time_created_ns": at,
                    "collective_seq_id": sequence, "profiling_name": "nccl:all_reduce", "state": "scheduled",
                }
            )  # fmt: skip
        config = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1, 2]"}}
        return json.dumps({"version": "2.9", "pg_config": config, "entries": entries[-128:]})

    def look(self) -> int:
        """One round of the agent; how many collectives were told."""
        told = 0
        for rank, records in self.flights.check(self.watcher.ranks):
            self.recording.add_records(rank.row, records, rank.reader.position)
            told += len(records)
        assert self.recording.commit()
        return told

    def window(self) -> Window:
        """What a report has."""
        return load_window([self.path])


@pytest.fixture
def job(rings: Path, tmp_path: Path) -> Iterator[Job]:
    """Three ranks that run."""
    made = Job(rings, tmp_path / "here.db")
    yield made
    made.watcher.close()
    made.recording.close()


def order(window: Window, clocks: tuple[HostClock, ...] = ()) -> Any:
    """The ranking over all steps."""
    return enqueue_order(list(window.ranks.values()), frozenset(range(STEPS)), clocks)


def test_the_host_that_enqueues_last_is_told_by_step(job: Job) -> None:
    """Asked once in its stride, the recorders say that rank 1 is last in every collective, by its 4 ms."""
    job.run(STEPS)
    job.look()
    assert job.look() + len(job.taker.asked) >= 3
    window = job.window()
    steps = {record.step for of in window.ranks.values() for record in of.collectives}
    assert steps <= set(range(STEPS))
    assert len(steps) > 40
    found = order(window)
    assert found.late.who == 1
    assert found.late.times_last == found.meetings
    assert found.late.held_up_ns / found.meetings == pytest.approx(LATE_NS, rel=0.01)
    assert window.ranks[1].collectives[0].group == "0 [0-2]"


def test_it_is_asked_seldom(job: Job) -> None:
    """Not while the job warms up, then once, after ten minutes again, and for a slow step after five."""
    job.run(FIRST_STEPS // 2)
    job.look()
    assert job.taker.asked == []
    job.run(FIRST_STEPS)
    job.look()
    job.look()
    assert job.taker.asked == [1, 2, 3]
    job.clock.advance(PAUSE_NS)
    job.look()
    assert len(job.taker.asked) == 3
    job.flights.slow()
    job.look()
    assert len(job.taker.asked) == 6
    job.clock.advance(PERIOD_NS)
    job.look()
    assert len(job.taker.asked) == 9


@pytest.mark.parametrize("answer", ["{", "[]", '{"entries": [5, {"profiling_name": []}]}', "[" * 100_000, "null"])
def test_nonsense_is_no_record(job: Job, answer: str) -> None:
    """An answer that makes no sense, or none, tells nothing and raises nothing."""
    job.nonsense = answer
    job.run(STEPS)
    job.look()
    assert job.look() == 0
    assert order(job.window()) is None


def test_hosts_whose_clocks_nobody_compared_are_unordered(job: Job) -> None:
    """Over two hosts the order holds to within twice the clocks' error, and not at all where that is not known."""
    job.run(STEPS)
    job.look()
    job.look()
    window = job.window()
    window.ranks[1].identity = replace(window.ranks[1].identity, host="there")
    assert order(window) is None
    clock = HostClock("there", 0, MS, None, "collectives", 9)
    assert order(window, (clock,)).late.who == 1
    assert order(window, (replace(clock, error_ns=3 * MS),)).late is None
    assert order(window, (replace(clock, error_ns=None),)) is None


def test_ranks_that_ended_leave_nothing(job: Job) -> None:
    """Neither their steps nor themselves are kept, once what they were asked is answered."""
    job.run(STEPS)
    assert job.look() > 0
    gone, _, _ = job.watcher.ranks
    job.watcher.ended([gone])
    job.look()
    assert set(job.flights._steps) == {2, 3}
    assert not job.flights._ranks
