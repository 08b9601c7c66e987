"""The fixed layout of the shared node state, defined here once and emitted as a C header at build time.

Every multi-byte field is little-endian and naturally aligned, so that a store or load of one field is a
single machine access on x86-64 and aarch64 and no reader sees half of it. The C compiler checks every offset
against this file: the two sides cannot drift apart. A change of layout is a change of `VERSION`; the library
refuses a file of another version.
"""

from __future__ import annotations

import ctypes
import enum
import re
from ctypes import c_char, c_double, c_int32, c_int64, c_uint32, c_uint64
from typing import Any

MAGIC = int.from_bytes(b"RSNVML\x00\x01", "little")
VERSION = 3
MAX_GPUS = 64  # no board has more than 16 today; growth is measured beyond
MAX_LINKS = 18  # the most links of a profiled product
MAX_PROCESSES = 16
MAX_MIG = 7  # the most instances of a profiled product
FEC_BINS = 16
EVENT_SLOTS = 256
RING_SLOTS = 80  # eight more than are shown, so that a reader never copies the slot that is being written
RING_VISIBLE = 72
ECC_LOCATIONS = 8  # nvmlMemoryLocation_t, 0..7


class Feature(enum.IntEnum):
    """What a product may lack: the bit in `GpuRecord.not_supported` that makes calls answer NOT_SUPPORTED."""

    UTILIZATION = 0
    MEMORY_TEMPERATURE = 1
    FAN = 2
    POWER_AVERAGE = 3
    ROW_REMAP = 4
    RETIRED_PAGES = 5
    SRAM_ECC_STATUS = 6
    NVLINK = 7
    NVLINK_DL_ERRORS = 8
    NVLINK_COUNTERS_KIB = 9
    NVLINK5_COUNTERS = 10
    NVLINK_BANDWIDTH_LEGACY = 11
    TLIMIT = 12
    GPM = 13
    FABRIC = 14
    MIG = 15
    APPLICATION_CLOCKS = 16
    AUTO_BOOST = 17
    GPU_OPERATION_MODE = 18
    C2C = 19
    POWER_SMOOTHING = 20
    RECOVERY_ACTION = 21
    PCIE_ERROR_COUNTERS = 22
    PCIE_BYTES = 23
    ENERGY = 24
    DISPLAY = 25
    PLATFORM_INFO = 26
    VIOLATION_COUNTERS = 27
    EVENTS = 28
    NVLINK_ECC = 29
    NVLINK_LEGACY_ERRORS = 30


class LinkRecord(ctypes.LittleEndianStructure):
    """One NVLink of one GPU."""

    _fields_ = (
        ("state", c_uint32),
        ("remote_index", c_uint32),
        ("data_tx_kib", c_uint64),
        ("data_rx_kib", c_uint64),
        ("raw_tx_kib", c_uint64),
        ("raw_rx_kib", c_uint64),
        ("replay_errors", c_uint64),
        ("recovery_errors", c_uint64),
        ("crc_errors", c_uint64),
        ("recovery_successful", c_uint64),
        ("recovery_failed", c_uint64),
        ("receive_errors", c_uint64),
        ("effective_errors", c_uint64),
        ("symbol_errors", c_uint64),
        ("malformed_packets", c_uint64),
        ("buffer_overruns", c_uint64),
        ("remote_errors", c_uint64),
        ("general_errors", c_uint64),
        ("integrity_errors", c_uint64),
        ("discarded_packets", c_uint64),
        ("ecc_errors", c_uint64),
        ("fec_corrected", c_uint64 * FEC_BINS),
        # As the driver packs them: exponent in bits 0-7, mantissa in bits 8-11.
        ("effective_ber", c_uint32),
        ("symbol_ber", c_uint32),
    )


class ProcessRecord(ctypes.LittleEndianStructure):
    """A process with a compute context; pid 0 is an empty slot. `mig` is one more than its instance, 0 without MIG."""

    _fields_ = (
        ("pid", c_uint32),
        ("sm_utilization", c_uint32),
        ("used_bytes", c_uint64),
        ("mig", c_uint32),
        ("reserved", c_uint32),
    )


