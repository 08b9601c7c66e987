"""How the agent grows with GPUs, NVLinks and ranks of a node, and a recording with its length.

    .venv/bin/python benchmarks/growth.py --write docs/benchmarks.md

Agents over simulated nodes of every size run at the same time, so that what the machine does besides befalls all alike:
each with 8 ranks, 8 GPUs and 18 links a GPU but for the one that grows. Every group keeps its steady rate: the governor
is given room, and the live rules, which take what the budget leaves, are off. Recordings are as a run of each length
would have left them, of 8 ranks at a step a second and their GPUs; each is read by `rankscope report` in a process of
its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent_cost import Ranks
from document import Table, machine
from peers_agents import GPUS, SECOND, Subject, rankscope
from plot import write

from rankscope.clock import SystemClock
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.layout import MAX_GPUS
from rankscope.simulator.state import STATE_VARIABLE, NodeState

LINKS = 18
RANKS = 8
#: What grows -> its sizes.
SIZES = {"GPUs": (1, 4, 8, 16, 32, 64), "links": (0, 6, 12, 18), "ranks": (1, 8, 16, 32, 64)}
#: Minutes of recordings.
MINUTES = (10, 30, 60, 120, 240)
ROOM = "[budget]\ncpu_ratio = 1.0\npss_bytes = 1000000000\n[rules]\nlive = false\n"


@dataclass
class Node:
    """One node of its own size, its ranks and its agent."""

    grows: str
    size: int
    subject: Subject
    ranks: Ranks
    process: subprocess.Popen[bytes]
    cpu_ratios: list[float] = field(default_factory=list)
    calls_a_minute: list[float] = field(default_factory=list)
    pss_bytes: int = 0

    @property
    def cpu_s(self) -> float:
        """CPU seconds a minute."""
        return 60 * statistics.median(self.cpu_ratios)


def start(grows: str, size: int, directory: Path, library: Path) -> Node:
    """A node, its ranks and its agent, started."""
    gpus = size if grows == "GPUs" else GPUS
    home = directory / f"{grows}-{size}"
    rings = home / "rings"
    rings.mkdir(parents=True)
    node = NodeState.create(home / "node", profile="H100-SXM5-80GB", gpus=gpus)
    if grows == "links":
        for gpu in node.gpus:
            gpu.record.nvlink_count = size
    ranks = Ranks(rings, node, SystemClock(), count=size if grows == "ranks" else RANKS)
    subject = rankscope(f"{grows} {size}", "1 s", home, library, rings, ROOM)
    subject.calls_file = home / "calls"
    subject.calls_file.write_bytes(bytes(24 * MAX_GPUS))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "RANKSCOPE_"))},
        STATE_VARIABLE: str(node.path.absolute()),
        "RANKSCOPE_SIM_NVML_CALLS": str(subject.calls_file),
        **subject.environment_mark(),
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(subject.command, cwd=home, env=environment, stdout=log, stderr=log)
    return Node(grows, size, subject, ranks, process)


def watch(nodes: list[Node], seconds: float, windows: int, warm_up: float) -> None:
    """CPU time, calls and memory of each."""
    follow(nodes, warm_up)
    for _ in range(windows):
        before = [(node.subject.cpu_ns(), node.subject.all_calls()) for node in nodes]
        began = time.monotonic_ns()
        follow(nodes, seconds)
        for node, (cpu, calls) in zip(nodes, before, strict=True):
            after, passed = node.subject.cpu_ns(), time.monotonic_ns() - began
            node.cpu_ratios.append(sum(after[pid] - cpu.get(pid, 0) for pid in after) / passed)
            node.calls_a_minute.append((node.subject.all_calls() - calls) / passed * 60 * SECOND)
    for node in nodes:
        node.pss_bytes = node.subject.pss()


def follow(nodes: list[Node], seconds: float) -> None:
    """Keep all ranks stepping for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for node in nodes:
            node.ranks.follow()
        time.sleep(0.1)


def agents(seconds: float, windows: int, warm_up: float) -> list[Node]:
    """Every size, at the same time."""
    nodes: list[Node] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        (directory / "lib").mkdir()
        library = build(directory / "lib") / LIBRARY
        try:
            for grows, sizes in SIZES.items():
                nodes += [start(grows, size, directory, library) for size in sizes]
            watch(nodes, seconds, windows, warm_up)
        finally:
            for node in nodes:
                node.process.send_signal(signal.SIGTERM)
            for node in nodes:
                node.process.wait()
                node.ranks.close()
    return nodes


