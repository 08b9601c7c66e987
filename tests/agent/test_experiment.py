"""`rankscope experiment` as a person uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from live_processes import command_of, kill

from rankscope.agent.processes import descendants, process_stat
from rankscope.agent.recording import Recording
from rankscope.reading import Reading
from rankscope.rules.feedback import schedule
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.state import NodeState
from rankscope.testing import FakeClock

COMMAND = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "experiment"]
SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
FAKE_RANK = str(Path(__file__).with_name("fake_rank.py"))


def run(*words: object, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    """(status, standard output, standard error)."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **(environ or {})},
    )
    return done.returncode, done.stdout, done.stderr


def drawn() -> tuple[list[bool], Any, Any]:
    """(cut, cause, effect): a loop of 0.5 after two samples and 0.6 after three."""
    draw = np.random.default_rng(1)
    cut = schedule(120, 12, 0.3, 1)
    cause, effect = np.zeros(len(cut)), np.zeros(len(cut))
    for at in range(len(cut)):
        cause[at] = draw.normal() + (0.5 * effect[at - 2] if at >= 2 and not cut[at] else 0)
        effect[at] = draw.normal() + (0.6 * cause[at - 3] if at >= 3 else 0)
    return list(map(bool, cut)), cause, effect


def looped(path: Path) -> None:
    """A table of it."""
    rows = [f"{int(off)},{x:.6f},{y:.6f}" for off, x, y in zip(*drawn(), strict=True)]
    path.write_text("cut,throttle,retries\n" + "\n".join(rows) + "\n")


def recorded(directory: Path) -> tuple[Path, Path]:
    """(a recording of it at a sample a second, and when the path was cut): the effect as a counter's increase."""
    cut, cause, effect = drawn()
    clock = FakeClock(10**12, 1_700_000_000 * 10**9)
    recording = Recording.create(directory / "a.db", job="j", host="h", clock=clock)
    total = 1e6
    for at, (x, y) in enumerate(zip(cause, effect, strict=True)):
        now = 10**12 + at * 10**9
        total += y + 100
        recording.add_readings(
            [
                # Twice in each sample: the mean counts.
                Reading("gpu.power_watts", x + 299, now + 10**8, "GPU-one"),
                Reading("gpu.power_watts", x + 301, now + 9 * 10**8, "GPU-one"),
                Reading("gpu.power_watts", 7, now, "GPU-two"),
                Reading("disk.read_ns", total, now + 10**9 - 1, "sda"),
            ]
        )
    assert recording.commit()
    recording.close()
    begun = 1_700_000_000
    windows = [f"{begun + at},{begun + at + 1}" for at, off in enumerate(cut) if off]
    (directory / "cuts.csv").write_text("begin,end\n" + "\n".join(windows) + "\n")
    return directory / "a.db", directory / "cuts.csv"


def test_a_loop_in_a_recording(tmp_path: Path) -> None:
    """Two of its series, brought onto one grid, and windows of a file: the loop is found as in the table."""
    recording, cuts = recorded(tmp_path)
    words = ("loop", recording, "--cuts", cuts, "--cause", "gpu.power_watts@GPU-o", "--effect", "disk.read_ns")
    status, out, err = run(*words, "--max-delay", 4, "--json")
    assert status == 0, err
    document = json.loads(out)
    jsonschema.validate(document, json.loads((SCHEMAS / "loop.schema.json").read_text()))
    assert (document["verdict"], document["return_delay"], document["forward_delay"]) == ("loop", 2, 3)
    assert 0.4 < document["returned"]["value"] < 0.6


@pytest.mark.parametrize(
    ("cause", "cuts", "said"),
    [
        ("gpu.power_watts", None, '"gpu.power_watts" is 2 series; name one: gpu.power_watts@GPU-one'),
        ("gpu.power_wats@GPU-one", None, "holds no series"),
        ("gpu.power_watts@GPU-three", None, "holds no series"),
        ("step_ms", None, "holds no steps"),
        ("gpu.power_watts@GPU-one", "begin,end\n5,4\n", "line 2 ends before it begins"),
        ("gpu.power_watts@GPU-one", "from,to\n4,5\n", "line 2 is no window; give columns begin and end"),
        ("gpu.power_watts@GPU-one", "begin,end\n1,2\n", "fewer than 6 windows"),
    ],
)
def test_series_that_cannot_answer_are_refused_in_a_line(
    tmp_path: Path, cause: str, cuts: str | None, said: str
) -> None:
    """Status 2 and one line that says what and where."""
    recording, windows = recorded(tmp_path)
    if cuts is not None:
        windows.write_text(cuts)
    status, out, err = run("loop", recording, "--cuts", windows, "--cause", cause, "--effect", "disk.read_ns")
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_loop_in_a_table(tmp_path: Path) -> None:
    """The JSON fits its schema and says what the text says."""
    looped(tmp_path / "t.csv")
    words = ("loop", tmp_path / "t.csv", "--cause", "throttle", "--effect", "retries", "--max-delay", 4)
    status, out, err = run(*words, "--json")
    assert status == 0, err
    document: dict[str, Any] = json.loads(out)
    jsonschema.validate(document, json.loads((SCHEMAS / "loop.schema.json").read_text()))
    assert (document["verdict"], document["return_delay"], document["forward_delay"]) == ("loop", 2, 3)
    assert "loop: 1440 samples" in run(*words)[1]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "holds no rows"),
        ("throttle,retries\n1,2\n", 'no column "cut"; there are throttle, retries'),
        ("cut,throttle,retries\n0,1,2\n0,x,2\n", 'column "throttle" holds what is no number'),
        ("cut,throttle,retries\n0,nan,2\n", "not finite"),
        ("cut,throttle,retries\n0.5,1,2\n", "more than 0 and 1"),
        ("cut,throttle,retries\n0,1,2\n1,1,2\n", "fewer than 6 windows"),
    ],
)
def test_tables_that_cannot_answer_are_refused_in_a_line(tmp_path: Path, table: str, said: str) -> None:
    """Status 2 and one line that says what and where."""
    (tmp_path / "t.csv").write_text(table)
    status, out, err = run("loop", tmp_path / "t.csv", "--cause", "throttle", "--effect", "retries")
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_schedule_is_drawn() -> None:
    """A header and one line a sample; the same seed, the same draw."""
    out = run("schedule", "--windows", 20, "--length", 3, "--seed", 4)[1]
    lines = out.split()
    assert (lines[0], len(lines), set(lines[1:])) == ("cut", 61, {"0", "1"})
    assert json.loads(run("schedule", "--windows", 20, "--length", 3, "--seed", 4, "--json")[1])["cut"] == [
        int(line) for line in lines[1:]
    ]


