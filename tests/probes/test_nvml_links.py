"""NVLinks one by one: which counters a generation has, and what a link that is off or fails does to the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched_nvml import Watched, WatchNode

from rankscope.gpu_device import link_of
from rankscope.probes.nvml_links import bit_error_ratio
from rankscope.simulator.layout import Feature
from rankscope.simulator.state import NodeState

#: Counters of the data link layer, up to Hopper, and some of NVLink 5, from Blackwell on.
OLD = {"nvlink.replay_errors", "nvlink.recovery_errors", "nvlink.crc_errors"}
NEW = {
    "nvlink.malformed_packets",
    "nvlink.recoveries_failed",
    "nvlink.symbol_bit_error_ratio",
    "nvlink.effective_errors",
}


def read_links(watched: Watched, uuid: str, times: int = 3) -> set[str]:
    """Names of what has been read of the first link, when the links have answered so often."""
    link = link_of(uuid, 0)
    for _ in range(times):
        before = len(watched.readings)
        watched.read_until(lambda: any(r.device == link for r in watched.readings[before:]), "links")  # noqa: B023
    return {r.metric for r in watched.readings if r.device == link}


@pytest.mark.parametrize(
    ("profile", "links", "offered", "absent"),
    [("A100-SXM4-80GB", 12, OLD, NEW), ("H100-SXM5-80GB", 18, OLD, NEW), ("B200", 18, NEW, OLD)],
)
def test_each_generation_has_its_counters(
    profile: str, links: int, offered: set[str], absent: set[str], tmp_path: Path, watch: WatchNode
) -> None:
    """Each link there is reports the counters of its generation, and none of another."""
    node = NodeState.create(tmp_path / "n", profile=profile, gpus=1, driver="595.45.04")
    gpu = node.gpus[0]
    watched = watch(node)
    read = read_links(watched, gpu.uuid)
    assert offered | {"nvlink.state", "nvlink.tx_bytes"} <= read
    assert not absent & read
    states = {r.device for r in watched.readings if r.metric == "nvlink.state"}
    assert states == {link_of(gpu.uuid, n) for n in range(links)}


def test_where_the_common_counters_are_missing_each_link_has_an_id_of_its_own(tmp_path: Path, watch: WatchNode) -> None:
    """On a driver that knows errors of links by the older ids only, those are read, up to the twelfth link."""
    node = NodeState.create(tmp_path / "n", profile="A100-SXM4-80GB", gpus=1)
    gpu = node.gpus[0]
    gpu.not_supported = (gpu.not_supported | {Feature.NVLINK_DL_ERRORS}) - {Feature.NVLINK_LEGACY_ERRORS}
    for number, link in enumerate(gpu.links):
        link.replay_errors, link.recovery_errors, link.crc_errors = 100 + number, 200 + number, 300 + number
    watched = watch(node)
    read_links(watched, gpu.uuid)
    for number in (0, 5, 6, 11):
        device = link_of(gpu.uuid, number)
        assert watched.latest("nvlink.replay_errors", device) == 100 + number
        assert watched.latest("nvlink.recovery_errors", device) == 200 + number
        assert watched.latest("nvlink.crc_errors", device) == 300 + number


def test_a_link_that_goes_down_is_seen_and_the_others_go_on(node: NodeState, watch: WatchNode) -> None:
    """State, number of active links and speed follow; errors of the neighbour are its own."""
    gpu = node.gpus[0]
    watched = watch(node)
    watched.read_until(lambda: watched.latest("gpu.nvlink_links_active", gpu.uuid) == 18, "links")
    gpu.links[4].state = 0
    gpu.links[5].crc_errors = 9
    watched.read_until(lambda: watched.latest("gpu.nvlink_links_active", gpu.uuid) == 17, "links")
    assert watched.latest("nvlink.state", link_of(gpu.uuid, 4)) == 0
    assert watched.latest("nvlink.speed_bytes_per_second", link_of(gpu.uuid, 4)) == 0
    assert watched.latest("nvlink.speed_bytes_per_second", link_of(gpu.uuid, 5)) == 26_562_000_000
    assert watched.latest("nvlink.crc_errors", link_of(gpu.uuid, 5)) == 9
    assert watched.latest("nvlink.crc_errors", link_of(gpu.uuid, 4)) == 0


def test_an_xid_has_health_and_links_read_at_once(node: NodeState, watch: WatchNode) -> None:
    """Sticky counters need not wait for their period when the driver has reported an error."""
    gpu = node.gpus[1]
    watched = watch(node)
    watched.read_until(lambda: watched.latest("nvlink.crc_errors", link_of(gpu.uuid, 3)) == 0, "fast")
    gpu.links[3].crc_errors, gpu.pcie_replay_count = 5, 7
    node.push_event(1, 74)
    watched.read_until(lambda: watched.latest("nvlink.crc_errors", link_of(gpu.uuid, 3)) == 5, "fast")
    watched.read_until(lambda: watched.latest("gpu.pcie_replays", gpu.uuid) == 7, "fast")


@given(st.integers(0, 15), st.integers(0, 255))
def test_a_bit_error_rate_is_unpacked_as_the_header_says(mantissa: int, exponent: int) -> None:
    """Exponent in bits 0-7, mantissa in bits 8-11, nothing else."""
    assert bit_error_ratio(mantissa << 8 | exponent | 0xF000) == pytest.approx(mantissa * 10.0**-exponent)
