"""What agents cost on one simulated node of 8 H100s: Rankscope, nvitop-exporter, openlit, wandb's monitor and l9gpu.

    .venv/bin/python benchmarks/peers_agents.py --write docs/benchmarks.md

All run at the same time on the same node over the same NVML library, each once at one second and once at its own
default, so that what the machine does besides befalls all alike. CPU time and proportional memory are what the kernel
counts for every process of theirs; calls, and the longest time without an answer from a GPU, are counted by the library
itself; series are what arrives at an OTLP receiver, in a scrape, or in the file that is written. The library answers
at once: what a driver takes is not in these figures. Peers are installed from PyPI into environments of their own.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from agent_cost import Ranks
from document import Table, machine
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from peer_environment import peer_python

from rankscope.agent.cost import cpu_time_ns, process_pss_bytes
from rankscope.clock import SystemClock
from rankscope.probes.nvml_reader import readable_metrics
from rankscope.probes.registry import built_in
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.layout import MAX_GPUS
from rankscope.simulator.state import STATE_VARIABLE, NodeState

COLUMNS = (
    "agent",
    "interval",
    "CPU s a minute",
    "of Rankscope's",
    "PSS, MB",
    "NVML calls a minute",
    "series",
    "longest gap, s",
    "with one GPU hanging 10 s",
)
GPUS = 8
SECOND = 1_000_000_000
HUNG_GPU = 3
HANG_S = 10.0
#: Processes of a subject are found by this variable in their environment, whoever started them.
MARK = "RANKSCOPE_BENCH_SUBJECT"
NVML = "nvidia-ml-py==13.595.45"

OPENLIT = "import openlit, time; openlit.init(collect_gpu_stats=True, disable_batch=True); time.sleep(1e6)"
WANDB = """
import sys, time, wandb
settings = wandb.Settings(mode="offline", console="off", x_stats_sampling_interval=float(sys.argv[1]))
wandb.init(project="bench", settings=settings)
time.sleep(1e6)
"""
WANDB_SERIES = """
import struct, sys
from wandb.proto import wandb_internal_pb2
data, at, whole, names = open(sys.argv[1], "rb").read(), 7, b"", set()
while at + 7 <= len(data):
    # Blocks of 32 KiB, as in a log of LevelDB: checksum, length, and whether whole, the first, middle or last part.
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    _, length, kind = struct.unpack_from("<IHB", data, at)
    part, at = data[at + 7 : at + 7 + length], at + 7 + length
    whole = part if kind in (1, 2) else whole + part
    if kind in (1, 4):
        record = wandb_internal_pb2.Record.FromString(whole)
        names |= {item.key for item in record.stats.item}
