"""The kernel log through journald: real journals, written by a real journald of the test's own."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankscope.errors import PermissionDenied, ProbeError, Unsupported
from rankscope.probes.kernel_log import KernelLogProbe
from rankscope.probes.kernel_log_journal import Journal
from rankscope.probes.kernel_log_record import KernelRecord
from rankscope.reading import Event, Outcome

JOURNALD = Path("/lib/systemd/systemd-journald")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text()
#: Tells this process's lines from those of tests beside it.
ME = f"rs{os.getpid()}"


def _missing() -> str:
    if not JOURNALD.exists() or shutil.which("unshare") is None:
        return "no journald here"
    if os.geteuid() != 0 or not os.access("/dev/kmsg", os.W_OK):
        return "only root can start a journald and write to the kernel log"
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "t", "/run"], capture_output=True)
    return "no mount namespace can be made here" if done.returncode else ""


#: Process ids of the journalds of this module.
PIDS: list[int] = []


@pytest.fixture(scope="module")
def journald(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory in which a journald of our own, in a mount namespace of its own, keeps the kernel log."""
    if reason := _missing():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("journal")
    script = (
        f"mount -t tmpfs t /run && mkdir -p /run/systemd/journal /run/log/journal && "
        f"mount --bind {directory} /run/log/journal && exec {JOURNALD}"
    )
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stderr=subprocess.DEVNULL)
    PIDS.append(process.pid)
    until(lambda: any(directory.glob("*/system.journal")))
    yield next(directory.glob("*"))
    process.terminate()
    process.wait()


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def news(tag: str) -> str:
    """A line of our own that is harmless news to every agent on this machine: interface ME + tag is up."""
    return f"rankscope-test: mlx5_core 0000:ff:1f.7 {ME}{tag}: Link up"


def log(text: str) -> None:
    """Write a line to the kernel's log."""
    Path("/dev/kmsg").write_text(f"<4>{text}\n")


def mine(records: list[KernelRecord], tag: str) -> list[KernelRecord]:
    """Those of the records that a test wrote."""
    return [record for record in records if f" {ME}{tag}" in record.text]


def test_new_lines_of_the_kernel_are_followed(journald: Path) -> None:
    """What the kernel logs after the journal was opened is read, with the kernel's own time, and nothing older."""
    log(news("a0"))
    until(lambda: mine(opened(journald, from_start=True), "a0"))
    journal = Journal(from_start=False, directory=journald, boot_id=BOOT_ID)
    before = time.monotonic_ns() // 1000
    log(news("a1"))
    records: list[KernelRecord] = []
    until(lambda: records.extend(journal.read(100)[0]) or mine(records, "a1"))
    (record,) = mine(records, "a")
    assert record.text == news("a1")
    assert before - 10**6 < record.time_us <= time.monotonic_ns() // 1000
    assert record.priority == 4
    assert mine(journal.read(100)[0], "a") == []
    journal.close()
    journal.close()


def test_a_new_file_of_the_journal_is_followed(journald: Path) -> None:
    """journald begins a new file when one is full: nothing is lost, and nothing comes twice."""
    journal = Journal(from_start=False, directory=journald, boot_id=BOOT_ID)
    log(news("b1"))
    records: list[KernelRecord] = []
    until(lambda: records.extend(journal.read(100)[0]) or mine(records, "b1"))
    files = set(journald.iterdir())
    os.kill(PIDS[-1], signal.SIGUSR2)
    until(lambda: set(journald.iterdir()) - files)
    log(news("b2"))
    until(lambda: records.extend(journal.read(100)[0]) or mine(records, "b2"))
    assert [record.text for record in mine(records, "b")] == [news("b1"), news("b2")]
    journal.close()


def opened(journald: Path, *, from_start: bool, boot_id: str | None = BOOT_ID) -> list[KernelRecord]:
    """All a journal holds."""
    journal = Journal(from_start=from_start, directory=journald, boot_id=boot_id)
    records, _ = journal.read(10**6)
    journal.close()
    return records


def test_only_this_boot_is_read(journald: Path) -> None:
    """A journal keeps the boots before; they are not this one's."""
    assert opened(journald, from_start=True, boot_id=None)
    assert opened(journald, from_start=True, boot_id="0" * 32) == []


def test_the_probe_falls_back_to_the_journal(journald: Path, tmp_path: Path) -> None:
    """Where /dev/kmsg is missing the journal gives the same events; history is told only where it is asked for."""

    def journal(from_start: bool) -> Journal:
        return Journal(from_start=from_start, directory=journald, boot_id=BOOT_ID)

    probe = KernelLogProbe(tmp_path / "kmsg", journal=journal)
    assert probe.read("events", time.monotonic_ns()).outcomes == ()
    log(news("c0"))
    events: list[Event] = []

    def told() -> list[Event]:
        events.extend(probe.read("events", time.monotonic_ns()).events)
        return [event for event in events if event.device == f"{ME}c0"]

    until(told)
    (event,) = told()
    assert (event.kind, event.attributes["state"], event.attributes.get("history")) == ("network-link", "up", None)
    probe.close()
    old = KernelLogProbe(tmp_path / "kmsg", journal=journal, history=True)
    (again,) = [e for e in old.read("events", time.monotonic_ns()).events if e.device == f"{ME}c0"]
    assert again.attributes["history"] == 1
    old.close()


def test_a_journal_that_cannot_be_read_is_a_typed_error(tmp_path: Path) -> None:
    """No library, no directory, no file in it: each is one line that says what to do."""
    with pytest.raises(Unsupported, match=r"libnone\.so"):
        Journal(from_start=True, library="libnone.so")
    try:
        ctypes.CDLL("libsystemd.so.0")
    except OSError:
        pytest.skip("no libsystemd here")
    with pytest.raises(ProbeError, match="No such file"):
        Journal(from_start=True, directory=tmp_path / "none")
    with pytest.raises(PermissionDenied, match="systemd-journal"):
        Journal(from_start=True, directory=tmp_path)
    (tmp_path / "system.journal").write_bytes(b"LPKSHHRH" + b"\xff" * 4096)
    with pytest.raises(PermissionDenied, match="systemd-journal"):
        Journal(from_start=True, directory=tmp_path)


def test_both_reasons_are_said_once(tmp_path: Path) -> None:
    """Where neither can be read the outcome names both and what would change it, once."""

    def refused(from_start: bool) -> Journal:
        raise PermissionDenied("no journal that this user may read", where="journald", todo="join a group")

    probe = KernelLogProbe(tmp_path / "kmsg", journal=refused)
    ((_, outcome, reason),) = probe.read("events", 1).outcomes
    assert outcome is Outcome.NO_PERMISSION
    assert "does not exist, and journald: no journal that this user may read;" in reason
    assert reason.endswith("join a group")
    assert probe.read("events", 2).outcomes == ()
    probe.close()
