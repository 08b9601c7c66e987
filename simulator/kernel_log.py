"""A kernel log of the scenario's own, in the record form of /dev/kmsg.

One record a line: `prio,seq,us,-;text`, where prio is facility * 8 + level, seq counts from zero without
gaps, us is microseconds of the boot clock and control characters inside the text stand as `\\x0a`, as the
kernel escapes them. The NVRM lines are in the forms found in published reports of each Xid.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rankscope.errors import SimulatorError

ERROR = 3
WARNING = 4
INFO = 6


class KernelLog:
    """Appends records to a file that readers tail like /dev/kmsg. One writer per file; safe between threads.

    `clock` gives the boot clock in nanoseconds. Raises `SimulatorError` if the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SimulatorError(
                f"cannot write the kernel log: {error.strerror}",
                where=str(self.path),
                todo="choose a writable directory",
            ) from error
        self._sequence = self.path.read_bytes().count(b"\n")

    def close(self) -> None:
        """Close the file; records stay."""
        os.close(self._fd)

    def write(self, text: str, *, level: int = WARNING, age_ns: int = 0) -> int:
        """Append one record and return its sequence number; `age_ns` dates it back (older history)."""
        escaped = "".join(c if c >= " " and c != "\\" else f"\\x{ord(c):02x}" for c in text)
        with self._lock:
            sequence = self._sequence
            microseconds = max(0, self._clock() - age_ns) // 1000
            os.write(self._fd, f"{level},{sequence},{microseconds},-;{escaped}\n".encode())
            self._sequence += 1
        return sequence

    def xid(
        self,
        pci: str,
        number: int,
        message: str,
        *,
        pid: int | None = None,
        name: str | None = None,
        age_ns: int = 0,
    ) -> int:
        """An Xid of the GPU at `pci` (`dddd:bb:dd`); without `pid`, in the form that names no process."""
        process = "" if pid is None else f", pid={pid}, name={name or '<unknown>'}"
        return self.write(f"NVRM: Xid (PCI:{pci}): {number}{process}, {message}", age_ns=age_ns)

    def fallen_off_bus(self, pci: str) -> int:
        """Xid 79 with the line that follows it."""
        self.xid(pci, 79, "GPU has fallen off the bus.")
        return self.write(f"NVRM: GPU {pci}.0: GPU has fallen off the bus.")

    def fallen_off_bus_without_xid(self, pci: str, device: int = 0x2330) -> int:
        """The driver's message where it finds a dead GPU and raises no Xid: one record of three lines."""
        return self.write(
            f"NVRM: The NVIDIA GPU {pci}.0\nNVRM: (PCI ID: 10de:{device:04x}) installed in this system has\n"
            "NVRM: fallen off the bus and is not responding to commands.",
            level=ERROR,
        )

    def double_bit_ecc(self, pci: str, *, pid: int | None = None, name: str = "python3") -> int:
        """Uncorrectable, contained error in device memory: Xid 48, 63 (row marked for remapping), 94, 154."""
        self.xid(
            pci,
            48,
            "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at physAddr "
            "0x7fffa8860 partition 7, subpartition 1.",
            pid=pid,
            name=name,
        )
        self.xid(pci, 63, "Row Remapper: New row (0x00000000007fffa8) marked for remapping, reset gpu to activate.")
        self.xid(pci, 94, "Contained: CE User Channel (0x9). RST: No, D-RST: No", pid=pid, name=name)
        return self.xid(
            pci,
            154,
            "GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)",
            pid=pid,
            name=name,
        )

    def pcie_corrected_error(self, device: str, *, port: str = "0000:00:01.0") -> int:
        """A corrected AER report of the device at `dddd:bb:dd.f`."""
        self.write(f"pcieport {port}: AER: Corrected error message received from {device}")
        return self.write(f"nvidia {device}: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)")

    def out_of_memory_kill(self, pid: int, name: str = "python3", *, cgroup: bool = False) -> int:
        """The OOM killer took a process; `cgroup` for the limit of a control group."""
        prefix = "Memory cgroup out of memory" if cgroup else "Out of memory"
        return self.write(
            f"{prefix}: Killed process {pid} ({name}) total-vm:98304000kB, anon-rss:61440000kB, "
            "file-rss:0kB, shmem-rss:8192kB, UID:1000 pgtables:121344kB oom_score_adj:0",
            level=ERROR,
        )

    def hung_task(self, pid: int, name: str = "python3", *, seconds: int = 120) -> int:
        """A task in uninterruptible sleep for longer than the kernel's limit."""
        return self.write(f"INFO: task {name}:{pid} blocked for more than {seconds} seconds.", level=ERROR)
