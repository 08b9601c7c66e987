"""Which steps an experiment counts: those of all ranks of a host, through a restart."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rankscope.agent import ring_steps
from rankscope.agent.group_switch import NAME, GroupSwitch
from rankscope.agent.ring_steps import HostSteps
from rankscope.agent.scheduler import Scheduler
from rankscope.agent.switchback import GroupKnob
from rankscope.clock import ClockAnchor, SystemClock
from rankscope.errors import ConfigurationError
from rankscope.identity import RankIdentity
from rankscope.reading import Group, ProbeResult
from rankscope.records import StepRecord
from rankscope.ring import RingWriter, ring_path
from rankscope.testing import FakeClock

SECOND = 10**9


def ring(directory: Path, rank: int, pid: int) -> RingWriter:
    """The ring of a rank."""
    identity = RankIdentity("job", 0, rank, 2, rank, "host", pid, pid, "boot", None)
    return RingWriter(ring_path(directory, identity), identity, ClockAnchor.take(SystemClock()))


def step(writer: RingWriter, number: int, begin_ns: int, length_ns: int) -> None:
    """One step ends."""
    writer.append_record(StepRecord(number, begin_ns, begin_ns + length_ns, 0, length_ns, 0, 0, 0, 0, 0, 0))


def test_a_step_is_as_long_as_its_slowest_rank_s(tmp_path: Path) -> None:
    """It counts once the last rank has ended it, and by the moment when the first began it."""
    first, second = ring(tmp_path, 0, 1), ring(tmp_path, 1, 2)
    steps = HostSteps(tmp_path, threading.Event())
    for number in range(4):
        step(first, number, 100 * number, 10)
        if number < 3:
            step(second, number, 100 * number - 5, 10 + number)
    # The last is not over, and what began before the moment does not count.
    assert steps.take(95, 0, 2) == [11, 12]
    step(second, 3, 300, 99)
    assert steps.take(0, 0, 1) == [99]
    first.close()
    second.close()


def test_ranks_that_were_restarted_are_followed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New rings count from then on, however far the old ones had come; whoever is silent is not waited for."""
    monkeypatch.setattr(ring_steps, "_NEW_RINGS_NS", 0)
    monkeypatch.setattr(ring_steps, "_SILENT_NS", 0)
    before = ring(tmp_path, 0, 1)
    steps = HostSteps(tmp_path, threading.Event())
    for number in range(50):
        step(before, number, number, 5)
    assert steps.take(0, 0, 50) == [5] * 50
    after = ring(tmp_path, 0, 2)
    for number in range(10, 13):
        step(after, number, 1000 + number, 7)
    assert steps.take(1000, 1, 2) == [7, 7]
    before.close()
    after.close()


def test_the_end_of_the_job_ends_the_wait(tmp_path: Path) -> None:
    """Without a ring there is nothing to take."""
    over = threading.Event()
    over.set()
    assert HostSteps(tmp_path, over).take(0, 0, 1) is None


def test_groups_are_left_out_by_a_file_that_can_be_believed(tmp_path: Path) -> None:
    """Off names them, on names none; a link, a directory and what is not there name none either."""
    switch = GroupSwitch(tmp_path)
    assert switch.left_out() == frozenset()
    knob = GroupKnob(("nvml/gpm", "disk/disk"), poll_seconds=0.0, rings=tmp_path)
    knob.set(False)
    assert switch.left_out() == {"nvml/gpm", "disk/disk"}
    knob.set(True)
    assert switch.left_out() == frozenset()
    (tmp_path / NAME).unlink()
    (tmp_path / "elsewhere").write_text("nvml/fast")
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    assert switch.left_out() == frozenset()
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    assert switch.left_out() == frozenset()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        knob.set(False)


def test_a_group_that_is_left_out_is_not_read() -> None:
    """Its probe's other groups are, and it is again once it may be."""
    read: list[str] = []

    class Two:
        name = "two"
        groups = (Group("a", SECOND, SECOND, ""), Group("b", SECOND, SECOND, ""))

        def read(self, group: str, now_ns: int) -> ProbeResult:
            read.append(group)
            return ProbeResult()

        def close(self) -> None:
            pass

    clock = FakeClock()
    scheduler = Scheduler([Two()], clock=clock, deadline_ns=SECOND, burst_ns=SECOND)

    def seconds(count: int) -> set[str]:
        read.clear()
        for _ in range(count):
            clock.advance(SECOND)
            scheduler.tick()
            assert scheduler.settle(10)
        return set(read)

    assert seconds(3) == {"a", "b"}
    scheduler.left_out = frozenset({"two/a"})
    assert seconds(3) == {"b"}
    scheduler.left_out = frozenset()
    assert seconds(3) == {"a", "b"}
    scheduler.close()
