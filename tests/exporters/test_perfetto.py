"""The Chrome trace: valid JSON whose slices nest."""

from __future__ import annotations

import gzip
import json
from array import array
from collections import defaultdict
from pathlib import Path

import pytest
import sample_window

from rankscope.errors import ExportError
from rankscope.exporters.perfetto import DEVICE_THREAD, FINDINGS_PROCESS, HOST_THREAD, NAMED_THREAD, write_trace
from rankscope.window import Columns, Series, SeriesKey


def trace(tmp_path: Path, name: str) -> list[dict]:
    """The events of an example's trace, read back from the file."""
    window, verdict = sample_window.EXAMPLES[name]()
    window.ranks[0].phases["loss"] = _phases(window, 0.5, 0.9)
    window.ranks[0].phases["loss inner"] = _phases(window, 0.6, 0.7)
    path = tmp_path / "trace.json"
    write_trace(window, path, verdict.findings)
    return json.loads(path.read_text())["traceEvents"]


def _phases(window: sample_window.Window, first: float, last: float) -> Columns:
    steps = window.ranks[0].steps.columns
    spans = list(zip(steps["start_ns"], steps["end_ns"], strict=True))
    return Columns(
        {
            "step": steps["step"],
            "start_ns": array("d", [begin + first * (end - begin) for begin, end in spans]),
            "end_ns": array("d", [begin + last * (end - begin) for begin, end in spans]),
        }
    )


@pytest.mark.parametrize("name", sample_window.EXAMPLES)
def test_slices_of_a_thread_nest(tmp_path: Path, name: str) -> None:
    """No slice ends within a later one: viewers drop or misplace slices that overlap."""
    threads = defaultdict(list)
    for event in trace(tmp_path, name):
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], -event["dur"]))
    assert {tid for _, tid in threads} >= {HOST_THREAD, DEVICE_THREAD, NAMED_THREAD}
    for slices in threads.values():
        open_ends: list[float] = []
        for begin, negative in sorted(slices):
            end = begin - negative
            while open_ends and open_ends[-1] <= begin + 0.0005:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + 0.0005
            open_ends.append(end)


def test_a_process_a_rank_with_its_steps_phases_and_counters(tmp_path: Path) -> None:
    """Rank 2's process has every step on host and device, phases inside, and its GPU's counters."""
    mine = [event for event in trace(tmp_path, "thermal") if event["pid"] == 3]
    names = [event["args"]["name"] for event in mine if event["name"] == "process_name"]
    assert names == ["rank 2 (node-a, GPU 2 GPU-3f2ab3e2...)"]
    for thread in (HOST_THREAD, DEVICE_THREAD):
        steps = [
            event
            for event in mine
            if event["ph"] == "X" and event["tid"] == thread and event["name"].startswith("step ")
        ]
        assert [event["name"] for event in steps] == [f"step {step}" for step in range(300)]
    own = [event["dur"] for event in mine if event["name"] == "backward, own" and event["tid"] == DEVICE_THREAD]
    assert own[0] == pytest.approx(58_000, rel=0.05)
    assert own[-1] == pytest.approx(72_500, rel=0.05)
    clocks = [event for event in mine if event["ph"] == "C" and event["name"] == "SM clock (MHz)"]
    assert clocks[0]["args"]["value"] > 1900
    assert clocks[-1]["args"]["value"] < 1500


def test_findings_and_events_are_marked(tmp_path: Path) -> None:
    """A finding is a stretch of time of its own and a mark on the rank; an Xid is a mark on the GPU's rank."""
    events = trace(tmp_path, "off-bus")
    stretch = [event for event in events if event["pid"] == FINDINGS_PROCESS and event["ph"] == "X"]
    assert [event["name"] for event in stretch] == ["GPU off bus"]
    assert stretch[0]["dur"] == pytest.approx(6e6, rel=0.01)
    marks = {event["name"] for event in events if event["ph"] == "i" and event["pid"] == 4}
    assert {"xid", "gpu-lost", "rank-exited", "GPU off bus"} <= marks


def test_a_time_counter_is_shown_as_a_share(tmp_path: Path) -> None:
    """Half a second held down in a second is 0.5; a counter that was reset gives no value there."""
    window, _ = sample_window.thermal()
    key = SeriesKey("node-a", "gpu.throttle_hw_thermal_ns", sample_window.gpu_uuid(0))
    times = [window.begin_ns + second * sample_window.SECOND for second in range(4)]
    window.series[key] = Series(array("q", times), array("d", [7e9, 7.5e9, 0.0, 1e9]))
    path = tmp_path / "trace.json"
    write_trace(window, path)
    shares = [event for event in json.loads(path.read_text())["traceEvents"] if "hardware thermal" in event["name"]]
    assert [(event["ts"], event["args"]["value"]) for event in shares] == [(0.0, 0.5), (2e6, 1.0)]


def test_a_compressed_trace_is_the_same(tmp_path: Path) -> None:
    """A name that ends in .gz gives the same trace, packed."""
    window, _ = sample_window.hang()
    write_trace(window, tmp_path / "a.json")
    write_trace(window, tmp_path / "a.json.gz")
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()) == (tmp_path / "a.json").read_bytes()


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    """A missing directory is told with its path."""
    window, _ = sample_window.hang()
    with pytest.raises(ExportError, match="No such file"):
        write_trace(window, tmp_path / "missing" / "trace.json")
