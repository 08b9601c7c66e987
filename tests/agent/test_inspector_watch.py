"""Inspector files followed while ranks run: found by what ranks say, joined into the recording, bounded."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankscope.agent.inspector_watch import DIRECTORY_KEY, InspectorWatch
from rankscope.agent.load import load_window
from rankscope.agent.ranks import RankWatcher
from rankscope.agent.recording import Recording
from rankscope.clock import ClockAnchor, SystemClock, boot_id
from rankscope.identity import RankIdentity
from rankscope.reading import Event
from rankscope.records import DeviceRecord, RingRecord, StepRecord
from rankscope.ring import SUFFIX, RingWriter
from rankscope.rules.frame import Frame
from rankscope.torch_hooks.fingerprint import write_fingerprint

MS = 1_000_000
#: Steps of 10 ms with two collectives each; rank 1 comes 3 ms late to the second.
STEPS = 40
LATE_US = 3_000


class Job:
    """Two ranks (this process, under two names), their rings, their Inspector files, and who watches them."""

    def __init__(self, rings: Path, directory: Path, *, version: str = "v4.2", look_bytes: int = 1 << 20) -> None:
        self.directory, self.version = directory, version
        self.recording = Recording.create(directory / "here.db", job="j", host="here")
        self.inspector = InspectorWatch(SystemClock(), look_ns=0, look_bytes=look_bytes)
        self.watcher = RankWatcher(
            rings, self.recording, clock=SystemClock(), owners=frozenset({os.getuid()}), heard=self._heard
        )
        self.events: list[Event] = []
        self.writers = []
        for rank in range(2):
            identity = RankIdentity("j", 0, rank, 2, rank, f"host{rank}", os.getpid(), 0, boot_id(), None, "cuda")
            path = rings / f"{rank}{SUFFIX}"
            self.writers.append(RingWriter(path, identity, ClockAnchor.take(SystemClock())))
            write_fingerprint(path, {DIRECTORY_KEY: str(directory / "dumps")})
        (directory / "dumps").mkdir()
        self.watcher.scan()

    def _heard(self, identity: RankIdentity, records: Sequence[RingRecord]) -> None:
        row = next(rank.row for rank in self.watcher.ranks if rank.identity is identity)
        for record in records:
            if isinstance(record, StepRecord | DeviceRecord):
                self.inspector.heard(row, record)

    def file(self, rank: int) -> Path:
        """Where the library writes of a rank; a host of its own each, since both are one process."""
        return self.directory / "dumps" / f"host{rank}-pid{os.getpid()}.log"

    def run(self, steps: range) -> None:
        """Write what the ranks and the library would have written of these steps, up to now."""
        now = ClockAnchor.take(SystemClock())
        for step in steps:
            end_ns = now.monotonic_ns - (steps.stop - 1 - step) * 10 * MS
            for rank, writer in enumerate(self.writers):
                exposed = 1 * MS if rank == 0 else 0
                writer.append_record(DeviceRecord(step, 10 * MS, 0, 0, 9 * MS, exposed, 0, 0))
                writer.append_record(StepRecord(step, end_ns - 10 * MS, end_ns, 0, 10 * MS, 0, 0, 0, 0, 0, 0))
                with self.file(rank).open("a") as file:
                    for number in range(2):
                        late = LATE_US if rank == 0 and number else 0
                        wall_us = now.to_wall_ns(end_ns - (2 - number) * MS) // 1000
                        file.write(self.line(rank, 2 * step + number, 400 + late, wall_us))

    def line(self, rank: int, sequence: int, duration_us: int, wall_us: int) -> str:
        """One collective."""
        metadata: dict[str, Any] = {"inspector_output_format_version": self.version, "dump_timestamp_us": wall_us}
        metadata |= {"hostname": f"host{rank}", "pid": os.getpid()}
        body = {
            "coll": "AllReduce",
            "coll_sn": sequence,
            "coll_msg_size_bytes": 1 << 25,
            "coll_exec_time_us": duration_us,
        }
        header = {"id": "0xab", "rank": rank, "n_ranks": 2, "nnodes": 1}
        body |= {"coll_timing_source": "kernel_gpu"}
        return json.dumps({"header": header, "metadata": metadata, "coll_perf": body}) + "\n"

    def look(self) -> None:
        """One round of the agent."""
        self.watcher.poll()
        found, events = self.inspector.check(self.watcher.ranks)
        self.events += events
        for rank, records in found:
            self.recording.add_records(rank.row, records, rank.reader.position)
        assert self.recording.commit()

    def frame(self) -> Frame:
        """What a report has of it."""
        return Frame(load_window([self.directory / "here.db"]))


@pytest.fixture
def job(rings: Path, tmp_path: Path) -> Iterator[Job]:
    """Two ranks that run."""
    made = Job(rings, tmp_path)
    made.look()
    yield made
    made.inspector.close()
    made.watcher.close()
    made.recording.close()


def test_collectives_reach_the_report_with_waits_by_rank(job: Job) -> None:
    """From files that grow to joined waits: the late rank waits for nobody, its peer for it, in every step."""
    job.run(range(STEPS // 2))
    job.look()
    job.run(range(STEPS // 2, STEPS))
    job.look()
    frame = job.frame()
    assert frame.timed is not None
    assert frame.timed.covered.mean() > 0.9
    assert np.nanmedian(frame.timed.wait_ms[0]) == pytest.approx(LATE_US / 1e3)
    assert np.nanmax(frame.timed.wait_ms[1]) == 0
    assert np.nanmedian(frame.timed.transfer_ms[0]) == pytest.approx(2 * 0.4)
    (groups,) = {tuple(of.groups) for of in frame.window.ranks.values()}
    assert groups == ("0xab",)
    spent = frame.of(0).groups["0xab"].columns["comm_ns"]
    assert np.median(spent) == pytest.approx((2 * 400 + LATE_US) * 1e3)
    hidden = frame.of(0).groups["0xab"].columns["overlap_ns"]
    assert np.median(hidden) == pytest.approx((2 * 400 + LATE_US) * 1e3 - MS)
    assert [event.text for event in job.events] == ["collectives are timed by NCCL Inspector (v4.2)"]


def test_a_job_that_writes_too_much_is_sampled_and_says_so(rings: Path, tmp_path: Path) -> None:
    """Far behind, the ends of all files are taken together: what is joined is right, what was left out is counted."""
    made = Job(rings, tmp_path, look_bytes=8_000)
    made.look()
    made.run(range(400))
    made.look()
    made.watcher.poll()
    frame = made.frame()
    assert frame.timed is not None
    assert 1 < int(frame.timed.covered.sum()) < 20
    assert np.nanmedian(frame.timed.wait_ms[0]) == pytest.approx(LATE_US / 1e3)
    (event,) = made.inspector.close()
    assert int(event.attributes["skipped_bytes"] or 0) > 100_000
    made.watcher.close()
    made.recording.close()


@pytest.mark.parametrize("content", [b"\0" * 5_000, b"{}\n" * 99, b'{"header": 1}\n', b"[" * 100_000 + b"\n", b""])
def test_nonsense_in_a_file_changes_nothing(job: Job, content: bytes) -> None:
    """What a process writes there is trusted no more than a ring."""
    job.run(range(STEPS))
    with job.file(1).open("ab") as file:
        file.write(content)
    job.look()
    assert job.frame().timed is not None


def test_links_foreign_formats_and_ranks_without_the_plugin(rings: Path, tmp_path: Path) -> None:
    """No link is followed, an unknown version is said and not read, and a rank that names no directory is let alone."""
    made = Job(rings, tmp_path, version="v9.0")
    (tmp_path / "elsewhere").write_text(made.line(1, 1, 5, time.time_ns() // 1000))
    made.file(1).symlink_to(tmp_path / "elsewhere")
    made.look()
    made.file(0).write_text(made.line(0, 1, 5, time.time_ns() // 1000))
    made.look()
    assert made.frame().timed is None
    assert ["not known" in event.text for event in made.events] == [True]
    assert made.inspector.following
    for writer in made.writers:
        write_fingerprint(writer.path, {})
    other = InspectorWatch(SystemClock(), look_ns=0)
    assert other.check(made.watcher.ranks) == ([], [])
    assert not other.following
    made.watcher.close()
    made.recording.close()


def opened(job: Job) -> int:
    """How many Inspector files are open."""
    names = [os.readlink(each.path) for each in os.scandir("/proc/self/fd") if os.path.exists(each.path)]
    return sum(name.startswith(str(job.directory / "dumps")) for name in names)


def test_a_rank_that_ended_is_read_to_its_end_and_let_go(rings: Path, tmp_path: Path) -> None:
    """What it wrote last is recorded although a look takes only a part of it; then no file of it is open any more."""
    job = Job(rings, tmp_path, look_bytes=30_000)
    job.look()
    job.run(range(STEPS))
    job.look()
    assert opened(job) == 2
    job.watcher.ended(job.watcher.ranks)
    for _ in range(4):
        job.look()
    assert opened(job) == 0
    frame = job.frame()
    assert frame.timed is not None
    assert frame.timed.covered.mean() > 0.9
    assert job.inspector.close() == []
    job.watcher.close()
    job.recording.close()
