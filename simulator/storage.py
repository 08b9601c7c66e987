"""The storage of a simulated node, as the kernel would tell of it: a root that stands in for /proc.

`pressure/io` and `diskstats` are written here and move with the load that a scenario asks for; every other entry
is a link to the real one, processes included.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns

from rankscope.errors import SimulatorError

DISK = "nvme0n1"
_SECTOR_BYTES = 512  # the unit of diskstats, whatever the disk's own is (kernel: Documentation/admin-guide/iostats)
_REFRESH_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """What the disk is asked for, and how it does. Rates are a second; the figures are chosen for plausibility."""

    reads: float
    writes: float
    read_bytes: float
    write_bytes: float
    #: Time a request takes, queueing included.
    await_ms: float
    #: Shares of time: some request in flight, some task waiting, every task waiting.
    busy: float
    some: float
    full: float


CALM = Load(80, 12, 80 * 262_144, 12 * 32_768, 0.4, 0.03, 0.004, 0.001)
SLOW = Load(95, 30, 95 * 262_144, 30 * 131_072, 70.0, 0.99, 0.85, 0.62)


class SimulatedStorage:
    """Keeps the root up to date; call `tick` often (new processes appear in the root then).

    Raises SimulatorError where the directory cannot be written.
    """

    def __init__(self, root: Path, *, proc: Path = Path("/proc"), clock: Callable[[], int] = monotonic_ns) -> None:
        self.root = root
        self._proc = proc
        self._clock = clock
        self._lock = threading.Lock()
        self._load = CALM
        self._last_ns = clock()
        self._totals = dict.fromkeys(
            ("reads", "writes", "read_bytes", "write_bytes", "read_ms", "write_ms", "busy_ms", "some_us", "full_us"),
            0.0,
        )
        self._averages = [0.0, 0.0]
        self._linked: set[str] = set()
        try:
            (root / "pressure").mkdir(parents=True, exist_ok=True)
            self._pressure = os.open(root / "pressure/io", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._diskstats = os.open(root / "diskstats", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            for name in ("cpu", "memory"):
                _link(proc / "pressure" / name, root / "pressure" / name)
        except OSError as error:
            raise SimulatorError(
                f"cannot write the storage counters ({error.strerror})",
                where=str(root),
                todo="choose a writable directory",
            ) from error
        self._link_entries()
        self._write()

    def set_load(self, load: Load) -> None:
        """From now on the disk is asked for this."""
        with self._lock:
            self._advance()
            self._load = load

    def tick(self) -> None:
        """Bring counters and processes up to now, every 50 ms at most."""
        with self._lock:
            if self._clock() - self._last_ns >= _REFRESH_NS:
                self._link_entries()
                self._advance()
                self._write()

    def close(self) -> None:
        """Close the files; they stay."""
        with self._lock:
            os.close(self._pressure)
            os.close(self._diskstats)

    def _advance(self) -> None:
        now = self._clock()
        seconds = (now - self._last_ns) / 1e9
        self._last_ns = now
        load, totals = self._load, self._totals
        for name in ("reads", "writes", "read_bytes", "write_bytes"):
            totals[name] += getattr(load, name) * seconds
        totals["read_ms"] += load.reads * load.await_ms * seconds
        totals["write_ms"] += load.writes * load.await_ms * seconds
        totals["busy_ms"] += load.busy * 1e3 * seconds
        totals["some_us"] += load.some * 1e6 * seconds
        totals["full_us"] += load.full * 1e6 * seconds
        weight = min(1.0, seconds / 10)
        for place, share in enumerate((load.some, load.full)):
            self._averages[place] += weight * (100 * share - self._averages[place])

    def _write(self) -> None:
        totals = {name: int(value) for name, value in self._totals.items()}
        some, full = self._averages
        _replace(
            self._pressure,
            f"some avg10={some:.2f} avg60={some / 3:.2f} avg300={some / 9:.2f} total={totals['some_us']}\n"
            f"full avg10={full:.2f} avg60={full / 3:.2f} avg300={full / 9:.2f} total={totals['full_us']}\n",
        )
        sectors = [totals[name] // _SECTOR_BYTES for name in ("read_bytes", "write_bytes")]
        waited = totals["read_ms"] + totals["write_ms"]
        _replace(
            self._diskstats,
            f" 259       0 {DISK} {totals['reads']} 0 {sectors[0]} {totals['read_ms']} {totals['writes']} 0 "
            f"{sectors[1]} {totals['write_ms']} 0 {totals['busy_ms']} {waited} 0 0 0 0 0 0\n",
        )

    def _link_entries(self) -> None:
        present = {entry.name for entry in self._proc.iterdir()}
        for name in present - self._linked:
            if name not in ("pressure", "diskstats"):
                _link(self._proc / name, self.root / name)
        for name in self._linked - present:
            (self.root / name).unlink(missing_ok=True)
        self._linked = present


def _link(target: Path, link: Path) -> None:
    try:
        link.symlink_to(target)
    except FileExistsError:
        pass


def _replace(descriptor: int, text: str) -> None:
    """New content in place: readers keep the file open."""
    data = text.encode()
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))
