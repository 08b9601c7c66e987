"""`rankscope snapshot` reaches the ranks that live, and says where there are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rankscope.control import Command, ControlReader

COMMAND = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "snapshot"]


def run(rings: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command over one ring directory."""
    environ = os.environ | {"RANKSCOPE_DIR": str(rings)}
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, env=environ, check=False, timeout=60)


def test_a_living_rank_is_asked_and_a_dead_one_is_not(
    rings: Path, start_rank: Callable[..., subprocess.Popen[bytes]], wait_until: Callable[..., None]
) -> None:
    """The order arrives in the rank's control file; a rank that is gone, or another job, is no such rank."""
    start_rank(steps=1, rank=3, world=4, then="stuck")
    ended = start_rank(steps=1, rank=1, world=4)
    ended.wait(60)
    wait_until(lambda: len(list(rings.glob("*.ring"))) == 2)
    (ring,) = rings.glob("test.3.*.ring")
    control = ControlReader(ring)
    done = run(rings, "--json", "--job", "test")
    assert done.returncode == 0, done.stderr
    assert [each["rank"] for each in json.loads(done.stdout)["asked"]] == [3]
    assert control.poll() is Command.SNAPSHOT
    for words in (("--rank", "1"), ("--job", "other")):
        none = run(rings, *words)
        assert none.returncode == 2
        assert none.stderr.count("\n") == 1
        assert "no such rank runs here" in none.stderr
