"""One simulated GPU as typed properties over the mapped record.

Who writes what: the rank that runs on a GPU writes `busy_ns`, `collective_ns`, `spin_ns`,
`collective_bytes` and `step` and reads `work_factor` and `fatal`; the process that owns the physics and the
scenario writes everything else; the NVML library only reads. Each field has one writer and is stored in one machine
access, so no lock is needed.
"""

from __future__ import annotations

import enum
import uuid as uuid_module
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, overload

from rankscope.errors import SimulatorError
from rankscope.simulator.layout import ECC_LOCATIONS, MAX_MIG, MAX_PROCESSES, RING_SLOTS, RING_VISIBLE, Feature

_T = TypeVar("_T")


class EccLifetime(enum.IntEnum):
    """nvmlEccCounterType_t: since the driver was loaded, or over the life of the device."""

    VOLATILE = 0
    AGGREGATE = 1


class EccKind(enum.IntEnum):
    """nvmlMemoryErrorType_t."""

    CORRECTED = 0
    UNCORRECTED = 1


class MemoryLocation(enum.IntEnum):
    """nvmlMemoryLocation_t."""

    L1_CACHE = 0
    L2_CACHE = 1
    DRAM = 2
    REGISTER_FILE = 3
    TEXTURE_MEMORY = 4
    SHARED_MEMORY = 5
    CBU = 6
    SRAM = 7


class _Mapped:
    """An object over one mapped structure."""

    def __init__(self, record: Any) -> None:
        self.record = record


