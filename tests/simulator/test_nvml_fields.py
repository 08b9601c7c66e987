"""Field values: ids by driver version, types, scopes, ECC off, samples and GPM."""

from __future__ import annotations

import pytest
from simulated_nvml import ChildFactory, NodeFactory

from rankscope.simulator.gpu import EccKind, EccLifetime, MemoryLocation
from rankscope.simulator.layout import RING_VISIBLE

UNSIGNED_INT, UNSIGNED_LONG_LONG, SIGNED_INT = 1, 3, 5
INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 2, 3, 6
ALL_LINKS = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("driver", "reasons_at"),
    [("535.129.03", None), ("570.86.15", None), ("575.51.03", 251), ("580.65.06", 251), ("580.95.05", 269)],
)
def test_clock_event_ids_follow_the_driver(
    driver: str, reasons_at: int | None, make_node: NodeFactory, nvml_child: ChildFactory
) -> None:
    """The three throttle counters are at 251-253, at 269-271 or nowhere, and never at two places."""
    node = make_node(driver=driver)
    gpu = node.gpus[0]
    gpu.throttle_sw_thermal_ns, gpu.throttle_hw_thermal_ns, gpu.throttle_power_brake_ns = 11, 22, 33
    child = nvml_child(node)
    found = {base: [child.field(0, base + i) for i in range(3)] for base in (251, 269)}
    for base, values in found.items():
        if base == reasons_at:
            assert values == [(0, UNSIGNED_LONG_LONG, v) for v in (11, 22, 33)]
        else:
            assert all(code != 0 for code, _, _ in values)


