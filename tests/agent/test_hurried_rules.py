"""Rules that cannot wait for their turn, and the bell that wakes the loop for them."""

from __future__ import annotations

import select
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rankscope.agent.bell import Bell
from rankscope.agent.config import RuleSettings, Settings
from rankscope.agent.job import WatchedJob
from rankscope.agent.live import LiveRules
from rankscope.agent.recording import Recording
from rankscope.finding import Advice, Basis, Finding, Impact, Side, Where
from rankscope.reading import Severity
from rankscope.testing import FakeClock

SECOND = 1_000_000_000


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A recording of a job without ranks."""
    path = tmp_path / "host.db"
    Recording.create(path, job="test", host="a", clock=FakeClock()).close()
    return path


def finish(live: LiveRules, wait_until: Callable[..., None]) -> None:
    """Let the round that runs end."""
    assert live._thread is not None
    wait_until(lambda: live.poll() == [] and live._thread is None, what="the round")


def test_a_hurried_round_starts_at_once_and_not_too_often(recording: Path, wait_until: Callable[..., None]) -> None:
    """It does not wait for the rules' turn, five times within fifty seconds; the sixth waits until they are over."""
    clock = FakeClock()
    live = LiveRules(recording, RuleSettings(period_seconds=3600), clock)
    live.poll()
    assert live._thread is None
    for _ in range(5):
        live.hurry()
        assert live.hurried
        live.poll()
        finish(live, wait_until)
        assert (live.hurried, live.trouble) == (False, "")
        clock.advance(SECOND)
    live.hurry()
    live.poll()
    assert (live._thread, live.hurried) == (None, False)
    clock.advance(45 * SECOND)
    live.poll()
    finish(live, wait_until)


def test_what_comes_while_a_round_runs_is_looked_at_by_the_next(
    recording: Path, wait_until: Callable[..., None]
) -> None:
    """The round that runs may have read the recording before: another follows it."""
    clock = FakeClock()
    live = LiveRules(recording, RuleSettings(period_seconds=1), clock)
    clock.advance(2 * SECOND)
    live.poll()
    first = live._thread
    assert first is not None
    live.hurry()
    wait_until(lambda: live.poll() == [] and live._thread not in (None, first), what="the round that follows")
    assert live.hurried
    finish(live, wait_until)
    assert not live.hurried


def test_the_end_waits_for_a_round_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is closed in the middle of a round has its findings, and leaves one file and no thread."""
    reading, go_on = threading.Event(), threading.Event()
    found = Finding(
        "disk-full",
        Side.ENVIRONMENT,
        0.9,
        Severity.WARNING,
        Advice.WATCH,
        Where(host="a"),
        Basis.HOST,
        SECOND,
        None,
        Impact(),
        (),
        (),
        "",
        "",
        "",
    )

    def judge(live: LiveRules, _since_ns: int) -> tuple[Finding, ...]:
        connection = sqlite3.connect(live._recording)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM meta").fetchone()
        reading.set()
        go_on.wait(30)
        connection.close()
        return (found,)

    monkeypatch.setattr(LiveRules, "_judge", judge)
    clock, path, before = FakeClock(), tmp_path / "host.db", threading.enumerate()
    settings = Settings(rules=RuleSettings(period_seconds=1))
    job = WatchedJob(
        job="test", host="a", recording=path, rings=tmp_path / "rings", settings=settings, clock=clock, environ={}
    )
    clock.advance(2 * SECOND)
    job.poll()
    assert reading.wait(30)
    threading.Timer(0.1, go_on.set).start()
    job.close("the time is over")
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["host.db"]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT class FROM findings").fetchall() == [("disk-full",)]
    connection.close()


def test_rules_that_are_off_are_not_hurried(recording: Path) -> None:
    """Nothing is waited for that does not come."""
    live = LiveRules(recording, RuleSettings(live=False), FakeClock())
    live.hurry()
    live.poll()
    assert (live._thread, live.hurried) == (None, False)


def test_a_bell_wakes_who_waits() -> None:
    """From another thread, as often as it is rung, until it is closed; then ringing it does nothing."""
    bell = Bell()
    waiting = select.epoll()
    waiting.register(bell.descriptor, select.EPOLLIN)
    assert waiting.poll(0) == []
    for _ in range(2):
        threading.Thread(target=bell.ring).start()
        assert waiting.poll(30) == [(bell.descriptor, select.EPOLLIN)]
        bell.heard()
        bell.heard()
        assert waiting.poll(0) == []
    waiting.close()
    bell.close()
    bell.ring()
    bell.close()
