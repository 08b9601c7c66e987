"""Three minutes of simulated time at full rate; `benchmarks/soak.py` does the same for a day."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from survival.footprint import slope_of

SOAK = Path(__file__).parents[2] / "benchmarks/soak.py"


def test_nothing_but_the_recording_grows(tmp_path: Path) -> None:
    """Descriptors, threads and maps stay, the recording opens, every batch is delivered, and the table says so."""
    # In a process of its own: a test runner holds much else.
    command = [sys.executable, SOAK, "--simulated-hours", "0.05", "--real-minutes", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| descriptors, agent and helper | " in done.stdout
    assert "What did not hold: nothing." in done.stdout


@pytest.mark.parametrize("slope", [0.0, 3.0, -2.0])
def test_the_interval_of_a_slope_holds_the_slope(slope: float) -> None:
    """In 95 of 100 series with noise, give or take; and noise alone is no growth."""
    chance = random.Random(str(slope))
    hours = [number / 20 for number in range(480)]
    held = 0
    for _ in range(400):
        found = slope_of(hours, [100 + slope * hour + chance.gauss(0, 20) for hour in hours])
        held += found.low <= slope <= found.high
    assert 0.92 <= held / 400 <= 0.98
