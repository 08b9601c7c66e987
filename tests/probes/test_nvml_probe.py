"""The NVML probe over the simulated library, through a real helper process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from watched_nvml import Watched, WatchNode

from rankscope.gpu_device import part_of
from rankscope.metrics import METRICS
from rankscope.probes.cpu import CpuProbe
from rankscope.probes.nvml import BREAKER_NS, LOOK_AGAIN_NS, PATIENCE_MS, NvmlProbe
from rankscope.probes.nvml_messages import Message, Unpacker, pack
from rankscope.reading import Event, Outcome
from rankscope.simulator.build import LIBRARY
from rankscope.simulator.layout import Feature
from rankscope.simulator.state import NodeState

SECOND = 10**9
FOR_EVER = 2**62
FIRST_METRICS = {
    "fast": "gpu.sm_clock_mhz",
    "counters": "gpu.energy_joules",
    "slow": "gpu.temperature_celsius",
    "health": "gpu.sm_clock_max_mhz",
}
GROUPS = tuple(FIRST_METRICS)


def read_all_groups(watched: Watched) -> None:
    """Every group has been answered for every GPU."""
    for group, metric in FIRST_METRICS.items():
        for gpu in watched.probe.gpus:
            watched.read_until(partial(answered, watched, metric, gpu.uuid), group)


def answered(watched: Watched, metric: str, uuid: str) -> bool:
    """Whether a metric of a GPU has been read."""
    return watched.latest(metric, uuid) is not None


def told(watched: Watched, kind: str, times: int) -> bool:
    """Whether there have been so many events of a kind."""
    return watched.kinds().count(kind) >= times


def test_every_metric_of_a_gpu_is_read_in_its_unit(node: NodeState, watch: WatchNode) -> None:
    """Metrics come by UUID, with the simulated values in our units."""
    gpu = node.gpus[1]
    gpu.energy_mj, gpu.power_instant_mw, gpu.throttle_hw_thermal_ns = 5_000_000, 612_000, 77
    gpu.links[0].data_tx_kib = 3
    gpu.utilization_percent, gpu.clock_event_reasons = 90, 0x44
    watched = watch(node)
    read_all_groups(watched)
    assert {r.metric for r in watched.readings} <= set(METRICS)
    assert watched.latest("gpu.energy_joules", gpu.uuid) == 5000.0
    assert watched.latest("gpu.power_instant_watts", gpu.uuid) == 612.0
    assert watched.latest("gpu.throttle_hw_thermal_ns", gpu.uuid) == 77
    assert watched.latest("gpu.nvlink_tx_bytes", gpu.uuid) == 3 * 1024
    assert watched.latest("gpu.utilization_ratio", gpu.uuid) == 0.9
    assert watched.latest("gpu.clock_event_reasons", gpu.uuid) == 0x44
    assert watched.latest("gpu.memory_total_bytes", gpu.uuid) == gpu.memory_total_bytes
    assert {part_of(r.device).uuid for r in watched.readings} == {g.uuid for g in node.gpus}
    assert {outcome for _, outcome, _ in watched.outcomes} <= {Outcome.UNSUPPORTED, Outcome.NO_DATA}


@pytest.mark.parametrize("profile", ["A100-SXM4-80GB", "B200"])
@pytest.mark.parametrize("driver", ["550.163.01", "575.57.08", "580.95.05"])
def test_other_gpus_and_drivers_leave_out_what_they_lack(
    profile: str, driver: str, tmp_path: Path, watch: WatchNode
) -> None:
    """Nothing fails on another product or driver: each metric is read, or said to be unsupported, never both."""
    node = NodeState.create(tmp_path / "other", profile=profile, gpus=1, driver=driver)
    node.gpus[0].throttle_hw_thermal_ns = 4321
    watched = watch(node)
    read_all_groups(watched)
    read = {r.metric for r in watched.readings}
    unsupported = {
        metric
        for _, outcome, reason in watched.outcomes
        if outcome is Outcome.UNSUPPORTED
        for metric in reason.partition(":")[0].split(", ")
    }
    assert not read & unsupported
    assert {o for _, o, _ in watched.outcomes} <= {Outcome.UNSUPPORTED, Outcome.NO_DATA}
    hardware_thermal = watched.latest("gpu.throttle_hw_thermal_ns", node.gpus[0].uuid)
    assert hardware_thermal == (None if driver.startswith("550") else 4321)
    assert "gpu.energy_joules" in read


def test_what_the_driver_takes_is_told_for_each_gpu(node: NodeState, watch: WatchNode) -> None:
    """The latency of field values adds up by GPU as a counter, and is told with each read."""
    slow = node.gpus[1]
    slow.latency_us = 20_000
    watched = watch(node)
    watched.read_until(
        lambda: (watched.latest("gpu.driver_latency_ns", slow.uuid) or 0) >= 60_000_000,
        "counters",
    )
    took = [r.value for r in watched.readings if r.metric == "gpu.driver_latency_ns" and r.device == slow.uuid]
    assert took == sorted(took)
    assert watched.driver_ns >= took[-1]
    assert watched.helper_cpu_ns > 0


def test_the_gpus_are_named_for_the_recording_and_for_the_kernel_log(node: NodeState, watch: WatchNode) -> None:
    """UUID, index, PCI address and name are offered, and an address as the kernel prints it finds its UUID."""
    probe = watch(node).probe
    assert [(g.uuid, g.index, g.pci) for g in probe.gpus] == [
        (g.uuid, i, g.kernel_pci_id) for i, g in enumerate(node.gpus)
    ]
    assert "H100" in probe.gpus[0].name
    assert probe.uuid_of_pci(node.gpus[2].kernel_pci_id) == node.gpus[2].uuid
    assert probe.uuid_of_pci("ffff:00:00") is None


def test_a_library_at_a_path_is_used(node: NodeState, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured path wins over what the linker would find."""
    monkeypatch.setenv("RANKSCOPE_SIM_NVML_STATE", str(node.path))
    watched = Watched(NvmlProbe(library=str(library / LIBRARY)))
    try:
        watched.read_until(lambda: len(watched.probe.gpus) == 3)
    finally:
        watched.probe.close()


