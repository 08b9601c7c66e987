"""What an agent that takes over still has to count in the exported histograms."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.agent.counted import META_KEY, Counted, uncounted
from rankscope.agent.recording import Recording
from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.records import DeviceRecord, GroupRecord, PhaseRecord, RingRecord, StepRecord
from rankscope.ring import RingHeader


def records(step: int) -> list[RingRecord]:
    """All that a rank says of one step."""
    start = step * 1000
    return [
        StepRecord(step, start, start + 900, 1, 2, 3, 4, 5, 6, 7),
        GroupRecord(step, 4, 1, 40, 5, 0, "dp", members="0-3"),
        GroupRecord(step, 2, 1, 40, 5, 1, "tp"),
        PhaseRecord(step, start, start + 100, "augment"),
        DeviceRecord(step, 10, 1, 2, 3, 4, 5, 6),
    ]


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """A recording to write to."""
    return Recording.create(tmp_path / "a.db", job="job", host="node")


def add(recording: Recording, pid: int, steps: range) -> tuple[RankIdentity, list[RingRecord]]:
    """Record some steps of a process."""
    identity = RankIdentity("job", 0, 0, 1, 0, "node", pid, 77, "boot", None, "host")
    row, _ = recording.add_rank(f"{pid}.ring", RingHeader(identity, ClockAnchor(pid, 0), 1024, 2))
    said = [record for step in steps for record in records(step)]
    recording.add_records(row, said, len(said))
    assert recording.commit()
    return identity, said


def test_what_came_after_the_last_batch_is_counted_and_nothing_twice(recording: Recording) -> None:
    """Of a rank that was exported up to a step, what follows; of one that attached later, everything."""
    assert list(uncounted(recording.connection)) == []
    counted = Counted()
    identity, said = add(recording, 1, range(3))
    # The device's half of step 2 came after the batch.
    counted.note(identity, said[:-1])
    recording.set_meta(META_KEY, counted.document())
    add(recording, 1, range(3, 5))
    later, _ = add(recording, 2, range(2))
    found = {of.pid: left for of, left in uncounted(recording.connection)}
    assert sorted(found) == [1, 2]
    expected = [said[-1], *records(3), *records(4)]
    assert sorted(map(repr, found[1])) == sorted(map(repr, expected))
    assert sorted(map(repr, found[2])) == sorted(map(repr, [*records(0), *records(1)]))
    assert later.pid == 2
    recording.close()


def test_restarts_without_end_take_no_memory_without_end(recording: Recording) -> None:
    """A thousand processes: the latest are kept in mind, and those forgotten are taken for counted."""
    counted = Counted()
    for pid in range(1, 1001):
        counted.note(*add(recording, pid, range(1)))
    assert len(counted.document()) < 100_000
    recording.set_meta(META_KEY, counted.document())
    assert recording.commit()
    assert list(uncounted(recording.connection)) == []
    recording.close()
