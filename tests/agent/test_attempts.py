"""A job that its launcher restarts, under the real agent: attempts apart, one report over them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

FAKE_RANK = Path(__file__).with_name("fake_rank.py")
SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/verdict.schema.json").read_text())
#: As torchrun does with --max-restarts: the ranks of one attempt, then those of the next.
LAUNCHER = """
import os, subprocess, sys
python, rank, plans = sys.executable, sys.argv[1], sys.argv[2:]
for attempt, plan in enumerate(plans):
    environ = os.environ | {"TORCHELASTIC_RESTART_COUNT": str(attempt)}
    ranks = [
        subprocess.Popen([python, rank, f"rank={number}", "world=2", "steps=70", "step_ms=10", then], env=environ)
        for number, then in enumerate(f"then={each}" for each in plan.split(","))
    ]
    status = max(process.wait() for process in ranks)
sys.exit(status)
"""


def watched(place: Path, *plans: str) -> tuple[int, dict]:
    """Run the launcher watched; (its status, the verdict)."""
    (place / "shm").mkdir(exist_ok=True)
    # These ranks live for less than a second: who looks once a second hears of an end after the next begin.
    settings = '[rings]\npoll_seconds = 0.1\n[probes]\ndisabled = ["nvml"]\n[rules]\nlive = false\n'
    (place / "agent.toml").write_text(settings)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RANKSCOPE")}
    environ |= {
        "RANKSCOPE_STATE": str(place / "state"),
        "RANKSCOPE_DIR": str(place / "shm"),
        "RANKSCOPE_CONFIG": str(place / "agent.toml"),
    }
    run = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "run", "--quiet", "--json"]
    command = [*run, str(place / "verdict.json"), "--", sys.executable, "-c", LAUNCHER, str(FAKE_RANK), *plans]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=120, check=False)
    document = json.loads((place / "verdict.json").read_text())
    jsonschema.validate(document, SCHEMA)
    return done.returncode, document


def test_attempts_are_told_apart(tmp_path: Path) -> None:
    """Rank 1 of the first attempt fails, the second one ends well: both are told, with who failed and what it took."""
    status, document = watched(tmp_path, "end,exception", "end,end")
    assert status == 0
    goodput = document["goodput"]
    first, second = goodput["attempts"]
    assert (first["attempt"], first["ranks"], first["steps"], first["root_rank"]) == (0, 2, 70, 1)
    assert "RuntimeError: boom" in first["ended"]
    assert (second["attempt"], second["steps"], second["root_rank"]) == (1, 70, None)
    assert goodput["requeue_seconds"] > 0
    # No checkpoint was seen, so nobody knows what the first attempt lost.
    assert goodput["rollback_seconds"] is None
    parts = sum(value or 0 for key, value in goodput.items() if key.endswith("_seconds") and key != "wall_seconds")
    assert parts == pytest.approx(goodput["wall_seconds"], rel=1e-6)
    # The death of an attempt is told although the job ended well.
    assert document["findings"][0]["class"] == "rank-exception"
    assert document["findings"][0]["where"]["rank"] == 1


def test_queued_again(tmp_path: Path) -> None:
    """Two attempts die of different ranks; then a scheduler runs the whole command again: one report over all three."""
    status, document = watched(tmp_path, "exception,end", "end,exception")
    assert status == 1
    assert [each["root_rank"] for each in document["goodput"]["attempts"]] == [0, 1]
    assert document["job"]["attempt"] == 1
    assert watched(tmp_path, "end,end")[0] == 0
    (directory,) = {path.parent for path in (tmp_path / "state").rglob("*.db")}
    report = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "report", "--json", str(directory)]
    done = subprocess.run(report, capture_output=True, timeout=120, check=True)
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    assert [each["root_rank"] for each in document["goodput"]["attempts"]] == [0, 1, None]
    assert document["goodput"]["requeue_seconds"] > 0
    # The last launch ended well, whatever became of those before.
    assert document["job"]["status"] == 0