def test_no_library_is_one_line_and_no_helper(tmp_path: Path) -> None:
    """Without NVML the probe says so once, leaves no process behind and is quiet from then on."""
    watched = Watched(NvmlProbe(library=str(tmp_path / "libnvidia-ml.so.1")))
    watched.read_until(lambda: bool(watched.outcomes))
    for _ in range(20):
        watched.read()
    assert [(device, outcome) for device, outcome, _ in watched.outcomes] == [("", Outcome.UNSUPPORTED)]
    assert watched.outcomes[0][2].startswith("NVML library not found")
    assert watched.events == []
    assert watched.probe.helper_pid is None
    watched.probe.close()


def test_ecc_switched_off_is_absent(node: NodeState, watch: WatchNode) -> None:
    """With ECC off its counters are left out and that is said, for that GPU alone."""
    node.gpus[0].ecc_enabled = False
    watched = watch(node)
    read_all_groups(watched)
    assert watched.latest("gpu.ecc_uncorrected_volatile", node.gpus[1].uuid) == 0
    assert watched.latest("gpu.ecc_uncorrected_volatile", node.gpus[0].uuid) is None
    assert watched.latest("gpu.pcie_replays", node.gpus[0].uuid) == 0
    assert {device for device, _, reason in watched.outcomes if "ECC is off" in reason} == {node.gpus[0].uuid}


def test_a_feature_one_gpu_lacks_stays_with_the_others(node: NodeState, watch: WatchNode) -> None:
    """What NVML does not support on one GPU is dropped for that GPU and goes on for its peers."""
    node.gpus[2].not_supported = frozenset({Feature.UTILIZATION})
    watched = watch(node)
    watched.read_until(lambda: watched.latest("gpu.utilization_ratio", node.gpus[0].uuid) is not None)
    watched.read_until(lambda: watched.latest("gpu.sm_clock_mhz", node.gpus[2].uuid) is not None)
    assert watched.latest("gpu.utilization_ratio", node.gpus[2].uuid) is None
    assert {d for d, _, reason in watched.outcomes if "gpu.utilization_ratio" in reason} == {node.gpus[2].uuid}


