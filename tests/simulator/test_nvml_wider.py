"""MIG handles, uptime, structured events, NVLink 5 and the older link counters: the rules of the header, simulated."""

from __future__ import annotations

import pytest
from simulated_nvml import ChildFactory, NodeFactory

from rankscope.errors import SimulatorError
from rankscope.simulator.layout import Feature

INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, TIMEOUT, FUNCTION_NOT_FOUND, NO_DATA = 2, 3, 4, 6, 10, 13, 21
UNSIGNED_LONG_LONG = 3


def test_a_split_gpu_shows_its_instances(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Instances have handles, UUIDs, ids, memory and processes of their own, and lead back to their GPU."""
    node = make_node()
    gpu = node.gpus[0]
    first, second = gpu.split([(60, 40 << 30), (32, 20 << 30)])
    gpu.set_process(4711, 3 << 30, mig=1)
    child = nvml_child(node)
    assert child("nvmlDeviceGetMigMode(d0)") == [1, 1]
    assert child("nvmlDeviceGetMigMode(d1)") == [0, 0]
    child("m0, m1 = (nvmlDeviceGetMigDeviceHandleByIndex(d0, i) for i in (0, 1))")
    assert child("[nvmlDeviceGetUUID(m) for m in (m0, m1)]") == [first.uuid, second.uuid]
    assert child("[nvmlDeviceIsMigDeviceHandle(d).value for d in (m0, d0)]") == [1, 0]
    assert child("nvmlDeviceGetGpuInstanceId(m1), nvmlDeviceGetComputeInstanceId(m1)") == [2, 0]
    assert child("nvmlDeviceGetUUID(nvmlDeviceGetDeviceHandleFromMigDeviceHandle(m1))") == gpu.uuid
    assert child("nvmlDeviceGetMemoryInfo(m0).total, nvmlDeviceGetMemoryInfo(m1).used") == [40 << 30, 3 << 30]
    assert child("nvmlDeviceGetAttributes(m1).multiprocessorCount") == 32
    assert child("[(p.pid, p.gpuInstanceId) for p in nvmlDeviceGetComputeRunningProcesses(m1)]") == [[4711, 2]]
    assert child("nvmlDeviceGetComputeRunningProcesses(m0)") == []
    assert child(f"nvmlDeviceGetUUID(nvmlDeviceGetHandleByUUID({second.uuid!r}))") == second.uuid
    assert child.error("nvmlDeviceGetMigDeviceHandleByIndex(d0, 2)") == NOT_FOUND
    assert child("nvmlDeviceGetMaxMigDeviceCount(d0), nvmlDeviceGetMaxMigDeviceCount(d1)") == [7, 0]


def test_what_mig_takes_away_is_refused(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Utilization, its samples, rows and the whole GPU's processes are refused; a gone instance is no handle."""
    node = make_node()
    gpu = node.gpus[0]
    (instance,) = gpu.split([(60, 40 << 30)])
    gpu.push_sample(1)
    child = nvml_child(node)
    child("m0 = nvmlDeviceGetMigDeviceHandleByIndex(d0, 0)")
    assert child.error("nvmlDeviceGetUtilizationRates(d0)") == NOT_SUPPORTED
    assert child.error("nvmlDeviceGetSamples(d0, 1, 0)") == NOT_SUPPORTED
    assert child.error("nvmlDeviceGetSamples(d0, 0, 0)") == 0
    assert child.error("nvmlDeviceGetProcessUtilization(d0, 0)") == NOT_SUPPORTED
    assert child.error("nvmlDeviceGetRemappedRows(d0)") == NOT_SUPPORTED
    assert child.error("nvmlDeviceGetComputeRunningProcesses(d0)") == NO_PERMISSION
    assert child.error("nvmlDeviceGetTemperature(m0, 0)") == INVALID_ARGUMENT
    instance.present = False
    assert child.error("nvmlDeviceGetUUID(m0)") == INVALID_ARGUMENT


@pytest.mark.parametrize(("profile", "count"), [("T4", 1), ("B200", 0), ("B200", 8)])
def test_a_split_that_cannot_be_is_refused(profile: str, count: int, make_node: NodeFactory) -> None:
    """Products before Ampere, no instance and too many are one line."""
    with pytest.raises(SimulatorError, match=f"{count} MIG instances"):
        make_node(profile).gpus[0].split([(10, 1 << 30)] * count)


@pytest.mark.parametrize(("driver", "code"), [("580.95.05", FUNCTION_NOT_FOUND), ("595.45.04", 0)])
def test_later_calls_are_not_in_older_drivers(
    driver: str, code: int, make_node: NodeFactory, nvml_child: ChildFactory
) -> None:
    """Uptime and structured events answer as a missing symbol would on a driver that has not got them."""
    node = make_node(driver=driver)
    node.gpus[0].uptime_seconds = 77
    child = nvml_child(node)
    child("lib = CDLL('libnvidia-ml.so.1'); up = c_uint(0)")
    assert child("lib.nvmlDeviceGetGpuUptime_v1(d0, byref(up))") == code
    assert child("up.value") == (77 if code == 0 else 0)
    child(
        "s = nvmlEventSetCreate(); c = c_nvmlGpuOperationalEventConfig_v1_t(); c.uuid = nvmlDeviceGetUUID(d0).encode()"
    )
    assert child("lib.nvmlEventSetRegisterGpuOperationalEvents_v1(s, byref(c))") == code


def test_a_gpu_that_began_anew_counts_from_zero(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """What is counted since the driver was loaded falls to zero, what is counted over the board's life stays."""
    node = make_node(driver="595.45.04")
    gpu = node.gpus[0]
    gpu.throttle_sw_power_ns, gpu.uptime_seconds, gpu.remapped_uncorrected = 5, 100, 3
    gpu.begin_anew()
    child = nvml_child(node)
    assert [child.field(0, field)[2] for field in (83, 74, 143)] == [0, 0, 3]


def test_blackwell_s_links_tell_errors_rates_and_corrections(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Counters 206-222 and the bins 235-250 are those of the link asked for; Hopper refuses them all."""
    node = make_node("B200")
    link = node.gpus[0].links[3]
    link.malformed_packets, link.discarded_packets, link.effective_ber = 4, 9, 3 << 8 | 12
    link.set_fec_corrected(range(100, 116))
    child = nvml_child(node)
    assert [child.field(0, field, 3)[2] for field in (206, 212, 220, 235, 250)] == [4, 9, 3 << 8 | 12, 100, 115]
    assert child.field(0, 250, 2) == (0, UNSIGNED_LONG_LONG, 0)
    assert child.field(0, 235, 18)[0] == INVALID_ARGUMENT
    hopper = nvml_child(make_node())
    assert {hopper.field(0, field)[0] for field in (206, 212, 220, 222, 235, 250)} == {NOT_SUPPORTED}


def test_older_link_counters_have_an_id_a_link(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Where they are offered, the runs of six ids count links 0 to 5 and 6 to 11; elsewhere they are refused."""
    node = make_node("A100-SXM4-80GB")
    gpu = node.gpus[0]
    for number, link in enumerate(gpu.links):
        link.crc_errors, link.replay_errors, link.recovery_errors = 10 + number, 30 + number, 50 + number
    child = nvml_child(node)
    assert child.field(0, 46)[0] == NOT_SUPPORTED
    gpu.not_supported -= {Feature.NVLINK_LEGACY_ERRORS}
    ids = {32: 10, 37: 15, 96: 16, 101: 21, 46: 30, 113: 41, 53: 50, 119: 61}
    assert {field: child.field(0, field)[2] for field in ids} == ids
    assert child.field(0, 38)[0] == NOT_SUPPORTED, "totals are not simulated"


def test_structured_events_wait_for_who_asked_for_them(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Subscribed GPUs' events above the level come with their context; event bits come beside them."""
    node = make_node(driver="595.45.04")
    child = nvml_child(node)
    child(
        "s = nvmlEventSetCreate()\n"
        "c = c_nvmlGpuOperationalEventConfig_v1_t(); c.uuid = nvmlDeviceGetUUID(d1).encode(); c.minLogLevel = 30\n"
        "nvmlEventSetRegisterGpuOperationalEvents_v1(s, c)\n"
        "nvmlDeviceRegisterEvents(d0, 8, s)\n"
        "w = c_nvmlEventSetWait_v3_t(); w.timeoutMs = 100\n"
        "n = c_nvmlEventSetGetContextCount_v1_t()"
    )
    assert child.error("nvmlEventSetGetContextCount_v1(s, n)") == NOT_FOUND
    node.push_structured_event(0, "FB", 1)
    node.push_structured_event(1, "FB", 2, log_level=20)
    assert child.error("nvmlEventSetWait_v3(s, w)") == TIMEOUT
    node.push_structured_event(1, "FB", 3, legacy_xid=63)
    child("nvmlEventSetWait_v3(s, w); nvmlEventSetGetContextCount_v1(s, n)")
    assert child("w.dataType, w.moduleEventCode, w.eventType, n.count") == [1, 3, 0, 1]
    node.push_event(0, 31)
    child("nvmlEventSetWait_v3(s, w)")
    assert child("w.dataType, w.eventType, w.eventData, w.severity") == [0, 8, 31, 0]


def test_gpm_without_new_counters_has_no_data(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Ratios are over the time that the counters are of, so that a share is exact; nothing new is no data."""
    node = make_node()
    gpu = node.gpus[0]
    gpu.moved_at_monotonic_ns = 1_000_000_000
    child = nvml_child(node)
    child(
        "import time\n"
        "a, b = nvmlGpmSampleAlloc(), nvmlGpmSampleAlloc()\n"
        "g = c_nvmlGpmMetricsGet_t(); g.version = 1; g.numMetrics = 1; g.metrics[0].metricId = 5\n"
        "g.sample1, g.sample2 = a, b\n"
        "nvmlGpmSampleGet(d0, a); time.sleep(0.11); nvmlGpmSampleGet(d0, b)"
    )
    assert child.error("nvmlGpmMetricsGet(g)") == NO_DATA
    gpu.gpm_tensor_ns, gpu.moved_at_monotonic_ns = 250_000_000, 2_000_000_000
    child("nvmlGpmSampleGet(d0, b); nvmlGpmMetricsGet(g)")
    assert child("g.metrics[0].value") == 25.0
