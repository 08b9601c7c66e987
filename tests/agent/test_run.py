"""`rankscope run` as a person uses it: real processes, real signals, a real terminal where it takes one."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_processes import command_of, kill_below

from rankscope.agent.load import load_window
from rankscope.agent.processes import descendants, process_stat
from rankscope.agent.run import sweep

FAKE_RANK = str(Path(__file__).with_name("fake_rank.py"))
RUN = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "run"]
Wait = Callable[..., None]

SETTINGS = """
[recording]
commit_seconds = 0.5
[hang]
floor_seconds = 1.0
[probes]
disabled = ["nvml"]
[rules]
live = false
"""


class Runs:
    """Starts watched runs in a place of their own, and looks at what they leave."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.started: list[subprocess.Popen[bytes]] = []
        (place / "shm").mkdir()
        (place / "agent.toml").write_text(SETTINGS)
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("RANKSCOPE")}
        self.environ |= {
            "RANKSCOPE_STATE": str(place / "state"),
            "RANKSCOPE_DIR": str(place / "shm"),
            "RANKSCOPE_CONFIG": str(place / "agent.toml"),
        }

    def start(self, *words: str, **options: object) -> subprocess.Popen[bytes]:
        """A run in a session of its own, unless told otherwise."""
        arguments = {"start_new_session": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen([*RUN, *words], env=self.environ, **arguments)  # type: ignore[call-overload]
        self.started.append(process)
        return process  # type: ignore[no-any-return]

    def finish(self, process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
        """(exit status, standard output, standard error) of a run."""
        out, err = process.communicate(timeout=60)
        return process.returncode, out.decode(), err.decode()

    @property
    def recording(self) -> Path:
        """The one recording there is."""
        (path,) = self.place.glob("state/*/*.db")
        return path

    def leftovers(self) -> list[str]:
        """What should be gone: ring directories, side files of recordings."""
        rings = self.place.glob("shm/*")
        return [str(path) for path in (*rings, *self.place.glob("state/*/*-wal"), *self.place.glob("state/*/*-shm"))]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Watched runs that are all ended at the end of the test."""
    made = Runs(tmp_path)
    yield made
    for process in made.started:
        kill_below(process.pid)
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def rank(*words: str) -> list[str]:
    """Command of a fake rank."""
    return [sys.executable, FAKE_RANK, *words]


def agent_of(run: subprocess.Popen[bytes]) -> int | None:
    """The agent's process id, once it is there."""
    return next((pid for pid in descendants(run.pid) if "rankscope.agent.daemon" in command_of(pid)), None)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (rank("steps=5"), 0),
        (rank("steps=2", "then=exit", "status=7"), 7),
        (rank("steps=2", "then=exception"), 1),
        ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], 137),
        (["sh", "-c", "exit 5"], 5),
    ],
)
def test_the_jobs_own_status_passes_through(runs: Runs, command: list[str], status: int) -> None:
    """Whatever the verdict: the job's exit status, 128+n for a signal, is that of `run`; nothing is left behind."""
    run = runs.start("--", *command)
    returned, _, err = runs.finish(run)
    assert returned == status, err
    assert "Traceback" not in err.replace("Traceback (most recent call last)", "", "RuntimeError" in err)
    assert load_window([runs.recording]).job_status == status
    assert runs.leftovers() == []


def test_the_job_keeps_its_standard_files(runs: Runs) -> None:
    """Standard input, output and error are the job's; what we say goes to standard error only."""
    echo = "import sys; print(sys.stdin.read().upper(), end=''); print('oops', file=sys.stderr)"
    run = runs.start("--", sys.executable, "-c", echo, stdin=subprocess.PIPE)
    out, err = run.communicate(b"hello\n", timeout=60)
    assert out == b"HELLO\n"
    assert b"oops\n" in err
    assert b"no rank of the job was seen" in err


def test_quiet_says_nothing_and_json_is_the_contract(runs: Runs, tmp_path: Path) -> None:
    """--quiet leaves the terminal to the job; --json writes the verdict's contract."""
    run = runs.start("--quiet", "--json", str(tmp_path / "verdict.json"), "--", *rank("steps=5"))
    assert runs.finish(run) == (0, "", "")
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["schema"] == "rankscope.verdict/1"
    assert verdict["job"]["name"] == "fake_rank"


def test_a_command_that_is_not_there_is_one_line(runs: Runs) -> None:
    """Status 2, one line, no recording, no ring directory."""
    status, out, err = runs.finish(runs.start("--", "no-such-command-here", "x"))
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("rankscope: no-such-command-here: cannot start the command (No such file or directory); ")
    assert runs.leftovers() == []
    assert list(runs.place.glob("state/*/*.db")) == []


