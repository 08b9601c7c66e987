"""Nothing that a reader is given makes it raise what is no typed error, take long, or take much memory."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.engine import CORPUS, Target, fuzz
from fuzz.mutate import MOST_BYTES, mutated

from rankscope.errors import RingError

RUN = Path(__file__).with_name("run.py")
#: Inputs of each target that take about a second, and that long runs take each, s.
INPUTS = {
    "answer": 300,
    "configuration": 400,
    "kernel-log": 3000,
    "outbox": 30,
    "recording": 50,
    "ring": 100,
    "scenario": 1500,
}
LONG_S = 600


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """tests/fuzz/run.py in a process of its own."""
    return subprocess.run([sys.executable, RUN, *words], capture_output=True, text=True, timeout=1200, check=False)


def test_every_target_has_its_budget() -> None:
    """A corpus that nobody reads would show nothing."""
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(INPUTS)


@pytest.mark.parametrize("name", INPUTS)
def test_corpus_and_budget(name: str) -> None:
    """The committed inputs, and so many mutations of them: only typed errors leave."""
    done = run(name, "--inputs", str(INPUTS[name]))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.verify
def test_for_long() -> None:
    """Every target for minutes, other inputs each day."""
    done = run("--seconds", str(LONG_S), "--seed", str(random.randrange(10**6)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_breaks_is_found_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader with a flaw: mutation finds it, and keeps the first input that shows it; what is typed is no flaw."""
    monkeypatch.setattr(Target, "corpus", lambda _target: {"a": b"count=1 size=2"})

    def read(path: Path) -> str:
        text = path.read_bytes()
        if b"=" not in text:
            raise RingError("no pair in it")
        value = text.partition(b"=")[2].partition(b" ")[0]
        if value and value.strip(b"0123456789"):
            return "no number"
        return str(struct.pack("<i", int(value or b"1")).count(0))

    told = fuzz(Target("flawed", read), tmp_path, iter(range(3000)), seed=0)
    assert {where.partition(" ")[0] for where in told.broken} == {"error"}
    assert told.tried == 3001
    assert any(outcome.startswith("RingError") for outcome in told.outcomes)
    for data, how in told.broken.values():
        assert "Traceback" in how
        (tmp_path / "again").write_bytes(data)
        with pytest.raises(struct.error):
            read(tmp_path / "again")


def test_the_same_seed_gives_the_same_inputs() -> None:
    """So that a failure elsewhere is a failure here; and no input becomes large."""
    pools = [[b"first", b"second" * 1000, b""] for _ in range(2)]
    for _ in range(300):
        made = [mutated(random.Random(len(pool)), pool[-1] or b"x", pool) for pool in pools]
        assert made[0] == made[1]
        assert len(made[0]) <= MOST_BYTES
        for pool, data in zip(pools, made, strict=True):
            pool.append(data)