class MigRecord(ctypes.LittleEndianStructure):
    """A MIG instance: one compute instance that fills its GPU instance."""

    _fields_ = (
        ("uuid", c_char * 48),
        ("name", c_char * 96),
        ("present", c_uint32),
        ("gpu_instance", c_uint32),
        ("compute_instance", c_uint32),
        ("multiprocessors", c_uint32),
        ("memory_total_bytes", c_uint64),
        ("memory_used_bytes", c_uint64),
        ("gpm_graphics_ns", c_uint64),
        ("gpm_sm_ns", c_uint64),
        ("gpm_occupancy_ns", c_uint64),
        ("gpm_tensor_ns", c_uint64),
        ("gpm_dram_ns", c_uint64),
    )


class SampleRecord(ctypes.LittleEndianStructure):
    """One entry of the driver's sample buffers: all five series are sampled together."""

    _fields_ = (
        ("timestamp_us", c_uint64),
        ("power_mw", c_uint32),
        ("utilization_percent", c_uint32),
        ("memory_utilization_percent", c_uint32),
        ("sm_clock_mhz", c_uint32),
        ("memory_clock_mhz", c_uint32),
        ("reserved", c_uint32),
    )


class EventRecord(ctypes.LittleEndianStructure):
    """One event; `sequence` is written last and is one more than its place in the stream.

    `structured` events are GPU operational events: `event_type` is 0 then, and the rest is theirs.
    """

    _fields_ = (
        ("sequence", c_uint64),
        ("event_type", c_uint64),
        ("event_data", c_uint64),
        ("gpu", c_uint32),
        ("structured", c_uint32),
        ("module", c_char * 16),
        ("group_cursor", c_uint64),
        ("code", c_uint32),
        ("severity", c_uint32),
        ("log_level", c_uint32),
        ("attributes", c_uint32),
        ("group_index", c_uint32),
        ("group_size", c_uint32),
        # The Xid that it carries as context; 0: none.
        ("legacy_xid", c_uint32),
        ("reserved", c_uint32),
    )


