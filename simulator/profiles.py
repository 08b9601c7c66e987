"""The GPU products the simulator can pretend to be.

Every NOT_SUPPORTED cell carries its source: words of the official nvml.h and where they stand, or
"unverified" where only common knowledge speaks. The numbers (clocks, limits, thresholds, idle power) are
those commonly reported by nvidia-smi for each product and are unverified on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from rankscope.errors import SimulatorError
from rankscope.simulator.layout import Feature, GpuRecord

_MIB = 1 << 20
_AS_BYTES = ("board_part_number", "vbios_version")
_UNVERIFIED = "unverified"
_HOPPER = "nvml.h, nvmlGpmMetricsGet: 'For Hopper or newer'"
_FABRIC = "nvml.h, nvmlDeviceGetGpuFabricInfoV: 'For Hopper or newer'"
_NVLINK5 = "nvml.h, fields 201-204: 'in NVLink5'"
_TLIMIT = "nvml.h, fields 193-196: 'supported on Ada and later'"
_FAN = "nvml.h, nvmlDeviceGetFanSpeed: 'products with dedicated fans'"
_AUTO_BOOST = "nvml.h, nvmlDeviceGetAutoBoostedClocksEnabled: Pascal+ use application clocks"
_OPERATION_MODE = "nvml.h, nvmlDeviceGetGpuOperationMode: 'from the Kepler family'"
_PLATFORM = "nvml.h, nvmlDeviceGetPlatformInfo: 'For Blackwell or newer'"
_NVLINK_ECC = "nvml.h, fields 148-159 count ECC errors of 12 links: silence of parts with more is unverified"
_LEGACY_BANDWIDTH = "nvml.h, fields 60-73 and the utilization counters are deprecated there; silence is unverified"

_EVERYWHERE: Mapping[Feature, str] = {
    Feature.FAN: _FAN,
    Feature.AUTO_BOOST: _AUTO_BOOST,
    Feature.GPU_OPERATION_MODE: _OPERATION_MODE,
    Feature.C2C: _UNVERIFIED,
    Feature.NVLINK_BANDWIDTH_LEGACY: _LEGACY_BANDWIDTH,
    Feature.NVLINK_LEGACY_ERRORS: _UNVERIFIED,
}


@dataclass(frozen=True, kw_only=True)
class GpuProfile:
    """One product: what NVML reports as fixed, and how it moves."""

    name: str
    product_name: str
    brand: int
    architecture: int
    compute_capability: tuple[int, int]
    multiprocessors: int
    cores: int
    memory_bus_bits: int
    memory_total_bytes: int
    memory_reserved_bytes: int
    bar1_total_bytes: int
    pci_device_id: int
    pci_subsystem_id: int
    board_part_number: str
    vbios_version: str
    max_sm_clock_mhz: int
    max_memory_clock_mhz: int
    max_video_clock_mhz: int
    idle_sm_clock_mhz: int
    idle_memory_clock_mhz: int
    idle_performance_state: int
    default_application_clock_mhz: int
    power_min_limit_mw: int
    power_max_limit_mw: int
    power_default_limit_mw: int
    power_idle_mw: int
    shutdown_celsius: int
    slowdown_celsius: int
    gpu_max_celsius: int
    memory_max_celsius: int
    pcie_max_generation: int
    pcie_max_width: int
    nvlink_count: int
    nvlink_version: int
    nvlink_speed_mbps: int
    ambient_celsius: float
    full_load_celsius: float
    not_supported: Mapping[Feature, str]

    def record_fields(self) -> dict[str, object]:
        """The fields of the shared layout that this profile fixes."""
        shared = {name for name, *_ in GpuRecord._fields_} & {field.name for field in fields(self)}
        same = {name: getattr(self, name) for name in sorted(shared - {"name", *_AS_BYTES, "not_supported"})}
        return {
            **same,
            "name": self.product_name.encode(),
            **{name: getattr(self, name).encode() for name in _AS_BYTES},
            "compute_major": self.compute_capability[0],
            "compute_minor": self.compute_capability[1],
            "not_supported": sum(1 << feature for feature in self.not_supported),
        }


H100 = GpuProfile(
    name="H100-SXM5-80GB",
    product_name="NVIDIA H100 80GB HBM3",
    brand=14,
    architecture=9,
    compute_capability=(9, 0),
    multiprocessors=132,
    cores=16896,
    memory_bus_bits=5120,
    memory_total_bytes=81559 * _MIB,
    memory_reserved_bytes=551 * _MIB,
    bar1_total_bytes=131072 * _MIB,
    pci_device_id=0x233010DE,
    pci_subsystem_id=0x16C110DE,
    board_part_number="692-2G520-0200-000",
    vbios_version="96.00.89.00.01",
    max_sm_clock_mhz=1980,
    max_memory_clock_mhz=2619,
    max_video_clock_mhz=1545,
    idle_sm_clock_mhz=345,
    idle_memory_clock_mhz=2619,
    idle_performance_state=0,
    default_application_clock_mhz=1980,
    power_min_limit_mw=200_000,
    power_max_limit_mw=700_000,
    power_default_limit_mw=700_000,
    power_idle_mw=70_000,
    shutdown_celsius=92,
    slowdown_celsius=89,
    gpu_max_celsius=87,
    memory_max_celsius=95,
    pcie_max_generation=5,
    pcie_max_width=16,
    nvlink_count=18,
    nvlink_version=4,
    nvlink_speed_mbps=26562,
    ambient_celsius=32.0,
    full_load_celsius=68.0,
    not_supported={
        **_EVERYWHERE,
        Feature.NVLINK5_COUNTERS: _NVLINK5,
        Feature.NVLINK_ECC: _NVLINK_ECC,
        Feature.PLATFORM_INFO: _PLATFORM,
        Feature.POWER_SMOOTHING: _UNVERIFIED,
        Feature.RETIRED_PAGES: _UNVERIFIED,
    },
)

A100 = GpuProfile(
    name="A100-SXM4-80GB",
    product_name="NVIDIA A100-SXM4-80GB",
    brand=14,
    architecture=7,
    compute_capability=(8, 0),
    multiprocessors=108,
    cores=6912,
    memory_bus_bits=5120,
    memory_total_bytes=81920 * _MIB,
    memory_reserved_bytes=671 * _MIB,
    bar1_total_bytes=131072 * _MIB,
    pci_device_id=0x20B210DE,
    pci_subsystem_id=0x147F10DE,
    board_part_number="692-2G506-0210-002",
    vbios_version="92.00.45.00.03",
    max_sm_clock_mhz=1410,
    max_memory_clock_mhz=1593,
    max_video_clock_mhz=1290,
    idle_sm_clock_mhz=210,
    idle_memory_clock_mhz=1593,
    idle_performance_state=0,
    default_application_clock_mhz=1275,
    power_min_limit_mw=100_000,
    power_max_limit_mw=400_000,
    power_default_limit_mw=400_000,
    power_idle_mw=60_000,
    shutdown_celsius=92,
    slowdown_celsius=89,
    gpu_max_celsius=85,
    memory_max_celsius=95,
    pcie_max_generation=4,
    pcie_max_width=16,
    nvlink_count=12,
    nvlink_version=3,
    nvlink_speed_mbps=25000,
    ambient_celsius=30.0,
    full_load_celsius=64.0,
    not_supported={
        **_EVERYWHERE,
        Feature.POWER_AVERAGE: "nvml.h, field 185: 'Ampere (except GA100) or newer'",
        Feature.TLIMIT: _TLIMIT,
        Feature.GPM: _HOPPER,
        Feature.FABRIC: _FABRIC,
        Feature.NVLINK5_COUNTERS: _NVLINK5,
        Feature.PLATFORM_INFO: _PLATFORM,
        Feature.POWER_SMOOTHING: _UNVERIFIED,
        Feature.RETIRED_PAGES: _UNVERIFIED,
    },
)

B200 = GpuProfile(
    name="B200",
    product_name="NVIDIA B200",
    brand=14,
    architecture=10,
    compute_capability=(10, 0),
    multiprocessors=148,
    cores=18944,
    memory_bus_bits=8192,
    memory_total_bytes=183359 * _MIB,
    memory_reserved_bytes=717 * _MIB,
    bar1_total_bytes=262144 * _MIB,
    pci_device_id=0x290110DE,
    pci_subsystem_id=0x199910DE,
    board_part_number="692-2G525-0220-000",
    vbios_version="97.00.82.00.14",
    max_sm_clock_mhz=1965,
    max_memory_clock_mhz=3996,
    max_video_clock_mhz=1965,
    idle_sm_clock_mhz=120,
    idle_memory_clock_mhz=3996,
    idle_performance_state=0,
    default_application_clock_mhz=1965,
    power_min_limit_mw=200_000,
    power_max_limit_mw=1_000_000,
    power_default_limit_mw=1_000_000,
    power_idle_mw=140_000,
    shutdown_celsius=94,
    slowdown_celsius=91,
    gpu_max_celsius=89,
    memory_max_celsius=95,
    pcie_max_generation=5,
    pcie_max_width=16,
    nvlink_count=18,
    nvlink_version=5,
    nvlink_speed_mbps=50000,
    ambient_celsius=32.0,
    full_load_celsius=70.0,
    not_supported={
        **_EVERYWHERE,
        Feature.NVLINK_DL_ERRORS: "nvml.h, fields 161-163: 'unsupported for Blackwell+'",
        Feature.APPLICATION_CLOCKS: _UNVERIFIED,
        Feature.NVLINK_ECC: _NVLINK_ECC,
        Feature.RETIRED_PAGES: _UNVERIFIED,
    },
)

T4 = GpuProfile(
    name="T4",
    product_name="Tesla T4",
    brand=2,
    architecture=6,
    compute_capability=(7, 5),
    multiprocessors=40,
    cores=2560,
    memory_bus_bits=256,
    memory_total_bytes=15360 * _MIB,
    memory_reserved_bytes=263 * _MIB,
    bar1_total_bytes=256 * _MIB,
    pci_device_id=0x1EB810DE,
    pci_subsystem_id=0x12A210DE,
    board_part_number="900-2G183-0000-001",
    vbios_version="90.04.96.00.9F",
    max_sm_clock_mhz=1590,
    max_memory_clock_mhz=5001,
    max_video_clock_mhz=1470,
    idle_sm_clock_mhz=300,
    idle_memory_clock_mhz=405,
    idle_performance_state=8,
    default_application_clock_mhz=585,
    power_min_limit_mw=60_000,
    power_max_limit_mw=70_000,
    power_default_limit_mw=70_000,
    power_idle_mw=10_000,
    shutdown_celsius=96,
    slowdown_celsius=93,
    gpu_max_celsius=85,
    memory_max_celsius=95,
    pcie_max_generation=3,
    pcie_max_width=16,
    nvlink_count=0,
    nvlink_version=0,
    nvlink_speed_mbps=0,
    ambient_celsius=34.0,
    full_load_celsius=74.0,
    not_supported={
        **_EVERYWHERE,
        Feature.MEMORY_TEMPERATURE: _UNVERIFIED,
        Feature.POWER_AVERAGE: "nvml.h, field 185: 'Ampere (except GA100) or newer'",
        Feature.ROW_REMAP: "nvml.h, nvmlDeviceGetRemappedRows: 'For Ampere or newer'",
        Feature.SRAM_ECC_STATUS: "nvml.h, nvmlDeviceGetSramEccErrorStatus: 'For Ampere or newer'",
        Feature.MIG: "nvml.h, nvmlDeviceGetMigMode: 'For Ampere or newer'",
        Feature.TLIMIT: _TLIMIT,
        Feature.GPM: _HOPPER,
        Feature.FABRIC: _FABRIC,
        Feature.NVLINK: _UNVERIFIED,
        Feature.NVLINK_DL_ERRORS: _UNVERIFIED,
        Feature.NVLINK_ECC: _UNVERIFIED,
        Feature.PCIE_ERROR_COUNTERS: _UNVERIFIED,
        Feature.PCIE_BYTES: _UNVERIFIED,
        Feature.RECOVERY_ACTION: _UNVERIFIED,
        Feature.NVLINK_COUNTERS_KIB: _UNVERIFIED,
        Feature.NVLINK5_COUNTERS: _NVLINK5,
        Feature.PLATFORM_INFO: _PLATFORM,
        Feature.POWER_SMOOTHING: _UNVERIFIED,
    },
)

PROFILES: Mapping[str, GpuProfile] = {profile.name: profile for profile in (H100, A100, B200, T4)}


def profile_named(name: str) -> GpuProfile:
    """Look a profile up by name; raises `SimulatorError` that lists the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        raise SimulatorError(
            f"no GPU profile {name!r}", where="node.gpu", todo=f"choose one of {', '.join(PROFILES)}"
        ) from None
