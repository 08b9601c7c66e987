"""The kernel log probe over files, the simulator's log and this machine's own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankscope.probes.kernel_log import KernelLogProbe
from rankscope.reading import EVENT_KINDS, Event, Outcome
from rankscope.simulator.kernel_log import KernelLog

UUID = "GPU-f1648d72-c7c8-9814-2832-7a062b009188"
XID = "NVRM: Xid (PCI:0000:1b:00): 79, pid=1, name=python3, GPU has fallen off the bus."
NOW = 10**15


@pytest.fixture
def log(tmp_path: Path) -> Iterator[KernelLog]:
    """A kernel log of our own with two Xids of the past."""
    written = KernelLog(tmp_path / "kmsg")
    written.xid("0000:1b:00", 63, "Row Remapper", age_ns=10**9)
    written.xid("0000:1b:00", 64, "Row Remapper", age_ns=10**9)
    yield written
    written.close()


def read(probe: KernelLogProbe, now_ns: int | None = None) -> list[Event]:
    """The events of one read."""
    return list(probe.read("events", time.monotonic_ns() if now_ns is None else now_ns).events)


def test_only_what_is_logged_after_the_start_is_news(log: KernelLog) -> None:
    """Old Xids are not told; new ones are, at the time they were logged, once."""
    probe = KernelLogProbe(log.path, uuid_of={"0000:1b:00": UUID}.get)
    assert read(probe) == []
    before = time.monotonic_ns() // 1000 * 1000
    log.write(XID)
    (event,) = read(probe)
    assert (event.kind, event.device) == ("xid", UUID)
    assert before <= event.time_ns <= time.monotonic_ns()
    assert event.attributes["source"] == "kernel-log"
    assert event.attributes["pci"] == "0000:1b:00"
    assert "history" not in event.attributes
    assert read(probe) == []
    probe.close()


def test_history_is_told_on_request_and_marked(log: KernelLog) -> None:
    """With the option, the past comes first, marked; it is not handed to the listener as news."""
    heard: list[Event] = []
    probe = KernelLogProbe(log.path, history=True, listener=heard.append)
    assert [(e.attributes["number"], e.attributes["history"]) for e in read(probe)] == [(63, 1), (64, 1)]
    log.write(XID)
    assert [(e.attributes["number"], e.attributes.get("history")) for e in read(probe)] == [(79, None)]
    assert [event.attributes["number"] for event in heard] == [79]
    probe.close()


def test_every_event_of_the_simulated_log_has_a_known_kind(log: KernelLog) -> None:
    """What the simulator can log is understood: off the bus with and without Xid, ECC, OOM, hung task."""
    probe = KernelLogProbe(log.path)
    log.fallen_off_bus("0000:1b:00")
    log.fallen_off_bus_without_xid("0000:43:00")
    log.double_bit_ecc("0000:1b:00", pid=12)
    log.out_of_memory_kill(4711)
    log.hung_task(4712)
    log.pcie_corrected_error("0000:1b:00.0")
    events = read(probe)
    assert [e.kind for e in events] == [
        "xid",
        "gpu-fallen-off",
        "gpu-fallen-off",
        *["xid"] * 4,
        "oom-kill",
        "hung-task",
        "pcie-error",
    ]
    assert {e.kind for e in events} <= set(EVENT_KINDS)
    assert [e.attributes["pci"] for e in events if e.kind == "gpu-fallen-off"] == ["0000:1b:00", "0000:43:00"]
    probe.close()


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    """Half a record is not taken for a whole one."""
    path = tmp_path / "kmsg"
    path.touch()
    probe = KernelLogProbe(path)
    line = f"4,0,5,-;{XID}\n".encode()
    with path.open("ab", buffering=0) as file:
        for byte in range(len(line) - 1):
            file.write(line[byte : byte + 1])
            assert read(probe, NOW) == []
        file.write(line[-1:])
    assert len(read(probe, NOW)) == 1
    probe.close()


def test_a_gap_in_the_sequence_is_told_with_its_size(tmp_path: Path) -> None:
    """Records that were overwritten before they were read are counted."""
    path = tmp_path / "kmsg"
    path.touch()
    probe = KernelLogProbe(path)
    path.write_text(f"6,7,1,-;a\n6,8,1,-;b\n6,20,2,-;{XID}\n")
    events = read(probe, NOW)
    assert [event.kind for event in events] == ["kernel-log-lost", "xid"]
    assert events[0].attributes["count"] == 11
    probe.close()


def test_the_drivers_own_line_names_a_gpu_without_nvml(tmp_path: Path) -> None:
    """Where NVML gives no address, the UUID that the driver logs before an Xid is used."""
    path = tmp_path / "kmsg"
    path.touch()
    probe = KernelLogProbe(path)
    path.write_text(f"4,0,1,-;NVRM: GPU at PCI:0000:1b:00: {UUID}\n4,1,1,-;{XID}\n")
    (event,) = read(probe, NOW)
    assert event.device == UUID
    probe.close()


def test_a_file_that_appears_later_is_read_from_its_start(tmp_path: Path) -> None:
    """A missing file is said once, and all of it is news when it comes."""
    path = tmp_path / "kmsg"
    probe = KernelLogProbe(path)
    results = [probe.read("events", NOW) for _ in range(3)]
    assert [len(result.outcomes) for result in results] == [1, 0, 0]
    assert results[0].outcomes[0][1] is Outcome.UNSUPPORTED
    path.write_text(f"4,0,1,-;{XID}\n")
    assert len(read(probe, NOW)) == 1
    probe.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_log_that_may_not_be_read_is_said_once_with_a_way_out(log: KernelLog) -> None:
    """A refusal is an outcome of its own, in one line."""
    log.path.chmod(0o600)
    log.path.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        probe = KernelLogProbe(log.path)
        results = [probe.read("events", NOW) for _ in range(3)]
    finally:
        os.seteuid(0)
    assert [len(result.outcomes) for result in results] == [1, 0, 0]
    _, outcome, reason = results[0].outcomes[0]
    assert outcome is Outcome.NO_PERMISSION
    assert "CAP_SYSLOG" in reason
    assert "\n" not in reason


class Device:
    """Records as /dev/kmsg gives them: one a read, then "try again", errors in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[bytes | OSError] = []
        monkeypatch.setattr("rankscope.probes.kernel_log.stat.S_ISCHR", lambda _mode: True)
        monkeypatch.setattr("rankscope.probes.kernel_log.os.read", lambda _fd, _size: self._next())

    def _next(self) -> bytes:
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_overwritten_records_do_not_end_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After EPIPE reading goes on with the oldest record that is left, and the loss is counted."""
    (tmp_path / "kmsg").touch()
    device = Device(monkeypatch)
    probe = KernelLogProbe(tmp_path / "kmsg")
    device.answers = [b"6,1,1,-;a\n", BrokenPipeError(32, "Broken pipe"), f"6,9,1,-;{XID}\n".encode()]
    assert [(e.kind, e.attributes.get("count")) for e in read(probe, NOW)] == [("kernel-log-lost", 7), ("xid", None)]


def test_a_new_record_of_a_device_lies_between_two_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's stamp drifts; a record that was not there at the last read was not written before it."""
    (tmp_path / "kmsg").touch()
    device = Device(monkeypatch)
    probe = KernelLogProbe(tmp_path / "kmsg")
    second = 10**9
    assert read(probe, 100 * second) == []
    for stamp_s, expected_s in ((97, 100), (100.25, 100.25), (105, 101)):
        device.answers = [f"4,1,{int(stamp_s * 1e6)},-;{XID}\n".encode()]
        probe._expected = None
        probe._end_reached_ns = 100 * second
        (event,) = read(probe, 101 * second)
        assert event.time_ns == expected_s * second


def test_this_machines_own_log_is_read() -> None:
    """/dev/kmsg itself is read to its end, or refused in one typed line."""
    probe = KernelLogProbe(history=True)
    result = probe.read("events", time.monotonic_ns())
    assert all(event.time_ns <= time.monotonic_ns() for event in result.events)
    assert len(result.outcomes) <= 1
    if not result.outcomes:
        assert probe._expected is not None, f"no record in the kernel log of {socket.gethostname()}"
    probe.close()


def test_a_log_that_is_no_file_fails_in_one_line(tmp_path: Path) -> None:
    """A directory in its place is one outcome that names it, once, and nothing raised."""
    probe = KernelLogProbe(tmp_path)
    said = [probe.read("events", now).outcomes for now in (1, 2, 3)]
    ((_, outcome, reason),) = [line for outcomes in said for line in outcomes]
    assert outcome is Outcome.FAILED
    assert str(tmp_path) in reason
    probe.close()
