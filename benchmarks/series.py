"""How many series a node of 8 GPUs is to a store, by level, how much comes of them, and what a restart adds.

    python benchmarks/series.py --write docs/scale.md

The shipped agent - loop, probes, NVML helper, recording, encoder, outbox - watches 8 ranks, each a process on its GPU,
and a simulated node for some simulated minutes, with every export setting at its default; the ranks are restarted
twice. Every point that waits in the outbox is looked at. Fleets are the node's figures multiplied.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
from collections import Counter
from pathlib import Path

from document import Table, machine

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from agent_cost import GPUS, SECOND, Node  # noqa: E402
from collector_outage import outage  # noqa: E402
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest  # noqa: E402

from rankscope.exporters.otlp_exporter import connect  # noqa: E402
from rankscope.testing import FakeClock  # noqa: E402

FLEETS = {"2,048 nodes, 16,384 ranks": 2048, "12,500 nodes, 100,000 GPUs": 12_500}
#: Twelve a day for four weeks.
RESTARTS = 12 * 28
_WAITING = "SELECT payload FROM outbox_batch WHERE signal = 'metrics' ORDER BY id"


class World:
    """A node whose ranks compute, and are restarted twice: what comes with the first, once, is no churn."""

    def __init__(self, seconds: float) -> None:
        self._restarts_s = [seconds / 3, 2 * seconds / 3]
        self._began_ns: int | None = None
        #: Wall clock of each restart, ns.
        self.restarted_ns: list[int] = []

    def passed(self, node: Node, clock: FakeClock) -> None:
        """Time went on."""
        now = clock.monotonic_ns()
        if self._began_ns is None:
            self._began_ns = now
            self._show(node)
        if self._restarts_s and now >= self._began_ns + self._restarts_s[0] * SECOND:
            del self._restarts_s[0]
            node.ranks.restart()
            self._show(node)
            self.restarted_ns.append(clock.wall_ns())
        node.ranks.follow()

    @staticmethod
    def _show(node: Node) -> None:
        for gpu, pid in zip(node.state.gpus, node.ranks.pids, strict=False):
            gpu.set_process(pid, 40 << 30)


def points_of(path: Path) -> list[tuple[str, tuple[tuple[str, str], ...], int]]:
    """(name, attributes, time in ns) of every point of metrics that waits in a recording's outbox."""
    connection = connect(path)
    bodies = [row[0] for row in connection.execute(_WAITING)]
    connection.close()
    found = []
    for body in map(gzip.decompress, bodies):
        for of_resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in of_resource.scope_metrics[0].metrics:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    labels = tuple((pair.key, str(pair.value)) for pair in point.attributes)
                    found.append((metric.name, labels, point.time_unix_nano))
    return found


def level_of(name: str, labels: list[str]) -> str:
    """The coarsest `export.level` that has a series of this name and these labels."""
    if "rankscope.link" in labels or ("hw.id" in labels and "process.pid" in labels and "rankscope.rank" not in labels):
        return "link"
    if "rankscope.rank" in labels and not name.startswith("rankscope.finding"):
        return "rank"
    return "gpu" if "hw.id" in labels and name != "rankscope.events" else "node"


def levels(points: list[tuple[str, tuple[tuple[str, str], ...], int]], a_second: float, bytes_a_second: float) -> str:
    """The table of a node and of fleets, of what was exported before any restart."""
    series = {(name, labels): level_of(name, [key for key, _ in labels]) for name, labels, _ in points}
    counted = Counter(series.values())
    rows: list[tuple[str, float]] = []
    total = 0
    for level in ("node", "gpu", "rank", "link"):
        total += counted[level]
        default = " (default)" if level == "link" else ""
        rows.append((f'series, `export.level = "{level}"`{default}', total))
    rows += [
        ('samples a second, `"link"`', a_second),
        ("compressed bytes a second (a batch as it waits)", bytes_a_second),
    ]
    lines = [f"| | a node of {GPUS} GPUs | {' | '.join(FLEETS)} |", "|---|---|" + "---|" * len(FLEETS)]
    lines.append("| | *measured* |" + " *on paper* |" * len(FLEETS))
    for name, value in rows:
        fleets = " | ".join(_rounded(value * nodes) for nodes in FLEETS.values())
        lines.append(f"| {name} | {value:,.0f} | {fleets} |")
    return "\n".join(lines)


def churn(points: list[tuple[str, tuple[tuple[str, str], ...], int]], restarted_ns: int) -> str:
    """The table of series that were not there before the ranks were restarted for the last time."""
    before = {(name, labels) for name, labels, time_ns in points if time_ns < restarted_ns}
    new = {(name, labels) for name, labels, _ in points} - before
    names = Counter(name for name, _ in new)
    lines = [f"| new with a second restart of the {GPUS} ranks | series |", "|---|---|"]
    lines += [f"| `{name}` | {count} |" for name, count in sorted(names.items(), key=lambda item: (-item[1], item[0]))]
    # Kinds of events and findings come to an end; ids of processes do not.
    endless = sum(any(key == "process.pid" for key, _ in labels) for _, labels in new)
    lines.append(f"| all, beside {len(before):,} before | {len(new)} |")
    lines.append(f"| of these by the id of a process, and so new with every restart | {endless} |")
    lines.append(f"| twelve restarts a day for four weeks, on paper | {endless * RESTARTS:,} |")
    return "\n".join(lines)


def _rounded(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2g} million"
    return f"{float(f'{value:.2g}'):,.0f}"


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1800, help="of simulated time; the ranks are restarted twice")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    documents = [Table(arguments.write, name) for name in ("levels", "churn")] if arguments.write else []
    world = World(arguments.seconds)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path, balance = outage(Path(directory), arguments.seconds, world.passed)
        assert balance.holds
        points = points_of(path)
    first, last = world.restarted_ns
    node = f"{machine()}; {GPUS} GPUs of 18 NVLinks, {GPUS} ranks, {arguments.seconds / 60:g} simulated minutes:"
    waiting = balance.waiting
    before = [point for point in points if point[2] < first]
    tables = [
        levels(before, waiting.points / arguments.seconds, waiting.bytes / arguments.seconds),
        churn(points, last),
    ]
    for table in tables:
        print(f"{node}\n\n{table}\n")
    for document, table in zip(documents, tables, strict=False):
        document.write(f"{node}\n\n{table}")


if __name__ == "__main__":
    main()