print(len(names))
"""


#: Groups of metrics, and of the two of NVML the metrics, that hold what a peer collects; all else, Xids among it, is
#: then left out. What we lack of openlit and nvitop-exporter is the use of encoder and decoder and the fan, of wandb
#: the memory of its own process and two totals of ECC errors.
_HOST = ("cpu/cpu", "memory/memory", "disk/disk", "filesystem/filesystem", "network/network")
_GPU = (
    *("gpu.utilization_ratio", "gpu.temperature_celsius", "gpu.power_watts", "gpu.power_limit_watts"),
    *("gpu.memory_used_bytes", "gpu.memory_total_bytes", "gpu.memory_reserved_bytes"),
)
_CLOCKS = ("gpu.memory_utilization_ratio", "gpu.sm_clock_mhz", "gpu.memory_clock_mhz")
_TRAFFIC = ("gpu.pcie_tx_bytes", "gpu.pcie_rx_bytes", "gpu.nvlink_tx_bytes", "gpu.nvlink_rx_bytes")
EQUAL = {
    "openlit": ("nvml/fast", "nvml/slow", *_GPU),
    "wandb": (
        *("nvml/fast", "nvml/slow", "nvml/counters", "nvml/gpm", *_GPU, *_CLOCKS, "gpu.energy_joules"),
        *(f"gpu.{part}_active_ratio" for part in ("sm", "dram", "tensor", "tensor_hmma", "fp16", "fp32", "fp64")),
        *(f"gpu.{link}_{way}_bytes_per_second" for link in ("pcie", "nvlink") for way in ("tx", "rx")),
        "gpu.sm_occupancy_ratio",
        *(*_HOST, "network/stack"),
    ),
    "nvitop-exporter": (
        *("nvml/fast", "nvml/slow", "nvml/counters", "nvml/links", *_GPU, *_CLOCKS, *_TRAFFIC),
        *("nvlink.tx_bytes", "nvlink.rx_bytes", *_HOST),
    ),
}


@dataclass
class Subject:
    """One agent at one interval, and what was seen of it."""

    name: str
    interval: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    scrape: str | None = None
    scrape_s: float = 1.0
    process: subprocess.Popen[bytes] | None = None
    calls_file: Path = Path()
    series: set[Any] = field(default_factory=set)
    cpu_ratios: list[float] = field(default_factory=list)
    calls_a_minute: list[float] = field(default_factory=list)
    pss_bytes: int = 0
    gap_s: float = 0.0
    gap_hung_s: float = 0.0

    @property
    def mark(self) -> str:
        """What marks its processes."""
        return re.sub("[^a-z0-9/]+", "-", f"{self.name}/{self.interval}")

    @property
    def cpu_ratio(self) -> float:
        """Its share of one core: the median of the windows."""
        return statistics.median(self.cpu_ratios)

    def pids(self) -> list[int]:
        """All its living processes."""
        wanted = f"{MARK}={self.mark}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in path.read_bytes() + b"\0":
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def cpu_ns(self) -> dict[int, int]:
        """CPU time of each of its processes so far."""
        return {pid: cpu_time_ns(pid) for pid in self.pids()}

    def pss(self) -> int:
        """Proportional memory of all its processes now."""
        return sum(process_pss_bytes(Path(f"/proc/{pid}")) or 0 for pid in self.pids())

    def environment_mark(self) -> dict[str, str]:
        """What its processes are found by."""
        return {MARK: self.mark}

    def all_calls(self) -> int:
        """Calls so far, of all GPUs."""
        return sum(calls for calls, _, _ in struct.iter_unpack("<3Q", self.calls_file.read_bytes()))

    def calls(self) -> list[tuple[int, int, int]]:
        """Calls, time of the last answer and longest gap between two, ns, of each GPU."""
        return list(struct.iter_unpack("<3Q", self.calls_file.read_bytes()))[:GPUS]

    def forget_gaps(self) -> None:
        """Count gaps anew."""
        with self.calls_file.open("r+b") as file:
            for gpu in range(GPUS):
                file.seek(24 * gpu + 16)
                file.write(bytes(8))

    def longest_gap_s(self, gpus: Iterable[int]) -> float:
        """The longest time without an answer from one of `gpus` since gaps were forgotten, the running one included."""
        now = time.monotonic_ns()
        counted = self.calls()
        return max(max(gap, now - last) for gpu, (_, last, gap) in enumerate(counted) if gpu in gpus) / SECOND


class Sink(ThreadingHTTPServer):
    """An OTLP receiver that counts series: the first part of the path names the subject."""

    daemon_threads = True

    def __init__(self, subjects: dict[str, Subject]) -> None:
        self.subjects = subjects
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, mark: str) -> str:
        """Where a subject sends."""
        return f"http://127.0.0.1:{self.server_address[1]}/{mark}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Sink

    def do_POST(self) -> None:
        """Accept whatever comes, and count metrics."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        mark, _, path = self.path[1:].partition("/v1/")
        if path == "metrics" and mark in self.server.subjects:
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            self._count(self.server.subjects[mark], ExportMetricsServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _count(self, subject: Subject, request: ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            about = resource.resource.SerializeToString(deterministic=True)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = getattr(metric, metric.WhichOneof("data")).data_points
                    for point in points:
                        labels = tuple(sorted(a.SerializeToString(deterministic=True) for a in point.attributes))
                        subject.series.add((about, metric.name, labels))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def scraper(subject: Subject, stop: threading.Event) -> None:
    """Read an exporter's page as often as its interval says."""
    line = re.compile(r"^(\w+(?:\{.*\})?) ")
    while not stop.wait(subject.scrape_s):
        try:
            with urllib.request.urlopen(subject.scrape or "", timeout=30) as page:
                text = page.read().decode()
        except OSError:
            continue
        subject.series |= {found[1] for row in text.splitlines() if (found := line.match(row))}


def peers(directory: Path) -> list[Subject]:
    """The others, at one second and at their own default."""
    nvitop = peer_python("nvitop-exporter", "nvitop-exporter==1.7.2")
    openlit = peer_python("openlit", "openlit==1.45.0", NVML)
    wandb = peer_python("wandb", "wandb==0.31.0")
    l9gpu = peer_python("l9gpu", "l9gpu==0.2.3", NVML)
    everyone = []
    for number, interval in enumerate(("1 s", "default")):
        port = str(19400 + os.getpid() % 500 + number)
        command = [str(nvitop.with_name("nvitop-exporter")), "--port", port, "--interval", "1"]
        scrape = f"http://127.0.0.1:{port}/metrics"
        # Its own default is 1 s already; what scrapes it asks by default every 15 s.
        everyone.append(
            Subject("nvitop-exporter", interval, command, scrape=scrape, scrape_s=1.0 if number == 0 else 15.0)
        )
    for interval, milliseconds in (("1 s", "1000"), ("default", "60000")):
        environment = {"OTEL_METRIC_EXPORT_INTERVAL": milliseconds}
        everyone.append(Subject("openlit", interval, [str(openlit), "-c", OPENLIT], environment))
    for interval, seconds in (("1 s", "1"), ("default", "15")):
        everyone.append(Subject("wandb", interval, [str(wandb), "-c", WANDB, seconds]))
    once = ["nvml_monitor", "--sink", "otel", "--log-folder", str(directory), "--cluster", "bench"]
    for interval, options in (
        ("1 s", ["--collect-interval", "1", "--push-interval", "1", "--interval", "1"]),
        ("default", []),
    ):
        everyone.append(Subject("l9gpu", interval, [str(l9gpu.with_name("l9gpu")), *once, *options]))
    return everyone


def rankscope(name: str, interval: str, directory: Path, library: Path, rings: Path, settings: str) -> Subject:
    """The agent over a directory of rings, with more settings."""
    state = directory / f"state-{name}-{interval}".replace(" ", "-")
    config = state.with_suffix(".toml")
    config.write_text(
        f'[roots]\nnvml_library = "{library}"\n[rings]\ndirectory = "{rings}"\n'
        f'[recording]\nstate_directory = "{state}"\n{settings}'
    )
    command = [str(Path(sys.executable).with_name("rankscope")), "agent", "--config", str(config)]
    return Subject(name, interval, command)


def as_they_are(directory: Path, library: Path, rings: Path, _: Path) -> list[Subject]:
    """Everyone with all that each collects."""
    own = [
        rankscope("rankscope", interval, directory, library, rings, f"[export]\nperiod_seconds = {period}\n")
        for interval, period in (("1 s", 1.0), ("default", 15.0))
    ]
    return [*own, *peers(directory)]


def with_equal_metrics(directory: Path, library: Path, rings: Path, quiet: Path) -> list[Subject]:
    """The peers at one second, and beside each Rankscope with the groups that hold what it collects."""
    everyone = []
    for peer in peers(directory):
        if peer.interval == "1 s" and peer.name in EQUAL:
            own = [rankscope(f"rankscope as {peer.name}", "1 s", directory, library, quiet, _only(EQUAL[peer.name]))]
            if peer.name == "openlit":
                name = f"rankscope as {peer.name}, and 8 ranks' steps"
                own.append(rankscope(name, "1 s", directory, library, rings, _only(EQUAL[peer.name])))
            everyone += [peer, *own]
    return everyone


def _only(wanted: tuple[str, ...]) -> str:
    """Settings under which this alone is read, each group every second, every reading is sent, and nobody judges."""
    every = [f"{probe.name}/{group.name}" for probe in built_in() for group in probe.groups]
    every += sorted(readable_metrics())
    strangers = set(wanted) - set(every)
    assert not strangers, strangers
    periods = ", ".join(f'"{name}" = 1.0' for name in wanted if "/" in name)
    return (
        "[export]\nperiod_seconds = 1.0\ninterval_seconds = 0.0\n[rules]\nlive = false\n"
        f"[probes]\ndisabled = {[name for name in every if name not in wanted]}\n"
        f"period_seconds = {{ {periods} }}\n"
    )


def start(subject: Subject, directory: Path, sink: Sink, node: NodeState, library: Path) -> None:
    """Start a subject in a directory of its own."""
    home = directory / subject.mark.replace("/", "-")
    home.mkdir()
    subject.calls_file = home / "calls"
    subject.calls_file.write_bytes(bytes(24 * MAX_GPUS))
    endpoint = sink.url(subject.mark.replace("/", "-"))
    if subject.name == "l9gpu":
        subject.command += ["-o", f"otel_endpoint={endpoint}", "-o", "otel_timeout=10"]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "RANKSCOPE_"))},
        "HOME": str(home),
        "LD_LIBRARY_PATH": str(library.parent),
        STATE_VARIABLE: str(node.path.absolute()),
        "RANKSCOPE_SIM_NVML_CALLS": str(subject.calls_file),
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        **subject.environment_mark(),
        **subject.environment,
    }
    with (home / "log").open("wb") as log:
        subject.process = subprocess.Popen(
            subject.command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def watch(everyone: list[Subject], seconds: float, windows: int) -> None:
    """CPU time and calls in each of `windows` windows."""
    for _ in range(windows):
        before = [(subject.cpu_ns(), subject.all_calls()) for subject in everyone]
        began = time.monotonic_ns()
        time.sleep(seconds)
        for subject, (cpu, calls) in zip(everyone, before, strict=True):
            after = subject.cpu_ns()
            passed = time.monotonic_ns() - began
            subject.cpu_ratios.append(sum(after[pid] - cpu.get(pid, 0) for pid in after) / passed)
            subject.calls_a_minute.append((subject.all_calls() - calls) / passed * 60 * SECOND)


def hang(everyone: list[Subject], node: NodeState) -> None:
    """One GPU hangs: for how long does each get no answer from the others."""
    for subject in everyone:
        subject.gap_s = subject.longest_gap_s(range(GPUS))
        subject.forget_gaps()
    node.gpus[HUNG_GPU].record.hang_until_monotonic_ns = time.monotonic_ns() + int(HANG_S * SECOND)
    time.sleep(HANG_S + 3)
    others = [gpu for gpu in range(GPUS) if gpu != HUNG_GPU]
    for subject in everyone:
        subject.gap_hung_s = subject.longest_gap_s(others)


def count_wandb(subject: Subject) -> None:
    """Its series, by its own reader of the file that it wrote."""
    home = subject.calls_file.parent
    for run in home.glob("wandb/offline-run-*/run-*.wandb"):
        python = subject.command[0]
        told = subprocess.run([python, "-c", WANDB_SERIES, str(run)], capture_output=True, text=True, check=True)
        subject.series = set(range(int(told.stdout)))


def table(everyone: list[Subject], seconds: float, windows: int) -> str:
    """The rows, the cheapest first at each interval."""
    rows = [
        f"{machine()}; {GPUS} simulated H100s; medians of {windows} windows of {seconds:.0f} s, all at the same time.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for interval in dict.fromkeys(subject.interval for subject in everyone):
        chosen = [subject for subject in everyone if subject.interval == interval]
        own = next(each.cpu_ratio for each in chosen if each.name.startswith("rankscope"))
        rows += [
            f"| {subject.name} | {interval} | {60 * subject.cpu_ratio:.2f} | {subject.cpu_ratio / own:.1f}"
            f" | {subject.pss_bytes / 1e6:.0f} | {statistics.median(subject.calls_a_minute):.0f}"
            f" | {len(subject.series)} | {subject.gap_s:.1f} | {subject.gap_hung_s:.1f} |"
            for subject in sorted(chosen, key=lambda each: each.cpu_ratio)
        ]
    return "\n".join(rows)


def equal_table(everyone: list[Subject], seconds: float, windows: int) -> str:
    """Each peer, and Rankscope as it beside it: the ratio of their CPU time in each window, its median and range."""
    rows = [
        f"{machine()}; {GPUS} simulated H100s; medians of {windows} windows of {seconds:.0f} s, all at the same time.",
        "",
        "| agent | CPU s a minute | of the peer's (least to most) | PSS, MB | NVML calls a minute | series |",
        "|---|---|---|---|---|---|",
    ]
    peer = everyone[0]
    for subject in everyone:
        if not subject.name.startswith("rankscope"):
            peer = subject
        ratios = sorted(own / of for own, of in zip(subject.cpu_ratios, peer.cpu_ratios, strict=True))
        beside = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if subject is not peer else ""
        rows.append(
            f"| {subject.name} | {60 * subject.cpu_ratio:.2f} | {beside} | {subject.pss_bytes / 1e6:.0f}"
            f" | {statistics.median(subject.calls_a_minute):.0f} | {len(subject.series)} |"
        )
    return "\n".join(rows)


def run(make: Callable[..., list[Subject]], arguments: argparse.Namespace, *, hung: bool) -> list[Subject]:
    """Everyone that `make` names, started, watched and ended; with `hung`, while one GPU hangs too."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        node = NodeState.create(directory / "node", profile="H100-SXM5-80GB", gpus=GPUS)
        (directory / "lib").mkdir()
        library = build(directory / "lib") / LIBRARY
        rings, quiet = directory / "rings", directory / "quiet"
        rings.mkdir()
        quiet.mkdir()
        ranks, silent_ranks = Ranks(rings, node, SystemClock()), Ranks(quiet, node, SystemClock())
        everyone = make(directory, library, rings, quiet)
        sink = Sink({subject.mark.replace("/", "-"): subject for subject in everyone})
        stop = threading.Event()
        try:
            threading.Thread(target=lambda: follow(ranks, stop), daemon=True).start()
            for subject in everyone:
                start(subject, directory, sink, node, library)
                if subject.scrape:
                    threading.Thread(target=scraper, args=(subject, stop), daemon=True).start()
            time.sleep(arguments.warm_up)
            for subject in everyone:
                subject.forget_gaps()
            watch(everyone, arguments.seconds, arguments.windows)
            silent = [subject for subject in everyone if not any(calls for calls, _, _ in subject.calls())]
            if silent:
                said = (silent[0].calls_file.parent / "log").read_text().strip().splitlines()[-1:]
                sys.exit(f"{silent[0].mark} read no GPU: {said[0] if said else 'it said nothing'}")
            for subject in everyone:
                subject.pss_bytes = subject.pss()
            if hung:
                hang(everyone, node)
        finally:
            stop.set()
            for subject in everyone:
                for pid in subject.pids():
                    os.kill(pid, signal.SIGTERM)
            time.sleep(3)
            for subject in everyone:
                if subject.name == "wandb":
                    count_wandb(subject)
                for pid in subject.pids():
                    os.kill(pid, signal.SIGKILL)
            ranks.close()
            silent_ranks.close()
            sink.shutdown()
    return everyone


#: Table -> who is in it.
TABLES = {"agents": as_they_are, "agents-equal": with_equal_metrics}


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="length of a window: the slowest reads once a minute")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=30)
    parser.add_argument("--table", choices=TABLES, help="this one only")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    chosen = [arguments.table] if arguments.table else list(TABLES)
    documents = {name: Table(arguments.write, name) for name in chosen} if arguments.write else {}
    for name in chosen:
        everyone = run(TABLES[name], arguments, hung=name == "agents")
        made = (table if name == "agents" else equal_table)(everyone, arguments.seconds, arguments.windows)
        print(made)
        if name in documents:
            documents[name].write(made)


def follow(ranks: Ranks, stop: threading.Event) -> None:
    """Keep the ranks stepping."""
    while not stop.wait(0.05):
        ranks.follow()


if __name__ == "__main__":
    main()
