"""What the agent costs on a node of 8 GPUs with 18 NVLinks each: CPU share of one core, memory, and each probe's part.

    .venv/bin/python benchmarks/agent_cost.py --write docs/agent-cost.md

`rankscope agent` runs as a process of its own and watches 8 ranks and a simulated node through the real NVML helper
and a library with NVML's own ABI, for `--seconds` at steady rates (with room for all of them, then within the budget as
shipped) and with every device bursting. CPU time and proportional memory are what the kernel counts for it and its
helper; each group's part is what the agent records of itself.

Then an hour of simulated time within a minute or so: the shipped loop in this process, only the clock replaced, to see
whether memory stays flat. That figure holds the benchmark itself too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec
from document import Table, machine

from rankscope.agent.config import Settings
from rankscope.agent.cost import OwnCost, cpu_time_ns, process_pss_bytes
from rankscope.agent.job import WatchedJob
from rankscope.agent.sources import build_sources
from rankscope.clock import Clock, ClockAnchor, SystemClock, boot_id
from rankscope.identity import RankIdentity, host_name, start_ticks
from rankscope.probes.nvml import NvmlProbe
from rankscope.records import StepRecord
from rankscope.ring import RingWriter, ring_path
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.state import STATE_VARIABLE, NodeState
from rankscope.testing import FakeClock, SimulatedAgent

_COLLECTOR = Path(__file__).resolve().parent.parent / "tests/survival/collector.py"
GPUS = 8
SECOND = 1_000_000_000
STEP_NS = 200_000_000
#: Starting is over by then, and the governor has begun to judge.
WARM_UP_S = 40


class Ranks:
    """Ranks: sleeping processes, whose rings the benchmark writes at a step each 200 ms. GPUs are theirs in turn."""

    def __init__(self, rings: Path, node: NodeState, clock: Clock, count: int = GPUS) -> None:
        self._directory, self._node, self._clock, self._count = rings, node, clock, count
        self._due_ns = clock.monotonic_ns()
        self._stumbles = False
        self._begin(attempt=0)

    def _begin(self, attempt: int) -> None:
        script = f"for i in {' '.join(map(str, range(self._count)))}; do sleep 7200 >/dev/null 2>&1 & echo $!; done"
        told = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
        # Their parent has ended: they are no children of the agent, and do not count as its cost.
        self.pids = [int(word) for word in told.stdout.split()]
        self._attempt = attempt
        self._step = 0
        self._rings = []
        for rank, pid in enumerate(self.pids):
            gpu = self._node.gpus[rank % len(self._node.gpus)].uuid
            identity = RankIdentity(
                "bench", attempt, rank, self._count, rank, host_name(), pid, start_ticks(pid), boot_id(), gpu
            )
            writer = RingWriter(ring_path(self._directory, identity), identity, ClockAnchor.take(self._clock))
            self._rings.append(writer)

    def restart(self) -> None:
        """All ranks end, and the job's launcher begins the next attempt."""
        self.close()
        self._begin(self._attempt + 1)

    def stumble(self) -> None:
        """Take one step that is far slower than the others."""
        self._stumbles = True

    def follow(self) -> None:
        """Write the steps that are due."""
        while (now := self._clock.monotonic_ns()) >= self._due_ns:
            length = 6 * STEP_NS if self._stumbles else STEP_NS
            self._stumbles = False
            self._due_ns += length - STEP_NS
            for ring in self._rings:
                start = self._due_ns - length
                ring.append_record(StepRecord(self._step, start, self._due_ns, 0, length, 0, 0, 0, 0, 0, 0))
            self._step += 1
            self._due_ns = max(self._due_ns + STEP_NS, now - SECOND)

    def close(self) -> None:
        """End the processes."""
        for pid in self.pids:
            os.kill(pid, 9)
        for ring in self._rings:
            ring.close()


@dataclass
class Measured:
    """One run: shares of one core, and memory."""

    name: str
    seconds: float
    cpu_ratio: float
    pss_bytes: int
    parts: dict[str, float]
    readings_a_second: float
    changes: int


