"""Filesystems of the job: how full they are, and that one which hangs makes nobody wait."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankscope.errors import PermissionDenied
from rankscope.probes.filesystem import FilesystemProbe
from rankscope.probes.mounts import Mount, parse
from rankscope.reading import Event, Outcome, ProbeResult

SECOND = 10**9
MOUNTINFO = """98 1 253:0 / / rw - xfs /dev/sda1 rw
120 98 0:55 / /data rw - nfs4 nas:/data rw
130 98 0:60 / /scratch rw - lustre fs:/scratch rw
"""


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, however slow the machine is today."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Servers:
    """Filesystems that answer, or hang until they are let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._gone: dict[str, threading.Event] = {}

    def hang(self, path: str) -> None:
        """Let questions to a path wait."""
        self._gone[path] = threading.Event()

    def answer(self, path: str) -> None:
        """Let them go on."""
        self._gone.pop(path).set()

    def __call__(self, path: str) -> os.statvfs_result:
        self.asked.append(path)
        if (gone := self._gone.get(path)) is not None:
            gone.wait(60)
        return os.statvfs_result((4096, 4096, 100, 60, 50, 10, 6, 5, 0, 255))


@pytest.fixture
def servers() -> Iterator[Servers]:
    """Servers that all answer at the end."""
    made = Servers()
    yield made
    for path in list(made._gone):
        made.answer(path)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with one process, whose mounts are the agent's."""
    for process in ("100", "self"):
        (tmp_path / process / "ns").mkdir(parents=True)
        (tmp_path / process / "ns/mnt").symlink_to("mnt:[1]")
    (tmp_path / "100/mountinfo").write_text(MOUNTINFO)
    return tmp_path


def devices(result: ProbeResult) -> set[str]:
    """Mount points that a result has readings of."""
    return {reading.device for reading in result.readings}


def threads() -> int:
    """Threads of filesystem probes that live."""
    return sum(thread.name == "rankscope-filesystems" for thread in threading.enumerate())


def test_what_is_full_is_told(proc: Path, servers: Servers) -> None:
    """Sizes in bytes, what an unprivileged user may still use, and how long the answer took."""
    probe = FilesystemProbe(proc, statvfs=servers, clock_ns=iter(range(0, 10**6, 5)).__next__, grace_s=30)
    probe.set_ranks({3: 100})
    told = {(r.metric, r.device): r.value for r in probe.read("filesystem", 1).readings}
    assert {device for _, device in told} == {"/", "/data", "/scratch"}
    assert {metric: value for (metric, device), value in told.items() if device == "/data"} == {
        "fs.total_bytes": 409600,
        "fs.available_bytes": 204800,
        "fs.inodes": 10,
        "fs.inodes_available": 5,
        "fs.answer_ns": 5,
    }
    assert servers.asked[0] == "/", "what is local is asked first"
    probe.close()
    until(lambda: threads() == 0)


def test_a_filesystem_that_hangs_makes_nobody_wait(proc: Path, servers: Servers) -> None:
    """The others are told as ever, the stall is one event, the answer another, and no thread is left over.

    Two servers are gone at once: each costs one thread, for as long as it is gone and however often the probe is read.
    """
    time_ns = 100 * SECOND
    probe = FilesystemProbe(proc, statvfs=servers, clock_ns=lambda: time_ns)
    probe.set_ranks({0: 100})
    until(lambda: probe.read("filesystem", time_ns).events == [] and len(servers.asked) >= 3 and not probe._waiting)
    servers.hang("/data")
    servers.hang("/scratch")
    events: list[Event] = []
    seen: set[str] = set()
    rounds = 0

    def both_stalled_and_the_other_told() -> bool:
        nonlocal time_ns, rounds
        time_ns += 5 * SECOND
        rounds += 1
        result = probe.read("filesystem", time_ns)
        events.extend(result.events)
        seen.update(devices(result))
        assert threads() <= 3
        return rounds >= 12 and len(events) >= 2 and "/" in seen

    until(both_stalled_and_the_other_told)
    assert seen == {"/"}
    assert [(event.kind, event.device) for event in events] == [
        ("filesystem-stalled", "/data"),
        ("filesystem-stalled", "/scratch"),
    ]
    assert events[0].attributes["path"] == "/data"
    servers.answer("/data")
    later: list[ProbeResult] = []

    def both() -> bool:
        nonlocal time_ns
        time_ns += SECOND
        later.append(probe.read("filesystem", time_ns))
        return any("/data" in devices(each) for each in later)

    until(both)
    (recovered,) = [event for each in later for event in each.events]
    assert (recovered.kind, recovered.device) == ("filesystem-recovered", "/data")
    servers.answer("/scratch")
    probe.close()
    until(lambda: threads() == 0)


