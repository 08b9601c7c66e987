"""The physics: counters follow the work, faults move both, and each twin moves only one of them."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from simulated_nvml import ChildFactory, NodeFactory

from rankscope.errors import SimulatorError
from rankscope.simulator import faults
from rankscope.simulator.faults import FaultKind
from rankscope.simulator.gpu import EccKind, EccLifetime, Gpu, MemoryLocation
from rankscope.simulator.kernel_log import KernelLog
from rankscope.simulator.layout import RING_VISIBLE
from rankscope.simulator.physics import TICK_NS, Physics
from rankscope.simulator.profiles import PROFILES
from rankscope.simulator.state import NodeState


class Machine:
    """A host whose time is the test's: `run` lets every GPU work for some seconds."""

    def __init__(self, node: NodeState, log: KernelLog | None = None) -> None:
        self.node = node
        self.now = 10**12
        self.physics = Physics(node, kernel_log=log, clock=lambda: self.now)

    def run(self, seconds: float, *, busy: float = 0.7, transfer: float = 0.1, spin: float = 0.1) -> None:
        for _ in range(round(seconds * 1e9 / TICK_NS)):
            self.now += TICK_NS
            for gpu in self.node.gpus:
                gpu.busy_ns += round(busy * TICK_NS)
                gpu.collective_ns += round(transfer * TICK_NS)
                gpu.spin_ns += round(spin * TICK_NS)
            self.physics.tick()


@pytest.fixture
def machine(make_node: NodeFactory) -> Machine:
    """Four H100s under the test's own clock."""
    return Machine(make_node(gpus=4))


def moved(gpu: Gpu) -> dict[str, float]:
    """The readings a fault may move, rounded so that noise does not show."""
    return {
        "clock": gpu.sm_clock_mhz,
        "reasons": gpu.clock_event_reasons,
        "hot": gpu.temperature_celsius >= gpu.gpu_max_celsius,
        "throttled": gpu.throttle_hw_thermal_ns + gpu.throttle_power_brake_ns + gpu.throttle_sw_power_ns,
        "lost": gpu.lost,
        "uncorrected": gpu.ecc_errors(EccLifetime.VOLATILE, EccKind.UNCORRECTED, MemoryLocation.DRAM),
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_work_moves_power_energy_and_bytes(profile: str, make_node: NodeFactory) -> None:
    """A working GPU is busy, hot, at its clocks and moves bytes; an idle one does none of that."""
    node = make_node(profile)
    machine = Machine(node)
    machine.run(5, busy=0, transfer=0, spin=0)
    gpu = node.gpus[0]
    idle = (gpu.utilization_percent, gpu.power_average_mw, gpu.temperature_celsius, gpu.pcie_tx_bytes)
    assert gpu.clock_event_reasons == faults.REASON_IDLE
    assert gpu.pcie_generation == 1
    energy = gpu.energy_mj
    machine.run(10)
    assert idle[0] == 0
    assert gpu.utilization_percent > 80
    assert gpu.power_average_mw > 2 * idle[1]
    assert gpu.power_average_mw <= gpu.power_limit_mw
    assert gpu.temperature_celsius > idle[2] + 5
    assert gpu.temperature_celsius < gpu.gpu_max_celsius
    assert gpu.pcie_tx_bytes > idle[3]
    assert gpu.sm_clock_mhz >= gpu.max_sm_clock_mhz - 15
    assert gpu.clock_event_reasons == 0
    assert gpu.pcie_generation == gpu.pcie_max_generation
    joules = (gpu.energy_mj - energy) / 1000
    assert joules == pytest.approx(10 * gpu.power_average_mw / 1000, rel=0.15)
    assert all(link.data_tx_kib > 0 for link in gpu.links)


def test_waiting_looks_busy_and_draws_little(machine: Machine) -> None:
    """A GPU that spins in a collective is at full utilization, far below the power of compute, and moves nothing."""
    machine.run(5, busy=0.95, transfer=0, spin=0)
    gpu = machine.node.gpus[0]
    compute_power, sent = gpu.power_average_mw, gpu.links[0].data_tx_kib
    machine.run(8, busy=0, transfer=0, spin=1)
    assert gpu.utilization_percent >= 99
    assert gpu.power_average_mw < 0.5 * compute_power
    assert gpu.links[0].data_tx_kib == sent


def test_a_wait_that_does_not_end_is_seen(machine: Machine) -> None:
    """A rank stuck in a collective spins at full utilization and low power; its end books the wait only once."""
    gpu = machine.node.gpus[0]
    gpu.waiting_since_monotonic_ns = machine.now
    machine.run(6, busy=0, transfer=0, spin=0)
    assert gpu.utilization_percent >= 99
    assert gpu.power_average_mw < 0.4 * gpu.power_limit_mw
    assert machine.node.gpus[1].utilization_percent == 0
    gpu.waiting_since_monotonic_ns = 0
    machine.run(0.05, busy=0, transfer=0, spin=0)
    gpu.spin_ns += 6_000_000_000
    machine.run(3, busy=0, transfer=0, spin=0)
    assert gpu.gpm_graphics_ns == pytest.approx(6_000_000_000, rel=1e-6)


def test_overlapped_communication_adds_no_time(machine: Machine) -> None:
    """Communication beside compute keeps the GPU busy for as long as the longer of them, not for their sum."""
    machine.run(2, busy=1.0, transfer=0.8, spin=0.2)
    machine.run(1, busy=0, transfer=0, spin=0)
    assert machine.node.gpus[0].gpm_graphics_ns == pytest.approx(2_000_000_000, rel=1e-6)


def test_bytes_told_by_the_rank_are_counted(machine: Machine) -> None:
    """Where a rank says what its collectives moved, the links carry that and not an estimate."""
    gpu = machine.node.gpus[0]
    gpu.collective_bytes = 18 << 30
    machine.run(1, transfer=0.5)
    assert sum(link.data_tx_kib for link in gpu.links) == 18 << 20


def test_a_kernel_longer_than_a_tick_is_spread_out(machine: Machine) -> None:
    """A rank books a kernel when it ends: the time is carried over ticks and none is lost."""
    gpu = machine.node.gpus[0]
    gpu.busy_ns += 10 * TICK_NS
    machine.run(1, busy=0, transfer=0, spin=0)
    assert gpu.gpm_graphics_ns == pytest.approx(10 * TICK_NS, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "reason", "slower"),
    [
        (FaultKind.THERMAL_SLOWDOWN, 0x48, True),
        (FaultKind.CLOCKS_LOCKED, 0x2, True),
        (FaultKind.POWER_BRAKE, 0x88, True),
        (FaultKind.POWER_CAP, 0x4, True),
    ],
)
def test_a_fault_and_its_twins(kind: FaultKind, reason: int, slower: bool, make_node: NodeFactory) -> None:
    """The fault moves clock, reason and work; one twin only the work, the other only the counters."""
    machine = Machine(make_node(gpus=4))
    machine.run(3)
    severity = 1.25
    machine.physics.apply(1, kind, severity)
    machine.physics.apply(2, kind, severity, counters=False)
    machine.physics.apply(3, kind, severity, slowdown=False)
    machine.run(5)
    healthy, fault, only_slow, only_counters = machine.node.gpus
    assert [gpu.work_factor for gpu in machine.node.gpus] == [1.0, severity, severity, 1.0]
    assert moved(only_slow) == moved(healthy)
    assert moved(only_counters) == moved(fault)
    assert fault.clock_event_reasons == reason
    assert fault.sm_clock_mhz == pytest.approx(fault.max_sm_clock_mhz / severity, abs=15)
    assert (fault.temperature_celsius > fault.gpu_max_celsius) == (kind is FaultKind.THERMAL_SLOWDOWN)