class Node:
    """A simulated node and its ranks, in a directory of its own."""

    def __init__(self, directory: Path, clock: Clock, gpus: int = GPUS) -> None:
        self.state = NodeState.create(directory / "node", profile="H100-SXM5-80GB", gpus=gpus)
        (directory / "lib").mkdir()
        self.library = build(directory / "lib") / LIBRARY
        self.rings = directory / "rings"
        self.rings.mkdir()
        self.ranks = Ranks(self.rings, self.state, clock, gpus)


#: Settings of each run. The governor takes rates back for the live rules' sake, so the first says what the rates cost.
RUNS = {
    "all rates kept": "[budget]\ncpu_ratio = 0.03\n[rules]\ncpu_ratio = 0.001\n",
    "as shipped": "",
    "burst": "[probes]\nburst_seconds = 3600\n",
}


def in_real_time(name: str, seconds: float, endpoint: str = "") -> Measured:
    """The agent as it is shipped, with the settings of a run, watched from outside; with an endpoint, it exports."""
    burst = name == "burst"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        directory = Path(place)
        node = Node(directory, SystemClock())
        config = directory / "rankscope.toml"
        config.write_text(
            f'[roots]\nnvml_library = "{node.library}"\n[rings]\ndirectory = "{node.rings}"\n'
            f'[recording]\nstate_directory = "{directory}"\n[export]\nendpoint = "{endpoint}"\n{RUNS[name]}'
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "RANKSCOPE_"))}
        environment[STATE_VARIABLE] = str(node.state.path.absolute())
        command = [str(Path(sys.executable).with_name("rankscope")), "agent", "--config", str(config)]
        agent = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            began = time.monotonic()
            if burst:
                _follow(node.ranks, began + WARM_UP_S / 2)
                # An Xid that names no GPU of the node concerns all of them and the host.
                for gpu in range(GPUS):
                    node.state.push_event(gpu, 13)
                node.ranks.stumble()
            _follow(node.ranks, began + WARM_UP_S)
            first_ns, first_cpu = time.monotonic_ns(), _cpu_ns(agent.pid)
            _follow(node.ranks, began + WARM_UP_S + seconds)
            passed, cpu = time.monotonic_ns() - first_ns, _cpu_ns(agent.pid) - first_cpu
            pss = sum(process_pss_bytes(Path(f"/proc/{pid}")) or 0 for pid in _tree(agent.pid))
        finally:
            agent.terminate()
            agent.wait()
            node.ranks.close()
        [recording] = directory.glob("bench/*.db")
        return _measured(name, recording, first_ns, passed, cpu / passed, pss)


@contextmanager
def collector() -> Iterator[str]:
    """One that takes everything and keeps nothing, as a process of its own; its endpoint."""
    with tempfile.TemporaryDirectory() as kept, socket.create_server(("127.0.0.1", 0)) as free:
        (Path(kept) / "mode").write_text("discarding")
        port = free.getsockname()[1]
        free.close()
        running = subprocess.Popen([sys.executable, _COLLECTOR, kept, str(port)])
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            running.kill()
            running.wait()


def _measured(name: str, recording: Path, first_ns: int, passed: int, cpu_ratio: float, pss: int) -> Measured:
    """With what the agent recorded of itself between two moments."""
    with sqlite3.connect(recording) as connection:
        rows = connection.execute(
            "SELECT metric, device, time_ns, value FROM readings JOIN series ON id = series_id"
            " WHERE time_ns BETWEEN ? AND ? ORDER BY time_ns",
            (first_ns, first_ns + passed),
        ).fetchall()
        changes = connection.execute(
            "SELECT count(*) FROM events WHERE kind = 'governor' AND time_ns BETWEEN ? AND ?",
            (first_ns, first_ns + passed),
        ).fetchone()[0]
    # What a group took is told with the agent's own share, of the time since that was last told.
    times = sorted({at for metric, _, at, _ in rows if metric == "agent.cpu_ratio"})
    since = dict(itertools.pairwise(reversed(times)))
    parts: dict[str, float] = {}
    for metric, device, at, value in rows:
        if metric == "agent.probe_cpu_ratio" and at in since:
            parts[device] = parts.get(device, 0.0) + value * (at - since[at]) / (times[-1] - times[0])
    parts["loop, rings, recording, governor, live rules, messages"] = cpu_ratio - sum(parts.values())
    return Measured(name, passed / SECOND, cpu_ratio, pss, parts, len(rows) / (passed / SECOND), changes)