@pytest.mark.parametrize(
    "words",
    [(), ("--agent", "--on", "true"), ("--agent", "--group", "nvml/gpm")],
    ids=["no knob", "two knobs", "two other knobs"],
)
def test_one_knob_it_is(words: tuple[str, ...]) -> None:
    """None, or two at once, is refused before the job starts."""
    status, out, err = run("run", *words, "--", "sh", "-c", "echo ran")
    assert (status, out) == (2, "")
    assert "needs one knob" in err


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """An environment of its own."""
    (tmp_path / "agent.toml").write_text('[probes]\ndisabled = ["nvml"]\n[rules]\nlive = false\n')
    (tmp_path / "shm").mkdir()
    return {
        "RANKSCOPE_STATE": str(tmp_path / "state"),
        "RANKSCOPE_DIR": str(tmp_path / "shm"),
        "RANKSCOPE_CONFIG": str(tmp_path / "agent.toml"),
    }


@pytest.mark.alone
def test_a_knob_that_slows_the_step_is_found(tmp_path: Path, places: dict[str, str]) -> None:
    """A file that makes a step twice as long, made and removed by the knob: found, and gone at the end."""
    slow = tmp_path / "slow"
    status, out, err = run(
        "run", "--on", f"touch {slow}", "--off", f"rm -f {slow}", "--window-steps", 5, "--settle-steps", 1,
        "--max-blocks", 40, "--json", "-", "--", sys.executable, FAKE_RANK, "steps=600", "step_ms=8",
        f"slow_file={slow}", environ=places,
    )  # fmt: skip
    assert status == 0, err
    document = json.loads(out)
    jsonschema.validate(document, json.loads((SCHEMAS / "experiment.schema.json").read_text()))
    assert document["decision"] == "effect"
    assert document["effect"]["fraction"]["low"] > 0
    assert 0.5 < document["effect"]["fraction"]["value"] < 2
    assert not slow.exists()


def test_a_knob_that_cannot_be_turned_leaves_the_job_alone(places: dict[str, str]) -> None:
    """The command's failure is one line; the job ends with its own status."""
    status, _, err = run(
        "run", "--on", "echo no such knob >&2; exit 9", "--off", "true", "--", sys.executable, FAKE_RANK,
        "steps=60", "step_ms=4", "then=exit", "status=7", environ=places,
    )  # fmt: skip
    assert status == 7
    assert "the command ended with 9: no such knob" in err
    assert "Traceback" not in err


def commands(pids: list[int]) -> dict[int, str]:
    """Processes that still run, and what each was started as."""
    return {pid: command for pid in pids if (command := command_of(pid))}


def test_an_experiment_killed_while_the_agent_is_off_leaves_nothing_stopped(
    tmp_path: Path, places: dict[str, str], wait_until: Callable[..., None]
) -> None:
    """SIGKILL to `experiment run --agent` in an off window: agent and helper go on and end, the job is untouched."""
    node = NodeState.create(tmp_path / "node", profile="H100-SXM5-80GB", gpus=1)
    library = build(tmp_path)
    Path(places["RANKSCOPE_CONFIG"]).write_text(
        f'[rules]\nlive = false\n[roots]\nnvml_library = "{library / LIBRARY}"\n'
    )
    words = ["run", "--agent", "--window-steps", "200", "--", sys.executable, FAKE_RANK, "steps=12", "then=spin"]
    experiment = subprocess.Popen([*COMMAND, *words], env={**os.environ, **places, **node.environment(library)})

    def ours(name: str) -> int | None:
        return next((pid for pid, told in commands(descendants(experiment.pid)).items() if name in told), None)

    def stopped() -> bool:
        states = [process_stat(pid) for pid in (ours("agent.daemon"), ours("nvml_child")) if pid is not None]
        return [state.state for state in states if state is not None] == ["T", "T"]

    wait_until(stopped, what="the off window")
    agent, helper, rank = (ours(name) for name in ("agent.daemon", "nvml_child", "fake_rank"))
    assert agent is not None
    assert helper is not None
    assert rank is not None
    try:
        experiment.kill()
        experiment.wait()
        wait_until(lambda: not commands([agent, helper]), what="the end of agent and helper")
        assert commands([rank])
    finally:
        for pid in commands([agent, helper, rank]):
            kill(pid)