@pytest.mark.parametrize("how", ["lost", "reset"])
def test_a_lost_gpu_is_told_once_and_the_others_go_on(node: NodeState, watch: WatchNode, how: str) -> None:
    """One event names the GPU; it is sampled no more while its peers are."""
    watched = watch(node)
    if how == "lost":
        node.gpus[1].lost = True
    else:
        node.gpus[1].fail_with = 16
    watched.read_until(lambda: "gpu-lost" in watched.kinds())
    before = len(watched.readings)
    for group in GROUPS * 3:
        watched.read(group)
    watched.read_until(lambda: len(watched.readings) > before + 50)
    assert watched.kinds().count("gpu-lost") == 1
    event = next(event for event in watched.events if event.kind == "gpu-lost")
    assert event.device == node.gpus[1].uuid
    assert event.attributes["source"] == "nvml"
    read = {part_of(r.device).uuid for r in watched.readings[before:]}
    assert read == {node.gpus[0].uuid, node.gpus[2].uuid}


def test_a_gpu_that_a_fresh_helper_no_longer_finds_is_lost(node: NodeState, watch: WatchNode) -> None:
    """After the helper died, a GPU that is not enumerated any more is told as lost, once."""
    watched = watch(node)
    assert watched.probe.helper_pid is not None
    first = watched.probe.helper_pid
    psutil.Process(first).kill()
    while psutil.Process(first).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    node.gpus[0].lost = True
    watched.read_until(lambda: "gpu-lost" in watched.kinds())
    event = next(event for event in watched.events if event.kind == "gpu-lost")
    assert (event.device, event.attributes["source"]) == (node.gpus[0].uuid, "enumeration")
    assert "probe-failed" in watched.kinds()
    assert watched.probe.helper_pid != first
    watched.read_until(lambda: watched.latest("gpu.sm_clock_mhz", node.gpus[2].uuid) is not None)
    assert watched.kinds().count("gpu-lost") == 1
    assert len(watched.probe.gpus) == 3, "a lost GPU stays known"


def test_a_lost_gpu_that_came_back_is_read_again(node: NodeState, watch: WatchNode) -> None:
    """After a while a fresh helper looks again: a GPU that was reset is sampled as before."""
    watched = watch(node)
    node.gpus[1].lost = True
    watched.read_until(lambda: "gpu-lost" in watched.kinds())
    node.gpus[1].lost = False
    before = len(watched.readings)
    watched.read(now_ns=time.monotonic_ns() + LOOK_AGAIN_NS)
    watched.read_until(lambda: any(r.device == node.gpus[1].uuid for r in watched.readings[before:]))
    assert "probe-failed" not in watched.kinds()
    assert [e.device for e in watched.events if e.kind == "probe-recovered"] == [node.gpus[1].uuid]


def test_xids_come_as_events_of_their_gpu(node: NodeState, watch: WatchNode) -> None:
    """An Xid raised on a GPU is an event with its number, source, address and UUID."""
    watched = watch(node)
    node.push_event(2, 94)
    watched.read_until(lambda: "xid" in watched.kinds())
    event = next(event for event in watched.events if event.kind == "xid")
    assert event.device == node.gpus[2].uuid
    assert event.attributes == {
        "number": 94,
        "message": None,
        "source": "nvml",
        "pci": node.gpus[2].kernel_pci_id,
    }


