"""Ranks as the agent follows them: real processes with real rings, attached, silent, stopped, killed, replaced."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankscope.agent.config import HangSettings
from rankscope.agent.fingerprint import load_fingerprints
from rankscope.agent.hang import HangWatch
from rankscope.agent.processes import ProcessHandle, parse_stat, process_stat
from rankscope.agent.ranks import RankWatcher
from rankscope.agent.recording import Recording
from rankscope.clock import ClockAnchor, SystemClock
from rankscope.identity import RankIdentity
from rankscope.reading import Event
from rankscope.records import Phase, StepRecord
from rankscope.ring import RingWriter, ring_path
from rankscope.torch_hooks.fingerprint import write_fingerprint

Start = Callable[..., "subprocess.Popen[bytes]"]
Wait = Callable[..., None]


class Watch:
    """A watcher over the `rings` directory, and every event it gave."""

    def __init__(self, rings: Path, path: Path, hang: HangSettings | None = None) -> None:
        self.path = path
        exists = path.exists()
        self.recording = Recording.open(path) if exists else Recording.create(path, job="test", host="here")
        clock = SystemClock()
        self.watcher = RankWatcher(rings, self.recording, clock=clock, owners=frozenset({os.getuid()}))
        self.hang = HangWatch(hang or HangSettings(pyspy=False, floor_seconds=0.3, start_seconds=3.0), clock)
        self.events: list[Event] = []

    def look(self) -> Watch:
        """One round as the agent makes it."""
        fresh = self.watcher.scan() + self.watcher.poll(look=True) + self.hang.check(self.watcher.ranks)
        self.events += fresh
        self.recording.add_events(fresh)
        assert self.recording.commit()
        return self

    def kinds(self, rank: int | None = None) -> list[str]:
        """Kinds of the events so far, of one rank or of all."""
        return [event.kind for event in self.events if rank is None or event.rank == rank]

    def of(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event.kind == kind]

    def close(self) -> None:
        """Give everything back."""
        self.watcher.close()
        self.recording.close()


@pytest.fixture
def watch(rings: Path, tmp_path: Path) -> Iterator[Watch]:
    """A watcher for the test."""
    watching = Watch(rings, tmp_path / "here.db")
    yield watching
    watching.close()


def test_a_rank_attaches_and_ends(watch: Watch, start_rank: Start, wait_until: Wait) -> None:
    """A rank that ends by itself is told as attached and as a clean exit, with its last step."""
    start_rank(steps=5).wait()
    wait_until(lambda: "rank-exited" in watch.look().kinds())
    assert watch.kinds(0) == ["rank-attached", "rank-exited"]
    ended = watch.of("rank-exited")[0]
    assert (ended.attributes["clean"], ended.attributes["last_step"]) == (1, 4)


def test_the_facts_beside_a_ring_are_kept(watch: Watch, rings: Path, start_rank: Start, wait_until: Wait) -> None:
    """What a rank left of itself when it attached stands in the recording, with its place."""
    process = start_rank(steps=5, then="stuck")
    wait_until(lambda: list(rings.glob("*.ring")))
    (ring,) = rings.glob("*.ring")
    write_fingerprint(ring, {"NCCL_ALGO": "Ring"})
    wait_until(lambda: "rank-attached" in watch.look().kinds())
    facts = load_fingerprints([watch.path]).ranks[0]
    assert facts["environment"] == {"NCCL_ALGO": "Ring"}
    assert facts["placed"]["local_rank"] == 0
    process.kill()


def test_a_killed_rank_is_told_by_its_signal(watch: Watch, start_rank: Start, wait_until: Wait) -> None:
    """SIGKILL leaves no word: the exit is not clean and names the signal and where the rank was."""
    process = start_rank(steps=5, then="stuck")
    wait_until(lambda: watch.look().watcher.ranks and watch.watcher.ranks[0].last_step == 4)
    rank = watch.watcher.ranks[0]
    process.kill()
    # Not waited for yet: its exit status can still be read.
    readable, _, _ = select.select([rank.handle.descriptor], [], [], 30)
    assert readable
    watch.events += watch.watcher.ended([rank])
    ended = watch.of("rank-exited")[0]
    assert ended.attributes | {"pid": 0} == {
        "pid": 0,
        "clean": 0,
        "last_step": 4,
        "phase": "backward",
        "attempt": 0,
        "signal": signal.SIGKILL,
    }
    assert "SIGKILL" in ended.text


def test_an_exception_is_told_once_and_the_exit_after_it_is_clean(
    watch: Watch, start_rank: Start, wait_until: Wait
) -> None:
    """An exception has its type and step; the exit that follows is its consequence, not a second fault."""
    start_rank(steps=3, then="exception").wait()
    wait_until(lambda: "rank-exited" in watch.look().kinds())
    assert watch.kinds(0) == ["rank-attached", "rank-exception", "rank-exited"]
    assert watch.of("rank-exception")[0].attributes["type"] == "RuntimeError"
    assert watch.of("rank-exited")[0].attributes["clean"] == 1


def test_the_first_death_is_told_first(watch: Watch, start_rank: Start, wait_until: Wait) -> None:
    """Two ranks that died between two looks are told in the order of their deaths, whatever their numbers."""
    processes = [start_rank(steps=1, then="stuck", rank=rank, world=2) for rank in (0, 1)]
    wait_until(lambda: len(watch.look().watcher.ranks) == 2)
    ranks = {rank.identity.rank: rank for rank in watch.watcher.ranks}
    epoll = select.epoll()
    for rank in ranks.values():
        epoll.register(rank.handle.descriptor, select.EPOLLIN)
    by_descriptor = {rank.handle.descriptor: rank for rank in ranks.values()}
    for number in (1, 0):
        processes[number].kill()
        processes[number].wait()
    dead = [by_descriptor[descriptor] for descriptor, _ in epoll.poll(30)]
    watch.events += watch.watcher.ended(dead)
    exits = watch.of("rank-exited")
    assert [event.rank for event in exits] == [1, 0]
    assert exits[0].time_ns < exits[1].time_ns


def test_a_second_agent_repeats_nothing(rings: Path, tmp_path: Path, start_rank: Start, wait_until: Wait) -> None:
    """An agent that takes over reads on where the first stopped: no step twice, none missing, no event again."""
    process = start_rank(steps=5, then="stuck")
    first = Watch(rings, tmp_path / "here.db")
    wait_until(lambda: first.look().watcher.ranks and first.watcher.ranks[0].last_step == 4)
    first.recording.connection.close()
    second = Watch(rings, tmp_path / "here.db")
    second.look()
    assert second.kinds() == []
    assert second.watcher.ranks[0].stack_signal == "SIGUSR2"
    assert second.watcher.ranks[0].last_step == 4
    process.kill()
    process.wait()
    second.look()
    assert second.kinds() == ["rank-exited"]
    third = Watch(rings, tmp_path / "here.db")
    third.look()
    assert third.kinds() == []
    count = third.recording.connection.execute("SELECT count(*), count(DISTINCT step) FROM steps").fetchone()
    assert count == (5, 5)
    for watching in (second, third):
        watching.close()


def test_a_recycled_pid_is_not_the_rank(watch: Watch, rings: Path) -> None:
    """A ring whose pid lives but started at another time belongs to a process that is gone."""
    identity = RankIdentity("test", 0, 0, 1, 0, "here", os.getpid(), 12345, "boot")
    ring = RingWriter(ring_path(rings, identity), identity, ClockAnchor(1, 1), slots=16)
    ring.append_record(StepRecord(0, 1, 2, 0, 0, 0, 0, 0, 0, 0))
    watch.look()
    assert watch.kinds() == ["rank-attached", "rank-exited"]
    assert watch.of("rank-exited")[0].attributes["last_step"] == 0
    handle = ProcessHandle(os.getpid(), 12345)
    assert not handle.alive()
    assert not handle.send(signal.SIGKILL)


def test_files_that_are_no_rings_are_refused_once(
    watch: Watch, rings: Path, start_rank: Start, wait_until: Wait
) -> None:
    """Noise, another version, a directory, a link and a fifo are told once each; the good ring beside them is read."""
    start_rank(steps=2).wait()
    good = next(rings.glob("*.ring"))
    (rings / "noise.ring").write_bytes(os.urandom(40_000))
    newer = bytearray(good.read_bytes())
    newer[8:10] = (99).to_bytes(2, "little")
    (rings / "newer.ring").write_bytes(newer)
    (rings / "directory.ring").mkdir()
    (rings / "link.ring").symlink_to("/etc/passwd")
    os.mkfifo(rings / "fifo.ring")
    wait_until(lambda: "rank-exited" in watch.look().kinds())
    watch.look()
    refused = watch.of("rank-degraded")
    assert len(refused) == 5
    assert any("version 99" in event.text for event in refused)
    assert watch.watcher.ranks[0].last_step == 1


def test_records_overwritten_before_they_were_read_are_counted(watch: Watch, rings: Path, start_rank: Start) -> None:
    """A ring that was lapped while nobody read it says how many records are gone."""
    start_rank(steps=60, step_ms=0.1, slots=16).wait()
    watch.look()
    lost = watch.of("ring-overwritten")[0].attributes["count"]
    steps = watch.recording.connection.execute("SELECT count(*) FROM steps").fetchone()[0]
    # 62 records: the steps, and the marks at begin and end.
    assert lost + steps + 1 == 62


def test_a_hang_is_told_for_every_rank_with_its_stacks(watch: Watch, start_rank: Start, wait_until: Wait) -> None:
    """A rank that stands still is reported once, with phase, step, process state and the stacks of all ranks."""
    for rank in (0, 1):
        start_rank(steps=3, then="stuck", rank=rank, world=2)
    wait_until(lambda: watch.look().kinds().count("rank-stacks") == 2)
    watch.look()
    hung = watch.of("rank-hung")
    assert sorted(event.rank for event in hung if event.rank is not None) == [0, 1]
    assert {(event.attributes["phase"], event.attributes["step"], event.attributes["state"]) for event in hung} == {
        ("backward", 3, "S")
    }
    for event in watch.of("rank-stacks"):
        assert "fake_rank.py" in event.text
        assert event.attributes["source"] == "SIGUSR2"


def test_a_stopped_rank_gives_no_stacks_and_is_not_signalled(watch: Watch, start_rank: Start, wait_until: Wait) -> None:
    """A rank in state T is told as such; a signal would only wait to hit it when it goes on."""
    process = start_rank(then="spin", step_ms=5)
    wait_until(lambda: watch.look().watcher.ranks and (watch.watcher.ranks[0].last_step or 0) > 5)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "rank-stacks" in watch.look().kinds())
    assert watch.of("rank-hung")[0].attributes["state"] == "T"
    assert "stopped" in watch.of("rank-stacks")[0].text
    assert process_stat(process.pid) is not None
    pending = next(
        line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("ShdPnd")
    )
    assert int(pending.split()[1], 16) == 0
    # It goes on, and a later hang is a new one.
    process.send_signal(signal.SIGCONT)
    step = watch.watcher.ranks[0].last_step or 0
    wait_until(lambda: (watch.look().watcher.ranks[0].last_step or 0) > step + 5)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: watch.look().kinds().count("rank-hung") == 2)
    process.send_signal(signal.SIGCONT)


class _Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_ns = 10**15

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns

    def asleep_ns(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("phases", "past_ns", "hangs"),
    [
        pytest.param((Phase.COLLECTIVE_WAIT, Phase.BACKWARD), {}, True, id="one stuck, one waits"),
        pytest.param((Phase.COLLECTIVE_WAIT, Phase.CHECKPOINT), {}, False, id="first checkpoint takes its time"),
        pytest.param(
            (Phase.COLLECTIVE_WAIT, Phase.CHECKPOINT),
            {Phase.CHECKPOINT: 30 * 10**9},
            False,
            id="a checkpoint within its own past",
        ),
        pytest.param(
            (Phase.COLLECTIVE_WAIT, Phase.CHECKPOINT),
            {Phase.CHECKPOINT: 10**9},
            True,
            id="a checkpoint far beyond its past",
        ),
        pytest.param((Phase.OTHER, Phase.OTHER), {}, False, id="all save at the end"),
        pytest.param((Phase.COLLECTIVE_WAIT, Phase.OTHER), {}, True, id="one saves while another waits"),
        pytest.param((Phase.ENDED, Phase.ENDED), {}, False, id="all ended"),
    ],
)
def test_what_counts_as_a_hang(
    rings: Path, tmp_path: Path, phases: tuple[Phase, Phase], past_ns: dict[Phase, int], hangs: bool
) -> None:
    """100 s of silence in steps of 1 s: a hang in a step, none in a checkpoint or evaluation its past explains."""
    clock = _Clock()
    recording = Recording.create(tmp_path / "here.db", job="test", host="here")
    watcher = RankWatcher(rings, recording, clock=clock, owners=None)
    own = process_stat(os.getpid())
    assert own is not None
    for rank, phase in enumerate(phases):
        identity = RankIdentity("test", 0, rank, 2, rank, "here", os.getpid(), own.start_ticks, "boot")
        ring = RingWriter(ring_path(rings, identity), identity, ClockAnchor(1, 1), slots=64)
        long = past_ns.get(Phase.CHECKPOINT, 0)
        for step in range(20):
            checkpoint = long if step == 10 else 0
            length = 10**9 + checkpoint
            ring.append_record(StepRecord(step, 0, length, 0, length, 0, 0, checkpoint, 0, 0))
        ring.set_status(clock.now_ns, 20, phase)
    watcher.scan()
    watcher.poll()
    for rank in watcher.ranks:
        rank.said_goodbye = rank.status is not None and rank.status.phase is Phase.ENDED
    hang = HangWatch(HangSettings(pyspy=False, floor_seconds=30, start_seconds=600), clock)
    clock.now_ns += 5 * 10**9
    assert hang.check(watcher.ranks) == []
    clock.now_ns += 95 * 10**9
    kinds = [event.kind for event in hang.check(watcher.ranks)]
    assert kinds.count("rank-hung") == (2 if hangs else 0)
    watcher.close()
    recording.close()


def test_a_name_with_brackets_does_not_fool_the_stat_parser() -> None:
    """The fields are counted from behind the last bracket; a line cut short is no process."""
    fields = ["S", "7", *["0"] * 9, "5", "6", *["0"] * 6, "999", *["0"] * 29, "9"]
    assert (found := parse_stat(f"12 (a) S (b) {' '.join(fields)}")) is not None
    assert (found.state, found.parent, found.cpu_ticks, found.start_ticks, found.exit_code) == ("S", 7, 11, 999, 9)
    assert parse_stat("12 (a) S 7") is None
