"""Which calls stand behind which metrics, by group; field values are in nvml_fields.

A call gives its metrics in order, None for one that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable

from rankscope.probes.nvml_api import Gpu

Values = tuple[float | None, ...]
Call = tuple[tuple[str, ...], Callable[[Gpu], Values]]

#: Metric -> name in nvml_structures.SramEcc.
_SRAM = {
    "gpu.sram_ecc_corrected_volatile": "volatile_corrected",
    "gpu.sram_ecc_corrected_aggregate": "aggregate_corrected",
    "gpu.sram_ecc_uncorrected_parity_volatile": "volatile_uncorrected_parity",
    "gpu.sram_ecc_uncorrected_parity_aggregate": "aggregate_uncorrected_parity",
    "gpu.sram_ecc_uncorrected_secded_volatile": "volatile_uncorrected_secded",
    "gpu.sram_ecc_uncorrected_secded_aggregate": "aggregate_uncorrected_secded",
    "gpu.sram_ecc_uncorrected_l2_aggregate": "aggregate_uncorrected_l2",
    "gpu.sram_ecc_uncorrected_sm_aggregate": "aggregate_uncorrected_sm",
    "gpu.sram_ecc_uncorrected_microcontroller_aggregate": "aggregate_uncorrected_microcontroller",
    "gpu.sram_ecc_uncorrected_pcie_aggregate": "aggregate_uncorrected_pcie",
    "gpu.sram_ecc_uncorrected_other_aggregate": "aggregate_uncorrected_other",
    "gpu.sram_ecc_threshold_exceeded": "threshold_exceeded",
}
_BANKS = ("max", "high", "partial", "low", "none")
#: NVML_GPU_FABRIC_STATE_COMPLETED: only then does the status mean something (nvml.h, nvmlGpuFabricInfo_v3_t).
_FABRIC_COMPLETED = 3


def _sram(gpu: Gpu) -> Values:
    status = gpu.sram_ecc()
    return tuple(status[name] for name in _SRAM.values())


def _banks(gpu: Gpu) -> Values:
    banks = gpu.row_remap_banks()
    return tuple(banks[name] for name in _BANKS)


def _fabric(gpu: Gpu) -> Values:
    fabric = gpu.fabric()
    status = fabric.status if fabric.state == _FABRIC_COMPLETED else None
    return fabric.state, status, fabric.health_mask, fabric.health_summary


def _threshold(kind: int) -> Callable[[Gpu], Values]:
    return lambda gpu: (gpu.threshold_celsius(kind),)


def ratio(percent: int) -> float | None:
    """A per cent as a ratio; None for what is none."""
    return percent / 100 if 0 <= percent <= 100 else None


CALLS: dict[str, tuple[Call, ...]] = {
    "fast": (
        (
            ("gpu.utilization_ratio", "gpu.memory_utilization_ratio"),
            lambda gpu: tuple(ratio(percent) for percent in gpu.utilization()),
        ),
        (("gpu.sm_clock_mhz",), lambda gpu: (gpu.clock_mhz(1),)),
        (("gpu.memory_clock_mhz",), lambda gpu: (gpu.clock_mhz(2),)),
        (("gpu.clock_event_reasons",), lambda gpu: (gpu.clock_event_reasons(),)),
        (("gpu.performance_state",), lambda gpu: (gpu.performance_state(),)),
    ),
    "slow": (
        (("gpu.temperature_celsius",), lambda gpu: (gpu.temperature(),)),
        (("gpu.temperature_margin_celsius",), lambda gpu: (gpu.temperature_margin(),)),
        (
            ("gpu.memory_used_bytes", "gpu.memory_total_bytes", "gpu.memory_reserved_bytes"),
            lambda gpu: gpu.memory(),
        ),
    ),
    "health": (
        (("gpu.uptime_seconds",), lambda gpu: (gpu.uptime_seconds(),)),
        (("gpu.sm_clock_max_mhz",), lambda gpu: (gpu.max_clock_mhz(1),)),
        (("gpu.slowdown_temperature_celsius",), _threshold(1)),
        (("gpu.pcie_link_generation", "gpu.pcie_link_width"), lambda gpu: gpu.pcie_link()),
        (("gpu.pcie_link_generation_max", "gpu.pcie_link_width_max"), lambda gpu: gpu.pcie_link_max()),
        (
            ("gpu.fabric_state", "gpu.fabric_status", "gpu.fabric_health_mask", "gpu.fabric_health_summary"),
            _fabric,
        ),
    ),
    "rare": (
        (("gpu.memory_clock_max_mhz",), lambda gpu: (gpu.max_clock_mhz(2),)),
        (("gpu.shutdown_temperature_celsius",), _threshold(0)),
        (("gpu.memory_max_operating_temperature_celsius",), _threshold(2)),
        (("gpu.max_operating_temperature_celsius",), _threshold(3)),
        (tuple(_SRAM), _sram),
        (tuple(f"gpu.row_remap_banks_{name}" for name in _BANKS), _banks),
    ),
}
