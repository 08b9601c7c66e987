"""The command line: every error is one line and status 2, every command speaks JSON."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scripted_receiver import http_receiver

from rankscope.agent.cli import main
from rankscope.agent.load import load_window
from rankscope.agent.recording import Recording
from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Reading
from rankscope.records import StepRecord
from rankscope.ring import RingHeader

SECOND = 1_000_000_000


def call(*words: str | Path, **environ: str) -> Result:
    """One command in this process."""
    return CliRunner().invoke(main, [str(word) for word in words], env=environ, catch_exceptions=False)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A finished recording of two quick ranks."""
    path = tmp_path / "node1.db"
    made = Recording.create(path, job="job", host="node1")
    for rank in (0, 1):
        identity = RankIdentity("job", 0, rank, 2, rank, "node1", 4242 + rank, 77, "boot")
        row, _ = made.add_rank(f"{rank}.ring", RingHeader(identity, ClockAnchor(5, 6), 1024, 2))
        steps = [
            StepRecord(
                step, step * 10**8, (step + 1) * 10**8, 10**6, 4 * 10**7, 5 * 10**7, 9 * 10**6, 0, 0, 0, hook_ns=9_000
            )
            for step in range(60)
        ]
        made.add_records(row, steps, len(steps))
    made.add_readings(Reading("host.cpu_busy_ns", float(second), second * SECOND) for second in range(6))
    made.add_events([Event("rank-attached", 0, "rank 0 is watched", rank=0)])
    made.set_meta("agent_cpu_ratio", 0.004)
    assert made.commit()
    made.close()
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["report", "missing.db"],
        ["report", "noise.db"],
        ["top", "--once", "noise.db"],
        ["doctor", "--config", "bad.toml"],
        ["run", "--config", "bad.toml", "--", "true"],
        ["agent", "--config", "bad.toml"],
        ["replay", "noise.db", "--endpoint", "http://127.0.0.1:1"],
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Missing and foreign recordings and bad configuration: one line on standard error, nothing on standard output."""
    monkeypatch.chdir(tmp_path)
    Path("noise.db").write_bytes(os.urandom(9000))
    Path("bad.toml").write_text("[ring]\n")
    result = call(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("rankscope: ")


def test_report_hands_over_a_page(recording: Path, tmp_path: Path) -> None:
    """--markdown writes the page, or prints it alone with "-"; not beside the JSON on the same stream."""
    page = tmp_path / "incident.md"
    assert "HEALTHY" in call("report", recording, "--markdown", page).stdout
    printed = call("report", recording, "--markdown", "-").stdout
    assert printed == page.read_text()
    assert printed.startswith("# Incident: job job")
    assert call("report", recording, "--markdown", "-", "--json").exit_code == 2


def test_report_gives_the_contract(recording: Path, tmp_path: Path) -> None:
    """--json prints the verdict of the recording, with what watching cost; a directory stands for its recordings."""
    for named in (recording, tmp_path):
        verdict = json.loads(call("report", "--json", named).stdout)
        assert verdict["schema"] == "rankscope.verdict/1"
        assert verdict["verdict"] == "healthy"
        assert verdict["overhead"] == {
            "agent_cpu_fraction": 0.004,
            "agent_pss_bytes": None,
            "hook_ns_per_step": 9000.0,
        }
    assert "healthy" in call("report", recording).stdout.lower()


def test_a_report_that_cannot_be_written_is_one_line(recording: Path, tmp_path: Path) -> None:
    """A page for a directory that is not there names it."""
    result = call("report", recording, "--html", tmp_path / "none" / "page.html")
    assert result.exit_code == 2
    assert f"{tmp_path}/none/page.html" in result.stderr


def test_top_shows_the_latest_steps(recording: Path) -> None:
    """One picture as JSON and as a table, with medians in milliseconds."""
    seen = json.loads(call("top", "--json", recording).stdout)
    assert [(rank["rank"], rank["step"], rank["step_ms"]) for rank in seen["ranks"]] == [(0, 59, 100.0), (1, 59, 100.0)]
    assert "100" in call("top", "--once", recording).stdout


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("http_proxy", "http://proxy:notaport"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "nonsense"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere"),
        ("OTEL_RESOURCE_ATTRIBUTES", "nonsense"),
    ],
)
def test_an_export_that_cannot_be_is_told_before_anything_starts(recording: Path, variable: str, value: str) -> None:
    """The node agent, the analyzer and a replay: status 2 and one line that begins with the variable."""
    environ = {variable: value, "no_proxy": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c.invalid:1"}
    store = ("--prometheus", "http://127.0.0.1:1")
    for words in (
        ("agent", "--once"),
        ("analyzer", *store, "--once"),
        ("replay", recording, "--endpoint", "http://c:1"),
    ):
        result = call(*words, **environ)
        assert (result.exit_code, result.stdout) == (2, ""), words
        assert result.stderr.startswith(f"rankscope: {variable}: ")
        assert result.stderr.count("\n") == 1


def test_replay_delivers_a_recording(recording: Path) -> None:
    """Everything in a recording arrives, and the accounts say so."""
    with http_receiver() as receiver:
        result = call("replay", "--json", recording, "--endpoint", receiver.url)
    accounts = json.loads(result.stdout)
    assert accounts["acknowledged"] == accounts["produced"]
    assert accounts["waiting"]["points"] == accounts["dropped"]["points"] == 0
    assert {request.path for request in receiver.requests} == {"/v1/metrics", "/v1/logs"}


def test_the_node_agent_finds_jobs_by_itself(
    rings: Path, start_rank: Callable[..., subprocess.Popen[bytes]], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    """Ranks that attached without `run` are recorded by job, a file that is no ring is refused in a line, once."""
    (rings / "noise.ring").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "agent.toml").write_text("[probes]\ndisabled = ['nvml']\n[rules]\nlive = false\n")
    environ = os.environ | {"RANKSCOPE_STATE": str(tmp_path / "state"), "RANKSCOPE_DIR": str(rings)}
    command = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "agent", "--once", "--json"]
    agent = subprocess.Popen(
        [*command, "--config", str(tmp_path / "agent.toml")],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        rank = start_rank(steps=20, then="stuck")
        assert agent.stdout is not None
        line = json.loads(agent.stdout.readline())
        assert line["job"] == "test"
        wait_until(lambda: sum(len(rank.steps) for rank in load_window([Path(line["recording"])]).ranks.values()) == 20)
        rank.send_signal(signal.SIGKILL)
        assert agent.wait(60) == 0
    finally:
        agent.kill()
        _, said = agent.communicate()
    assert said.decode().count("noise.ring") == 1
    assert b"not a Rankscope ring; remove it" in said
    window = load_window([Path(line["recording"])])
    assert [event.kind for event in window.events if event.rank == 0] == ["rank-attached", "rank-exited"]


def test_a_watched_run_exports_what_it_records(tmp_path: Path) -> None:
    """With an endpoint in the environment readings, steps and events of a run arrive; the outbox ends empty."""
    (tmp_path / "agent.toml").write_text(
        "[probes]\ndisabled = ['nvml']\n[rules]\nlive = false\n[export]\nperiod_seconds = 0.5\n"
    )
    (tmp_path / "shm").mkdir()
    fake_rank = Path(__file__).with_name("fake_rank.py")
    with http_receiver() as receiver:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("RANKSCOPE")}
        environ |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "RANKSCOPE_STATE": str(tmp_path / "state"),
            "RANKSCOPE_DIR": str(tmp_path / "shm"),
            "RANKSCOPE_CONFIG": str(tmp_path / "agent.toml"),
        }
        command = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "run", "--quiet", "--"]
        words = ["steps=100", "step_ms=20"]
        subprocess.run([*command, sys.executable, str(fake_rank), *words], env=environ, check=True, timeout=60)
        names = {record.event_name for record in receiver.log_records()}
    assert {"rankscope.agent-started", "rankscope.rank-attached", "rankscope.rank-exited"} <= names
    assert "rankscope.agent-stopped" in names
    (path,) = tmp_path.glob("state/*/*.db")
    connection = sqlite3.connect(path)
    accounts = dict(connection.execute("SELECT state, sum(points) FROM outbox_account GROUP BY state"))
    assert accounts["produced"] == accounts["acknowledged"] > 30
    assert connection.execute("SELECT count(*) FROM outbox_batch").fetchone() == (0,)
    connection.close()