def test_an_unknown_key_stops_before_the_job_begins(runs: Runs, tmp_path: Path) -> None:
    """A configuration that cannot be used is one line and status 2, and the job was not started."""
    (tmp_path / "bad.toml").write_text("[hang]\nflor_seconds = 1\n")
    run = runs.start("--config", str(tmp_path / "bad.toml"), "--", "touch", str(tmp_path / "started"))
    status, _, err = runs.finish(run)
    assert status == 2
    assert 'did you mean "hang.floor_seconds"?' in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("variable", ["RANKSCOPE_STATE", "RANKSCOPE_DIR"])
def test_a_job_that_cannot_be_watched_runs_all_the_same(runs: Runs, variable: str, tmp_path: Path) -> None:
    """Where recording or rings have no place, one line says so and the job runs with its own status."""
    (tmp_path / "file").write_text("")
    runs.environ[variable] = str(tmp_path / "file" / "below")
    status, out, err = runs.finish(runs.start("--", "sh", "-c", "echo here; exit 4"))
    assert (status, out) == (4, "here\n")
    assert "the job runs unwatched" in err
    assert variable in err
    assert len(err.splitlines()) == 1


def test_an_export_that_cannot_be_costs_the_export_alone(runs: Runs) -> None:
    """A proxy that makes no sense: one line that names the variable, and the job is recorded and judged."""
    runs.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c.invalid:1", "http_proxy": "http://proxy:notaport"}
    status, _, err = runs.finish(runs.start("--", *rank("steps=5")))
    assert status == 0
    (line,) = [line for line in err.splitlines() if line.startswith("rankscope: ")]
    assert line.startswith("rankscope: nothing is exported, the job is recorded all the same: http_proxy: the proxy ")
    assert len(load_window([runs.recording]).ranks[0].steps) == 5


def test_a_full_disk_never_reaches_the_job(runs: Runs) -> None:
    """Where the recording's disk is full from the begin, the job runs; no traceback, its own status."""

    def small_files() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    run = runs.start("--", "sh", "-c", "echo here; exit 4", preexec_fn=small_files)
    status, out, err = runs.finish(run)
    assert (status, out) == (4, "here\n")
    assert "Traceback" not in err
    assert "rankscope: " in err


def test_another_python_is_named_with_what_to_do(runs: Runs, tmp_path: Path) -> None:
    """Where the job ran a Python without rankscope, the line names it and the command that installs rankscope there."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    status, _, err = runs.finish(runs.start("--", str(python), "-c", "import time; time.sleep(3)"))
    assert status == 0
    assert f"{python} -m pip install rankscope" in err


def test_sigterm_reaches_the_job_and_the_verdict_is_given(runs: Runs, wait_until: Wait, tmp_path: Path) -> None:
    """SIGTERM to `run` ends the job; status 143, the recording is whole, the verdict is there, no process is left."""
    words = ("steps=3", "then=stuck", f"pid_file={tmp_path / 'pid'}")
    run = runs.start("--json", str(tmp_path / "verdict.json"), "--", *rank(*words))
    wait_until((tmp_path / "pid").exists)
    children = descendants(run.pid)
    assert len(children) == 2
    run.terminate()
    status, _, _ = runs.finish(run)
    assert status == 143
    assert all(process_stat(pid) is None for pid in children)
    window = load_window([runs.recording])
    assert window.job_status == 143
    exits = [event for event in window.events if event.kind == "rank-exited"]
    assert [event.attributes["clean"] for event in exits] == [0]
    assert json.loads((tmp_path / "verdict.json").read_text())["schema"] == "rankscope.verdict/1"
    assert runs.leftovers() == []


def test_ctrl_c_at_a_terminal_reaches_the_job_once(runs: Runs, wait_until: Wait, tmp_path: Path) -> None:
    """A Ctrl-C typed at a terminal goes to the whole group by the kernel: the job hears it once, a second one again."""
    counted = tmp_path / "count"
    script = f"""
import pathlib, signal, sys, time
heard = []
def hear(number, frame):
    heard.append(number)
    pathlib.Path({str(counted)!r}).write_text(str(len(heard)))
signal.signal(signal.SIGINT, hear)
print("ready", flush=True)
while len(heard) < 2:
    time.sleep(0.01)
time.sleep(1)
sys.exit(40 + len(heard))
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*RUN, "--", sys.executable, "-c", script], runs.environ)
    said = b""

    def listen() -> None:
        nonlocal said
        while True:
            try:
                data = os.read(terminal, 4096)
            except OSError:
                return
            if not data:
                return
            said += data

    listener = threading.Thread(target=listen)
    listener.start()
    wait_until(lambda: b"ready" in said)
    os.write(terminal, b"\x03")
    wait_until(counted.exists)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    listener.join(30)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 42, said.decode()
    assert counted.read_text() == "2"


