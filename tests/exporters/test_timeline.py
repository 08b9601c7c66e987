"""The timeline's data: bounded, and honest about what was left out or not seen."""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import replace

import pytest
import sample_window

from rankscope.clock import ClockAnchor
from rankscope.exporters.html import html_page
from rankscope.exporters.lane import PHASES, phase_columns, reason_runs, series_points, step_bars
from rankscope.exporters.rank_summary import summarise_ranks
from rankscope.exporters.timeline import LANES, STEP_BUCKETS, timeline
from rankscope.window import Columns, Series

NAMES = list(PHASES)


def data(example: tuple) -> dict:
    """The data of an example."""
    window, verdict = example
    return timeline(verdict, window, summarise_ranks(verdict, window))


def test_a_page_of_a_large_job_stays_below_three_megabytes() -> None:
    """64 ranks with as many bars and points as a page may hold."""
    window, verdict = sample_window.large(LANES, STEP_BUCKETS // LANES)
    found = data((window, verdict))
    assert sum(len(lane["steps"]["t"]) for lane in found["lanes"]) == STEP_BUCKETS // LANES * LANES
    assert len(html_page(verdict, window).encode()) < 3_000_000


def test_more_steps_than_bars_are_averaged_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the budget a bar stands for several steps, none is left out, and the page says so."""
    monkeypatch.setattr("rankscope.exporters.timeline.STEP_BUCKETS", 400)
    window, verdict = sample_window.thermal()
    lanes = data((window, verdict))["lanes"]
    assert [(len(lane["steps"]["t"]), sum(lane["steps"]["n"])) for lane in lanes] == [(100, 300)] * 4
    assert "a bar is the mean of up to 3 steps" in html_page(verdict, window)


def test_more_ranks_than_lanes_keeps_the_accused() -> None:
    """Of 80 ranks 64 are drawn, the accused among them, and the number left out is told."""
    found = data(sample_window.large(80, 12))
    assert found["left_out"] == 80 - LANES
    assert [lane["rank"] for lane in found["lanes"] if lane["accused"]] == [17]


def test_bars_are_means_with_their_extremes() -> None:
    """A bar over three steps holds their mean phases, their shortest and longest, and their number."""
    columns = {"step": [4, 5, 6, 7], "start_ns": [0, 1e6, 2e6, 6e6], "end_ns": [1e6, 2e6, 6e6, 7e6]}
    steps = Columns({name: array("d", values) for name, values in columns.items()})
    phases = {name: array("d", [math.nan] * 4) for name in NAMES}
    phases["forward"] = array("d", [6e5, 9e5, math.nan, 5e5])
    bars = step_bars(steps, phases, 3, lambda time_ns: int(time_ns // 1_000))
    assert bars["t"] == [0, 6_000]
    assert (bars["n"], bars["lo"], bars["hi"], bars["s"]) == ([3, 1], [1_000, 1_000], [4_000, 1_000], [4, 7])
    assert bars["p"][NAMES.index("forward")] == [750, 500]
    assert bars["p"][NAMES.index("optimizer")] == [None, None]


def test_phases_are_the_devices_where_it_has_a_clock() -> None:
    """Own backward and wait come from the device; a step without a device record is not seen, not zero."""
    window, _ = sample_window.thermal()
    seen = window.ranks[2]
    seen.device = Columns({name: column[:-1] for name, column in seen.device.columns.items()})
    phases = phase_columns(seen)
    assert phases["forward"][0] == pytest.approx(30e6, rel=0.05)
    assert math.isnan(phases["forward"][-1])
    seen.device = Columns({})
    host = phase_columns(seen)
    assert host["forward"][0] == 8e6
    assert host["peer_wait"][0] == seen.steps.columns["backward_ns"][0] - 11e6


def test_a_checkpoint_is_not_counted_twice() -> None:
    """The device books the time of a checkpoint as its own "other": only what exceeds it stays there."""
    window, _ = sample_window.healthy()
    phases = phase_columns(window.ranks[0])
    assert phases["checkpoint"][59] == 420e6
    assert phases["other"][59] == 0


def test_points_keep_extremes_and_silence_shows() -> None:
    """Thinned points keep a spike's height, and a silence is longer than the gap that still connects."""
    times = [second * 1_000_000_000 for second in [*range(100), *range(300, 400)]]
    series = Series(array("q", times), array("d", [50.0 if index == 41 else 1.0 for index in range(200)]))
    points = series_points(series, 20, lambda time_ns: int(time_ns // 1_000))
    assert len(points["v"]) == 20
    assert max(points["hi"]) == 50
    assert min(points["lo"]) == 1
    assert max(points["t"]) > points["gap"]


def test_runs_of_reasons_join_split_and_end_at_a_silence() -> None:
    """Equal masks join, others split, zero is left out, and no mask is claimed over a silence."""
    seconds, masks = [0, 1, 2, 3, 4, 30], [0, 64, 64, 4, 0, 64]
    series = Series(array("q", [second * 1_000_000_000 for second in seconds]), array("d", masks))
    runs = reason_runs(series, 100, lambda time_ns: int(time_ns // 1_000_000_000) * 1_000_000)
    assert runs == [[1_000_000, 3_000_000, 64], [3_000_000, 4_000_000, 4], [30_000_000, 31_000_000, 64]]
    joined = reason_runs(series, 1, lambda time_ns: int(time_ns // 1_000_000_000) * 1_000_000)
    assert joined == [[1_000_000, 31_000_000, 68]]


def test_faults_lie_where_the_finding_says() -> None:
    """The band of the fault begins with the finding and names its rank; a finding to watch only has none."""
    found = data(sample_window.thermal())
    heat, stall = found["faults"]
    assert heat["ranks"] == [2]
    assert stall["ranks"] == []
    starts = sample_window.thermal()[0].ranks[2].steps.columns["start_ns"]
    assert heat["t0"] == (int(starts[100]) - sample_window.BEGIN_NS) // 1_000
    assert heat["t1"] == found["span_us"]


def test_hosts_with_clocks_of_their_own_share_one_axis() -> None:
    """Two hosts that booted a day apart are drawn side by side, joined by their wall clocks."""
    window, verdict = sample_window.large(18, 30)
    day = 86_400 * sample_window.SECOND
    for rank in window.ranks.values():
        if rank.identity.host == "node-b":
            for name in ("start_ns", "end_ns"):
                rank.steps.columns[name] = array("d", [time + day for time in rank.steps.columns[name]])
    window.anchors = {
        **window.anchors,
        "node-b": ClockAnchor(sample_window.BEGIN_NS + day, sample_window.WALL_NS),
    }
    found = data((window, replace(verdict, findings=())))
    firsts = {lane["host"]: lane["steps"]["t"][0] for lane in found["lanes"]}
    assert firsts == {"node-a": 0, "node-b": 0}
    assert found["span_us"] < 10_000_000


def test_the_start_of_a_job_is_not_drawn_and_said() -> None:
    """Half a minute before the first step is left out of the drawing, and the page says how much."""
    window, verdict = sample_window.thermal()
    window.begin_ns -= 30 * sample_window.SECOND
    found = data((window, verdict))
    assert found["from_us"] == pytest.approx(30e6, rel=0.05)
    assert found["to_us"] == found["span_us"]
    assert "Not drawn: 29." in html_page(verdict, window)


def test_the_silence_of_a_hang_is_drawn() -> None:
    """In a hang the time after the last step is the finding: it is on the timeline to its end."""
    found = data(sample_window.hang())
    assert found["to_us"] == found["span_us"]
    ends = [sum(lane["steps"]["t"]) + lane["steps"]["d"][-1] for lane in found["lanes"]]
    assert found["to_us"] - max(ends) > 39e6


def test_the_data_is_json_even_without_any_rank() -> None:
    """A job that never attached has a page that says so."""
    window, verdict = sample_window.healthy()
    window.ranks = {}
    json.dumps(data((window, verdict)), allow_nan=False)
    assert "No rank was seen" in html_page(verdict, window)
