"""Hosts whose clocks are apart in a metric store: joined by the steps they told of, and never with another run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import components
import pytest
import stored_jobs

from rankscope.agent.diagnose import judge_store
from rankscope.agent.store import Store
from rankscope.clock import ClockAnchor
from rankscope.finding import Overhead, Verdict
from rankscope.rules import judge
from rankscope.window import Window

HOT = '[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = {gpu}\nfrom_step = 75\n'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A VictoriaMetrics for the tests of this file; each sends jobs of its own."""
    with components.victoria_metrics(tmp_path_factory.mktemp("store")) as address:
        yield address


def apart(window: Window, host: str, ahead_s: float) -> Window:
    """The window as agents export it, one host's wall clock being ahead."""
    anchor = window.anchors[host]
    set_wrong = ClockAnchor(anchor.monotonic_ns, anchor.wall_ns + round(ahead_s * 1e9))
    return replace(window, anchors={**window.anchors, host: set_wrong})


def only(window: Window, host: str, *, without: bool = False) -> Window:
    """What one host told of it, or all others."""
    return replace(
        window,
        ranks={rank: of for rank, of in window.ranks.items() if (of.identity.host == host) != without},
        anchors={name: anchor for name, anchor in window.anchors.items() if (name == host) != without},
    )


def first(verdict: Verdict) -> tuple[str, int | None, str | None]:
    """Class, rank and host of the first finding."""
    where = verdict.findings[0].where
    return verdict.findings[0].class_slug, where.rank, where.host


@pytest.mark.parametrize(
    ("ahead_s", "gpu"),
    [(3600.0, 3), (100.0, 13), pytest.param(-3600.0, 13, marks=pytest.mark.verify)],
    ids=["an hour ahead", "100 s ahead", "an hour behind"],
)
def test_a_host_with_another_time_is_joined_by_its_steps(store: str, tmp_path: Path, ahead_s: float, gpu: int) -> None:
    """Whichever host is hot, the one with the wrong clock or the other, the finding is that of the recordings, with all
    ranks; the verdict says how far off that clock was."""
    name = f"apart-{ahead_s:g}"
    window = stored_jobs.generated(tmp_path, name, HOT.format(gpu=gpu), ranks=16)
    one, other = window.anchors
    stored_jobs.send(only(window, one), store)
    stored_jobs.send(only(apart(window, other, ahead_s), other), store)
    now_s = window.anchors[one].to_wall_ns(window.end_ns) / 1e9
    told, fetched = judge_store(Store(store, {}), name, since_s=None, until_s=now_s, now_s=now_s)
    assert first(told) == first(judge(window, Overhead()))
    assert sorted(fetched.ranks) == list(range(16))
    (clock,) = fetched.clocks
    assert abs(clock.correction_ns / 1e9) == pytest.approx(abs(ahead_s), abs=20)
    assert clock.source == "steps"
    assert any(f"clock of {clock.host}" in line for line in told.not_seen)


def test_small_differences_and_other_runs_are_left_alone(store: str, tmp_path: Path) -> None:
    """Clocks that agree to within an export are one clock. Ranks that are silent now, and told of in a run of the same
    job an hour before, are not taken from there."""
    window = stored_jobs.generated(tmp_path, "again", ranks=16)
    one, other = window.anchors
    now_s = window.anchors[one].to_wall_ns(window.end_ns) / 1e9
    stored_jobs.send(only(window, one), store)
    earlier = apart(apart(window, one, -3000.0), other, -3000.0)
    stored_jobs.send(earlier, store)
    since_s = now_s - 900
    told, fetched = judge_store(Store(store, {}), "again", since_s=since_s, until_s=now_s, now_s=now_s)
    assert sorted(fetched.ranks) == list(range(8))
    assert not fetched.clocks
    assert any("8 of 16 ranks" in line for line in told.not_seen)
    near = stored_jobs.generated(tmp_path, "near", ranks=16)
    stored_jobs.send(apart(near, other, 8.0), store)
    _, fetched = judge_store(Store(store, {}), "near", since_s=None, until_s=now_s + 60, now_s=now_s + 60)
    assert sorted(fetched.ranks) == list(range(16))
    assert not fetched.clocks