class _Field(Generic[_T]):
    """A typed property over the mapped field of the same name."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> _Field[_T]: ...
    @overload
    def __get__(self, instance: _Mapped, owner: type) -> _T: ...
    def __get__(self, instance: _Mapped | None, owner: type) -> _T | _Field[_T]:
        if instance is None:
            return self
        value: _T = getattr(instance.record, self.name)
        return value

    def __set__(self, instance: _Mapped, value: _T) -> None:
        setattr(instance.record, self.name, value)


class _Flag(_Field[bool]):
    """A mapped 32-bit word read as a truth value."""

    @overload
    def __get__(self, instance: None, owner: type) -> _Flag: ...
    @overload
    def __get__(self, instance: _Mapped, owner: type) -> bool: ...
    def __get__(self, instance: _Mapped | None, owner: type) -> bool | _Flag:
        return self if instance is None else bool(getattr(instance.record, self.name))


class Link(_Mapped):
    """One NVLink."""

    state = _Field[int]("0 off, 1 on, 2 sleep (NVML_NVLINK_STATE_*)")
    remote_index = _Field[int]("Index of the link at the other end")
    data_tx_kib = _Field[int]("Payload sent, KiB")
    data_rx_kib = _Field[int]("Payload received, KiB")
    raw_tx_kib = _Field[int]("Payload and protocol sent, KiB")
    raw_rx_kib = _Field[int]("Payload and protocol received, KiB")
    replay_errors = _Field[int]("Replays (field 161)")
    recovery_errors = _Field[int]("Recoveries (field 162)")
    crc_errors = _Field[int]("CRC errors (field 163)")
    recovery_successful = _Field[int]("Successful recoveries (field 213)")
    recovery_failed = _Field[int]("Failed recoveries (field 214)")
    receive_errors = _Field[int]("Packets received in error (field 208)")
    effective_errors = _Field[int]("Effective errors (field 219)")
    symbol_errors = _Field[int]("Symbol errors (field 221)")
    malformed_packets = _Field[int]("Malformed packets (field 206)")
    buffer_overruns = _Field[int]("Buffer overruns (field 207)")
    remote_errors = _Field[int]("Packets marked bad by the other end (field 209)")
    general_errors = _Field[int]("Packets with a header mismatch (field 210)")
    integrity_errors = _Field[int]("Local link integrity errors (field 211)")
    discarded_packets = _Field[int]("Packets not sent (field 212)")
    ecc_errors = _Field[int]("Data ECC errors (fields 148-159, in total 160)")
    effective_ber = _Field[int]("Effective bit error rate, packed (field 220)")
    symbol_ber = _Field[int]("Symbol bit error rate, packed (field 222)")

    def set_fec_corrected(self, counts: Sequence[int]) -> None:
        """Set the bins of the histogram of corrected symbols (fields 235-250), from the first on."""
        for place, count in enumerate(counts):
            self.record.fec_corrected[place] = count


class Mig(_Mapped):
    """One MIG instance of a GPU; there is none where `present` is false."""

    present = _Flag("Whether there is such an instance")
    gpu_instance = _Field[int]("GPU instance id")
    compute_instance = _Field[int]("Compute instance id")
    multiprocessors = _Field[int]("Streaming multiprocessors")
    memory_total_bytes = _Field[int]("Memory of the instance")
    memory_used_bytes = _Field[int]("Memory in use")
    gpm_graphics_ns = _Field[int]("Integral behind GPM metric 1")
    gpm_sm_ns = _Field[int]("Integral behind GPM metric 2")
    gpm_occupancy_ns = _Field[int]("Integral behind GPM metric 3")
    gpm_tensor_ns = _Field[int]("Integral behind GPM metric 5")
    gpm_dram_ns = _Field[int]("Integral behind GPM metric 10")

    @property
    def uuid(self) -> str:
        """`MIG-xxxxxxxx-xxxx-...`."""
        return str(self.record.uuid.decode())


class Gpu(_Mapped):
    """One simulated GPU. Every property reads or writes the shared file at once."""

    # Written by the rank's device thread.
    busy_ns = _Field[int]("Device time spent in compute kernels, ns, only ever grows; without communication")
    collective_ns = _Field[int]("Device time in communication kernels that moved data, ns, only ever grows")
    spin_ns = _Field[int]("Device time in communication kernels that waited for peers, ns, only ever grows")
    collective_bytes = _Field[int]("Bytes moved by collectives; 0 for ever: derived from collective_ns")
    waiting_since_monotonic_ns = _Field[int]("When the wait for peers that goes on now began; 0: none, or not told")
    step = _Field[int]("The training step the rank is in, from 0; -1 before the first")
    # Read by the rank's device thread.
    work_factor = _Field[float]("Multiplies the duration of each compute kernel; 1.0 is healthy")
    fatal = _Flag("The device has failed: the rank's next device call must fail as CUDA's would")
    # How NVML calls behave.
    lost = _Flag("Off the bus: calls answer GPU_IS_LOST, and after a new nvmlInit the GPU is not there")
    latency_us = _Field[int]("Each NVML call on this GPU takes this long")
    fail_with = _Field[int](
        "An nvmlReturn_t every call on this GPU answers, 0 for none (999 unknown, 16 reset required)"
    )
    hang_until_monotonic_ns = _Field[int]("Calls on this GPU block until CLOCK_MONOTONIC has passed this")
    # Limits.
    max_sm_clock_mhz = _Field[int]("Highest SM clock")
    max_memory_clock_mhz = _Field[int]("Highest memory clock")
    idle_sm_clock_mhz = _Field[int]("SM clock when idle")
    idle_memory_clock_mhz = _Field[int]("Memory clock when idle")
    default_application_clock_mhz = _Field[int]("Default application clock")
    power_min_limit_mw = _Field[int]("Lowest settable power limit")
    power_max_limit_mw = _Field[int]("Highest settable power limit")
    power_default_limit_mw = _Field[int]("Power limit at boot")
    power_idle_mw = _Field[int]("Power drawn when idle")
    shutdown_celsius = _Field[int]("Shutdown threshold")
    slowdown_celsius = _Field[int]("Hardware slowdown threshold")
    gpu_max_celsius = _Field[int]("Software slowdown threshold")
    memory_max_celsius = _Field[int]("Memory threshold")
    pcie_max_generation = _Field[int]("Highest PCIe generation")
    pcie_max_width = _Field[int]("Highest PCIe width, lanes")
    nvlink_count = _Field[int]("NVLinks present")
    nvlink_speed_mbps = _Field[int]("Speed of one link, MB/s")
    memory_total_bytes = _Field[int]("Device memory")
    memory_reserved_bytes = _Field[int]("Device memory held by driver and firmware")
    # Moved by the physics.
    utilization_percent = _Field[int]("Share of the last period with a kernel running")
    memory_utilization_percent = _Field[int]("Share of the last period with memory in use")
    sm_clock_mhz = _Field[int]("SM clock")
    memory_clock_mhz = _Field[int]("Memory clock")
    application_clock_mhz = _Field[int]("Application clock asked for")
    performance_state = _Field[int]("P-state, 0 fastest")
    clock_event_reasons = _Field[int]("Bits of nvmlClocksEventReason*")
    temperature_celsius = _Field[float]("GPU temperature")
    memory_temperature_celsius = _Field[float]("Memory temperature")
    power_average_mw = _Field[int]("Power averaged over 1 s")
    power_instant_mw = _Field[int]("Power now")
    power_limit_mw = _Field[int]("Limit in force")
    power_requested_limit_mw = _Field[int]("Limit asked for")
    energy_mj = _Field[int]("Energy since the driver was loaded, mJ")
    throttle_sw_power_ns = _Field[int]("Field 74")
    throttle_thermal_ns = _Field[int]("Field 75")
    throttle_sync_boost_ns = _Field[int]("Field 76")
    throttle_board_limit_ns = _Field[int]("Field 77")
    throttle_low_utilization_ns = _Field[int]("Field 78")
    throttle_reliability_ns = _Field[int]("Field 79")
    throttle_app_clocks_ns = _Field[int]("Field 80")
    throttle_base_clocks_ns = _Field[int]("Field 81")
    throttle_sw_thermal_ns = _Field[int]("Field 251 or 269, by driver")
    throttle_hw_thermal_ns = _Field[int]("Field 252 or 270, by driver")
    throttle_power_brake_ns = _Field[int]("Field 253 or 271, by driver")
    memory_used_bytes = _Field[int]("Device memory allocated, without the reserved part")
    ecc_enabled = _Flag("ECC mode")
    sram_threshold_exceeded = _Flag("SRAM error threshold passed")
    remapped_corrected = _Field[int]("Rows remapped for corrected errors")
    remapped_uncorrected = _Field[int]("Rows remapped for uncorrected errors")
    remap_pending = _Flag("A row remap waits for a reset")
    remap_failure = _Flag("A row could not be remapped")
    retired_single_bit = _Field[int]("Pages retired for single bit errors")
    retired_double_bit = _Field[int]("Pages retired for double bit errors")
    retired_pending = _Flag("A page retirement waits for a reset")
    recovery_action = _Field[int]("Field 230: 0 none 1 GPU reset 2 reboot 3 drain P2P 4 drain and reset")
    pcie_generation = _Field[int]("PCIe generation now")
    pcie_width = _Field[int]("PCIe width now, lanes")
    pcie_replay_count = _Field[int]("PCIe replays")
    pcie_replay_rollover_count = _Field[int]("PCIe replay number rollovers")
    pcie_tx_bytes = _Field[int]("PCIe bytes sent")
    pcie_rx_bytes = _Field[int]("PCIe bytes received")
    pcie_tx_kib_per_s = _Field[int]("PCIe rate sent, KiB/s")
    pcie_rx_kib_per_s = _Field[int]("PCIe rate received, KiB/s")
    pcie_l0_to_recovery_count = _Field[int]("PCIe link recoveries")
    pcie_correctable_errors = _Field[int]("PCIe correctable errors")
    pcie_non_fatal_errors = _Field[int]("PCIe non-fatal errors")
    pcie_fatal_errors = _Field[int]("PCIe fatal errors")
    pcie_naks_received = _Field[int]("PCIe NAKs received (field 174)")
    pcie_receiver_errors = _Field[int]("PCIe receiver errors (field 175)")
    pcie_bad_tlps = _Field[int]("Bad PCIe TLPs (field 176)")
    pcie_naks_sent = _Field[int]("PCIe NAKs sent (field 177)")
    pcie_bad_dllps = _Field[int]("Bad PCIe DLLPs (field 178)")
    pcie_unsupported_requests = _Field[int]("Unsupported PCIe requests (field 181)")
    pcie_lcrc_errors = _Field[int]("PCIe LCRC errors (field 182)")
    pcie_lane_errors = _Field[int]("PCIe lane errors (field 183)")
    sram_parity_volatile = _Field[int]("Uncorrected SRAM parity errors since the driver was loaded")
    sram_parity_aggregate = _Field[int]("Uncorrected SRAM parity errors in the board's life")
    sram_pcie_aggregate = _Field[int]("Of the uncorrected SRAM errors, those in the PCIe unit")
    sram_microcontroller_aggregate = _Field[int]("Of the uncorrected SRAM errors, those in microcontrollers")
    uptime_seconds = _Field[int]("Seconds since the driver initialised the GPU")
    numa_node = _Field[int]("NUMA node it is near")
    mig_enabled = _Flag("MIG mode")
    moved_at_monotonic_ns = _Field[int]("Time the GPM integrals are of; 0: whenever they are read")
    fabric_state = _Field[int]("nvmlGpuFabricState_t: 3 complete")
    fabric_status = _Field[int]("nvmlReturn_t of the fabric probe")
    fabric_health_mask = _Field[int]("Fabric health bits")
    fabric_health_summary = _Field[int]("Fabric health summary: 1 healthy")
    gpm_graphics_ns = _Field[int]("Integral behind GPM metric 1")
    gpm_sm_ns = _Field[int]("Integral behind GPM metric 2")
    gpm_occupancy_ns = _Field[int]("Integral behind GPM metric 3")
    gpm_tensor_ns = _Field[int]("Integral behind GPM metric 5")
    gpm_dram_ns = _Field[int]("Integral behind GPM metric 10")
    gpm_integer_ns = _Field[int]("Integral behind GPM metric 4")
    gpm_dfma_ns = _Field[int]("Integral behind GPM metric 6")
    gpm_hmma_ns = _Field[int]("Integral behind GPM metric 7")
    gpm_imma_ns = _Field[int]("Integral behind GPM metric 9")
    gpm_fp64_ns = _Field[int]("Integral behind GPM metric 11")
    gpm_fp32_ns = _Field[int]("Integral behind GPM metric 12")
    gpm_fp16_ns = _Field[int]("Integral behind GPM metric 13")
    sample_count = _Field[int]("Samples written since the start")

    def __init__(self, record: Any, index: int) -> None:
        super().__init__(record)
        self.index = index
        self.links = tuple(Link(record.links[i]) for i in range(record.nvlink_count))
        self.migs = tuple(Mig(record.migs[i]) for i in range(MAX_MIG))

    @property
    def uuid(self) -> str:
        """`GPU-xxxxxxxx-xxxx-...`, the same for the same seed, host and index."""
        return str(self.record.uuid.decode())

    @property
    def name(self) -> str:
        """Product name."""
        return str(self.record.name.decode())

    @property
    def serial(self) -> str:
        """Board serial number."""
        return str(self.record.serial.decode())

    @property
    def pci_bus_id(self) -> str:
        """`dddddddd:bb:dd.0`, as NVML prints it."""
        record = self.record
        return f"{record.pci_domain:08X}:{record.pci_bus:02X}:{record.pci_device:02X}.0"

    @property
    def kernel_pci_id(self) -> str:
        """`dddd:bb:dd`, as the driver prints it in the kernel log."""
        record = self.record
        return f"{record.pci_domain:04x}:{record.pci_bus:02x}:{record.pci_device:02x}"

    @property
    def not_supported(self) -> frozenset[Feature]:
        """What calls answer NOT_SUPPORTED for."""
        mask = int(self.record.not_supported)
        return frozenset(feature for feature in Feature if mask >> feature & 1)

    @not_supported.setter
    def not_supported(self, features: frozenset[Feature]) -> None:
        self.record.not_supported = sum(1 << feature for feature in features)

    def ecc_errors(self, lifetime: EccLifetime, kind: EccKind, location: MemoryLocation) -> int:
        """One ECC counter."""
        return int(self.record.ecc_errors[_ecc_slot(lifetime, kind, location)])

    def add_ecc_errors(self, lifetime: EccLifetime, kind: EccKind, location: MemoryLocation, count: int) -> None:
        """Add to one ECC counter."""
        self.record.ecc_errors[_ecc_slot(lifetime, kind, location)] += count

    def begin_anew(self) -> None:
        """What a GPU reset or a reload of the driver does: all that is counted since then starts from zero."""
        self.uptime_seconds = 0
        self.energy_mj = 0
        for name in (name for name, *_ in type(self.record)._fields_ if name.startswith("throttle_")):
            setattr(self.record, name, 0)
        for kind in EccKind:
            for location in MemoryLocation:
                self.record.ecc_errors[_ecc_slot(EccLifetime.VOLATILE, kind, location)] = 0
        self.sram_parity_volatile = 0
        self.pcie_tx_bytes = self.pcie_rx_bytes = 0
        for link in self.links:
            link.data_tx_kib = link.data_rx_kib = link.raw_tx_kib = link.raw_rx_kib = 0

    def split(self, instances: Sequence[tuple[int, int]]) -> tuple[Mig, ...]:
        """Turn MIG on with instances of so many (multiprocessors, bytes of memory); returns them.

        Raises `SimulatorError` where the product has no MIG or has not so many instances.
        """
        if Feature.MIG in self.not_supported or not 1 <= len(instances) <= MAX_MIG:
            raise SimulatorError(
                f"{len(instances)} MIG instances", where=self.uuid, todo=f"choose 1 to {MAX_MIG}, on Ampere or later"
            )
        for place, (multiprocessors, memory_bytes) in enumerate(instances):
            mig = self.migs[place]
            name = uuid_module.uuid5(uuid_module.UUID(self.uuid.removeprefix("GPU-")), str(place))
            mig.record.uuid = f"MIG-{name}".encode()
            mig.record.name = f"{self.name} MIG {multiprocessors}sm.{memory_bytes >> 30}gb".encode()
            mig.gpu_instance, mig.compute_instance = place + 1, 0
            mig.multiprocessors, mig.memory_total_bytes = multiprocessors, memory_bytes
            mig.present = True
        self.mig_enabled = True
        return self.migs[: len(instances)]

    def set_process(self, pid: int, used_bytes: int, slot: int = 0, *, mig: int | None = None) -> None:
        """Put a process with a compute context into a slot, pid 0 empties it; memory use follows.

        `mig` is the place of the MIG instance it runs on.
        """
        if not 0 <= slot < MAX_PROCESSES:
            raise SimulatorError(
                f"process slot {slot} is not in 0..{MAX_PROCESSES - 1}",
                where=self.uuid,
                todo="use a lower slot",
            )
        process = self.record.processes[slot]
        process.pid = 0
        process.used_bytes = used_bytes
        process.mig = 0 if mig is None else mig + 1
        process.pid = pid
        self.memory_used_bytes = sum(self.processes().values())
        for place, instance in enumerate(self.migs):
            own = [int(p.used_bytes) for p in self.record.processes if p.pid and p.mig == place + 1]
            instance.memory_used_bytes = sum(own)

    def processes(self) -> dict[int, int]:
        """pid to bytes of device memory."""
        return {int(p.pid): int(p.used_bytes) for p in self.record.processes if p.pid}

    def push_sample(self, timestamp_us: int) -> None:
        """Append the present power, utilization and clocks to the sample buffers."""
        count = int(self.record.sample_count)
        sample = self.record.samples[count % RING_SLOTS]
        sample.timestamp_us = timestamp_us
        sample.power_mw = self.power_instant_mw
        sample.utilization_percent = self.utilization_percent
        sample.memory_utilization_percent = self.memory_utilization_percent
        sample.sm_clock_mhz = self.sm_clock_mhz
        sample.memory_clock_mhz = self.memory_clock_mhz
        self.record.sample_count = count + 1

    def samples(self) -> list[tuple[int, int, int]]:
        """The visible samples, oldest first, as (timestamp us, power mW, utilization %)."""
        count = int(self.record.sample_count)
        slots = (self.record.samples[i % RING_SLOTS] for i in range(max(0, count - RING_VISIBLE), count))
        return [(int(s.timestamp_us), int(s.power_mw), int(s.utilization_percent)) for s in slots]


def _ecc_slot(lifetime: EccLifetime, kind: EccKind, location: MemoryLocation) -> int:
    return (lifetime * 2 + kind) * ECC_LOCATIONS + location