def _follow(ranks: Ranks, until: float) -> None:
    while time.monotonic() < until:
        ranks.follow()
        time.sleep(0.1)


def _tree(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return found


def _cpu_ns(pid: int) -> int:
    return sum(map(cpu_time_ns, _tree(pid)))


def in_simulated_time(seconds: float) -> list[int]:
    """Proportional memory every five minutes of an hour that passes within a minute, bytes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        clock = FakeClock(time.monotonic_ns(), time.time_ns())
        node = Node(directory, clock)
        os.environ[STATE_VARIABLE] = str(node.state.path.absolute())
        pids = dict(enumerate(node.ranks.pids))
        settings = Settings()
        roots = msgspec.structs.replace(settings.roots, nvml_library=str(node.library))
        settings = msgspec.structs.replace(settings, roots=roots)
        sources = build_sources(settings, lambda: pids)
        job = WatchedJob(
            job="bench",
            host=host_name(),
            recording=directory / "bench.db",
            rings=node.rings,
            settings=settings,
            clock=clock,
            environ={},
        )
        nvml = next(probe for probe in sources.probes if isinstance(probe, NvmlProbe))
        give_up = time.monotonic() + 30
        while not nvml.gpus and time.monotonic() < give_up:
            nvml.read("fast", clock.monotonic_ns())
            time.sleep(0.01)
        simulated = SimulatedAgent([job], settings, sources, clock)
        began = clock.monotonic_ns()
        pss: list[int] = []

        def passed() -> None:
            node.ranks.follow()
            if (clock.monotonic_ns() - began) / SECOND >= 300 * (len(pss) + 1):
                pss.append(OwnCost().pss_bytes() or 0)

        simulated.run(seconds - 1, passed)
        node.ranks.close()
        return pss


def markdown(runs: list[Measured], hour_s: float, hour: list[int]) -> str:
    """The tables."""
    lines = [
        f"{machine()}; {GPUS} GPUs with 18 NVLinks each, {GPUS} ranks, {runs[0].seconds:.0f} s each:",
        "",
        "| | " + " | ".join(run.name for run in runs) + " |",
        "|---|" + "---|" * len(runs),
        "| CPU, share of one core | " + " | ".join(f"{run.cpu_ratio:.2%}" for run in runs) + " |",
        "| memory (PSS, agent and helper) | " + " | ".join(f"{run.pss_bytes / 1e6:.0f} MB" for run in runs) + " |",
        "| readings a second | " + " | ".join(f"{run.readings_a_second:.0f}" for run in runs) + " |",
        "| changes by the governor | " + " | ".join(str(run.changes) for run in runs) + " |",
    ]
    lines += [
        f"| {part} | " + " | ".join(f"{run.parts.get(part, 0):.3%}" for run in runs) + " |"
        for part in sorted(runs[0].parts, key=lambda part: -runs[0].parts[part])
    ]
    sizes = ", ".join(f"{size / 1e6:.0f}" for size in hour)
    lines += [
        "",
        f"Memory over {hour_s:.0f} s of simulated time, the benchmark's own included, every five minutes, MB: {sizes}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120, help="real time of each run")
    parser.add_argument("--simulated-seconds", type=float, default=3600)
    parser.add_argument("--collector", action="store_true", help="in real time, export to one that takes everything")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    table = Table(arguments.write, "table") if arguments.write else None
    runs = []
    with collector() if arguments.collector else nullcontext("") as endpoint:
        for name in RUNS:
            runs.append(in_real_time(name, arguments.seconds, endpoint))
            print(f"{runs[-1].name}: {runs[-1].cpu_ratio:.2%} of a core", file=sys.stderr, flush=True)
    text = markdown(runs, arguments.simulated_seconds, in_simulated_time(arguments.simulated_seconds))
    print(text)
    if table is not None:
        table.write(text)


if __name__ == "__main__":
    main()
