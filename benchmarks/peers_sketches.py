"""Quantile sketches beside ddsketch and Apache DataSketches (KLL, REQ): error, bytes, and time a value.

    .venv/bin/python benchmarks/peers_sketches.py --write docs/benchmarks.md

The same values go into every sketch, in eight parts that are merged, as ranks' sketches are; p50, p95, p99 and p99.9
are compared with the exact quantiles of all values, as relative errors. Times are medians of interleaved runs in one
process; bytes are those of the serialised sketch: OTLP's data point for ours. The peers are installed from PyPI
without their dependencies. What arrives one by one and what arrives many at once are told apart: exporters hand over
the steps of a period together.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from document import Table, machine
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint
from peer_environment import peer_python

from rankscope.exporters.histogram import ExponentialHistogram

PACKAGES = ("ddsketch==3.0.1", "datasketches==5.2.0", "six==1.17.0")
QUANTILES = (0.5, 0.95, 0.99, 0.999)
PARTS = 8


def distributions(count: int) -> dict[str, list[float]]:
    """Step times in ms as jobs have them, and two that are hard."""
    draw = random.Random(7)
    return {
        "steady steps": [draw.gauss(180, 2) for _ in range(count)],
        "one in fifty a checkpoint": [draw.gauss(180, 4) * (15 if draw.random() < 0.02 else 1) for _ in range(count)],
        "log-normal": [draw.lognormvariate(3, 1) for _ in range(count)],
        "Pareto, a = 1.1": [draw.paretovariate(1.1) for _ in range(count)],
    }


@dataclass
class Tool:
    """A sketch: how it is made, filled, merged, asked and written."""

    name: str
    make: Callable[[], Any]
    fill: Callable[[Any, list[float]], None]
    merge: Callable[[Any, Any], None]
    quantile: Callable[[Any, float], float]
    size: Callable[[Any], int]
    nanoseconds: list[float] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


def one_by_one(add: str) -> Callable[[Any, list[float]], None]:
    """Fill by a method that takes one value."""

    def fill(sketch: Any, values: list[float]) -> None:
        call = getattr(sketch, add)
        for value in values:
            call(value)

    return fill


def _point_bytes(histogram: ExponentialHistogram) -> int:
    first, counts = histogram.buckets()
    point = ExponentialHistogramDataPoint(count=histogram.count, sum=histogram.sum, scale=histogram.scale)
    point.positive.offset = first
    point.positive.bucket_counts.extend(counts)
    return len(point.SerializeToString())


def tools() -> list[Tool]:
    """Everyone."""
    ddsketch = importlib.import_module("ddsketch")
    encoding = importlib.import_module("ddsketch.pb.proto")
    apache = importlib.import_module("datasketches")
    numpy = importlib.import_module("numpy")

    def ours(name: str, fill: Callable[[Any, list[float]], None]) -> Tool:
        return Tool(
            name, ExponentialHistogram, fill, ExponentialHistogram.merge, ExponentialHistogram.quantile, _point_bytes
        )

    def many(sketch: Any, values: list[float]) -> None:
        sketch.update(numpy.array(values))

    def apache_tool(name: str, make: Callable[[], Any], fill: Callable[[Any, list[float]], None]) -> Tool:
        return Tool(
            name,
            make,
            fill,
            lambda into, other: into.merge(other),
            lambda sketch, q: float(sketch.get_quantile(q)),
            lambda sketch: len(sketch.serialize()),
        )

    return [
        ours("Rankscope, many at once", ExponentialHistogram.add_all),
        ours("Rankscope, one by one", one_by_one("add")),
        Tool(
            "ddsketch 1 %, one by one",
            lambda: ddsketch.LogCollapsingLowestDenseDDSketch(0.01, 2048),
            one_by_one("add"),
            lambda into, other: into.merge(other),
            lambda sketch, q: float(sketch.get_quantile_value(q)),
            lambda sketch: len(encoding.DDSketchProto.to_proto(sketch).SerializeToString()),
        ),
        apache_tool("DataSketches KLL 200, one by one", lambda: apache.kll_doubles_sketch(200), one_by_one("update")),
        apache_tool("DataSketches KLL 200, many at once", lambda: apache.kll_doubles_sketch(200), many),
        apache_tool("DataSketches REQ 12, many at once", lambda: apache.req_floats_sketch(12), many),
    ]


def measure(everyone: list[Tool], count: int, runs: int) -> None:
    """Errors and bytes once, times `runs` times in turn."""
    for name, values in distributions(count).items():
        exact = sorted(values)
        parts = [values[part::PARTS] for part in range(PARTS)]
        for tool in everyone:
            whole = tool.make()
            for part in parts:
                sketch = tool.make()
                tool.fill(sketch, part)
                tool.merge(whole, sketch)
            worst = 0.0
            for q in QUANTILES:
                true = exact[int(q * (count - 1))]
                worst = max(worst, abs(tool.quantile(whole, q) - true) / true)
            tool.errors[name], tool.bytes[name] = worst, tool.size(whole)
    values = distributions(count)["log-normal"]
    for _ in range(runs):
        for tool in random.sample(everyone, len(everyone)):
            sketch = tool.make()
            began = time.perf_counter_ns()
            tool.fill(sketch, values)
            tool.nanoseconds.append((time.perf_counter_ns() - began) / count)


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, "sketches") if arguments.write else None
    python = peer_python("sketches", *PACKAGES, dependencies=False)
    sys.path.append(str(next(python.parents[1].glob("lib/python3*/site-packages"))))
    everyone = tools()
    measure(everyone, arguments.count, arguments.runs)
    names = list(distributions(1))
    lines = [
        f"{machine()}; {arguments.count:,} values in {PARTS} merged parts; the largest error of four quantiles.",
        "",
        "| sketch | ns a value | bytes | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for tool in everyone:
        errors = " | ".join(f"{tool.errors[name]:.2%}" for name in names)
        lines.append(
            f"| {tool.name} | {statistics.median(tool.nanoseconds):.0f} | {max(tool.bytes.values())} | {errors} |"
        )
    text = "\n".join(lines)
    print(text)
    if document is not None:
        document.write(text)


if __name__ == "__main__":
    main()
