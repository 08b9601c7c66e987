"""A driver that does not answer for 45 s or 100 s: the shipped loop, a real helper and library, on simulated time."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from rankscope.agent.config import ExportSettings, RuleSettings, Settings
from rankscope.agent.job import WatchedJob
from rankscope.agent.sources import Sources
from rankscope.probes import nvml
from rankscope.probes.cpu import CpuProbe
from rankscope.probes.memory import MemoryProbe
from rankscope.probes.nvml import NvmlProbe
from rankscope.simulator.build import build
from rankscope.simulator.state import NodeState
from rankscope.testing import FakeClock, SimulatedAgent

SECOND = 1_000_000_000
FOR_EVER = 2**62
#: How long the driver does not answer, and how much later it hangs again.
CALM_NS = 25 * SECOND


class SickNode:
    """Hangs GPU 0, or every GPU, for so long again and again, on simulated time."""

    def __init__(self, state: NodeState, clock: FakeClock, hang_ns: int, *, whole: bool) -> None:
        self._state, self._clock = state, clock
        self.every_ns = CALM_NS + hang_ns
        self.whole = whole
        self._began_ns = clock.monotonic_ns()
        self._hangs = False
        self.threads: list[int] = []
        self.processes: list[int] = []

    def follow(self) -> None:
        """What the node does at this time."""
        place = (self._clock.monotonic_ns() - self._began_ns) % self.every_ns
        until = FOR_EVER if place >= CALM_NS else 0
        if self.whole:
            self._state.hang_until_monotonic_ns = until
        else:
            self._state.gpus[0].hang_until_monotonic_ns = until
        if self._hangs and not until:
            # The library looks in real time whether the hang is over, and a simulated second is some real ms.
            time.sleep(0.1)
        self._hangs = bool(until)
        if not until and place > CALM_NS - SECOND:
            # Just before the next hang everything is calm again.
            self.threads.append(threading.active_count())
            self.processes.append(len(psutil.Process().children(recursive=True)))


RUNS = {
    "one GPU hangs ten times for 45 s": (False, 45, 10),
    "the driver hangs ten times for 45 s": (True, 45, 10),
    "one GPU hangs for 100 s": (False, 100, 2),
    "the driver hangs for 100 s": (True, 100, 2),
}


@pytest.fixture(name="sick_run", params=RUNS.values(), ids=RUNS)
def run_sick(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[SickNode, Path, NodeState, int]:
    """Hangs watched by an agent; gives the node, the recording, the state, and the number of hangs."""
    whole, hang_s, hangs = request.param
    # So that a busy machine does not look like a driver that is slow by seconds of simulated time.
    monkeypatch.setattr(nvml, "PATIENCE_MS", 100)
    state = NodeState.create(tmp_path / "node", profile="H100-SXM5-80GB", gpus=3)
    clock = FakeClock(time.monotonic_ns())
    probe = NvmlProbe(environment={**os.environ, **state.environment(build(tmp_path))}, deadline_ns=2 * SECOND)
    give_up = time.monotonic() + 20
    while not probe.gpus and time.monotonic() < give_up:
        probe.read("fast", clock.monotonic_ns())
    settings = Settings(rules=RuleSettings(live=False), export=ExportSettings())
    job = WatchedJob(
        job="sick",
        host="node",
        recording=tmp_path / "sick.db",
        rings=tmp_path,
        settings=settings,
        clock=clock,
        environ={},
    )
    sources = Sources([probe, CpuProbe(), MemoryProbe()], lambda: [gpu.uuid for gpu in probe.gpus])
    agent = SimulatedAgent([job], settings, sources, clock)
    node = SickNode(state, clock, hang_s * SECOND, whole=whole)
    agent.run(hangs * node.every_ns / SECOND, node.follow)
    return node, tmp_path / "sick.db", state, hangs


def test_hangs_cost_nobody_else(sick_run: tuple[SickNode, Path, NodeState, int]) -> None:
    """Host probes keep their rate, each hang is told in time, GPUs are read again after it, and nothing piles up."""
    from rankscope.agent.load import load_window

    node, recording, state, hangs = sick_run
    length_s = hangs * node.every_ns / SECOND
    window = load_window([recording])
    times = {key: list(series.times_ns) for key, series in window.series.items()}
    # Host probes: a gap of at most two of their periods, throughout.
    for metric, period_s in (("host.cpu_busy_ns", 1), ("host.memory_available_bytes", 2)):
        of_host = next(found for key, found in times.items() if key.metric == metric)
        assert max((b - a) / SECOND for a, b in pairwise(of_host)) <= 2 * period_s
        assert len(of_host) >= 0.98 * length_s / period_s
    # Each hang is told before its third second, and its end when it comes.
    hung = {state.gpus[0].uuid} if not node.whole else {gpu.uuid for gpu in state.gpus}
    first = min(event.time_ns for event in window.events if event.kind == "agent-started")
    for gpu in hung:
        stalls = [e.time_ns - first for e in window.events if (e.kind, e.device) == ("probe-stalled", gpu)]
        ends = [e.time_ns - first for e in window.events if (e.kind, e.device) == ("probe-recovered", gpu)]
        assert len(stalls) == hangs
        assert len(ends) in (hangs - 1, hangs)  # the last hang ends with the run
        assert all(CALM_NS <= stall % node.every_ns < CALM_NS + 3.5 * SECOND for stall in stalls)
    # A GPU beside the sick one is read on meanwhile; where the driver blocks all, it is read again afterwards.
    reads = len(next(f for k, f in times.items() if (k.metric, k.device) == ("gpu.sm_clock_mhz", state.gpus[1].uuid)))
    calm_s = hangs * CALM_NS / SECOND if node.whole else length_s
    assert reads >= 0.9 * calm_s
    # Nothing piles up: neither in the agent nor in its helpers.
    assert len(set(node.processes)) == 1
    assert len(set(node.threads)) == 1