@pytest.mark.parametrize(
    ("kind", "counters"),
    [
        (FaultKind.THERMAL_SLOWDOWN, ("throttle_hw_thermal_ns", "throttle_thermal_ns")),
        (FaultKind.POWER_BRAKE, ("throttle_power_brake_ns",)),
        (FaultKind.POWER_CAP, ("throttle_sw_power_ns",)),
    ],
)
def test_throttle_time_counts_while_the_reason_is_set(
    kind: FaultKind, counters: tuple[str, ...], machine: Machine
) -> None:
    """The nanosecond counters grow by the time of the fault, and stop with it."""
    gpu = machine.node.gpus[2]
    machine.run(1)
    machine.physics.apply(2, kind, 1.1)
    machine.run(3)
    machine.physics.clear(2, kind)
    machine.run(2)
    assert [getattr(gpu, name) for name in counters] == [3_000_000_000] * len(counters)
    assert all(getattr(machine.node.gpus[0], name) == 0 for name in counters)
    assert (gpu.work_factor, gpu.clock_event_reasons) == (1.0, 0)


def test_the_power_cap_acts_only_under_load(machine: Machine) -> None:
    """At full load the cap bit is set at the limit; an idle GPU under the same cap shows no sign of it."""
    for index in range(4):
        machine.physics.apply(index, FaultKind.POWER_CAP, 1.03)
    machine.run(6, busy=0.95, transfer=0.05, spin=0)
    assert all(gpu.clock_event_reasons == 0x4 for gpu in machine.node.gpus)
    assert all(gpu.power_average_mw > 0.95 * gpu.power_limit_mw for gpu in machine.node.gpus)
    machine.run(3, busy=0, transfer=0, spin=0)
    assert all(gpu.clock_event_reasons == faults.REASON_IDLE for gpu in machine.node.gpus)


@pytest.mark.parametrize("xid", [True, False])
def test_off_the_bus(xid: bool, make_node: NodeFactory, nvml_child: ChildFactory, tmp_path: Path) -> None:
    """The GPU is lost for NVML and fatal for its rank; an Xid 79 is in the log and the events, or nowhere."""
    log = KernelLog(tmp_path / "kmsg")
    node = make_node()
    child = nvml_child(node)
    machine = Machine(node, log)
    machine.physics.apply(1, FaultKind.OFF_BUS, xid=xid)
    assert child.error("nvmlDeviceGetPowerUsage(d1)") == 15
    assert [gpu.fatal for gpu in node.gpus] == [False, True]
    text = log.path.read_text()
    assert ("): 79, GPU has fallen off the bus." in text) == xid
    assert (text == "") is not xid
    assert node.event_count == int(xid)
    log.close()