class GpuRecord(ctypes.LittleEndianStructure):
    """One GPU: identity, limits of its profile, and everything that moves."""

    _fields_ = (
        # Identity and limits: written at creation.
        ("uuid", c_char * 48),
        ("name", c_char * 96),
        ("serial", c_char * 32),
        ("board_part_number", c_char * 32),
        ("vbios_version", c_char * 32),
        ("pci_domain", c_uint32),
        ("pci_bus", c_uint32),
        ("pci_device", c_uint32),
        ("pci_device_id", c_uint32),
        ("pci_subsystem_id", c_uint32),
        ("minor_number", c_uint32),
        ("module_id", c_uint32),
        ("brand", c_uint32),
        ("architecture", c_uint32),
        ("compute_major", c_uint32),
        ("compute_minor", c_uint32),
        ("cores", c_uint32),
        ("multiprocessors", c_uint32),
        ("memory_bus_bits", c_uint32),
        ("max_sm_clock_mhz", c_uint32),
        ("max_memory_clock_mhz", c_uint32),
        ("max_video_clock_mhz", c_uint32),
        ("idle_sm_clock_mhz", c_uint32),
        ("idle_memory_clock_mhz", c_uint32),
        ("default_application_clock_mhz", c_uint32),
        ("power_min_limit_mw", c_uint32),
        ("power_max_limit_mw", c_uint32),
        ("power_default_limit_mw", c_uint32),
        ("power_idle_mw", c_uint32),
        ("shutdown_celsius", c_int32),
        ("slowdown_celsius", c_int32),
        ("gpu_max_celsius", c_int32),
        ("memory_max_celsius", c_int32),
        ("pcie_max_generation", c_uint32),
        ("pcie_max_width", c_uint32),
        ("nvlink_count", c_uint32),
        ("nvlink_version", c_uint32),
        ("nvlink_speed_mbps", c_uint32),
        ("numa_node", c_uint32),
        ("memory_total_bytes", c_uint64),
        ("memory_reserved_bytes", c_uint64),
        ("bar1_total_bytes", c_uint64),
        ("not_supported", c_uint64),
        # Written by the rank that runs on this GPU.
        ("busy_ns", c_uint64),
        ("collective_ns", c_uint64),
        ("spin_ns", c_uint64),
        ("collective_bytes", c_uint64),
        ("waiting_since_monotonic_ns", c_uint64),
        ("step", c_int64),
        # Read by the rank that runs on this GPU.
        ("work_factor", c_double),
        ("fatal", c_uint32),
        # How calls on this GPU behave.
        ("lost", c_uint32),
        ("latency_us", c_uint32),
        ("fail_with", c_uint32),
        ("hang_until_monotonic_ns", c_uint64),
        # Moved by the physics.
        ("utilization_percent", c_uint32),
        ("memory_utilization_percent", c_uint32),
        ("sm_clock_mhz", c_uint32),
        ("memory_clock_mhz", c_uint32),
        ("application_clock_mhz", c_uint32),
        ("performance_state", c_uint32),
        ("clock_event_reasons", c_uint64),
        ("temperature_celsius", c_double),
        ("memory_temperature_celsius", c_double),
        ("power_average_mw", c_uint32),
        ("power_instant_mw", c_uint32),
        ("power_limit_mw", c_uint32),
        ("power_requested_limit_mw", c_uint32),
        ("energy_mj", c_uint64),
        ("throttle_sw_power_ns", c_uint64),
        ("throttle_thermal_ns", c_uint64),
        ("throttle_sync_boost_ns", c_uint64),
        ("throttle_board_limit_ns", c_uint64),
        ("throttle_low_utilization_ns", c_uint64),
        ("throttle_reliability_ns", c_uint64),
        ("throttle_app_clocks_ns", c_uint64),
        ("throttle_base_clocks_ns", c_uint64),
        ("throttle_sw_thermal_ns", c_uint64),
        ("throttle_hw_thermal_ns", c_uint64),
        ("throttle_power_brake_ns", c_uint64),
        ("memory_used_bytes", c_uint64),
        ("bar1_used_bytes", c_uint64),
        ("ecc_enabled", c_uint32),
        ("sram_threshold_exceeded", c_uint32),
        # [volatile, aggregate][corrected, uncorrected][nvmlMemoryLocation_t], flattened.
        ("ecc_errors", c_uint64 * (2 * 2 * ECC_LOCATIONS)),
        ("sram_parity_volatile", c_uint64),
        ("sram_parity_aggregate", c_uint64),
        ("sram_pcie_aggregate", c_uint64),
        ("sram_microcontroller_aggregate", c_uint64),
        ("remapped_corrected", c_uint32),
        ("remapped_uncorrected", c_uint32),
        ("remap_pending", c_uint32),
        ("remap_failure", c_uint32),
        ("retired_single_bit", c_uint32),
        ("retired_double_bit", c_uint32),
        ("retired_pending", c_uint32),
        ("recovery_action", c_uint32),
        ("pcie_generation", c_uint32),
        ("pcie_width", c_uint32),
        ("pcie_replay_count", c_uint32),
        ("pcie_replay_rollover_count", c_uint32),
        ("pcie_tx_bytes", c_uint64),
        ("pcie_rx_bytes", c_uint64),
        ("pcie_tx_kib_per_s", c_uint32),
        ("pcie_rx_kib_per_s", c_uint32),
        ("pcie_l0_to_recovery_count", c_uint64),
        ("pcie_correctable_errors", c_uint64),
        ("pcie_non_fatal_errors", c_uint64),
        ("pcie_fatal_errors", c_uint64),
        ("pcie_naks_received", c_uint64),
        ("pcie_receiver_errors", c_uint64),
        ("pcie_bad_tlps", c_uint64),
        ("pcie_naks_sent", c_uint64),
        ("pcie_bad_dllps", c_uint64),
        ("pcie_unsupported_requests", c_uint64),
        ("pcie_lcrc_errors", c_uint64),
        ("pcie_lane_errors", c_uint64),
        ("fabric_state", c_uint32),
        ("fabric_status", c_uint32),
        ("fabric_health_mask", c_uint32),
        ("fabric_health_summary", c_uint32),
        # Time integrals behind the GPM ratios, in nanoseconds of full use.
        ("gpm_graphics_ns", c_uint64),
        ("gpm_sm_ns", c_uint64),
        ("gpm_occupancy_ns", c_uint64),
        ("gpm_tensor_ns", c_uint64),
        ("gpm_dram_ns", c_uint64),
        ("gpm_integer_ns", c_uint64),
        ("gpm_dfma_ns", c_uint64),
        ("gpm_hmma_ns", c_uint64),
        ("gpm_imma_ns", c_uint64),
        ("gpm_fp64_ns", c_uint64),
        ("gpm_fp32_ns", c_uint64),
        ("gpm_fp16_ns", c_uint64),
        # The time these integrals are of (CLOCK_MONOTONIC); 0: now, whenever that is.
        ("moved_at_monotonic_ns", c_uint64),
        ("uptime_seconds", c_uint32),
        ("mig_enabled", c_uint32),
        ("migs", MigRecord * MAX_MIG),
        ("processes", ProcessRecord * MAX_PROCESSES),
        ("links", LinkRecord * MAX_LINKS),
        ("sample_count", c_uint64),
        ("samples", SampleRecord * RING_SLOTS),
    )


