"""What the agent costs on a node of 8 GPUs with 18 NVLinks each: CPU share of one core, memory, and each probe's part.

    .venv/bin/python benchmarks/agent_cost.py --write docs/agent-cost.md

The shipped loop, scheduler, governor, recording and live rules watch 8 ranks and a simulated node through the real
NVML helper and a library with NVML's own ABI. Two runs:

- real time: `--seconds` of the host's own clock, at steady rates and again with every device bursting;
- simulated time: an hour within a minute or so, only the clock replaced, to see whether memory stays flat.

CPU time is what the kernel counts for this process and its helper, less what the benchmark itself takes.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from rankscope.agent.config import BudgetSettings, ProbeSettings, Settings
from rankscope.agent.cost import OwnCost, cpu_time_ns
from rankscope.agent.job import WatchedJob
from rankscope.agent.loop import Agent
from rankscope.agent.sources import Sources, build_sources
from rankscope.clock import Clock, ClockAnchor, SystemClock, boot_id
from rankscope.identity import RankIdentity, host_name, start_ticks
from rankscope.probes.nvml import NvmlProbe
from rankscope.records import StepRecord
from rankscope.ring import RingWriter, ring_path
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.state import STATE_VARIABLE, NodeState
from rankscope.testing import FakeClock, SimulatedAgent

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
GPUS = 8
SECOND = 1_000_000_000
STEP_NS = 200_000_000
#: Starting is over by then.
WARM_UP_S = 10


class Ranks:
    """Eight ranks: sleeping processes, whose rings the benchmark writes at a step each 200 ms."""

    def __init__(self, rings: Path, node: NodeState, clock: Clock) -> None:
        script = f"for i in {' '.join(map(str, range(GPUS)))}; do sleep 7200 >/dev/null 2>&1 & echo $!; done"
        told = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
        # Their parent has ended: they are no children of the agent, and do not count as its cost.
        self.pids = [int(word) for word in told.stdout.split()]
        self._clock = clock
        self._due_ns = clock.monotonic_ns()
        self._step = 0
        self._rings = []
        for rank, pid in enumerate(self.pids):
            identity = RankIdentity(
                "bench", 0, rank, GPUS, rank, host_name(), pid, start_ticks(pid), boot_id(), node.gpus[rank].uuid
            )
            self._rings.append(RingWriter(ring_path(rings, identity), identity, ClockAnchor.take(clock)))
        self.cpu_ns = 0

    def follow(self) -> None:
        """Write the steps that are due."""
        began = time.thread_time_ns()
        while (now := self._clock.monotonic_ns()) >= self._due_ns:
            for ring in self._rings:
                start = self._due_ns - STEP_NS
                ring.append_record(StepRecord(self._step, start, self._due_ns, 0, STEP_NS, 0, 0, 0, 0, 0, 0))
            self._step += 1
            self._due_ns = max(self._due_ns + STEP_NS, now - SECOND)
        self.cpu_ns += time.thread_time_ns() - began

    def close(self) -> None:
        """End the processes."""
        for pid in self.pids:
            os.kill(pid, 9)
        for ring in self._rings:
            ring.close()


@dataclass
class Measured:
    """One run: shares of one core, and memory over time."""

    name: str
    seconds: float = 0.0
    cpu_ratio: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    pss_bytes: list[int] = field(default_factory=list)
    readings_a_second: float = 0.0
    changes: int = 0


class Bench:
    """An agent over a simulated node, in a directory of its own."""

    def __init__(self, directory: Path, clock: Clock, *, burst: bool) -> None:
        self.node = NodeState.create(directory / "node", profile="H100-SXM5-80GB", gpus=GPUS)
        os.environ[STATE_VARIABLE] = str(self.node.path.absolute())
        (directory / "lib").mkdir()
        library = build(directory / "lib") / LIBRARY
        rings = directory / "rings"
        rings.mkdir()
        self.clock = clock
        self.ranks = Ranks(rings, self.node, clock)
        seconds = 1e6 if burst else 30.0
        self.settings = Settings(probes=ProbeSettings(burst_seconds=seconds), budget=BudgetSettings())
        pids = dict(enumerate(self.ranks.pids))
        roots = msgspec.structs.replace(self.settings.roots, nvml_library=str(library))
        self.settings = msgspec.structs.replace(self.settings, roots=roots)
        self.sources: Sources = build_sources(self.settings, lambda: pids)
        self.job = WatchedJob(
            job="bench",
            host=host_name(),
            recording=directory / "bench.db",
            rings=rings,
            settings=self.settings,
            clock=clock,
            environ={},
        )
        nvml = next(probe for probe in self.sources.probes if isinstance(probe, NvmlProbe))
        self.nvml = nvml
        give_up = time.monotonic() + 30
        while not nvml.gpus and time.monotonic() < give_up:
            nvml.read("fast", clock.monotonic_ns())
            time.sleep(0.01)


class Meter:
    """CPU time of the agent, its helper and each group, less the benchmark's own, between two looks."""

    def __init__(self, bench: Bench, agent: Agent, harness_ns: Callable[[], int]) -> None:
        self._bench, self._agent, self._harness_ns = bench, agent, harness_ns
        self._cost = OwnCost()
        self._first = self._look()

    def _look(self) -> tuple[int, int, int, dict[str, int], int]:
        watched = self._agent._scheduler.watched
        groups = {group.name: group.cpu_ns for group in watched}
        pid = self._bench.nvml.helper_pid
        # What its reads took is in the groups.
        helper = (cpu_time_ns(pid) if pid else 0) - sum(group.helper_cpu_ns for group in watched)
        count = self._bench.job.recording.connection.execute("SELECT count(*) FROM readings").fetchone()[0]
        now = self._bench.clock.monotonic_ns()
        return now, self._cost.cpu_ns() - self._harness_ns(), helper, groups, count

    def measured(self, name: str, pss: list[int]) -> Measured:
        """What it took since the first look."""
        now, cpu, helper, groups, count = self._look()
        then, cpu_then, helper_then, groups_then, count_then = self._first
        passed = now - then
        parts = {key: (value - groups_then[key]) / passed for key, value in groups.items()}
        parts["NVML helper beside its reads: messages, events"] = (helper - helper_then) / passed
        known = sum(parts.values())
        ratio = (cpu - cpu_then) / passed
        parts["loop, rings, recording, governor, live rules"] = ratio - known
        rate = (count - count_then) / (passed / SECOND)
        changes = self._bench.job.recording.connection.execute(
            "SELECT count(*) FROM events WHERE kind = 'governor'"
        ).fetchone()[0]
        return Measured(name, passed / SECOND, ratio, parts, pss, rate, changes)


