"""The recording: what is committed stays, once, whatever happens to its writer, its disk or its file."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from rankscope.agent.load import load_window
from rankscope.agent.recording import PENDING_ROWS, Recording
from rankscope.agent.recording_file import new_recording_path
from rankscope.agent.standing import Standing
from rankscope.agent.thinning import used_bytes
from rankscope.clock import ClockAnchor
from rankscope.errors import RecordingError
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Outcome, Reading, Severity
from rankscope.records import DeviceRecord, GroupRecord, MarkRecord, PhaseRecord, StepRecord
from rankscope.ring import RingHeader
from rankscope.testing import FakeClock
from rankscope.window import SeriesKey

SECOND = 1_000_000_000


def header(rank: int = 0, *, attempt: int = 0, anchor_ns: int = 5, pid: int = 4242, host: str = "node1") -> RingHeader:
    """A ring's header."""
    identity = RankIdentity("job", attempt, rank, 2, rank, host, pid, 77, "boot", f"GPU-{rank}", "host")
    return RingHeader(identity, ClockAnchor(anchor_ns, 1_000 * SECOND + anchor_ns), 1024, 2)


def step(number: int, *, start_ns: int | None = None, length_ns: int = 100) -> StepRecord:
    """A step of a made-up rank."""
    start = number * 1000 if start_ns is None else start_ns
    return StepRecord(number, start, start + length_ns, 1, 2, 3, 4, 5, 6, 7, backward_own_ns=2, work=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the recording of the test lies."""
    return tmp_path / "node1.db"


def begin(path: Path, **options: int) -> Recording:
    """A recording to write to."""
    return Recording.create(path, job="job", host="node1", **options)


def test_what_goes_in_comes_out(path: Path) -> None:
    """Every kind of row reads back as it was given, a missing value as NaN."""
    recording = begin(path)
    row, position = recording.add_rank("a.ring", header())
    assert position == 0
    records = [
        step(0),
        step(1),
        DeviceRecord(1, 10, None, 2, 3, 4, 5, 6),
        GroupRecord(1, 2, 3, 40, None, 1, "dp"),
        PhaseRecord(1, 100, 200, "augment"),
        MarkRecord(5, 0, 1, "stacks=SIGUSR2"),
    ]
    recording.add_records(row, records, 6)
    recording.add_readings(
        [Reading("gpu.power_watts", 300.5, 10, "GPU-0"), Reading("gpu.power_watts", 301, 20, "GPU-0")]
    )
    event = Event("xid", 15, "Xid 79", Severity.CRITICAL, "GPU-0", None, "", {"number": 79})
    recording.add_events([event])
    recording.set_meta("gpus", '["GPU-0"]')
    recording.set_outcome("nvml", "fast", "", 1, Outcome.NO_PERMISSION, "not yours")
    assert recording.commit()
    recording.close()

    window = load_window([path])
    rank = window.ranks[0]
    assert rank.identity == header().identity
    assert list(rank.steps.columns["start_ns"]) == [0, 1000]
    assert math.isnan(rank.steps.columns["work"][0])
    assert math.isnan(rank.device.columns["data_wait_ns"][0])
    assert rank.device.columns["backward_own_ns"][0] == 3
    assert rank.groups["dp"].columns["own_ns"][0] == 40
    assert math.isnan(rank.groups["dp"].columns["wait_ns"][0])
    assert list(rank.phases["augment"].columns["end_ns"]) == [200]
    series = window.series[SeriesKey("node1", "gpu.power_watts", "GPU-0")]
    assert (list(series.times_ns), list(series.values)) == ([10, 20], [300.5, 301])
    assert [(seen.kind, seen.host, seen.attributes) for seen in window.events] == [("xid", "node1", {"number": 79})]
    assert window.not_seen == ["nvml: no permission (not yours)"]
    assert window.gpus == {"node1": ["GPU-0"]}
    assert window.world_size == 2
    assert os.listdir(path.parent) == [path.name]


def test_a_second_writer_goes_on_where_the_first_was_killed(path: Path) -> None:
    """A writer killed with SIGKILL loses what it had not committed and nothing else; positions tell where to go on."""
    child = os.fork()
    if child == 0:
        recording = begin(path)
        row, _ = recording.add_rank("a.ring", header())
        recording.add_records(row, [step(0), step(1)], 2)
        recording.commit()
        recording.add_records(row, [step(2)], 3)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.with_name("node1.db-wal").exists()

    recording = Recording.open(path)
    row, position = recording.add_rank("a.ring", header())
    assert position == 2
    # What comes twice is there once.
    recording.add_records(row, [step(1), step(2)], 3)
    assert recording.commit()
    recording.close()
    assert list(load_window([path]).ranks[0].steps.columns["step"]) == [0, 1, 2]


def test_a_reader_takes_in_what_a_killed_writer_left_beside_the_file(path: Path, tmp_path: Path) -> None:
    """A side file (-wal) without an owner is read and folded in, so that one file is left."""
    recording = begin(path)
    row, _ = recording.add_rank("a.ring", header())
    recording.add_records(row, [step(0)], 1)
    recording.commit()
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("node1.db", "node1.db-wal"):
        shutil.copy(tmp_path / name, copy / name)
    recording.close()
    assert len(load_window([copy]).ranks[0].steps) == 1
    assert os.listdir(copy) == ["node1.db"]


def test_a_live_recording_can_be_read(path: Path) -> None:
    """A reader sees what is committed while the writer goes on."""
    recording = begin(path)
    row, _ = recording.add_rank("a.ring", header())
    for number in range(3):
        recording.add_records(row, [step(number)], number + 1)
        recording.commit()
        assert len(load_window([path]).ranks[0].steps) == number + 1
    recording.close()


def filled(path: Path, steps: int = 3000) -> None:
    """A finished recording of one rank."""
    recording = begin(path)
    row, _ = recording.add_rank("a.ring", header())
    recording.add_records(row, [step(number) for number in range(steps)], steps)
    recording.commit()
    recording.close()


def test_a_recording_cut_short_gives_what_can_be_read(path: Path) -> None:
    """A file truncated in the middle gives a window that says so, or one clear error; never another exception."""
    filled(path)
    whole = path.read_bytes()
    read = []
    for part in (0.95, 0.6, 0.3):
        path.write_bytes(whole[: int(len(whole) * part)])
        window = load_window([path])
        assert any("cut short" in line for line in window.not_seen)
        read.append(sum(len(rank.steps) for rank in window.ranks.values()))
    assert read[0] > 0
    assert read == sorted(read, reverse=True)
    path.write_bytes(whole[:3000])
    with pytest.raises(RecordingError, match=r"node1\.db"):
        load_window([path])


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_recording_is_refused(path: Path, content: bytes) -> None:
    """Noise, an empty file and a damaged header are one line each."""
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"node1\.db"):
        load_window([path])


def test_a_foreign_database_and_another_version_are_told_apart(path: Path) -> None:
    """Any other SQLite file, and a recording of another release, are refused by what they are."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    with pytest.raises(RecordingError, match="not a Rankscope recording"):
        load_window([path])
    path.unlink()
    filled(path, 1)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(RecordingError, match="schema version 99"):
        load_window([path])


def test_a_full_disk_costs_rows_that_are_counted_and_said(path: Path) -> None:
    """Where the file cannot grow, rows wait; what memory does not hold is counted and said once there is room."""
    recording = begin(path, max_bytes=1_000_000)
    row, _ = recording.add_rank("a.ring", header())
    number = 0
    while not recording.trouble:
        recording.add_records(row, [step(number + offset) for offset in range(1000)], number + 1000)
        number += 1000
        recording.commit()
        assert number < 100_000
    assert "full" in recording.trouble
    recording.add_readings(Reading("gpu.power_watts", 1.0, time, "GPU-0") for time in range(PENDING_ROWS + 500))
    assert not recording.commit()
    lost = recording.lost_rows
    assert lost >= 500
    # The job's own limit is raised: as if somebody had made room.
    recording.connection.execute("PRAGMA max_page_count = 100000")
    assert recording.commit()
    assert recording.commit()
    recording.close()
    window = load_window([path])
    told = [event for event in window.events if event.kind == "recording-lost"]
    assert [event.attributes["count"] for event in told] == [lost]
    assert len(window.ranks[0].steps) + len(window.series[SeriesKey("node1", "gpu.power_watts", "GPU-0")].values) == (
        number + PENDING_ROWS + 500 - lost
    )


def test_old_readings_go_first_and_steps_last(path: Path) -> None:
    """Near its limit the recording loses every second reading of the older half, keeps every step, and says so."""
    recording = begin(path)
    row, _ = recording.add_rank("a.ring", header())
    recording.add_records(row, [step(number) for number in range(3000)], 3000)
    recording.add_readings(Reading("gpu.power_watts", float(time), time, "GPU-0") for time in range(20_000))
    recording.commit()
    assert recording.thin(10**9) == 0
    gone = recording.thin(used_bytes(recording.connection))
    recording.commit()
    recording.close()
    assert 4_900 <= gone <= 5_000
    window = load_window([path])
    times = window.series[SeriesKey("node1", "gpu.power_watts", "GPU-0")].times_ns
    assert len(times) == 20_000 - gone
    assert [time for time in times if time >= 10_000] == list(range(10_000, 20_000))
    assert len(window.ranks[0].steps) == 3000
    assert [event.attributes["count"] for event in window.events if event.kind == "readings-thinned"] == [gone]


def test_what_lies_around_a_trigger_is_thinned_last(path: Path) -> None:
    """Readings and steps within a burst's window stay whole while there is anything else; then they thin out too."""
    recording = begin(path)
    row, _ = recording.add_rank("a.ring", header())
    recording.add_records(row, [step(number) for number in range(3000)], 3000)
    recording.add_readings(Reading("gpu.power_watts", float(time), time, "GPU-0") for time in range(20_000))
    window = {"reason": "xid", "begin_ns": 2_000, "end_ns": 4_000, "devices": "GPU-0"}
    recording.add_events([Event("burst", 3_000, "", attributes=window)])
    recording.commit()
    for _ in range(12):
        recording.thin(used_bytes(recording.connection))
        recording.commit()
    execute = recording.connection.execute
    kept = [time for (time,) in execute("SELECT time_ns FROM readings WHERE time_ns BETWEEN 2000 AND 4000")]
    assert kept == list(range(2_000, 4_001))
    assert execute("SELECT count(*) FROM readings WHERE time_ns < 2000").fetchone()[0] < 100
    # Nothing but windows left: the limit of the file still holds.
    everything = {"reason": "xid", "begin_ns": 0, "end_ns": 10**18, "devices": "GPU-0"}
    recording.add_events([Event("burst", 3_000, "", attributes=everything)])
    recording.commit()
    assert recording.thin(used_bytes(recording.connection)) > 0
    recording.close()


def test_runs_of_one_name_do_not_mix(tmp_path: Path) -> None:
    """A second run of a job gets a file of its own; names that are no file names are made so."""
    first = new_recording_path(tmp_path, "../my job", "node1")
    second = new_recording_path(tmp_path, "../my job", "node1")
    assert first.parent == second.parent == tmp_path / "my-job"
    assert [first.name, second.name] == ["node1.db", "node1.2.db"]


def test_a_state_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """Where the recording has no place the error names it and the variable that moves it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="RANKSCOPE_STATE"):
        new_recording_path(tmp_path / "file", "job", "node1")


def test_the_last_attempt_that_made_a_step_is_the_window(path: Path) -> None:
    """Of a restarted job the window holds the last attempt with steps; one that died at its start does not hide it."""
    recording = begin(path)
    for attempt, steps in ((0, 10), (1, 20), (2, 0)):
        for rank in (0, 1):
            row, _ = recording.add_rank(f"{attempt}.{rank}.ring", header(rank, attempt=attempt, anchor_ns=attempt))
            recording.add_records(row, [step(number) for number in range(steps)], steps)
    recording.commit()
    recording.close()
    window = load_window([path])
    assert {rank.identity.attempt for rank in window.ranks.values()} == {1}
    assert [len(rank.steps) for rank in window.ranks.values()] == [20, 20]


def test_hosts_are_joined_on_the_first_ones_clock(tmp_path: Path) -> None:
    """Two hosts whose monotonic clocks differ by an hour: steps of one wall time stand at one time in the window."""
    hour = 3600 * SECOND

    class Shifted:
        def __init__(self, offset_ns: int) -> None:
            self.offset_ns = offset_ns

        def monotonic_ns(self) -> int:
            return 100 * SECOND + self.offset_ns

        def wall_ns(self) -> int:
            return 1_700_000_000 * SECOND

        def asleep_ns(self) -> int:
            return 0

    for rank, offset in ((0, 0), (1, hour)):
        recording = Recording.create(tmp_path / f"node{rank}.db", job="job", host=f"node{rank}", clock=Shifted(offset))
        recording.set_meta("boot_id", f"boot{rank}")
        row, _ = recording.add_rank("a.ring", header(rank, host=f"node{rank}"))
        recording.add_records(row, [step(0, start_ns=100 * SECOND + offset)], 1)
        recording.add_readings([Reading("host.cpu_count", 8, 100 * SECOND + offset)])
        recording.add_events([Event("xid", 100 * SECOND + offset, "")])
        recording.commit()
        recording.close()
    window = load_window([tmp_path])
    assert sorted(window.ranks) == [0, 1]
    assert {rank.steps.columns["start_ns"][0] for rank in window.ranks.values()} == {100 * SECOND}
    assert {series.times_ns[0] for series in window.series.values()} == {100 * SECOND}
    assert {event.time_ns for event in window.events} == {100 * SECOND}
    assert {anchor.to_wall_ns(100 * SECOND) for anchor in window.anchors.values()} == {1_700_000_000 * SECOND}
    assert {key.host for key in window.series} == {event.host for event in window.events} == {"node0", "node1"}


def test_a_window_is_bounded_and_says_so(path: Path) -> None:
    """The latest steps are kept, and that there were more stands in `not_seen`."""
    filled(path, 100)
    window = load_window([path], max_steps=10)
    assert list(window.ranks[0].steps.columns["step"]) == list(range(90, 100))
    assert any("last 10 steps" in line for line in window.not_seen)
    assert list(load_window([path], since_ns=95_000).ranks[0].steps.columns["step"]) == [95, 96, 97, 98, 99]


def test_a_window_begins_with_what_was_seen(path: Path) -> None:
    """The zero that the stores get before the first event is of a time in which nothing was: it is no time of the job,
    which would else have spent it starting."""
    events = [Event("agent-started", 20 * SECOND, "here"), Event("agent-stopped", 23 * SECOND, "there")]
    standing = Standing()
    standing.count(events)
    recording = begin(path)
    recording.add_events(events)
    recording.add_readings(standing.readings(21 * SECOND))
    recording.commit()
    recording.close()
    window = load_window([path])
    assert min(series.times_ns[0] for series in window.series.values()) < 20 * SECOND
    assert (window.begin_ns, window.end_ns) == (20 * SECOND, 23 * SECOND)


def test_a_source_that_recovers_is_seen_again(path: Path) -> None:
    """OK takes back what was said of a source before; several reasons of one device stand side by side."""
    recording = begin(path)
    recording.set_outcome("nvml", "fast", "", 1, Outcome.FAILED, "no answer")
    recording.commit()
    recording.set_outcome("nvml", "fast", "", 2, Outcome.OK, "")
    for metric in ("a", "b"):
        recording.set_outcome("nvml", "fast", "GPU-0", 2, Outcome.UNSUPPORTED, metric)
    recording.commit()
    recording.close()
    assert sorted(load_window([path]).not_seen) == ["nvml GPU-0: unsupported (a)", "nvml GPU-0: unsupported (b)"]


def test_rows_that_no_agent_writes_are_left_out_and_counted(path: Path) -> None:
    """What a disk or a person changed is no evidence; the other rows of the same table are, of whatever kind."""
    recording = begin(path)
    row, _ = recording.add_rank("a.ring", header())
    recording.add_records(row, [step(number) for number in range(4)], 4)
    recording.add_readings(Reading("gpu.power_watts", 300.0 + time, time, "GPU-0") for time in range(3))
    recording.add_events(Event(kind, 5, "what happened") for kind in ("xid", "of-a-later-release", "burst"))
    recording.commit()
    recording.close()
    connection = sqlite3.connect(path)
    for change in (
        "UPDATE steps SET start_ns = 'noon' WHERE step = 1",
        "UPDATE steps SET end_ns = 1 << 62 | 1 WHERE step = 2",
        "UPDATE readings SET value = 9e999 WHERE time_ns = 1",
        "UPDATE events SET attributes = '[]' WHERE kind = 'burst'",
    ):
        assert connection.execute(change).rowcount == 1
    connection.commit()
    connection.close()
    window = load_window([path])
    assert list(window.ranks[0].steps.columns["step"]) == [0, 3]
    assert list(window.series[SeriesKey("node1", "gpu.power_watts", "GPU-0")].times_ns) == [0, 2]
    assert [event.kind for event in window.events] == ["xid", "of-a-later-release"]
    said = "rows of {} hold what no agent writes, and were left out"
    for table, count in (("steps", 2), ("readings", 1), ("events", 1)):
        assert any(f"{count} {said.format(table)}" in line for line in window.not_seen), window.not_seen


def test_a_disk_that_is_full_for_a_day_costs_no_memory_and_few_tries(path: Path) -> None:
    """Facts and states of sources replace each other, events go last, and what was lost is said in one event; the
    file is tried once a minute, and at once when there is room."""
    clock = FakeClock()
    recording = Recording.create(path, job="job", host="node1", clock=clock)
    tries: list[str] = []
    recording.connection.set_trace_callback(
        lambda statement: tries.append(statement) if statement.startswith("BEGIN") else None
    )
    (pages,) = recording.connection.execute("PRAGMA page_count").fetchone()
    recording.connection.execute(f"PRAGMA max_page_count = {pages}")
    commits = readings = events = 0
    failed = False
    while commits < 24 * 1800:
        commits += 1
        clock.advance(2 * SECOND)
        now = clock.monotonic_ns()
        recording.add_readings(Reading("gpu.power_watts", 1.0, now + place, "GPU-0") for place in range(4))
        readings += 4
        for key in range(5):
            recording.set_meta(f"fact {key}", commits)
        recording.set_outcome("nvml", "fast", "", now, (Outcome.FAILED, Outcome.OK)[commits % 2], f"{commits % 3}")
        if commits % 2 == 0:
            recording.add_events([Event("governor", now, "again")])
            events += 1
        failed = failed or not recording.commit()
        assert not (failed and recording.commit())
    assert failed
    held = sum(map(len, recording._pending.values()))
    assert held <= PENDING_ROWS + 10
    assert sum(map(len, recording._latest.values())) < 12
    # Once a minute, and whenever others on this machine free space.
    assert 24 * 60 - 2 <= len(tries) < commits / 10
    recording.connection.execute("PRAGMA max_page_count = 1000000")
    assert recording.commit(), "at once, for there is room"
    assert recording.commit()
    recording.close()
    connection = sqlite3.connect(path)
    kept = {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("readings", "events")
    }
    [(said,)] = connection.execute(
        "SELECT json_extract(attributes, '$.count') FROM events WHERE kind = 'recording-lost'"
    ).fetchall()
    assert connection.execute("SELECT value FROM meta WHERE key = 'fact 3'").fetchone() == (commits,)
    connection.close()
    assert kept["readings"] + kept["events"] - 1 + said == readings + events
    assert kept["events"] - 1 == events, "events go last"