class NodeRecord(ctypes.LittleEndianStructure):
    """The whole file: one host, its driver, its GPUs and the events they raised."""

    _fields_ = (
        ("magic", c_uint64),
        ("version", c_uint32),
        ("gpu_count", c_uint32),
        ("size_bytes", c_uint64),
        ("driver_major", c_uint32),
        ("driver_minor", c_uint32),
        ("driver_patch", c_uint32),
        ("cuda_version", c_int32),
        ("driver_version", c_char * 32),
        ("nvml_version", c_char * 32),
        ("profile", c_char * 64),
        ("host", c_char * 64),
        ("hang_until_monotonic_ns", c_uint64),
        ("event_count", c_uint64),
        ("events", EventRecord * EVENT_SLOTS),
        ("gpus", GpuRecord * MAX_GPUS),
    )


_C_SCALARS: dict[Any, str] = {
    c_char: "char",
    c_double: "double",
    c_int32: "int32_t",
    c_int64: "int64_t",
    c_uint32: "uint32_t",
    c_uint64: "uint64_t",
}
_RECORDS: tuple[Any, ...] = (
    LinkRecord,
    ProcessRecord,
    MigRecord,
    SampleRecord,
    EventRecord,
    GpuRecord,
    NodeRecord,
)


def _c_name(record: Any) -> str:
    return "sim_" + re.sub(r"(?<!^)(?=[A-Z])", "_", record.__name__.removesuffix("Record")).lower()


def _c_declaration(name: str, kind: Any) -> str:
    if kind in _C_SCALARS:
        return f"{_C_SCALARS[kind]} {name};"
    if isinstance(kind, type) and issubclass(kind, ctypes.Array):
        element = _C_SCALARS.get(kind._type_) or _c_name(kind._type_)
        return f"{element} {name}[{kind._length_}];"
    raise TypeError(f"no C spelling for field {name} of {kind}")


def c_header() -> str:
    """The layout as a C header, with static assertions for every offset and size."""
    lines = [
        "/* Generated from simulator/layout.py: do not edit. */",
        "#ifndef RANKSCOPE_SIM_LAYOUT_H",
        "#define RANKSCOPE_SIM_LAYOUT_H",
        "#include <stddef.h>",
        "#include <stdint.h>",
        f"#define SIM_MAGIC UINT64_C({MAGIC})",
        f"#define SIM_VERSION {VERSION}u",
        *(
            f"#define SIM_{name} {value}u"
            for name, value in (
                ("MAX_GPUS", MAX_GPUS),
                ("MAX_LINKS", MAX_LINKS),
                ("MAX_PROCESSES", MAX_PROCESSES),
                ("MAX_MIG", MAX_MIG),
                ("EVENT_SLOTS", EVENT_SLOTS),
                ("RING_SLOTS", RING_SLOTS),
                ("RING_VISIBLE", RING_VISIBLE),
                ("ECC_LOCATIONS", ECC_LOCATIONS),
            )
        ),
        *(f"#define SIM_FEATURE_{f.name} (UINT64_C(1) << {f.value})" for f in Feature),
    ]
    for record in _RECORDS:
        name = _c_name(record)
        fields: list[tuple[str, Any]] = [(field[0], field[1]) for field in record._fields_]
        lines += ["typedef struct {", *(f"    {_c_declaration(*field)}" for field in fields), f"}} {name};"]
        for field, _ in fields:
            place = getattr(record, field)
            lines += [
                f'_Static_assert(offsetof({name}, {field}) == {place.offset}, "{name}.{field}");',
                f'_Static_assert(sizeof((({name} *)0)->{field}) == {place.size}, "{name}.{field}");',
            ]
        lines.append(f'_Static_assert(sizeof({name}) == {ctypes.sizeof(record)}, "{name}");')
    lines += ["#endif", ""]
    return "\n".join(lines)