def in_real_time(seconds: float, *, burst: bool) -> Measured:
    """The agent on this host's clock."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        bench = Bench(Path(directory), SystemClock(), burst=burst)
        agent = Agent([bench.job], bench.settings, bench.sources, clock=bench.clock)
        began = time.monotonic()
        meter: list[Meter] = []
        result: list[Measured] = []

        def each_round() -> None:
            bench.ranks.follow()
            passed = time.monotonic() - began
            if burst and not agent._scheduler.bursting and passed > 1:
                agent._scheduler.burst([gpu.uuid for gpu in bench.node.gpus] + [""])
            if passed > WARM_UP_S and not meter:
                meter.append(Meter(bench, agent, lambda: bench.ranks.cpu_ns))
            if passed > WARM_UP_S + seconds:
                pss = OwnCost().pss_bytes()
                result.append(meter[0].measured("burst" if burst else "steady", [pss] if pss else []))
                agent.stop("done")

        agent.run(each_round)
        bench.ranks.close()
        return result[0]


def in_simulated_time(seconds: float) -> Measured:
    """An hour within a minute: memory every five minutes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        clock = FakeClock(time.monotonic_ns(), time.time_ns())
        bench = Bench(Path(directory), clock, burst=False)
        simulated = SimulatedAgent([bench.job], bench.settings, bench.sources, clock)
        began = clock.monotonic_ns()
        meter: list[Meter] = []
        pss: list[int] = []
        harness = [0]

        def passed() -> None:
            bench.ranks.follow()
            at = (clock.monotonic_ns() - began) / SECOND
            if at > WARM_UP_S and not meter:
                meter.append(Meter(bench, simulated.agent, lambda: simulated.harness_cpu_ns + harness[0]))
            if at >= 300 * (len(pss) + 1):
                pss.append(OwnCost().pss_bytes() or 0)

        simulated.run(seconds - 1, passed)
        bench.ranks.close()
        # The recording is closed by now: only the totals are left.
        hour = Measured("an hour of simulated time", seconds, pss_bytes=pss)
        hour.cpu_ratio = simulated.agent._governor.cpu_ratio
        return hour


def markdown(runs: list[Measured], hour: Measured) -> str:
    """The tables."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    what = f"{GPUS} GPUs with 18 NVLinks each, {GPUS} ranks"
    lines = [
        f"{machine}, {time.strftime('%Y-%m-%d')}; {what}, real time, {runs[0].seconds:.0f} s each:",
        "",
        "| | " + " | ".join(run.name for run in runs) + " |",
        "|---|" + "---|" * len(runs),
        "| CPU, share of one core | " + " | ".join(f"{run.cpu_ratio:.2%}" for run in runs) + " |",
        "| memory (PSS, agent and helper) | " + " | ".join(f"{run.pss_bytes[-1] / 1e6:.0f} MB" for run in runs) + " |",
        "| readings a second | " + " | ".join(f"{run.readings_a_second:.0f}" for run in runs) + " |",
        "| changes by the governor | " + " | ".join(str(run.changes) for run in runs) + " |",
    ]
    lines += [
        f"| {part} | " + " | ".join(f"{run.parts.get(part, 0):.3%}" for run in runs) + " |"
        for part in sorted(runs[0].parts, key=lambda part: -runs[0].parts[part])
    ]
    sizes = ", ".join(f"{size / 1e6:.0f}" for size in hour.pss_bytes)
    lines += ["", f"Memory over {hour.seconds:.0f} s of simulated time, every five minutes, MB: {sizes}."]
    return "\n".join(lines)


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60, help="real time of each run")
    parser.add_argument("--simulated-seconds", type=float, default=3600)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    runs = []
    for burst in (False, True):
        runs.append(in_real_time(arguments.seconds, burst=burst))
        print(f"{runs[-1].name}: {runs[-1].cpu_ratio:.2%} of a core", file=sys.stderr, flush=True)
    text = markdown(runs, in_simulated_time(arguments.simulated_seconds))
    print(text)
    if arguments.write is not None:
        head, _, rest = arguments.write.read_text().partition(BEGIN)
        arguments.write.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