def test_the_same_id_can_mean_something_else(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """On a B200 of a late R580, field 251 succeeds as power smoothing: only type and driver tell it from a counter."""
    node = make_node("B200", driver="580.95.05")
    node.gpus[0].throttle_sw_thermal_ns = 11
    assert nvml_child(node).field(0, 251) == (0, UNSIGNED_INT, 0)


def test_stable_counters_have_their_types(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Energy and throttle time are 64-bit counters, power and temperature 32-bit gauges, T.Limits are signed."""
    node = make_node()
    gpu = node.gpus[1]
    gpu.energy_mj, gpu.throttle_sw_power_ns, gpu.power_average_mw, gpu.power_instant_mw = 5 << 40, 1 << 36, 650, 660
    child = nvml_child(node)
    assert child.field(1, 83) == (0, UNSIGNED_LONG_LONG, 5 << 40)
    assert child.field(1, 74) == (0, UNSIGNED_LONG_LONG, 1 << 36)
    assert child.field(1, 185) == (0, UNSIGNED_INT, 650)
    assert child.field(1, 186) == (0, UNSIGNED_INT, 660)
    assert child.field(1, 194) == (0, SIGNED_INT, gpu.gpu_max_celsius - gpu.slowdown_celsius)
    assert child.field(1, 100_000)[0] == INVALID_ARGUMENT


def test_refusals_are_per_field(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """A batch with an unsupported field still answers the others: GA100 has no 1 s average, but instant power."""
    child = nvml_child(make_node("A100-SXM4-80GB"))
    codes = [row[0] for row in child("fields(d0, [185, 186, 193, 83])")]
    assert codes == [NOT_SUPPORTED, 0, NOT_SUPPORTED, 0]


def test_links_are_read_by_scope(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """scopeId picks the link, UINT_MAX sums where the header allows it, and a link that is not there is refused."""
    node = make_node()
    gpu = node.gpus[0]
    for i, link in enumerate(gpu.links):
        link.data_tx_kib = 1000 + i
    gpu.links[3].state = 0
    gpu.links[5].crc_errors = 7
    child = nvml_child(node)
    assert child.field(0, 138, 2) == (0, UNSIGNED_LONG_LONG, 1002)
    assert child.field(0, 138, ALL_LINKS)[2] == sum(1000 + i for i in range(18))
    assert child.field(0, 138, 18)[0] == INVALID_ARGUMENT
    assert child.field(0, 163, 5) == (0, UNSIGNED_LONG_LONG, 7)
    assert [child.field(0, 165, i)[2] for i in (2, 3)] == [1, 0]
    assert child.field(0, 91) == (0, UNSIGNED_INT, 18)


def test_link_counters_change_with_the_generation(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Hopper answers 161-163 and not the NVLink 5 counters; Blackwell the other way round."""
    answers = {}
    for profile in ("H100-SXM5-80GB", "B200"):
        node = make_node(profile)
        node.gpus[0].links[0].replay_errors = 4
        node.gpus[0].links[0].raw_tx_kib = 2
        child = nvml_child(node)
        answers[profile] = [child.field(0, field)[:3:2] for field in (161, 202)]
    assert answers["H100-SXM5-80GB"][0] == (0, 4)
    assert answers["H100-SXM5-80GB"][1][0] == NOT_SUPPORTED
    assert answers["B200"][0][0] == NOT_SUPPORTED
    assert answers["B200"][1] == (0, 2048)


def test_ecc_is_split_and_summed(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Volatile, aggregate, corrected and uncorrected errors stay apart, by location and in total."""
    node = make_node()
    gpu = node.gpus[0]
    gpu.add_ecc_errors(EccLifetime.VOLATILE, EccKind.CORRECTED, MemoryLocation.L2_CACHE, 3)
    gpu.add_ecc_errors(EccLifetime.VOLATILE, EccKind.UNCORRECTED, MemoryLocation.DRAM, 1)
    gpu.add_ecc_errors(EccLifetime.AGGREGATE, EccKind.UNCORRECTED, MemoryLocation.CBU, 9)
    child = nvml_child(node)
    assert [child.field(0, field)[2] for field in (3, 4, 5, 6)] == [3, 1, 0, 9]
    assert [child.field(0, field)[2] for field in (9, 10, 11, 12, 17, 28)] == [3, 0, 0, 1, 0, 9]
    assert child("nvmlDeviceGetTotalEccErrors(d0, 1, 0)") == 1
    assert child("nvmlDeviceGetMemoryErrorCounter(d0, 0, 0, 7)") == 3


def test_ecc_off_leaves_values_untouched(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """With ECC off the entry keeps what the caller had in it, at timestamp 0; the plain calls are not supported."""
    node = make_node()
    node.gpus[0].ecc_enabled = False
    child = nvml_child(node)
    [[code, kind, _, timestamp, _]] = child("fields(d0, [4])")
    assert (code, kind, timestamp) == (0, 0, 0)
    [[_, _, _, timestamp, _]] = child("fields(d0, [83])")
    assert timestamp > 0
    assert child.error("nvmlDeviceGetTotalEccErrors(d0, 1, 0)") == NOT_SUPPORTED
    assert child("nvmlDeviceGetEccMode(d0)") == [0, 0]


def test_latency_is_felt_and_reported(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """A slow GPU makes each call on it take that long and says so per field; its neighbour is not slowed."""
    node = make_node()
    node.gpus[0].latency_us = 30_000
    child = nvml_child(node)
    [[_, _, _, _, latency]] = child("fields(d0, [83])")
    assert latency >= 30_000
    [[_, _, _, _, latency]] = child("fields(d1, [83])")
    assert latency < 30_000


def test_sample_buffer_gives_each_sample_once(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """The last 72 samples come oldest first; asked again since the newest there is nothing; then only the new one."""
    node = make_node()
    gpu = node.gpus[0]
    for i in range(200):
        gpu.power_instant_mw, gpu.utilization_percent = 100_000 + i, i % 100
        gpu.push_sample(1_000_000 + i)
    child = nvml_child(node)
    read = "[(s.timeStamp, s.sampleValue.uiVal) for s in nvmlDeviceGetSamples(d0, {}, {})[1]]"
    power = child(read.format(0, 0))
    assert power == [[1_000_000 + i, 100_000 + i] for i in range(200 - RING_VISIBLE, 200)]
    assert child(read.format(1, 0))[-1] == [1_000_199, 99]
    assert child.error(f"nvmlDeviceGetSamples(d0, 0, {power[-1][0]})") == NOT_FOUND
    gpu.push_sample(1_000_200)
    assert [s[0] for s in child(read.format(0, power[-1][0]))] == [1_000_200]


def test_gpm_needs_a_tenth_of_a_second(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Two samples too close are refused; further apart they give the share of busy time and the link rate."""
    node = make_node()
    gpu = node.gpus[0]
    child = nvml_child(node)
    child(
        "a, b = nvmlGpmSampleAlloc(), nvmlGpmSampleAlloc()\n"
        "g = c_nvmlGpmMetricsGet_t(); g.version = 1; g.numMetrics = 3\n"
        "g.metrics[0].metricId, g.metrics[1].metricId, g.metrics[2].metricId = 1, 61, 100\n"
        "g.sample1, g.sample2 = a, b\n"
        "import time\n"
        "nvmlGpmSampleGet(d0, a); nvmlGpmSampleGet(d0, b)"
    )
    assert child.error("nvmlGpmMetricsGet(g)") == INVALID_ARGUMENT
    gpu.gpm_graphics_ns += 3_600_000_000_000  # more than any wait here: full use
    gpu.links[0].data_tx_kib += 1 << 20
    child("time.sleep(0.11); nvmlGpmSampleGet(d0, b); nvmlGpmMetricsGet(g)")
    values = child("[(m.nvmlReturn, m.value) for m in g.metrics[:3]]")
    assert values[0] == [0, 100.0]
    assert values[1][0] == 0
    assert 0 < values[1][1] <= 1024 / 0.1
    assert values[2][0] == NOT_SUPPORTED