def test_a_hung_gpu_holds_up_no_other_source(node: NodeState, watch: WatchNode) -> None:
    """While one GPU's call hangs, its peers and the host are read on; the stall and its end are told once each."""
    watched = watch(node, deadline_ns=SECOND // 4)
    cpu = CpuProbe()
    stuck, well = node.gpus[0].uuid, node.gpus[1].uuid
    node.gpus[0].hang_until_monotonic_ns = FOR_EVER

    def told_of_it(kind: str) -> list[Event]:
        # A busy machine may hold up the other GPU's thread for as long as this short deadline too.
        return [e for e in watched.events if e.kind == kind and e.device == stuck]

    watched.read_until(lambda: bool(told_of_it("probe-stalled")))
    assert told_of_it("probe-stalled")[0].attributes["probe"] == "nvml"
    peers = sum(r.device == well for r in watched.readings)
    own = sum(r.device == stuck for r in watched.readings)
    host_reads = 0
    for _ in range(60):
        watched.read()
        host_reads += bool(cpu.read("cpu", time.monotonic_ns()).readings)
    assert host_reads == 60
    watched.read_until(lambda: sum(r.device == well for r in watched.readings) >= peers + 30)
    assert sum(r.device == stuck for r in watched.readings) == own
    assert len(told_of_it("probe-stalled")) == 1
    node.gpus[0].hang_until_monotonic_ns = 0
    watched.read_until(lambda: sum(r.device == stuck for r in watched.readings) > own)
    assert len(told_of_it("probe-recovered")) == 1
    cpu.close()


def test_a_read_never_waits_for_a_hung_driver(node: NodeState, watch: WatchNode) -> None:
    """With every call hanging, reads wait no longer than their patience: counted, many come back within the hang."""
    watched = watch(node)
    node.hang_until_monotonic_ns = time.monotonic_ns() + 2 * SECOND
    reads = 0
    while time.monotonic_ns() < node.hang_until_monotonic_ns:
        watched.read()
        reads += 1
    assert reads > 2000 / PATIENCE_MS / 10


def test_ten_hangs_leave_nothing_behind(node: NodeState, watch: WatchNode) -> None:
    """After ten hangs there is the same one helper with as many threads and descriptors, and this process's own."""
    watched = watch(node, deadline_ns=SECOND // 50)
    helper = psutil.Process(watched.probe.helper_pid)
    own = psutil.Process()
    watched.read_until(lambda: all("p2p" in watched.probe.facts(gpu.uuid) for gpu in node.gpus))
    # The main thread, the one that waits for events, the one that reads: the one that looked at relations has ended.
    watched.read_until(lambda: helper.num_threads() == 3)
    before = (helper.num_threads(), helper.num_fds(), own.num_threads(), own.num_fds(), own.children())
    for turn in range(1, 11):
        node.hang_until_monotonic_ns = FOR_EVER
        watched.read_until(partial(told, watched, "probe-stalled", 3 * turn))
        node.hang_until_monotonic_ns = 0
        watched.read_until(partial(told, watched, "probe-recovered", 3 * turn))
    # On a busy machine a GPU may pass so short a deadline by itself, too.
    watched.read_until(lambda: watched.kinds().count("probe-stalled") == watched.kinds().count("probe-recovered"))
    after = (helper.num_threads(), helper.num_fds(), own.num_threads(), own.num_fds(), own.children())
    assert after == before


def test_a_stuck_helper_is_replaced_only_where_allowed_and_only_when_gone(node: NodeState, watch: WatchNode) -> None:
    """With leave to kill, the successor starts after the stuck helper is gone; there is never a second one."""
    watched = watch(node, deadline_ns=SECOND // 4, replace_stuck_after_ns=SECOND // 2)
    first = watched.probe.helper_pid
    node.gpus[1].hang_until_monotonic_ns = FOR_EVER
    most = 0

    def replaced() -> bool:
        nonlocal most
        most = max(most, len(psutil.Process().children()))
        return watched.probe.helper_pid not in (first, None)

    watched.read_until(replaced)
    assert most == 1
    assert not psutil.pid_exists(first or 0)
    assert watched.kinds().count("probe-stalled") == 1
    node.gpus[1].hang_until_monotonic_ns = 0
    watched.read_until(lambda: "probe-recovered" in watched.kinds())


def test_a_stuck_helper_is_kept_where_killing_is_not_allowed(node: NodeState, watch: WatchNode) -> None:
    """Without leave to kill, the helper outlives any stall."""
    watched = watch(node, deadline_ns=SECOND // 50)
    first = watched.probe.helper_pid
    node.hang_until_monotonic_ns = FOR_EVER
    watched.read_until(lambda: "probe-stalled" in watched.kinds())
    watched.read(now_ns=time.monotonic_ns() + 3600 * SECOND)
    assert watched.probe.helper_pid == first
    assert psutil.Process(first).is_running()
    node.hang_until_monotonic_ns = 0


def test_a_hang_at_the_start_is_told_and_ends(node: NodeState, watch: WatchNode) -> None:
    """NVML that hangs while it is opened is a stall of the whole source, and a recovery when it answers."""
    node.hang_until_monotonic_ns = FOR_EVER
    watched = watch(node, ready=False, start_deadline_ns=SECOND // 4)
    watched.read_until(lambda: "probe-stalled" in watched.kinds())
    assert watched.events[0].device == ""
    node.hang_until_monotonic_ns = 0
    watched.read_until(lambda: "probe-recovered" in watched.kinds())
    watched.read_until(lambda: len(watched.probe.gpus) == 3)
    assert [kind for kind in watched.kinds() if kind != "gpu-described"] == ["probe-stalled", "probe-recovered"]


def test_a_firmware_timeout_in_the_kernel_log_opens_the_breaker(node: NodeState, watch: WatchNode) -> None:
    """After Xid 119 nothing is asked of NVML until the pause is over, then it goes on."""
    watched = watch(node)
    watched.read_until(lambda: bool(watched.readings))
    now = time.monotonic_ns()
    watched.probe.heed(Event("xid", now, "", attributes={"number": 119}))
    for _ in range(100):  # what was asked before still arrives
        watched.read(now_ns=now + 1)
        time.sleep(0.005)
    quiet = len(watched.readings)
    for _ in range(20):
        watched.read(now_ns=now + 2)
        time.sleep(0.005)
    assert len(watched.readings) == quiet
    assert ("", Outcome.NO_DATA, "NVML is left alone for 60 s after Xid 119 in the kernel log") in watched.outcomes
    late = now + BREAKER_NS
    end = time.monotonic() + 20
    while len(watched.readings) == quiet:
        assert time.monotonic() < end
        watched.read(now_ns=late)
        late += 1


def test_the_helper_ends_with_its_parent(node: NodeState, library: Path) -> None:
    """A parent that is killed takes its helper along, although that was never told to end."""
    code = (
        "import os, sys, time\n"
        "from rankscope.probes.nvml import NvmlProbe\n"
        "probe = NvmlProbe()\n"
        "while not probe.gpus:\n"
        "    probe.read('fast', time.monotonic_ns())\n"
        "print(probe.helper_pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, **node.environment(library)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        helper = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
    helper.wait(20)


def test_the_helper_is_gone_after_close_even_in_a_hang(node: NodeState, watch: WatchNode) -> None:
    """Closing ends a helper whose threads hang in calls that the kernel can interrupt."""
    watched = watch(node)
    helper = psutil.Process(watched.probe.helper_pid)
    node.hang_until_monotonic_ns = FOR_EVER
    for group in GROUPS:
        watched.read(group)
    watched.probe.close()
    helper.wait(20)
    assert watched.probe.helper_pid is None


def test_an_error_of_the_helper_itself_is_said_and_survived(node: NodeState, library: Path) -> None:
    """A fault in our own reading ends that helper with its reason, and is not taken for a GPU that hangs."""
    code = (
        "from rankscope.probes import nvml_child, nvml_reader\n"
        "def fail(*_): raise RuntimeError('boom')\n"
        "nvml_reader.GpuReader.read = fail\n"
        "nvml_child.main()\n"
    )
    environment = {**os.environ, **node.environment(library)}
    ask = pack({"group": "fast", "gpus": [0]})
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        unpacker = Unpacker()
        messages: list[Message] = []
        while not messages:
            messages += unpacker.feed(os.read(helper.stdout.fileno(), 65536))
        helper.stdin.write(ask)
        helper.stdin.flush()
        while data := os.read(helper.stdout.fileno(), 65536):
            messages += unpacker.feed(data)
    assert [message["kind"] for message in messages if message["kind"] != "relations"] == ["hello", "note"]
    assert messages[-1]["reason"] == "the NVML helper failed: RuntimeError: boom"
    assert helper.returncode == 3
