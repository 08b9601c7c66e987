"""The PCIe link is judged under load, and only then."""

from __future__ import annotations

import pytest
from watched_nvml import WatchNode

from rankscope.probes.nvml_pcie import BUSY_BYTES_PER_SECOND, PcieJudge
from rankscope.simulator.state import NodeState

SECOND = 10**9
FULL = {
    "gpu.pcie_link_generation": 5.0,
    "gpu.pcie_link_width": 16.0,
    "gpu.pcie_link_generation_max": 5.0,
    "gpu.pcie_link_width_max": 16.0,
}


def counters(total: float) -> dict[str, float]:
    """Byte counters that add up to this."""
    return {"gpu.pcie_tx_bytes": total / 2, "gpu.pcie_rx_bytes": total / 2}


@pytest.mark.parametrize(
    ("generation", "width", "ratio"),
    [(5, 16, 1.0), (5, 8, 0.5), (4, 16, 0.5), (1, 16, 250e6 / 3938e6), (3, 4, 985e6 / 3938e6 / 4)],
)
def test_generation_and_width_make_one_ratio(generation: int, width: int, ratio: float) -> None:
    """A narrower or slower link counts by what it carries."""
    values = FULL | {"gpu.pcie_link_generation": generation, "gpu.pcie_link_width": width}
    assert PcieJudge().speed_ratio(values, 1.0, 0) == pytest.approx(ratio, rel=1e-3)


def test_at_idle_there_is_no_judgement() -> None:
    """An idle link is slow by design: no value, not a bad one."""
    slow = FULL | {"gpu.pcie_link_generation": 1.0}
    assert PcieJudge().speed_ratio(slow, 0.0, 0) is None
    assert PcieJudge().speed_ratio(slow, None, 0) is None


def test_traffic_is_load_too_where_utilization_is_not_told() -> None:
    """Under MIG there is no utilization: the link's own bytes say whether it is busy, while they are fresh."""
    judge = PcieJudge()
    judge.note(counters(0), 0)
    judge.note(counters(2 * BUSY_BYTES_PER_SECOND), SECOND)
    assert judge.speed_ratio(FULL, None, SECOND) == 1.0
    assert judge.speed_ratio(FULL, None, 60 * SECOND) is None


def test_a_counter_that_wrapped_is_no_traffic() -> None:
    """Bytes that fell back (they may wrap) say nothing of the time between."""
    judge = PcieJudge()
    judge.note(counters(1e12), 0)
    judge.note(counters(0), SECOND)
    assert not judge.loaded(None, SECOND)


@pytest.mark.parametrize("missing", FULL)
def test_a_part_that_is_not_known_leaves_no_ratio(missing: str) -> None:
    """Nothing is guessed."""
    assert PcieJudge().speed_ratio({k: v for k, v in FULL.items() if k != missing}, 1.0, 0) is None
    assert PcieJudge().speed_ratio(FULL | {"gpu.pcie_link_generation": 99.0}, 1.0, 0) is None


def test_a_degraded_link_shows_when_the_gpu_works(node: NodeState, watch: WatchNode) -> None:
    """Through the helper: absent at idle, half under load on a link that lost half its lanes."""
    idle, busy = node.gpus[0], node.gpus[1]
    busy.utilization_percent, busy.pcie_generation, busy.pcie_width = 95, 5, 8
    watched = watch(node)
    watched.read_until(lambda: watched.latest("gpu.pcie_link_speed_ratio", busy.uuid) is not None, "health")
    watched.read_until(lambda: watched.latest("gpu.pcie_link_generation", idle.uuid) is not None, "health")
    assert watched.latest("gpu.pcie_link_speed_ratio", busy.uuid) == 0.5
    assert watched.latest("gpu.pcie_link_speed_ratio", idle.uuid) is None
    assert watched.latest("gpu.pcie_link_generation", idle.uuid) == 1