def test_a_slow_answer_is_no_stall(proc: Path, servers: Servers) -> None:
    """What comes after the read but before the deadline is told at the next one, without an event."""
    probe = FilesystemProbe(proc, statvfs=servers, clock_ns=lambda: 7)
    probe.set_ranks({0: 100})
    servers.hang("/data")
    first = probe.read("filesystem", 1)
    assert "/data" not in devices(first)
    servers.answer("/data")
    results = [first]

    def all_there() -> bool:
        results.append(probe.read("filesystem", 2))
        return set().union(*(devices(each) for each in results)) == {"/", "/data", "/scratch"}

    until(all_there)
    assert [event for each in results for event in each.events] == []
    probe.close()


def test_the_mounts_are_the_ranks_own(proc: Path, servers: Servers) -> None:
    """A rank in a mount namespace of its own is asked through its root; one that is gone is not asked at all."""
    (proc / "100/ns/mnt").unlink()
    (proc / "100/ns/mnt").symlink_to("mnt:[2]")
    probe = FilesystemProbe(proc, statvfs=servers, grace_s=30)
    probe.set_ranks({0: 99, 1: 100})
    assert devices(probe.read("filesystem", 1)) == {"/", "/data", "/scratch"}
    assert f"{proc}/100/root/data" in servers.asked
    probe.set_ranks({0: 99})
    assert probe.read("filesystem", 2).readings == []
    probe.close()


def test_refusals_and_failures_are_told_apart(proc: Path) -> None:
    """A filesystem that answers with an error is one outcome; a rank whose namespace may not be asked a typed error."""

    def broken(path: str) -> os.statvfs_result:
        raise OSError(5, "Input/output error")

    probe = FilesystemProbe(proc, statvfs=broken, grace_s=30)
    probe.set_ranks({0: 100})
    assert ("/data", Outcome.FAILED, "/data: Input/output error") in probe.read("filesystem", 1).outcomes
    probe.close()
    if os.geteuid() == 0:
        refused = FilesystemProbe(Path("/proc"))
        refused.set_ranks({0: 1})
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionDenied, match="ns/mnt"):
                refused.read("filesystem", 1)
        finally:
            os.seteuid(0)


def test_this_machines_filesystems_are_told() -> None:
    """The real statvfs agrees with what the probe says of this process's own root."""
    probe = FilesystemProbe()
    probe.set_ranks({0: os.getpid()})
    told: dict[tuple[str, str], float] = {}

    def has_root() -> bool:
        told.update({(r.metric, r.device): r.value for r in probe.read("filesystem", time.monotonic_ns()).readings})
        return ("fs.total_bytes", "/") in told

    until(has_root)
    real = os.statvfs("/")
    assert told["fs.total_bytes", "/"] == real.f_blocks * real.f_frsize
    probe.close()


def test_only_what_holds_files_is_told() -> None:
    """Kernel filesystems and most of memory are left out; one filesystem counts once; paths are unescaped; bounded."""
    text = """1 0 0:3 / /proc rw - proc proc rw
2 0 0:4 / /run rw - tmpfs tmpfs rw
3 0 0:5 / /dev/shm rw - tmpfs tmpfs rw
4 0 0:6 /x /mnt/a\\040b rw - ext4 /dev/sdb rw
5 0 0:6 / /mnt/a\\040b/deeper rw - ext4 /dev/sdb rw
6 0 0:7 / /fuse rw shared:1 master:2 - fuse.s3fs s3fs rw
7 0 0:8 / relative rw - ext4 /dev/sdc rw
8 0 0:9 / /short - ext4
"""
    assert parse(text, 10) == [
        Mount("/dev/shm", "tmpfs", False),
        Mount("/fuse", "fuse.s3fs", True),
        Mount("/mnt/a b", "ext4", False),
    ]
    many = "".join(f"{n} 0 8:{n} / /m{n} rw - ext4 /dev/sda{n} rw\n" for n in range(100))
    assert len(parse(many, 32)) == 32