def test_ctrl_c_without_a_terminal_reaches_every_process_of_the_job(
    runs: Runs, wait_until: Wait, tmp_path: Path
) -> None:
    """SIGINT sent to `run` alone goes to the job's whole group: a shell's child ends too."""
    run = runs.start(
        "--", "sh", "-c", f"{sys.executable} {FAKE_RANK} steps=3 then=stuck pid_file={tmp_path / 'pid'}; true"
    )
    wait_until((tmp_path / "pid").exists)
    child = int((tmp_path / "pid").read_text())
    run.send_signal(signal.SIGINT)
    runs.finish(run)
    assert process_stat(child) is None
    assert runs.leftovers() == []


def test_a_rank_killed_is_told_as_killed(runs: Runs, wait_until: Wait, tmp_path: Path) -> None:
    """A rank ended by SIGKILL: the exit has its signal or at least is unclean, and the verdict says rank-killed."""
    words = ("steps=30", "then=stuck", f"pid_file={tmp_path / 'pid'}")
    run = runs.start("--json", str(tmp_path / "verdict.json"), "--", "sh", "-c", f"{' '.join(rank(*words))}; exit 3")
    wait_until((tmp_path / "pid").exists)
    wait_until(lambda: sum(len(rank.steps) for rank in load_window([runs.recording]).ranks.values()) == 30)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    status, _, _ = runs.finish(run)
    assert status == 3
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert [finding["class"] for finding in verdict["findings"]] == ["rank-killed"]


def test_an_agent_killed_is_started_again_and_nothing_is_twice(runs: Runs, wait_until: Wait, tmp_path: Path) -> None:
    """SIGKILL to the agent costs neither the job nor a step: the next one goes on in the same recording."""
    run = runs.start("--", *rank("step_ms=5", "then=spin", f"pid_file={tmp_path / 'pid'}"))
    wait_until((tmp_path / "pid").exists)

    def steps() -> int:
        return sum(len(rank.steps) for rank in load_window([runs.recording]).ranks.values())

    wait_until(lambda: steps() > 20)
    first = agent_of(run)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: agent_of(run) not in (None, first))
    before = steps()
    wait_until(lambda: steps() > before + 100)
    run.terminate()
    status, _, _ = runs.finish(run)
    assert status == 143
    window = load_window([runs.recording])
    numbers = list(window.ranks[0].steps.columns["step"])
    assert numbers == list(range(len(numbers)))
    kinds = [event.kind for event in window.events]
    assert kinds.count("agent-started") == 2
    assert kinds.count("rank-attached") == kinds.count("rank-exited") == kinds.count("agent-stopped") == 1
    assert runs.leftovers() == []


def test_the_agent_ends_with_the_run_that_started_it(runs: Runs, wait_until: Wait, tmp_path: Path) -> None:
    """Where `run` itself is killed, the agent closes the recording and ends; the next run sweeps what was left."""
    run = runs.start("--", *rank("steps=3", "then=stuck", f"pid_file={tmp_path / 'pid'}"))
    wait_until((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    agent = agent_of(run)
    assert agent is not None
    wait_until(lambda: len(load_window([runs.recording]).ranks) == 1)
    run.kill()
    run.wait()
    wait_until(lambda: (stat := process_stat(agent)) is None or stat.state == "Z")
    assert load_window([runs.recording]).events[-1].kind == "agent-stopped"
    # The rank lives on: its ring is not taken from it.
    sweep(tmp_path / "shm")
    assert len(list((tmp_path / "shm").iterdir())) == 1
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: (stat := process_stat(pid)) is None or stat.state == "Z")
    if process_stat(pid) is None:
        sweep(tmp_path / "shm")
        assert list((tmp_path / "shm").iterdir()) == []


def test_a_hang_ends_in_stacks_and_a_verdict(runs: Runs, wait_until: Wait, tmp_path: Path) -> None:
    """A rank stuck in backward: the recording holds the hang and where the code stands; the verdict says rank-hang."""
    run = runs.start("--json", str(tmp_path / "verdict.json"), "--", *rank("steps=30", "then=stuck"))
    # Not read before the rank has attached: until then the recording is only reserved.
    wait_until(lambda: any(tmp_path.glob("shm/*/*.ring")))
    wait_until(lambda: any(event.kind == "rank-stacks" for event in load_window([runs.recording]).events))
    run.terminate()
    runs.finish(run)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["findings"][0]["class"] == "rank-hang"
    stacks = [event for event in load_window([runs.recording]).events if event.kind == "rank-stacks"]
    assert "fake_rank.py" in stacks[0].text
