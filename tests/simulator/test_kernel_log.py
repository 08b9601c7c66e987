"""The scenario's kernel log: records as /dev/kmsg gives them, lines as the driver and the kernel print them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rankscope.errors import SimulatorError
from rankscope.simulator.kernel_log import KernelLog

RECORD = re.compile(r"(\d+),(\d+),(\d+),-;(.*)")
PCI = "0000:1b:00"


def records(log: KernelLog) -> list[tuple[int, int, int, str]]:
    """(level, sequence, microseconds, text) of every record; each line must be one."""
    found = [RECORD.fullmatch(line) for line in log.path.read_text().splitlines()]
    assert all(found)
    return [(int(m[1]), int(m[2]), int(m[3]), m[4]) for m in found if m]


def test_records_carry_level_sequence_and_time(tmp_path: Path) -> None:
    """Sequence numbers have no gap, also when the log is opened again; time is the boot clock in microseconds."""
    now = 5_000_000_000
    log = KernelLog(tmp_path / "kmsg", clock=lambda: now)
    log.write("first", level=6)
    log.write("old", age_ns=2_000_000_000)
    log.close()
    log = KernelLog(tmp_path / "kmsg", clock=lambda: now)
    log.write("two\nlines \\ one record")
    assert records(log) == [
        (6, 0, 5_000_000, "first"),
        (4, 1, 3_000_000, "old"),
        (4, 2, 5_000_000, r"two\x0alines \x5c one record"),
    ]
    log.close()


def test_driver_lines_have_their_published_forms(tmp_path: Path) -> None:
    """Xid lines with and without a process, the multi-line message of a GPU off the bus, and an ECC sequence."""
    log = KernelLog(tmp_path / "kmsg")
    log.fallen_off_bus(PCI)
    log.fallen_off_bus_without_xid(PCI)
    log.double_bit_ecc(PCI, pid=4242, name="python3")
    text = [record[3] for record in records(log)]
    assert text[0] == "NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus."
    assert text[1] == "NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus."
    assert "Xid" not in text[2]
    assert text[2].count(r"\x0aNVRM:") == 2
    xid = re.compile(r"NVRM: Xid \(PCI:0000:1b:00\): (\d+)(?:, pid=4242, name=python3)?, .+")
    assert [int(m[1]) for m in map(xid.fullmatch, text[3:]) if m] == [48, 63, 94, 154]
    log.close()


def test_kernel_lines_have_their_forms(tmp_path: Path) -> None:
    """OOM kills, hung tasks and corrected PCIe errors look as the kernel prints them."""
    log = KernelLog(tmp_path / "kmsg")
    log.out_of_memory_kill(77)
    log.out_of_memory_kill(78, cgroup=True)
    log.hung_task(79)
    log.pcie_corrected_error(f"{PCI}.0")
    text = [record[3] for record in records(log)]
    assert text[0].startswith("Out of memory: Killed process 77 (python3) total-vm:")
    assert text[1].startswith("Memory cgroup out of memory: Killed process 78 (python3)")
    assert text[2] == "INFO: task python3:79 blocked for more than 120 seconds."
    assert text[4].startswith("nvidia 0000:1b:00.0: PCIe Bus Error: severity=Correctable")
    log.close()


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A path under a plain file gives one line with what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SimulatorError, match="choose a writable directory"):
        KernelLog(tmp_path / "file" / "kmsg")
