"""`rankscope run --store`: a real VictoriaMetrics beside the run, read during it and after, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import components
import pytest
from live_processes import kill, kill_below

from rankscope.agent.processes import descendants

MAIN = [sys.executable, "-c", "from rankscope.agent.cli import main; main()"]
FAKE_RANK = str(Path(__file__).with_name("fake_rank.py"))
SETTINGS = '[export]\nperiod_seconds = 1.0\n[probes]\ndisabled = ["nvml"]\n[rules]\nlive = false\n'
LONG = [sys.executable, FAKE_RANK, "steps=100000", "step_ms=20"]
Wait = Callable[..., None]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Places of the test's own, and the store's program on PATH."""
    (tmp_path / "shm").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "agent.toml").write_text(SETTINGS)
    known = {key: value for key, value in os.environ.items() if not key.startswith(("RANKSCOPE", "OTEL"))}
    return known | {
        "RANKSCOPE_STATE": str(tmp_path / "state"),
        "RANKSCOPE_DIR": str(tmp_path / "shm"),
        "RANKSCOPE_CONFIG": str(tmp_path / "agent.toml"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PATH": f"{components.need('victoria-metrics').parent}:{os.environ['PATH']}",
    }


@pytest.fixture
def start(environ: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a run; all are ended at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*MAIN, "run", *words], env=environ, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        kill_below(process.pid)
        process.kill()
        process.communicate()


def _url(run: subprocess.Popen[str]) -> str:
    stream: IO[str] | None = run.stderr
    assert stream is not None
    line = stream.readline()
    found = re.match(r"store: (http://127\.0\.0\.1:\d+)(?:/vmui/| \(this build .*\)); rankscope diagnose ", line)
    assert found, line + stream.read()
    return found[1]


def _diagnosed(url: str, environ: dict[str, str]) -> dict[str, object]:
    done = subprocess.run(
        [*MAIN, "diagnose", "--prometheus", url, "--job", "watched", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdict: dict[str, object] = json.loads(done.stdout)
    return verdict


def _exports(url: str) -> int:
    """How often the rank's step came in the last ten minutes."""
    found = components.query(url, 'count_over_time(rankscope_rank_step{rankscope_job="watched"}[10m])')
    return int(found[0]["value"][1]) if found else 0


def test_it_is_read_during_the_run_and_after(
    start: Callable[..., subprocess.Popen[str]], environ: dict[str, str], tmp_path: Path
) -> None:
    """`diagnose` judges while the job runs; kept data tells of the same job later, all that came; the store is gone."""
    kept = tmp_path / "kept"
    run = start("--job", "watched", "--store-directory", str(kept), "--", *LONG)
    url = _url(run)
    components.wait_for(lambda: _exports(url) >= 3, "some exports")
    came, during = _exports(url), _diagnosed(url, environ)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert f"its data is in {kept}" in err
    assert not components.answers(f"{url}/health")
    (tmp_path / "again").mkdir()
    (tmp_path / "again/store").symlink_to(kept)
    with components.victoria_metrics(tmp_path / "again") as again:
        # What came between the question and the signal may have been enough to judge by: the verdict may say more.
        assert _diagnosed(again, environ)["job"] == during["job"]
        assert _exports(again) >= came
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_signal_leaves_it_behind(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, wait_until: Wait, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM end job, store and data; where the run itself is killed outright, the store ends with it."""
    run = start("--store", "--", *LONG)
    url = _url(run)
    wait_until(lambda: any((tmp_path / "shm").rglob("*.ring")), what="the rank")
    others = descendants(run.pid)
    run.send_signal(number)
    wait_until(lambda: not components.answers(f"{url}/health"), what="the end of the store")
    if number != signal.SIGKILL:
        run.communicate(timeout=60)
        assert run.returncode == 128 + number
        assert list((tmp_path / "tmp").iterdir()) == []
    for pid in others:
        kill(pid)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store-program", "/no/such/program"], "/no/such/program: no program that can be run"),
        (["--store-program", sys.executable], "the store did not come up"),
        (["--store-directory", "/proc/none"], "/proc/none: cannot be used"),
    ],
)
def test_what_cannot_be_had_is_one_line(environ: dict[str, str], tmp_path: Path, words: list[str], said: str) -> None:
    """Status 2 and one line, before the job begins."""
    started = tmp_path / "started"
    command = [*MAIN, "run", *words, "--", "touch", str(started)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not started.exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_one_run_has_one_receiver(environ: dict[str, str]) -> None:
    """A run that exports already is told so, and not sent to two places."""
    known = environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    command = [*MAIN, "run", "--store", "--", "true"]
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "exports to a receiver of its own already" in done.stderr