def test_an_uncorrectable_error(make_node: NodeFactory, tmp_path: Path) -> None:
    """Counters, the remap flag, the recovery action, the Xids and the rank's end come together."""
    log = KernelLog(tmp_path / "kmsg")
    node = make_node()
    machine = Machine(node, log)
    machine.physics.apply(0, FaultKind.ECC_UNCORRECTABLE)
    gpu = node.gpus[0]
    assert moved(gpu)["uncorrected"] == 1
    assert (gpu.fatal, gpu.remap_pending, gpu.recovery_action) == (True, True, 4)
    assert node.event_count == 4
    assert f"NVRM: Xid (PCI:{gpu.kernel_pci_id}): 48" in log.path.read_text()
    log.close()


def test_fatal_twins(machine: Machine) -> None:
    """Without counters the rank dies in silence; without the effect the counters move and the rank lives."""
    machine.physics.apply(0, FaultKind.ECC_UNCORRECTABLE, counters=False)
    machine.physics.apply(1, FaultKind.ECC_UNCORRECTABLE, slowdown=False)
    silent, counted = machine.node.gpus[:2]
    assert (silent.fatal, moved(silent)["uncorrected"]) == (True, 0)
    assert (counted.fatal, moved(counted)["uncorrected"]) == (False, 1)


def test_confounders_touch_no_work(make_node: NodeFactory, tmp_path: Path) -> None:
    """An old Xid is dated hours back, ECC history is aggregate only, and neither slows or stops anything."""
    log = KernelLog(tmp_path / "kmsg", clock=lambda: 10**14)
    node = make_node()
    machine = Machine(node, log)
    for kind in (FaultKind.OLD_XID, FaultKind.ECC_HISTORY, FaultKind.PCIE_DOWNSHIFT):
        machine.physics.apply(0, kind)
    machine.run(1)
    gpu = node.gpus[0]
    assert (gpu.work_factor, gpu.fatal, gpu.lost) == (1.0, False, False)
    assert gpu.ecc_errors(EccLifetime.AGGREGATE, EccKind.UNCORRECTED, MemoryLocation.DRAM) > 0
    assert moved(gpu)["uncorrected"] == 0
    assert int(log.path.read_text().split(",")[2]) < 10**14 // 1000 - 3_600_000_000
    assert node.event_count == 0
    log.close()


def test_silicon_spread_goes_both_ways(machine: Machine) -> None:
    """Spread makes one GPU a little slower and another a little faster, with no reason bit on either."""
    machine.physics.apply(0, FaultKind.SILICON_SPREAD, 1.04)
    machine.physics.apply(1, FaultKind.SILICON_SPREAD, 0.97)
    machine.physics.apply(0, FaultKind.THERMAL_SLOWDOWN, 1.25)
    machine.physics.clear(0, FaultKind.THERMAL_SLOWDOWN)
    machine.run(2)
    slow, fast = machine.node.gpus[:2]
    assert (slow.work_factor, fast.work_factor) == (1.04, 0.97)
    assert slow.sm_clock_mhz < fast.sm_clock_mhz <= fast.max_sm_clock_mhz
    assert slow.clock_event_reasons == fast.clock_event_reasons == 0


def test_the_sample_ring_covers_ten_seconds(machine: Machine) -> None:
    """72 samples about 139 ms apart, oldest first, with the power of their time."""
    machine.run(30)
    samples = machine.node.gpus[0].samples()
    assert len(samples) == RING_VISIBLE
    span_s = (samples[-1][0] - samples[0][0]) / 1e6
    assert span_s == pytest.approx(71 * 0.139, rel=0.05)
    assert all(later[0] > earlier[0] for earlier, later in itertools.pairwise(samples))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((9, FaultKind.POWER_CAP, 1.1), "no GPU 9"),
        ((0, "gpu-on-fire", 1.1), "no GPU fault 'gpu-on-fire'"),
        ((0, FaultKind.POWER_CAP, 0.9), "severity 0.9"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(arguments: tuple[int, str, float], words: str, machine: Machine) -> None:
    """An absent GPU, an unknown kind and a factor below one are named, and nothing is applied."""
    with pytest.raises(SimulatorError, match=words):
        machine.physics.apply(*arguments)
    assert all(gpu.work_factor == 1.0 for gpu in machine.node.gpus)


def test_the_thread_ticks_until_it_is_stopped(make_node: NodeFactory) -> None:
    """start() moves the counters by itself; after stop() they stand still."""
    node = make_node()
    gpu = node.gpus[0]
    physics = Physics(node)
    physics.start()
    deadline = time.monotonic() + 20
    energy = gpu.energy_mj
    while gpu.energy_mj == energy and time.monotonic() < deadline:
        time.sleep(0.01)
    physics.stop()
    stopped = gpu.energy_mj
    assert stopped > energy
    time.sleep(2 * TICK_NS / 1e9)
    assert gpu.energy_mj == stopped
