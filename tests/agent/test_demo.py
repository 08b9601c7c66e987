"""`rankscope demo` and `score` at their edges: what is missing is one line, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MAIN = [sys.executable, "-c", "from rankscope.agent.cli import main; main()"]
SHORT = """
[workload]
ranks = 2
steps = 100000
step_ms = 20
data_ms = 1
[node]
gpus = 2
[[fault]]
class = "cpu-contention"
rank = 1
severity = 1
"""


@pytest.fixture
def environment(tmp_path: Path):
    """An environment whose caches and recordings are the test's own."""
    return os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}


def _refused(arguments: list[str], environment: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [*MAIN, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_without_a_compiler_the_demo_says_what_to_install(environment, tmp_path: Path):
    """No cc: one line that names it and the way out, status 2."""
    line = _refused(["demo"], environment | {"CC": "no-such-compiler"}, tmp_path)
    assert "no-such-compiler" in line
    assert "install" in line


def test_without_torch_the_demo_says_what_to_install(environment, tmp_path: Path):
    """No PyTorch: one line with the command that installs it, status 2."""
    finder = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest)\n"
        "from rankscope.agent.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", finder, "demo"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'rankscope[torch]'" in done.stderr


def test_a_scenario_that_contradicts_itself_is_refused_before_anything_runs(environment, tmp_path: Path):
    """Demo and score both stop at the scenario's own line."""
    (tmp_path / "wrong.toml").write_text("[workload]\nranks = 9\n")
    for command in (["demo", "--scenario", "wrong.toml"], ["score", "wrong.toml"]):
        assert "9 ranks on 4 GPUs" in _refused(command, environment, tmp_path)


def test_a_directory_that_is_in_use_is_not_written_into(environment, tmp_path: Path):
    """--keep wants a directory of its own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    assert "not empty" in _refused(["demo", "--keep", "mine"], environment, tmp_path)


def test_ctrl_c_ends_the_demo_with_a_verdict_and_no_process_left(environment, tmp_path: Path):
    """Interrupted while competitors run: status 130 or the job's own, a verdict for what was seen, nothing alive."""
    (tmp_path / "endless.toml").write_text(SHORT)
    # In its own session without a terminal; a mark in the environment finds whatever it leaves behind.
    mark = f"RANKSCOPE_TEST_MARK={tmp_path}"
    demo = subprocess.Popen(
        [*MAIN, "demo", "--scenario", "endless.toml", "--html", "page.html"],
        # The simulated library of the user's own cache: compiling it is tested elsewhere.
        env={**os.environ, "TMPDIR": str(tmp_path), **dict([mark.split("=", 1)])},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert _until(lambda: _marked(mark, "competitor.py"), 90)
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=90)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode != 0
    assert "job ddp" in output, output
    assert "Traceback" not in output
    assert (tmp_path / "page.html").exists()
    # Temporary files of its own, of the recording, and of torchrun.
    assert not [path for pattern in ("rankscope*", "torchelastic*") for path in tmp_path.glob(pattern)]
    assert _until(lambda: not _marked(mark, ""), 10), _marked(mark, "")


def _until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _marked(mark: str, command: str) -> list[str]:
    """Command lines of processes that carry the mark and name `command`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark.encode() in environment and command in line:
                found.append(line)
    return found
