"""A hostile process beside a node agent: what it calls itself and what it says reaches files, pages and terminals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import psutil
import pytest

from rankscope.clock import ClockAnchor, SystemClock, boot_id
from rankscope.identity import RankIdentity, start_ticks
from rankscope.records import MarkKind, MarkRecord, StepRecord
from rankscope.ring import RingWriter

RANKSCOPE = Path(sys.executable).with_name("rankscope")
TAG = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(1)</script>"
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
#: A job that names a path, a host that is markup, an exception with a terminal's orders, markup and a secret in it.
JOB, HOST = f"../../../../evil/{TAG}", SCRIPT
SAID = f"RuntimeError: \x1b]0;owned\x07\x1b[2J{TAG}{SCRIPT} AWS_SECRET_ACCESS_KEY={SECRET}"


class Tags(HTMLParser):
    """Collects attributes and what stands in scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: set[str] = set()
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember."""
        self.scripts += tag == "script"
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture(name="recording", scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let a node agent watch the hostile rank from its ring to its death; returns the recording."""
    place = tmp_path_factory.mktemp("hostile")
    rings, state = place / "rings", place / "deep/er/state"
    rings.mkdir()
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    identity = RankIdentity(JOB, 0, 0, 1, 0, HOST, victim.pid, start_ticks(victim.pid), boot_id(), None)
    clock = SystemClock()
    ring = RingWriter(rings / "a.ring", identity, ClockAnchor.take(clock), slots=1024)
    for step in range(60):
        start = clock.monotonic_ns()
        ring.append_record(StepRecord(step, start, start + 1_000_000, 0, 1_000_000, 0, 0, 0, 0, 0, 0))
    ring.append_record(MarkRecord(clock.monotonic_ns(), 60, MarkKind.EXCEPTION, SAID))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "RANKSCOPE_"))},
        "RANKSCOPE_DIR": str(rings),
        "RANKSCOPE_STATE": str(state),
    }
    agent = subprocess.Popen([str(RANKSCOPE), "agent", "--once"], env=environment, cwd=place)
    try:
        give_up = time.monotonic() + 60
        while not list(state.rglob("*.db")) and time.monotonic() < give_up:
            time.sleep(0.05)
        listening = [
            each
            for process in (psutil.Process(agent.pid), *psutil.Process(agent.pid).children(recursive=True))
            for each in process.net_connections()
            if each.status == psutil.CONN_LISTEN
        ]
        victim.kill()
        victim.wait()
        assert agent.wait(60) == 0
    finally:
        for process in (victim, agent):
            process.kill()
            process.wait()
        ring.close()
    # Nothing listens that nobody asked for.
    assert listening == []
    (found,) = place.rglob("*.db")
    return found


def report(recording: Path, *options: str) -> str:
    """What `rankscope report` says on a terminal that would obey."""
    environment = {**os.environ, "FORCE_COLOR": "", "COLUMNS": "200"}
    done = subprocess.run(
        [str(RANKSCOPE), "report", str(recording), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_is_no_path(recording: Path) -> None:
    """The recording lies in the state directory, whatever the job calls itself, and nothing lies elsewhere."""
    place = recording.parents[4]
    assert recording.parent.parent == place / "deep/er/state"
    elsewhere = [path for path in place.rglob("*") if path.is_file() and "state" not in path.parts]
    assert {path.parent.name for path in elsewhere} <= {"rings"}
    assert not (place.parent / "evil").exists()


def test_a_page_holds_no_markup_of_theirs(recording: Path, tmp_path: Path) -> None:
    """The page has as many scripts as that of any job, no handler, and the words as words."""
    report(recording, "--html", str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not {name for name in tags.attributes if name.startswith("on")}
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text or "alert(1)" in text, "the exception is told, as text"


def test_a_terminal_is_told_and_not_ordered(recording: Path) -> None:
    """No escape and no bell reaches the terminal, the JSON or the page to hand over."""
    for options in ((), ("--markdown", "-"), ("--json",)):
        said = report(recording, *options)
        assert "RuntimeError" in said
        assert not {each for each in said if each in "\x1b\x07\x9b"}
    assert json.loads(report(recording, "--json"))["verdict"]


def test_a_secret_in_what_a_rank_says_is_not_recorded(recording: Path) -> None:
    """Neither in the recording's bytes nor in what is made of it."""
    assert SECRET.encode() not in recording.read_bytes()
    assert SECRET not in report(recording, "--json")
