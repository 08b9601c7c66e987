"""A driver that does not answer for 45 s: the shipped loop, a real helper and a real library, on simulated time."""

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
HANG_NS = 45 * SECOND
#: From one hang to the next.
EVERY_NS = 70 * SECOND


class SickNode:
    """Hangs GPU 0, or every GPU, for 45 s again and again, on simulated time."""

    def __init__(self, state: NodeState, clock: FakeClock, *, whole: bool) -> None:
        self._state, self._clock, self._whole = state, clock, whole
        self._began_ns = clock.monotonic_ns()
        self._hangs = False
        self.threads: list[int] = []
        self.processes: list[int] = []

    def follow(self) -> None:
        """What the node does at this time."""
        place = (self._clock.monotonic_ns() - self._began_ns) % EVERY_NS
        until = FOR_EVER if place >= EVERY_NS - HANG_NS else 0
        if self._whole:
            self._state.hang_until_monotonic_ns = until
        else:
            self._state.gpus[0].hang_until_monotonic_ns = until
        if self._hangs and not until:
            # The library looks in real time whether the hang is over, and a simulated second is some real ms.
            time.sleep(0.1)
        self._hangs = bool(until)
        if not until and place > EVERY_NS - HANG_NS - SECOND:
            # Just before the next hang everything is calm again.
            self.threads.append(threading.active_count())
            self.processes.append(len(psutil.Process().children(recursive=True)))


@pytest.fixture(name="sick_run", params=[False, True], ids=["one GPU hangs", "the driver hangs"])
def run_sick(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[SickNode, Path, NodeState]:
    """Ten hangs watched by an agent; gives the node, the recording and the state."""
    # So that a busy machine does not look like a driver that is slow by seconds of simulated time.
    monkeypatch.setattr(nvml, "PATIENCE_MS", 30)
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
    node = SickNode(state, clock, whole=request.param)
    agent.run(10 * EVERY_NS / SECOND, node.follow)
    return node, tmp_path / "sick.db", state


def test_ten_hangs_of_45_s_cost_nobody_else(sick_run: tuple[SickNode, Path, NodeState]) -> None:
    """Host probes keep their rate, each hang is told in time, GPUs are read again after it, and nothing piles up."""
    from rankscope.agent.load import load_window

    node, recording, state = sick_run
    window = load_window([recording])
    times = {key: list(series.times_ns) for key, series in window.series.items()}
    # Host probes: a gap of at most two of their periods, throughout.
    for metric, period_s in (("host.cpu_busy_ns", 1), ("host.memory_available_bytes", 2)):
        of_host = next(found for key, found in times.items() if key.metric == metric)
        assert max((b - a) / SECOND for a, b in pairwise(of_host)) <= 2 * period_s
        assert len(of_host) >= 0.98 * 10 * EVERY_NS / SECOND / period_s
    # Each hang is told before its third second, and its end when it comes.
    hung = {state.gpus[0].uuid} if not node._whole else {gpu.uuid for gpu in state.gpus}
    first = min(event.time_ns for event in window.events if event.kind == "agent-started")
    for gpu in hung:
        stalls = [e.time_ns - first for e in window.events if (e.kind, e.device) == ("probe-stalled", gpu)]
        ends = [e.time_ns - first for e in window.events if (e.kind, e.device) == ("probe-recovered", gpu)]
        assert len(stalls) == 10
        assert len(ends) in (9, 10)  # the last hang ends with the run
        began = EVERY_NS - HANG_NS
        assert all(began <= stall % EVERY_NS < began + 3.5 * SECOND for stall in stalls)
    # A GPU beside the sick one is read on meanwhile; where the driver blocks all, it is read again afterwards.
    reads = len(next(f for k, f in times.items() if (k.metric, k.device) == ("gpu.sm_clock_mhz", state.gpus[1].uuid)))
    calm_s = 10 * (EVERY_NS - (HANG_NS if node._whole else 0)) / SECOND
    assert reads >= 0.9 * calm_s
    # Nothing piles up: neither in the agent nor in its helpers.
    assert len(set(node.processes)) == 1
    assert len(set(node.threads)) == 1
