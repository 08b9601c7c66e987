"""What an hour without a receiver leaves in the outbox of a node of 8 GPUs, and how it comes out again.

    python benchmarks/collector_outage.py --write docs/otlp.md

The shipped agent - loop, probes, NVML helper, recording, encoder, outbox and its sender - watches 8 ranks and a
simulated node for an hour of simulated time, in which nobody listens at the endpoint. Then a receiver starts, and what
waits is sent in real time. Every batch received is compared with the one before it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from document import Table, machine

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import components  # noqa: E402
import msgspec  # noqa: E402
from agent_cost import GPUS, Node  # noqa: E402
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest  # noqa: E402
from scripted_receiver import http_receiver  # noqa: E402

from rankscope.agent.config import BudgetSettings, ExportSettings, Settings  # noqa: E402
from rankscope.agent.job import WatchedJob  # noqa: E402
from rankscope.agent.scheduler import Tick  # noqa: E402
from rankscope.agent.sources import build_sources  # noqa: E402
from rankscope.exporters.otlp_exporter import Exporter, connect  # noqa: E402
from rankscope.exporters.otlp_metrics import GPU_FAMILIES  # noqa: E402
from rankscope.exporters.otlp_settings import otlp_targets  # noqa: E402
from rankscope.exporters.outbox import Balance, Outbox  # noqa: E402
from rankscope.identity import host_name  # noqa: E402
from rankscope.probes.nvml import NvmlProbe  # noqa: E402
from rankscope.simulator.state import STATE_VARIABLE  # noqa: E402
from rankscope.testing import FakeClock, SimulatedAgent  # noqa: E402


class OneClock(WatchedJob):
    """Puts what the NVML helper read, which has the host's real clock, onto the simulated one."""

    def add(self, tick: Tick, now_ns: int) -> None:
        readings = [
            each._replace(time_ns=now_ns) if each.metric.partition(".")[0] in GPU_FAMILIES else each
            for each in tick.readings
        ]
        super().add(replace(tick, readings=readings), now_ns)


def simulated_settings(node: Node) -> Settings:
    """Settings for an agent on simulated time over this node."""
    # A budget that is never short: a busy machine would have the governor lower the rates.
    settings = Settings(budget=BudgetSettings(cpu_ratio=1.0))
    replace_in = msgspec.structs.replace
    return replace_in(settings, roots=replace_in(settings.roots, nvml_library=str(node.library)))


def outage(
    directory: Path,
    seconds: float,
    passed: Callable[[Node, FakeClock], None] = lambda node, _clock: node.ranks.follow(),
) -> tuple[Path, Balance]:
    """The agent for so long with nobody to receive; its recording and the accounts. `passed` moves the world."""
    endpoint = f"http://127.0.0.1:{components.free_port()}"
    clock = FakeClock(time.monotonic_ns(), time.time_ns())
    node = Node(directory, clock)
    os.environ[STATE_VARIABLE] = str(node.state.path.absolute())
    settings = simulated_settings(node)
    sources = build_sources(settings, lambda: dict(enumerate(node.ranks.pids)))
    job = OneClock(
        job="bench",
        host=host_name(),
        recording=directory / "bench.db",
        rings=node.rings,
        settings=settings,
        clock=clock,
        environ={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
    )
    nvml = next(probe for probe in sources.probes if isinstance(probe, NvmlProbe))
    while not nvml.gpus:
        nvml.read("fast", clock.monotonic_ns())
        time.sleep(0.01)
    SimulatedAgent([job], settings, sources, clock).run(seconds, lambda: passed(node, clock))
    node.ranks.close()
    path = directory / "bench.db"
    connection = connect(path)
    balance = Outbox(connection).balance()
    connection.close()
    return path, balance


def series_of(bodies: list[bytes]) -> tuple[int, int]:
    """(most labels on one series, points that came before an earlier one of their series)."""
    last: dict[tuple[str, bytes], int] = {}
    labels = backward = 0
    for body in bodies:
        for of_resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in of_resource.scope_metrics[0].metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                for point in data.data_points:
                    names = [pair.key for pair in point.attributes]
                    key = metric.name, b"".join(pair.SerializeToString() for pair in point.attributes)
                    labels = max(labels, len(names) + len(of_resource.resource.attributes))
                    backward += point.time_unix_nano < last.get(key, 0)
                    last[key] = point.time_unix_nano
    return labels, backward


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, "outage") if arguments.write else None
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, http_receiver() as receiver:
        path, waiting = outage(Path(directory), arguments.seconds)
        assert waiting.holds
        assert waiting.acknowledged.batches == 0
        exporter = Exporter(path, otlp_targets({}, endpoint=receiver.url))
        began = time.monotonic()
        exporter.start()
        assert exporter.stop(600), "not everything was delivered"
        replay_seconds = time.monotonic() - began
        connection = connect(path)
        after = Outbox(connection).balance()
        rows = connection.execute("SELECT count(*) FROM readings").fetchone()[0]
        connection.close()
        assert after.holds
        assert after.produced == after.acknowledged + after.dropped
        bodies = [request.body for request in receiver.requests if request.path == "/v1/metrics"]
        labels, backward = series_of(bodies)
    hours = arguments.seconds / 3600
    a_second = waiting.waiting.bytes / arguments.seconds
    quota = ExportSettings().outbox_max_bytes
    figures = {
        "away, hours of simulated time": f"{hours:g}",
        "readings recorded meanwhile": rows,
        "points waiting": waiting.waiting.points,
        "batches waiting": waiting.waiting.batches,
        "points a second": f"{waiting.waiting.points / arguments.seconds:.0f}",
        "outbox, MB": f"{waiting.waiting.bytes / 1e6:.1f}",
        "bytes a point, compressed": f"{waiting.waiting.bytes / waiting.waiting.points:.0f}",
        "bytes a second": f"{a_second:.0f}",
        f"hours until {quota / 1e6:.0f} MB are full": f"{quota / a_second / 3600:.0f}",
        "sent again in, seconds": f"{replay_seconds:.1f}",
        "points out of order within their series": backward,
        "produced = delivered + waiting + dropped": f"{after.produced.points} = {after.acknowledged.points} + "
        f"{after.waiting.points} + {after.dropped.points}",
        "most labels of a series, with the resource's": labels,
    }
    node = f"{GPUS} GPUs of 18 NVLinks, {GPUS} ranks at 5 steps a second"
    lines = [f"{machine()}; {node}:", "", "| after the outage | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in figures.items()]
    text = "\n".join(lines)
    print(text)
    if document is not None:
        document.write(text)


if __name__ == "__main__":
    main()
