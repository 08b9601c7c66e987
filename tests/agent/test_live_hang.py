"""Real gloo jobs that hang: the rank is named with the line it stands in, by py-spy and by its own fault handler."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankscope.agent.rank_state import find_pyspy

pytest.importorskip("torch")
pytestmark = [pytest.mark.alone, pytest.mark.verify]

JOB = str(Path(__file__).with_name("hanging_job.py"))
SETTINGS = """
[hang]
floor_seconds = 3.0
start_seconds = 60.0
pyspy = {pyspy}
[probes]
disabled = ["nvml"]
[rules]
live = false
"""


def verdict_of(place: Path, how: str, *, pyspy: bool) -> dict:
    """Run the job watched until all ranks were asked, end it, and give the verdict."""
    (place / "shm").mkdir()
    (place / "agent.toml").write_text(SETTINGS.format(pyspy=str(pyspy).lower()))
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RANKSCOPE")}
    environ |= {
        "RANKSCOPE_STATE": str(place / "state"),
        "RANKSCOPE_DIR": str(place / "shm"),
        "RANKSCOPE_CONFIG": str(place / "agent.toml"),
        "OMP_NUM_THREADS": "1",
    }
    run = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "run", "--quiet", "--json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", JOB, how]
    command = [*run, str(place / "verdict.json"), "--", *launch]
    job = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(_asked(place)) < 4:
            assert time.monotonic() < deadline, "nobody was called hung"
            assert job.poll() is None, "the job ended"
            time.sleep(0.5)
        job.send_signal(signal.SIGTERM)
        job.wait(timeout=120)
    finally:
        job.kill()
    document: dict = json.loads((place / "verdict.json").read_text())
    return document


def _asked(place: Path) -> set[int]:
    """Ranks whose stacks, or the reason why there are none, are in the recording."""
    for path in (place / "state").rglob("*.db"):
        connection = sqlite3.connect(path, timeout=5)
        try:
            rows = connection.execute("SELECT rank FROM events WHERE kind = 'rank-stacks'").fetchall()
        except sqlite3.Error:
            rows = []
        finally:
            connection.close()
        return {rank for (rank,) in rows}
    return set()


@pytest.mark.parametrize("pyspy", [True, False], ids=["py-spy", "signal"])
@pytest.mark.parametrize(
    ("how", "function"),
    [
        ("sleep", "fetch_vocabulary"),
        ("lock", "tokenize_in_native_code"),
        ("stop", "main"),
        ("type", "other_collective"),
    ],
)
def test_hangs(tmp_path: Path, how: str, function: str, pyspy: bool) -> None:
    """Who hangs, where it stands, and what the flight recorders of all ranks say together."""
    if pyspy and find_pyspy() is None:
        pytest.skip("py-spy is not installed")
    document = verdict_of(tmp_path, how, pyspy=pyspy)
    found = document["findings"][0]
    assert found["where"]["rank"] == 2, document["summary"]
    assert found["class"] == ("collective-mismatch" if how == "type" else "rank-hang")
    what = " ".join(piece["what"] for piece in found["evidence"])
    if how == "type":
        assert "all_reduce against broadcast" in what
        return
    assert "flight recorders" in what
    # A stopped process answers no signal; py-spy sees it all the same.
    if pyspy or how != "stop":
        assert f"stands in {function}" in what
