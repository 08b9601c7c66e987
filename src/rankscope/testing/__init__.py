"""Fakes for those who write probes of their own, and the means to run a probe as the agent would, on simulated time.

    from rankscope.testing import run_probes

    said = run_probes([MyProbe()], seconds=60)
    assert said.values("fan.speed_ratio") == [0.5] * 60

Nothing here is imported by the agent.
"""

from __future__ import annotations

from rankscope.testing.agent import SimulatedAgent
from rankscope.testing.clock import FakeClock
from rankscope.testing.files import FakeHost
from rankscope.testing.nvml import FakeGpu
from rankscope.testing.probe import FakeProbe
from rankscope.testing.run import Said, run_probes

__all__ = ["FakeClock", "FakeGpu", "FakeHost", "FakeProbe", "Said", "SimulatedAgent", "run_probes"]
