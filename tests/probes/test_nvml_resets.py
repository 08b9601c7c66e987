"""Counters that begin anew are recognised, told once, and taken for neither a jump nor a negative rate."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from sample_window import Job
from watched_nvml import WatchNode

from rankscope.probes.nvml_resets import UPTIME, ResetWatch
from rankscope.rules.telemetry import Telemetry
from rankscope.simulator.state import NodeState
from rankscope.window import Series, SeriesKey


def test_a_reset_is_seen_by_uptime_even_where_no_counter_falls() -> None:
    """A counter may have passed its old value since: the uptime tells all the same, once."""
    watch = ResetWatch()
    assert watch.note({UPTIME: 86_400, "gpu.energy_joules": 5.0}) is None
    assert watch.note({"gpu.energy_joules": 6.0}) is None
    assert watch.note({UPTIME: 30, "gpu.energy_joules": 7.0}) == UPTIME
    assert watch.note({UPTIME: 45, "gpu.energy_joules": 8.0}) is None


def test_a_reset_is_seen_by_a_counter_where_there_is_no_uptime() -> None:
    """Older drivers do not tell the uptime: energy only falls when everything begins anew."""
    watch = ResetWatch()
    assert watch.note({"gpu.energy_joules": 1e9, "gpu.throttle_sw_power_ns": 5}) is None
    assert watch.note({"gpu.energy_joules": 10.0}) == "gpu.energy_joules"
    assert watch.note({"gpu.throttle_sw_power_ns": 0}) is None, "what was from before is forgotten"


@pytest.mark.parametrize(
    "values",
    [
        {UPTIME: 99.0},
        {"gpu.pcie_tx_bytes": 0.0},
        {"gpu.ecc_corrected_aggregate": 0.0},
        {"gpu.utilization_ratio": 0.0},
        {},
    ],
)
def test_what_may_fall_by_itself_is_no_reset(values: dict[str, float]) -> None:
    """A second of the uptime, bytes that may wrap, and gauges prove nothing."""
    watch = ResetWatch()
    watch.note(
        {UPTIME: 100.0, "gpu.pcie_tx_bytes": 1e9, "gpu.ecc_corrected_aggregate": 3.0, "gpu.utilization_ratio": 1.0}
    )
    assert watch.note(values) is None


@pytest.mark.parametrize("driver", ["570.172.08", "595.45.04"])
def test_a_gpu_that_was_reset_is_told_once_and_read_on(driver: str, tmp_path: Path, watch: WatchNode) -> None:
    """One event names the GPU; a counter's growth over the reset is what it counted since, not a jump."""
    node = NodeState.create(tmp_path / "n", profile="A100-SXM4-80GB", gpus=2, driver=driver)
    gpu = node.gpus[1]
    gpu.energy_mj, gpu.throttle_sw_power_ns = 9_000_000_000, 7_000_000_000
    watched = watch(node)
    watched.read_until(lambda: watched.latest("gpu.throttle_sw_power_ns", gpu.uuid) is not None, "counters")
    watched.read_until(lambda: watched.latest("gpu.sm_clock_max_mhz", gpu.uuid) is not None, "health")
    gpu.begin_anew()
    gpu.throttle_sw_power_ns = 250
    watched.read_until(lambda: "gpu-counters-reset" in watched.kinds(), "counters")
    for group in ("health", "counters", "health", "counters"):
        watched.read(group)
    watched.read_until(lambda: watched.latest("gpu.energy_joules", gpu.uuid) == 0, "counters")
    (event,) = (event for event in watched.events if event.kind == "gpu-counters-reset")
    assert event.device == gpu.uuid
    found = [r for r in watched.readings if r.metric == "gpu.throttle_sw_power_ns" and r.device == gpu.uuid]
    series = Series(array("q", [r.time_ns for r in found]), array("d", [r.value for r in found]))
    window = replace(Job().window(), series={SeriesKey("h", "t", gpu.uuid): series})
    over = [(found[0].time_ns, found[-1].time_ns)]
    assert Telemetry(window).growth("h", "t", gpu.uuid, over) == pytest.approx(250)
