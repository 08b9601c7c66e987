"""Two series of a recording as evenly spaced columns, for the question whether they are a feedback loop."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rankscope.agent.load import load_window
from rankscope.errors import ConfigurationError, RecordingError
from rankscope.metrics import metric_named
from rankscope.window import Window

Floats = npt.NDArray[np.float64]

#: How a column of step times is named: the mean over all ranks of the steps that ended in a sample, ms.
STEP = "step_ms"
#: Of a GPU or a link the first letters are enough where they name one.
_SEPARATOR = "@"
_LARGEST_TABLE = 10_000_000


def recorded_columns(
    recording: Path, names: Sequence[str], cuts: Path, every_s: float
) -> tuple[dict[str, Floats], npt.NDArray[np.bool_]]:
    """(columns by name, whether the return path was cut in each sample) of a recording or a directory of them.

    A name is METRIC or METRIC@DEVICE (METRIC@HOST of a host's own series, where there are several), or `step_ms`.
    Gauges are means over a sample, counters their increase, and what was not read in a sample goes on as it was.
    `cuts` is a CSV with columns begin and end, in seconds since 1970. Raises RecordingError and ConfigurationError.
    """
    window = load_window([recording], max_steps=10**9)
    points = {name: _step_points(window) if name == STEP else _points(window, name, recording) for name in names}
    begin_ns = max(times[0] for times, _ in points.values())
    end_ns = min(times[-1] for times, _ in points.values())
    every_ns = round(every_s * 1e9)
    count = int((end_ns - begin_ns) // every_ns)
    if not 0 < count <= _LARGEST_TABLE:
        raise ConfigurationError(
            f"{max(0.0, (end_ns - begin_ns) / 1e9):.0f} s in which all series were read make {max(0, count)} samples",
            where=str(recording),
            todo="choose another --every",
        )
    edges = begin_ns + every_ns * np.arange(count + 1, dtype=np.int64)
    columns = {}
    for name, (times, values) in points.items():
        cumulative = name != STEP and metric_named(name.partition(_SEPARATOR)[0]).counter
        columns[name] = _increases(times, values, edges) if cumulative else _means(times, values, edges)
    anchor = next(iter(window.anchors.values()))
    cut = np.zeros(count, dtype=bool)
    for begin_s, end_s in read_cuts(cuts):
        # A sample counts as cut where most of it is.
        middle = edges[:-1] + every_ns // 2
        wall_ns = np.array([anchor.to_wall_ns(int(at)) for at in middle])
        cut |= (wall_ns >= begin_s * 1e9) & (wall_ns < end_s * 1e9)
    return columns, cut


def read_cuts(path: Path) -> list[tuple[float, float]]:
    """Windows of a CSV with columns begin and end, in seconds since 1970. Raises ConfigurationError."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"cannot be read ({error})", where=str(path)) from error
    windows = []
    for number, row in enumerate(rows, 2):
        try:
            begin_s, end_s = float(row["begin"]), float(row["end"])
        except (KeyError, TypeError, ValueError):
            raise ConfigurationError(
                f"line {number} is no window", where=str(path), todo="give columns begin and end, in seconds since 1970"
            ) from None
        if not -1e12 < begin_s < end_s < 1e12:
            raise ConfigurationError(f"line {number} ends before it begins", where=str(path))
        windows.append((begin_s, end_s))
    if not windows:
        raise ConfigurationError("holds no windows under a header", where=str(path), todo="columns begin and end")
    return windows


def _points(window: Window, name: str, recording: Path) -> tuple[npt.NDArray[np.int64], Floats]:
    metric, _, device = name.partition(_SEPARATOR)
    found = [
        key
        for key in window.series
        if key.metric == metric and (not device or (key.device or key.host).startswith(device))
    ]
    exact = [key for key in found if (key.device or key.host) == device]
    if len(found) > 1 and len(exact) != 1:
        there = ", ".join(sorted(f"{metric}{_SEPARATOR}{key.device or key.host}" for key in found)[:4])
        raise ConfigurationError(f'"{name}" is {len(found)} series', where=str(recording), todo=f"name one: {there}")
    if not found:
        raise RecordingError(f'holds no series "{name}"', where=str(recording), todo=_near(window, metric))
    series = window.series[(exact or found)[0]]
    return np.array(series.times_ns, dtype=np.int64), np.array(series.values, dtype=np.float64)


def _near(window: Window, metric: str) -> str:
    import difflib

    metrics = sorted({key.metric for key in window.series})
    near = difflib.get_close_matches(metric, metrics, 3, 0.4) or metrics[:3]
    return f"there are {len(metrics)} metrics, among them {', '.join(near)}" if metrics else "it holds no readings"


def _step_points(window: Window) -> tuple[npt.NDArray[np.int64], Floats]:
    ends = [np.asarray(of.steps.columns["end_ns"], dtype=np.float64) for of in window.ranks.values()]
    begins = [np.asarray(of.steps.columns["start_ns"], dtype=np.float64) for of in window.ranks.values()]
    if not ends or not sum(map(len, ends)):
        raise RecordingError(f'holds no steps for "{STEP}"')
    end, begin = np.concatenate(ends), np.concatenate(begins)
    order = np.argsort(end, kind="stable")
    return end[order].astype(np.int64), ((end - begin) / 1e6)[order]


def _means(times: npt.NDArray[np.int64], values: Floats, edges: npt.NDArray[np.int64]) -> Floats:
    """The mean of what was read in each sample; what was read last before, where nothing was."""
    places = np.searchsorted(edges, times, side="right") - 1
    inside = (places >= 0) & (places < len(edges) - 1)
    sums = np.bincount(places[inside], values[inside], len(edges) - 1)
    counts = np.bincount(places[inside], minlength=len(edges) - 1)
    before = values[np.maximum(0, np.searchsorted(times, edges[:-1], side="right") - 1)]
    return np.where(counts > 0, sums / np.maximum(counts, 1), before)


def _increases(times: npt.NDArray[np.int64], values: Floats, edges: npt.NDArray[np.int64]) -> Floats:
    """How much a counter grew in each sample, evenly between two reads; one that fell back began anew at zero."""
    steps = np.diff(values)
    grown = np.concatenate(([0.0], np.cumsum(np.where(steps < 0, values[1:], steps))))
    return np.diff(np.interp(edges, times, grown))
