"""What moves a simulated GPU: its counters follow what the rank on it really did, and the faults put on it.

Utilization, power, temperature, energy, bytes and throttle time are derived at each tick from the growth of
`busy_ns`, `collective_ns` and `spin_ns` since the last one. The constants are chosen for plausibility and are
unverified on a device; what matters is that the readings move together as they do on one.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rankscope.errors import SimulatorError
from rankscope.simulator import faults
from rankscope.simulator.faults import Fault, FaultKind
from rankscope.simulator.gpu import EccKind, EccLifetime, Gpu, MemoryLocation
from rankscope.simulator.kernel_log import KernelLog
from rankscope.simulator.profiles import GpuProfile, profile_named
from rankscope.simulator.state import NodeState

TICK_NS = 50_000_000
SAMPLE_PERIOD_NS = 139_000_000  # 72 samples in about 10 s
_IDLE_AFTER_NS = 1_000_000_000  # without work for this long: idle clocks, idle link
_POWER_AVERAGE_NS = 1_000_000_000  # nvml.h, field 185: averaged over 1 s
_UTILIZATION_WINDOW_NS = 500_000_000  # nvml.h, nvmlUtilization_t: between 1/6 s and 1 s
_GPU_THERMAL_NS = 6_000_000_000
_MEMORY_THERMAL_NS = 10_000_000_000
_FAULT_THERMAL_NS = 1_000_000_000
# Share of the range between idle and limit that each kind of work draws.
_COMPUTE_POWER = 0.93
_TRANSFER_POWER = 0.35
_SPIN_POWER = 0.18
_LINK_EFFICIENCY = 0.6  # of the links' speed, where a rank does not say what it moved
_CARRY_LIMIT_NS = 5_000_000_000  # a kernel longer than this is credited only this far


@dataclass
class _Motion:
    """What the physics remembers of one GPU between ticks."""

    busy_seen: int
    collective_seen: int
    spin_seen: int
    bytes_seen: int
    random: random.Random
    power_average: float
    energy_mj: float
    ambient_celsius: float
    busy_carry: float = 0.0
    collective_carry: float = 0.0
    spin_carry: float = 0.0
    utilization: float = 0.0
    memory_utilization: float = 0.0
    idle_for: int = _IDLE_AFTER_NS
    sampled_at: int = 0
    up_ns: int = 0
    active: dict[FaultKind, Fault] = field(default_factory=dict)


class Physics:
    """Moves every GPU of a host. Call `tick` yourself, or `start` a thread that does, every 50 ms.

    `kernel_log` receives the Xid lines of faults; without one they go to the event queue only. `clock` is
    CLOCK_MONOTONIC in nanoseconds and `wall_clock` dates the samples.
    """

    def __init__(
        self,
        state: NodeState,
        *,
        kernel_log: KernelLog | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.state = state
        self._profile: GpuProfile = profile_named(state.profile)
        self._log = kernel_log
        self._clock = clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_ns = clock()
        self._wall_offset_ns = wall_clock() - self._last_ns
        self._motions = [self._at_rest(gpu) for gpu in state.gpus]

    def apply(
        self,
        gpu: int,
        kind: FaultKind | str,
        severity: float = 1.0,
        *,
        counters: bool = True,
        slowdown: bool = True,
        xid: bool = True,
    ) -> None:
        """Put a fault on a GPU, replacing one of the same kind; the work factor changes at once.

        `severity` is the factor on compute time, at least 1 (silicon spread: also below); see `Fault`.
        Raises `SimulatorError` for a GPU that is not there, an unknown kind or such a severity.
        """
        fault = Fault(self._kind(kind), severity, counters, slowdown, xid)
        if severity < (0.5 if fault.kind is FaultKind.SILICON_SPREAD else 1.0):
            raise SimulatorError(f"severity {severity}", where=fault.kind, todo="give a factor of at least 1")
        target = self._gpu(gpu)
        with self._lock:
            self._motions[gpu].active[fault.kind] = fault
            self._set_work_factor(target)
            self._happen(target, fault)

    def clear(self, gpu: int, kind: FaultKind | str) -> None:
        """Take a fault off a GPU. What happened stays: counters keep their values, a lost GPU stays lost."""
        target = self._gpu(gpu)
        with self._lock:
            self._motions[gpu].active.pop(self._kind(kind), None)
            self._set_work_factor(target)

    def tick(self, now_ns: int | None = None) -> None:
        """Move every GPU from the last tick to `now_ns` (the clock's time, if not given)."""
        with self._lock:
            now = self._clock() if now_ns is None else now_ns
            elapsed = now - self._last_ns
            if elapsed <= 0:
                return
            self._last_ns = now
            for gpu, motion in zip(self.state.gpus, self._motions, strict=True):
                if not gpu.lost:
                    self._move(gpu, motion, elapsed, now)

    def start(self) -> None:
        """Tick every 50 ms in a daemon thread until `stop`."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="simulated-physics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after a last tick."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self.tick()

    def _at_rest(self, gpu: Gpu) -> _Motion:
        generator = random.Random(gpu.uuid)
        return _Motion(
            gpu.busy_ns,
            gpu.collective_ns,
            gpu.spin_ns,
            gpu.collective_bytes,
            random=generator,
            power_average=float(gpu.power_average_mw),
            energy_mj=float(gpu.energy_mj),
            up_ns=gpu.uptime_seconds * 1_000_000_000,
            # Peers differ by some degrees with their place in the air stream.
            ambient_celsius=self._profile.ambient_celsius + generator.uniform(-3.0, 3.0),
        )

    def _run(self) -> None:
        while not self._stopping.wait(TICK_NS / 1e9):
            self.tick()

    def _gpu(self, index: int) -> Gpu:
        if not 0 <= index < len(self.state.gpus):
            raise SimulatorError(
                f"no GPU {index}", where=self.state.host, todo=f"choose 0 to {len(self.state.gpus) - 1}"
            )
        return self.state.gpus[index]

    @staticmethod
    def _kind(kind: FaultKind | str) -> FaultKind:
        try:
            return FaultKind(kind)
        except ValueError:
            raise SimulatorError(
                f"no GPU fault {str(kind)!r}", where="fault", todo=f"choose one of {', '.join(FaultKind)}"
            ) from None

    def _set_work_factor(self, gpu: Gpu) -> None:
        active = self._motions[gpu.index].active.values()
        gpu.work_factor = math.prod(f.severity for f in active if f.slowdown and f.kind in faults.SLOWING)

    def _xid(self, gpu: Gpu, number: int) -> None:
        self.state.push_event(gpu.index, number)

    def _happen(self, gpu: Gpu, fault: Fault) -> None:
        """The part of a fault that happens once, when it is applied."""
        pid = next(iter(gpu.processes()), None)
        match fault.kind:
            case FaultKind.OFF_BUS:
                if fault.xid and fault.counters:
                    self._xid(gpu, 79)
                    if self._log is not None:
                        self._log.fallen_off_bus(gpu.kernel_pci_id)
                gpu.lost = gpu.lost or fault.counters
                gpu.fatal = gpu.fatal or fault.slowdown
            case FaultKind.ECC_UNCORRECTABLE:
                if fault.counters:
                    for lifetime in EccLifetime:
                        gpu.add_ecc_errors(lifetime, EccKind.UNCORRECTED, MemoryLocation.DRAM, 1)
                    gpu.remap_pending = True
                    gpu.recovery_action = 4
                if fault.counters and fault.xid:
                    for number in (48, 63, 94, 154):
                        self._xid(gpu, number)
                    if self._log is not None:
                        self._log.double_bit_ecc(gpu.kernel_pci_id, pid=pid)
                gpu.fatal = gpu.fatal or fault.slowdown
            case FaultKind.OLD_XID:
                if self._log is not None:
                    self._log.xid(
                        gpu.kernel_pci_id,
                        31,
                        "Ch 00000010, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted "
                        "@ 0x7f2a_4c000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
                        pid=2117,
                        name="python3",
                        age_ns=6 * 3600 * 10**9,
                    )
            case FaultKind.ECC_HISTORY:
                gpu.add_ecc_errors(EccLifetime.AGGREGATE, EccKind.CORRECTED, MemoryLocation.DRAM, 1832)
                gpu.add_ecc_errors(EccLifetime.AGGREGATE, EccKind.UNCORRECTED, MemoryLocation.DRAM, 2)
                gpu.remapped_uncorrected = 1
            case _:
                pass

    def _move(self, gpu: Gpu, motion: _Motion, elapsed: int, now: int) -> None:
        busy, transfer, spin = self._work_done(gpu, motion, elapsed, now)
        working = busy + transfer + spin > 0
        motion.idle_for = 0 if working else motion.idle_for + elapsed
        idle = motion.idle_for >= _IDLE_AFTER_NS
        shown = [f for f in motion.active.values() if f.counters]
        self._move_clocks(gpu, shown, busy=busy, idle=idle)
        downshifts = any(f.kind is FaultKind.PCIE_DOWNSHIFT for f in shown)
        gpu.pcie_generation = 1 if idle or (downshifts and not working) else gpu.pcie_max_generation
        self._move_power(gpu, motion, elapsed, busy, transfer, spin, shown)
        self._move_temperature(gpu, motion, elapsed, shown)
        self._move_bytes(gpu, motion, elapsed, transfer)
        self._count_throttling(gpu, elapsed)
        weight = 1 - math.exp(-elapsed / _UTILIZATION_WINDOW_NS)
        motion.utilization += weight * (min(1.0, busy + transfer + spin) - motion.utilization)
        motion.memory_utilization += weight * (min(1.0, 0.45 * busy + 0.2 * transfer) - motion.memory_utilization)
        gpu.utilization_percent = round(100 * motion.utilization)
        gpu.memory_utilization_percent = round(100 * motion.memory_utilization)
        gpu.gpm_graphics_ns += round(elapsed * min(1.0, busy + transfer + spin))
        gpu.gpm_sm_ns += round(elapsed * min(1.0, 0.92 * busy + 0.2 * transfer + 0.15 * spin))
        gpu.gpm_occupancy_ns += round(elapsed * (0.45 * busy + 0.08 * (transfer + spin)))
        gpu.gpm_tensor_ns += round(elapsed * 0.6 * busy)
        gpu.gpm_dram_ns += round(elapsed * (0.45 * busy + 0.15 * transfer))
        gpu.gpm_hmma_ns += round(elapsed * 0.6 * busy)
        gpu.gpm_integer_ns += round(elapsed * 0.09 * busy)
        gpu.gpm_fp32_ns += round(elapsed * 0.09 * busy)
        gpu.moved_at_monotonic_ns = now
        motion.up_ns += elapsed
        gpu.uptime_seconds = motion.up_ns // 1_000_000_000
        if now - motion.sampled_at >= SAMPLE_PERIOD_NS:
            motion.sampled_at = max(motion.sampled_at + SAMPLE_PERIOD_NS, now - SAMPLE_PERIOD_NS)
            gpu.push_sample((now + self._wall_offset_ns) // 1000)

    @staticmethod
    def _work_done(gpu: Gpu, motion: _Motion, elapsed: int, now: int) -> tuple[float, float, float]:
        """Shares of the tick in compute, transfer and spin; compute and communication may overlap.

        A rank adds a kernel's time when the kernel ends, so a tick may see more than its own length: the rest
        is carried over, which keeps the sum right and shifts it by less than one kernel. A wait that goes on is
        counted as it goes, so that a rank stuck in a collective spins and does not look idle.
        """
        busy, collective, spin = gpu.busy_ns, gpu.collective_ns, gpu.spin_ns
        since = gpu.waiting_since_monotonic_ns
        if since:
            spin += max(0, now - since)
        motion.busy_carry += busy - motion.busy_seen
        motion.collective_carry += collective - motion.collective_seen
        # The end of a wait is booked in two stores: what was counted while it went on is not taken back.
        motion.spin_carry += max(0, spin - motion.spin_seen)
        motion.busy_seen, motion.collective_seen = busy, collective
        motion.spin_seen = max(spin, motion.spin_seen)
        computed = min(motion.busy_carry, elapsed)
        communicating = motion.collective_carry + motion.spin_carry
        share = min(1.0, elapsed / communicating) if communicating > 0 else 0.0
        transferred, spun = share * motion.collective_carry, share * motion.spin_carry
        motion.busy_carry = min(motion.busy_carry - computed, _CARRY_LIMIT_NS)
        motion.collective_carry = min(motion.collective_carry - transferred, _CARRY_LIMIT_NS)
        motion.spin_carry = min(motion.spin_carry - spun, _CARRY_LIMIT_NS)
        return computed / elapsed, transferred / elapsed, spun / elapsed

    @staticmethod
    def _move_clocks(gpu: Gpu, shown: list[Fault], *, busy: float, idle: bool) -> None:
        clock = float(gpu.max_sm_clock_mhz)
        reasons = 0
        for fault in shown:
            if fault.kind not in faults.SLOWING:
                continue
            if fault.kind is FaultKind.POWER_CAP and busy < 0.3:
                continue  # the cap acts at full load only
            clock = min(clock, gpu.max_sm_clock_mhz / fault.severity)
            reasons |= faults.REASONS.get(fault.kind, 0)
        if idle:
            clock = min(clock, gpu.idle_sm_clock_mhz)
            reasons |= faults.REASON_IDLE
        gpu.sm_clock_mhz = round(clock / 15) * 15  # clocks move in steps of 15 MHz
        gpu.memory_clock_mhz = gpu.idle_memory_clock_mhz if idle else gpu.max_memory_clock_mhz
        gpu.clock_event_reasons = reasons

    def _move_power(
        self,
        gpu: Gpu,
        motion: _Motion,
        elapsed: int,
        busy: float,
        transfer: float,
        spin: float,
        shown: list[Fault],
    ) -> None:
        spread = gpu.power_limit_mw - gpu.power_idle_mw
        # Dynamic power falls with frequency and voltage, about with the square of the clock.
        speed = (gpu.sm_clock_mhz / gpu.max_sm_clock_mhz) ** 2
        capped = any(f.kind is FaultKind.POWER_CAP for f in shown)
        compute = 1.0 if capped else _COMPUTE_POWER * speed
        load = min(1.0, busy * compute + transfer * _TRANSFER_POWER + spin * _SPIN_POWER)
        power = (gpu.power_idle_mw + spread * load) * motion.random.uniform(0.99, 1.01)
        gpu.power_instant_mw = round(power)
        motion.power_average += (1 - math.exp(-elapsed / _POWER_AVERAGE_NS)) * (power - motion.power_average)
        gpu.power_average_mw = round(motion.power_average)
        motion.energy_mj += power * elapsed / 1e9
        gpu.energy_mj = int(motion.energy_mj)

    def _move_temperature(self, gpu: Gpu, motion: _Motion, elapsed: int, shown: list[Fault]) -> None:
        rise = self._profile.full_load_celsius - self._profile.ambient_celsius
        target = motion.ambient_celsius + rise * gpu.power_average_mw / gpu.power_default_limit_mw
        constant = _GPU_THERMAL_NS
        if any(f.kind is FaultKind.THERMAL_SLOWDOWN for f in shown):
            target, constant = gpu.slowdown_celsius + 0.5, _FAULT_THERMAL_NS
        gpu.temperature_celsius += (1 - math.exp(-elapsed / constant)) * (target - gpu.temperature_celsius)
        memory_target = gpu.temperature_celsius + 6.0
        gpu.memory_temperature_celsius += (1 - math.exp(-elapsed / _MEMORY_THERMAL_NS)) * (
            memory_target - gpu.memory_temperature_celsius
        )

    @staticmethod
    def _move_bytes(gpu: Gpu, motion: _Motion, elapsed: int, transfer: float) -> None:
        told = gpu.collective_bytes
        if told:
            moved, motion.bytes_seen = told - motion.bytes_seen, told
        else:
            mbps = gpu.nvlink_count * gpu.nvlink_speed_mbps or 12_000  # without NVLink: over PCIe
            moved = round(transfer * elapsed / 1e9 * mbps * 1e6 * _LINK_EFFICIENCY)
        host_bytes = moved if not gpu.links else moved // 200  # launches, copies of batches
        gpu.pcie_tx_bytes += host_bytes
        gpu.pcie_rx_bytes += host_bytes
        rate = min(round(host_bytes / 1024 / (elapsed / 1e9)), 2**32 - 1)
        gpu.pcie_tx_kib_per_s = gpu.pcie_rx_kib_per_s = rate
        up = [link for link in gpu.links if link.state == 1]
        for link in up:
            kib = moved // len(up) // 1024
            link.data_tx_kib += kib
            link.data_rx_kib += kib
            link.raw_tx_kib += kib * 9 // 8
            link.raw_rx_kib += kib * 9 // 8

    @staticmethod
    def _count_throttling(gpu: Gpu, elapsed: int) -> None:
        reasons = gpu.clock_event_reasons
        if reasons & faults.REASON_SW_POWER_CAP:
            gpu.throttle_sw_power_ns += elapsed
        if reasons & (faults.REASON_SW_THERMAL | faults.REASON_HW_THERMAL):
            gpu.throttle_thermal_ns += elapsed
        if reasons & faults.REASON_SYNC_BOOST:
            gpu.throttle_sync_boost_ns += elapsed
        if reasons & faults.REASON_BOARD_LIMIT:
            gpu.throttle_board_limit_ns += elapsed
        if reasons & faults.REASON_IDLE:
            gpu.throttle_low_utilization_ns += elapsed
        if reasons & faults.REASON_RELIABILITY:
            gpu.throttle_reliability_ns += elapsed
        if reasons & faults.REASON_SW_THERMAL:
            gpu.throttle_sw_thermal_ns += elapsed
        if reasons & faults.REASON_HW_THERMAL:
            gpu.throttle_hw_thermal_ns += elapsed
        if reasons & faults.REASON_POWER_BRAKE:
            gpu.throttle_power_brake_ns += elapsed
        if reasons & faults.REASON_HW_SLOWDOWN:
            gpu.throttle_base_clocks_ns += elapsed
        if reasons & ~(faults.REASON_IDLE | faults.REASON_APPLICATION_CLOCKS):
            gpu.throttle_app_clocks_ns += elapsed
