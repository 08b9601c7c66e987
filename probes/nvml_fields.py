"""Which NVML field values stand behind which metric, by driver version, and their batched reading.

Field ids 74-79 never moved; the three slowdown counters were renumbered between releases (see `slowdown_fields`).
So an id is chosen by driver version, and no value is believed without its own return code and value type.
Source of ids and units unless said otherwise: `NVML_FI_DEV_*` in nvml.h 13.5.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Scope that means "all links together" for NVLink throughput fields (nvml.h, NVLink throughput counters).
ALL_LINKS = 0xFFFFFFFF
#: NVML_NVLINK_MAX_LINKS.
LINKS = tuple(range(18))
ECC_CURRENT = 1

_SUCCESS = 0
_UNKNOWN = 999
_UNSIGNED_32 = (1 << 32) - 1
_UNSIGNED_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class FieldSource:
    """One metric from one field: the sum over `scopes`, times `scale`, in the unit of the metric."""

    metric: str
    field_id: int
    scale: float = 1.0
    scopes: tuple[int, ...] = (0,)
    #: Read instead where the driver or device does not offer this one.
    otherwise: FieldSource | None = None
    #: Uninitialised while ECC is off.
    needs_ecc: bool = False


def version_of(driver: str) -> tuple[int, int]:
    """(580, 95) of "580.95.05"; zeros for what is no number."""
    parts = [int(part) if part.isascii() and part.isdigit() else 0 for part in driver.split(".")]
    major, minor = [*parts, 0, 0][:2]
    return major, minor


def slowdown_fields(driver: tuple[int, int]) -> tuple[int, int, int] | None:
    """Ids of (software thermal, hardware thermal, power brake) slowdown time in ns, or None where there is none.

    269-271 in the headers from 13.0 update 2 on (driver 580.95); 251-253 in those of 12.9 and 13.0 (R575, early R580),
    where later headers put power smoothing; absent from 12.8 (R570) and before.
    """
    if driver >= (580, 95):
        return 269, 270, 271
    if driver >= (575, 0):
        return 251, 252, 253
    return None


def unknown_metrics(driver: tuple[int, int]) -> tuple[str, ...]:
    """Metrics for which a driver has no field at all."""
    return () if slowdown_fields(driver) else ("gpu.throttle_hw_thermal_ns", "gpu.throttle_hw_power_brake_ns")


def field_batches(group: str, driver: tuple[int, int]) -> list[list[FieldSource]]:
    """The batches of a group. NVLink fields of all links are kept apart: mixed with ECC they failed on GB200."""
    if group == "fast":
        return [
            [
                # Before Ampere and on GA100 the device averages nothing.
                FieldSource("gpu.power_watts", 185, 1e-3, otherwise=FieldSource("gpu.power_watts", 186, 1e-3)),
                FieldSource("gpu.power_instant_watts", 186, 1e-3),
                # Scope 1 is the module of GPU and NVIDIA CPU together.
                FieldSource("gpu.module_power_watts", 186, 1e-3, (1,)),
            ]
        ]
    if group == "counters":
        return [_counters(driver), _nvlink_bytes()]
    if group == "slow":
        return [
            [
                FieldSource("gpu.memory_temperature_celsius", 82),
                FieldSource("gpu.power_limit_watts", 190, 1e-3),
            ]
        ]
    if group == "health":
        return [
            _ecc(),
            _plain(),
            [FieldSource("gpu.nvlink_links", 91), FieldSource("gpu.nvlink_ecc_errors", 160)],
        ]
    if group == "rare":
        return [
            [
                FieldSource("gpu.power_min_limit_watts", 187, 1e-3),
                FieldSource("gpu.power_max_limit_watts", 188, 1e-3),
                FieldSource("gpu.power_requested_limit_watts", 192, 1e-3),
            ]
        ]
    return []


def _counters(driver: tuple[int, int]) -> list[FieldSource]:
    sources = [
        FieldSource("gpu.energy_joules", 83, 1e-3),
        FieldSource("gpu.throttle_sw_power_ns", 74),
        FieldSource("gpu.throttle_sync_boost_ns", 76),
        FieldSource("gpu.pcie_tx_bytes", 197),
        FieldSource("gpu.pcie_rx_bytes", 198),
    ]
    slowdown = slowdown_fields(driver)
    # nvml.h names SW_THERM_SLOWDOWN as the successor of the thermal policy, so 75 stands in for it before R575.
    sources.append(FieldSource("gpu.throttle_sw_thermal_ns", slowdown[0] if slowdown else 75))
    if slowdown:
        sources.append(FieldSource("gpu.throttle_hw_thermal_ns", slowdown[1]))
        sources.append(FieldSource("gpu.throttle_hw_power_brake_ns", slowdown[2]))
    return sources


#: Locations in the order of fields 7-17 (volatile) and 18-28 (aggregate): pairs of single and double bit; the CBU has
#: double bit errors only.
_ECC_LOCATIONS = ("l1", "l2", "dram", "register_file", "texture")


def _ecc() -> list[FieldSource]:
    """Totals (3-6) and locations (7-28): "single bit" errors were corrected, "double bit" were not."""
    sources: list[FieldSource] = []
    for lifetime, total, first in (("volatile", 3, 7), ("aggregate", 5, 18)):
        for kind, offset in (("corrected", 0), ("uncorrected", 1)):
            sources.append(FieldSource(f"gpu.ecc_{kind}_{lifetime}", total + offset, needs_ecc=True))
            sources += (
                FieldSource(f"gpu.ecc_{kind}_{location}_{lifetime}", first + 2 * place + offset, needs_ecc=True)
                for place, location in enumerate(_ECC_LOCATIONS)
            )
        sources.append(FieldSource(f"gpu.ecc_uncorrected_cbu_{lifetime}", first + 10, needs_ecc=True))
    return sources


#: Field id -> metric, each as it is.
_PLAIN = {
    1: "gpu.ecc_mode",
    # Reasons that change seldom, and totals: no need to know them to the second.
    77: "gpu.throttle_board_limit_ns",
    78: "gpu.throttle_low_utilization_ns",
    79: "gpu.throttle_reliability_ns",
    80: "gpu.throttle_application_clocks_ns",
    81: "gpu.throttle_base_clocks_ns",
    29: "gpu.retired_pages_single_bit",
    30: "gpu.retired_pages_double_bit",
    31: "gpu.retired_pages_pending",
    94: "gpu.pcie_replays",
    95: "gpu.pcie_replay_rollovers",
    142: "gpu.rows_remapped_corrected",
    143: "gpu.rows_remapped_uncorrected",
    144: "gpu.row_remap_pending",
    145: "gpu.row_remap_failure",
    169: "gpu.pcie_recoveries",
    173: "gpu.pcie_correctable_errors",
    174: "gpu.pcie_naks_received",
    175: "gpu.pcie_receiver_errors",
    176: "gpu.pcie_bad_tlps",
    177: "gpu.pcie_naks_sent",
    178: "gpu.pcie_bad_dllps",
    179: "gpu.pcie_non_fatal_errors",
    180: "gpu.pcie_fatal_errors",
    181: "gpu.pcie_unsupported_requests",
    182: "gpu.pcie_lcrc_errors",
    183: "gpu.pcie_lane_errors",
    230: "gpu.recovery_action",
}


def _plain() -> list[FieldSource]:
    limit = FieldSource("gpu.power_default_limit_watts", 189, 1e-3)
    return [limit, *(FieldSource(metric, field_id) for field_id, metric in _PLAIN.items())]


def _nvlink_bytes() -> list[FieldSource]:
    """Payload of all links; where the driver does not add it up, the bytes of NVLink 5 link by link."""
    payload = [
        FieldSource(
            f"gpu.nvlink_{way}_bytes",
            kib,
            1024.0,
            (ALL_LINKS,),
            otherwise=FieldSource(f"gpu.nvlink_{way}_bytes", per_link, 1.0, LINKS),
        )
        for way, kib, per_link in (("tx", 138, 202), ("rx", 139, 204))
    ]
    raw = [
        FieldSource(f"gpu.nvlink_raw_{way}_bytes", kib, 1024.0, (ALL_LINKS,)) for way, kib in (("tx", 140), ("rx", 141))
    ]
    return payload + raw


class FieldRecord(ctypes.Structure):
    """nvmlFieldValue_t (40 bytes)."""

    _fields_ = (
        ("field_id", ctypes.c_uint32),
        ("scope_id", ctypes.c_uint32),
        ("timestamp_us", ctypes.c_int64),
        ("latency_us", ctypes.c_int64),
        ("value_type", ctypes.c_uint32),
        ("returned", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    )


_RECORD = struct.Struct("<IIqqIIQ")


class FieldValue(NamedTuple):
    """One answer: the return code of this field alone, and its value (None unless the code is 0 and it is one)."""

    returned: int
    value: float | None
    timestamp_us: int


class FieldBatch:
    """A preallocated array of field values, filled in place by one library call and read through a memoryview."""

    def __init__(self, wanted: Iterable[tuple[int, int]]) -> None:
        """`wanted` are (field id, scope id)."""
        self.wanted = tuple(wanted)
        self.array = (FieldRecord * len(self.wanted))(
            *(FieldRecord(field, scope, 0, 0, 0, _UNKNOWN, 0) for field, scope in self.wanted)
        )
        self._view = memoryview(self.array).cast("B")
        self._blank = bytes(self._view)
        #: What the driver took for the last answers, us: `latencyUsec`, summed.
        self.latency_us = 0

    def reset(self) -> None:
        """Forget the last answers, so that a record the library leaves alone reads as failed."""
        self._view[:] = self._blank

    def answers(self) -> list[FieldValue]:
        """The answers, in the order of `wanted`; adds up what they took."""
        self.latency_us = 0
        answers = []
        for _, _, timestamp, latency, kind, returned, raw in _RECORD.iter_unpack(self._view):
            self.latency_us += max(0, latency)
            answers.append(FieldValue(returned, decode(kind, raw) if returned == _SUCCESS else None, timestamp))
        return answers


def decode(value_type: int, raw: int) -> float | None:
    """A field's union by its nvmlValueType_t (0-6); None for another type and for "not available" (all ones)."""
    if value_type in (2, 3):
        return None if raw == _UNSIGNED_64 else raw
    if value_type == 1:
        low = raw & _UNSIGNED_32
        return None if low == _UNSIGNED_32 else low
    if value_type == 6:
        return raw & 0xFFFF
    if value_type == 5:
        low = raw & _UNSIGNED_32
        return low - (1 << 32) if low >> 31 else low
    if value_type == 4:
        return raw - (1 << 64) if raw >> 63 else raw
    if value_type == 0:
        number: float = struct.unpack("<d", raw.to_bytes(8, "little"))[0]
        return number if number - number == 0.0 else None
    return None


def sum_of(answers: Sequence[FieldValue]) -> float | None:
    """The sum, or None where one of them is missing."""
    total = 0.0
    for answer in answers:
        if answer.value is None:
            return None
        total += answer.value
    return total
