"""An environment variable as a knob: the job is run anew for every window, and what went wrong is said of its value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rankscope.agent.environment_knob import Variable, parse_variable
from rankscope.agent.restarts import Restarts
from rankscope.agent.switchback import Design
from rankscope.errors import ConfigurationError
from rankscope.identity import RankIdentity
from rankscope.rules.switchback import whole_blocks

COMMAND = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "experiment", "run"]
SCHEMA = Path(__file__).parents[2] / "docs/schemas/experiment.schema.json"
FAKE_RANK = [sys.executable, str(Path(__file__).with_name("fake_rank.py"))]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAINING = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(256, 256))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
layers = int(os.environ.get("TRAINING_DEPTH", "20"))
batch = torch.randn(64, 256)
for _ in range(10_000):
    out = batch
    for _ in range(layers):
        out = model.module(out)
    loss = model(out).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["A=1,2"], Variable("A", "1", "2")),
        (["A=,2"], Variable("A", "", "2")),
        (["A=x:1,y:2", "A="], Variable("A", "x:1,y:2", "")),
        (["A=k=1,k=2"], Variable("A", "k=1", "k=2")),
    ],
)
def test_two_values_of_one_variable(words: list[str], expected: Variable) -> None:
    """At a comma, or given twice where a value holds one; an empty one leaves the variable unset."""
    assert parse_variable(words) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A"], '"A" gives no value; give --env NAME=OFF,ON'),
        (["A=1"], "1 values of A, and it takes two"),
        (["A=1,2,3"], "3 values of A, and it takes two; give --env NAME=OFF,ON, or --env NAME=OFF --env NAME=ON"),
        (["A=1", "A=2", "A=3"], "3 values of A"),
        (["A=1,2", "B=1,2"], "2 variables, A and B; one at a time"),
        (["A=1,1"], 'both values of A are "1"'),
        (["A=,"], 'both values of A are ""'),
        (["1 A=1,2"], '"1 A" is no name'),
        (["=1,2"], '"" is no name'),
        (["RANKSCOPE_DIR=a,b"], "is what the experiment sets itself"),
    ],
)
def test_what_is_no_knob_is_refused_in_a_line(words: list[str], said: str) -> None:
    """No such form, equal values, too few, too many, several variables, ours: what, where and what to do."""
    with pytest.raises(ConfigurationError) as raised:
        parse_variable(words)
    assert str(raised.value).startswith("--env: ")
    assert said in str(raised.value)


def test_a_variable_that_did_not_reach_a_rank_is_told(tmp_path: Path) -> None:
    """By what the process was started with; one that cannot be read says nothing."""
    rank = RankIdentity("j", 0, 3, 4, 3, "h", 77, 1, "boot", None)
    variable = Variable("A", "", "2")
    (tmp_path / "77").mkdir()
    environ = tmp_path / "77/environ"
    environ.write_bytes(b"B=1\0A=2\0AA=9\0")
    assert variable.astray(True, rank, tmp_path) == ""
    assert variable.astray(False, rank, tmp_path) == "rank 3 (process 77) was started with A=2"
    environ.write_bytes(b"B=1\0AA=9\0")
    assert variable.astray(True, rank, tmp_path) == "rank 3 (process 77) was started with no A"
    assert variable.astray(False, rank, tmp_path) == ""
    environ.unlink()
    assert variable.astray(True, rank, tmp_path) == ""


def restarts(directory: Path, *words: str, blocks: int = 2, limit_seconds: float = 60.0) -> tuple[Restarts, list[str]]:
    """An experiment with STEP_MS unset (3 ms) and 9, over, and what it said."""
    said: list[str] = []
    command = [*FAKE_RANK, "step_ms=3", "step_ms_env=STEP_MS", *words]
    design = Design(window_steps=6, settle_steps=2, warm_up_steps=4, max_blocks=blocks)
    environ = {**os.environ, "STEP_MS": "inherited, and replaced"}
    ran = Restarts(
        command, Variable("STEP_MS", "", "9"), design, rings=directory / "shm/run-1-1", environ=environ,
        limit_seconds=limit_seconds, say=said.append,
    )  # fmt: skip
    ran.run()
    assert not (directory / "shm/run-1-1").exists()
    return ran, said


def test_every_window_is_a_run_of_its_own(tmp_path: Path) -> None:
    """Two runs that do not count, then two a block, each with its value; a job without end is ended."""
    pid_file = tmp_path / "pid"
    ran, said = restarts(tmp_path, "steps=100000", f"pid_file={pid_file}")
    assert (ran.error, ran.exit_status, len(ran.run_seconds)) == ("", 0, 6)
    assert said[0].startswith("rankscope: the job runs with either value; a run takes ")
    blocks = whole_blocks(ran.stretches)
    assert [len(stretch.steps_ms) for block in blocks for stretch in block] == [6, 6, 6, 6]
    assert all(stretch.steps_ms.min() >= (9 if stretch.on else 3) for stretch in ran.stretches)
    assert min(stretch.steps_ms.min() for stretch in ran.stretches) < 9
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


@pytest.mark.parametrize(
    ("words", "limit_seconds", "status", "said"),
    [
        (
            ("steps=5", "then=exit", "status=7"),
            60.0,
            7,
            "the job ended with 7 after 5 steps, before the 12 of a window",
        ),
        (("steps=5",), 60.0, 2, "the job ended with 0 after 5 steps, before the 12 of a window; lower --window-steps"),
        (("steps=5", "then=stuck"), 0.7, 2, "its window was not full after 0.7 s"),
    ],
    ids=["fails", "too short", "hangs"],
)
def test_a_run_without_a_window_ends_it(
    tmp_path: Path, words: tuple[str, ...], limit_seconds: float, status: int, said: str
) -> None:
    """Which run, which value, how it ended; nothing is measured, and nothing is left."""
    ran, _ = restarts(tmp_path, *words, limit_seconds=limit_seconds)
    assert ran.error.startswith("run 1, with STEP_MS unset: ")
    assert said in ran.error
    assert (ran.exit_status, ran.stretches, ran.found) == (status, [], None)


def run(*words: object, shm: Path) -> tuple[int, str, str]:
    """(status, standard output, standard error) of the command."""
    environ = {**os.environ, "RANKSCOPE_DIR": str(shm)}
    words = tuple(map(str, words))
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False, timeout=900, env=environ)
    return done.returncode, done.stdout, done.stderr


def test_a_value_the_job_cannot_run_with_is_named(tmp_path: Path) -> None:
    """The command ends with that run's status, its last lines and the value; as JSON too."""
    status, out, err = run(
        "--env", "STEP_MS=2,crash", "--window-steps", 5, "--json", "-", "--", *FAKE_RANK, "steps=10000",
        "step_ms_env=STEP_MS", shm=tmp_path / "shm",
    )  # fmt: skip
    assert status == 9
    document = json.loads(out)
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["error"] == "run 2, with STEP_MS=crash: the job ended with 9 before its first step"
    assert (document["decision"], document["runs"]["count"]) == ("undecided", 2)
    assert "  a value it cannot run with" in err.splitlines()
    assert "Traceback" not in err


@pytest.mark.verify
@pytest.mark.alone
@pytest.mark.parametrize(
    ("knob", "is_effect"), [("TRAINING_DEPTH=10,40", True), ("NOBODY_READS_IT=10,40", False)], ids=["effect", "null"]
)
def test_a_real_job_s_variable(tmp_path: Path, knob: str, is_effect: bool) -> None:
    """Two ranks under torchrun: a variable their step depends on is found, one that nobody reads is not."""
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    words = ("--env", knob, "--max-blocks", 12, "--json", "-", "--", *TORCHRUN, script)
    status, out, err = run(*words, shm=tmp_path / "shm")
    assert status == 0, err
    document: dict[str, Any] = json.loads(out)
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert (document["decision"] == "effect") is is_effect
    effect = document["effect"]["mean_ms"]
    assert (effect["low"] > 0) is is_effect
    assert is_effect or effect["low"] < 0 < effect["high"]
