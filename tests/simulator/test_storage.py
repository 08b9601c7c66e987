"""The simulated storage: a /proc whose disk and I/O pressure move with the load, and whose rest is real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rankscope.simulator.storage import DISK, SLOW, SimulatedStorage


class _Clock:
    now = 10_000_000_000

    def __call__(self) -> int:
        return self.now


def _pressure(root: Path) -> tuple[int, int]:
    some, full = (line.split("total=")[1] for line in (root / "pressure/io").read_text().splitlines())
    return int(some), int(full)


def _disk(root: Path) -> list[int]:
    fields = (root / "diskstats").read_text().split()
    assert fields[2] == DISK
    return [int(field) for field in fields[3:]]


def test_slow_storage_moves_wait_and_pressure_calm_storage_hardly(tmp_path: Path):
    """Ten calm seconds leave little wait; ten slow ones show tasks waiting and 70 ms a request."""
    clock = _Clock()
    storage = SimulatedStorage(tmp_path / "proc", clock=clock)
    clock.now += 10 * 10**9
    storage.tick()
    calm, calm_disk = _pressure(storage.root), _disk(storage.root)
    storage.set_load(SLOW)
    clock.now += 10 * 10**9
    storage.tick()
    slow, slow_disk = _pressure(storage.root), _disk(storage.root)
    storage.close()
    assert calm[0] < 100_000
    assert 8_000_000 < slow[0] - calm[0] <= 10_000_000
    assert slow[1] - calm[1] < slow[0] - calm[0]
    reads, read_ms = slow_disk[0] - calm_disk[0], slow_disk[3] - calm_disk[3]
    assert 60 < read_ms / reads < 80
    assert calm_disk[3] / calm_disk[0] < 1


def test_readers_that_keep_their_file_open_see_the_new_values(tmp_path: Path):
    """Counters are rewritten in place, so a probe that reads one descriptor again and again sees them move."""
    clock = _Clock()
    storage = SimulatedStorage(tmp_path / "proc", clock=clock)
    with (storage.root / "diskstats").open() as file:
        before = os.pread(file.fileno(), 4096, 0)
        clock.now += 10**9
        storage.tick()
        assert os.pread(file.fileno(), 4096, 0) != before
    storage.close()


def test_processes_come_and_go_in_the_root(tmp_path: Path):
    """A process started later can be read through the root, and its entry goes when it has ended."""
    clock = _Clock()
    storage = SimulatedStorage(tmp_path / "proc", clock=clock)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    clock.now += 10**9
    storage.tick()
    entry = storage.root / str(child.pid)
    assert (entry / "stat").read_text().startswith(str(child.pid))
    child.communicate(b"\n")
    clock.now += 10**9
    storage.tick()
    assert not entry.is_symlink()
    assert (storage.root / "self/comm").read_text()
    storage.close()
