from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FAKE_RANK = Path(__file__).with_name("fake_rank.py")


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A suite started in the background ignores Ctrl-C, and so would every process that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_until(condition: Callable[[], object], seconds: float = 30.0, what: str = "condition") -> None:
    """Wait for a condition, however slow the machine is today."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """Waits for a condition with a deadline."""
    return wait_until


@pytest.fixture
def rings(tmp_path: Path) -> Path:
    """A ring directory."""
    directory = tmp_path / "rings"
    directory.mkdir()
    return directory


@pytest.fixture
def start_rank(rings: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts fake ranks in the `rings` directory and ends those that are left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**options: object) -> subprocess.Popen[bytes]:
        words = [f"{key}={value}" for key, value in options.items()]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("RANKSCOPE")}
        environ |= {"RANKSCOPE_DIR": str(rings), "RANKSCOPE_JOB": "test"}
        process = subprocess.Popen([sys.executable, FAKE_RANK, *words], env=environ, stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