def recordings(minutes: tuple[int, ...]) -> list[tuple[int, int, float, float]]:
    """(minutes, bytes, CPU seconds of a report, its peak memory in bytes) of recordings of each length."""
    from rankscope.agent.generated import write_recordings
    from rankscope.simulator.generate import generate
    from rankscope.simulator.scenario import Node as ScenarioNode
    from rankscope.simulator.scenario import Scenario, Workload

    rows = []
    with tempfile.TemporaryDirectory() as name:
        for length in minutes:
            workload = Workload(ranks=RANKS, steps=60 * length, step_ms=1000.0)
            window = generate(Scenario(name="growth", workload=workload, node=ScenarioNode(gpus=GPUS, hosts=1)))
            [recording] = write_recordings(window, Path(name) / str(length))
            command = [str(Path(sys.executable).with_name("rankscope")), "report", "--json", str(recording)]
            taken = [_cost(command) for _ in range(3)]
            cpu_s, peak = (statistics.median(column) for column in zip(*taken, strict=True))
            rows.append((length, recording.stat().st_size, cpu_s, peak))
    return rows


def _cost(command: list[str]) -> tuple[float, float]:
    """(CPU seconds, peak memory in bytes) of a command."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0


def markdown(nodes: list[Node], lengths: list[tuple[int, int, float, float]], seconds: float, windows: int) -> str:
    """The tables and the pictures."""
    lines = [
        f"{machine()}; each agent with {RANKS} ranks at five steps a second, {GPUS} GPUs and {LINKS} links a GPU",
        f"but for what grows; medians of {windows} windows of {seconds:.0f} s, all at the same time.",
        "",
        "![CPU seconds a minute by GPUs and by ranks](images/growth-node.svg)",
        "",
        "![CPU seconds a minute by NVLinks](images/growth-links.svg)",
        "",
        "| grows | to | CPU s a minute | PSS, MB | NVML calls a minute |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {node.grows} | {node.size} | {node.cpu_s:.2f} | {node.pss_bytes / 1e6:.0f}"
        f" | {statistics.median(node.calls_a_minute):.0f} |"
        for node in nodes
    ]
    lines += [
        "",
        f"Recordings of {RANKS} ranks at a step a second and their GPUs, and `rankscope report` over them:",
        "",
        "![Seconds of a report by the length of the recording](images/growth-recording.svg)",
        "",
        "| minutes | MB | CPU s of a report | MB at most |",
        "|---|---|---|---|",
    ]
    lines += [f"| {length} | {size / 1e6:.1f} | {cpu:.2f} | {peak / 1e6:.0f} |" for length, size, cpu, peak in lengths]
    return "\n".join(lines)


def plots(nodes: list[Node], lengths: list[tuple[int, int, float, float]]) -> None:
    """The pictures."""

    def points(grows: str, of: Callable[[Node], float]) -> list[tuple[float, float]]:
        return [(float(node.size), of(node)) for node in nodes if node.grows == grows]

    by_node = [(f"by {grows}", points(grows, lambda node: node.cpu_s)) for grows in ("GPUs", "ranks")]
    write("growth-node", by_node, "GPUs or ranks of a node", "CPU seconds a minute")
    by_links = [("8 GPUs, 8 ranks", points("links", lambda node: node.cpu_s))]
    write("growth-links", by_links, "NVLinks a GPU", "CPU seconds a minute")
    of_report = [("rankscope report", [(float(length), cpu) for length, _, cpu, _ in lengths])]
    write("growth-recording", of_report, "minutes recorded", "CPU seconds")


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--warm-up", type=float, default=45)
    parser.add_argument("--minutes", type=int, nargs="+", default=MINUTES, help="lengths of the recordings")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, "growth") if arguments.write else None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard) if soft < 4096 else (soft, hard))
    lengths = recordings(tuple(arguments.minutes))
    nodes = agents(arguments.seconds, arguments.windows, arguments.warm_up)
    text = markdown(nodes, lengths, arguments.seconds, arguments.windows)
    print(text)
    if document is not None:
        plots(nodes, lengths)
        document.write(text)


if __name__ == "__main__":
    main()
