"""Structures of NVML that are filled through ctypes, laid out as nvml.h 13.5 has them.

nvidia-ml-py has some of these in some of its versions; these are the same whichever is installed. tests/simulator
compares every size and offset to the official header.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_char_p, c_double, c_int, c_ubyte, c_uint, c_ulonglong, c_ushort, c_void_p


class Versioned(ctypes.Structure):
    """A structure that says its own version: its size, and `NUMBER` in the top byte (NVML_STRUCT_VERSION)."""

    NUMBER = 1

    @classmethod
    def fresh(cls) -> Versioned:
        """One that is ready to be passed."""
        record = cls()
        record.version = ctypes.sizeof(cls) | cls.NUMBER << 24
        return record


class Sample(ctypes.Structure):
    """nvmlSample_t: wall time in us, and the 8-byte union nvmlValue_t."""

    _fields_ = (("timestamp_us", c_ulonglong), ("value", c_ulonglong))


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_v2_t, which ComputeRunningProcesses_v3 fills."""

    _fields_ = (
        ("pid", c_uint),
        ("used_bytes", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    )


class ProcessUtilization(ctypes.Structure):
    """nvmlProcessUtilizationSample_t."""

    _fields_ = (
        ("pid", c_uint),
        ("timestamp_us", c_ulonglong),
        ("sm_percent", c_uint),
        ("memory_percent", c_uint),
        ("encoder_percent", c_uint),
        ("decoder_percent", c_uint),
    )


class Uptime(ctypes.Structure):
    """nvmlGpuUptime_v1_t."""

    _fields_ = (("seconds", c_uint),)


class Utilization(ctypes.Structure):
    """nvmlUtilization_t: per cent of the time."""

    _fields_ = (("gpu", c_uint), ("memory", c_uint))


class Memory(Versioned):
    """nvmlMemory_v2_t."""

    NUMBER = 2
    _fields_ = (
        ("version", c_uint),
        ("total", c_ulonglong),
        ("reserved", c_ulonglong),
        ("free", c_ulonglong),
        ("used", c_ulonglong),
    )


class Temperature(Versioned):
    """nvmlTemperature_v1_t."""

    _fields_ = (("version", c_uint), ("sensor", c_int), ("celsius", c_int))


class Margin(Versioned):
    """nvmlMarginTemperature_v1_t."""

    _fields_ = (("version", c_uint), ("celsius", c_int))


class FabricInfo(Versioned):
    """nvmlGpuFabricInfo_v3_t."""

    NUMBER = 3
    _fields_ = (
        ("version", c_uint),
        ("cluster", c_ubyte * 16),
        ("status", c_uint),
        ("clique", c_uint),
        ("state", c_ubyte),
        ("health_mask", c_uint),
        ("health_summary", c_ubyte),
    )


class OlderFabricInfo(Versioned):
    """nvmlGpuFabricInfo_v2_t, for drivers that refuse version 3."""

    NUMBER = 2
    _fields_ = FabricInfo._fields_[:-1]


class SramEcc(Versioned):
    """nvmlEccSramErrorStatus_v1_t."""

    _fields_ = (
        ("version", c_uint),
        ("aggregate_uncorrected_parity", c_ulonglong),
        ("aggregate_uncorrected_secded", c_ulonglong),
        ("aggregate_corrected", c_ulonglong),
        ("volatile_uncorrected_parity", c_ulonglong),
        ("volatile_uncorrected_secded", c_ulonglong),
        ("volatile_corrected", c_ulonglong),
        ("aggregate_uncorrected_l2", c_ulonglong),
        ("aggregate_uncorrected_sm", c_ulonglong),
        ("aggregate_uncorrected_pcie", c_ulonglong),
        ("aggregate_uncorrected_microcontroller", c_ulonglong),
        ("aggregate_uncorrected_other", c_ulonglong),
        ("threshold_exceeded", c_uint),
    )


class RowRemapHistogram(ctypes.Structure):
    """nvmlRowRemapperHistogramValues_t: banks by what is left of their spare rows."""

    _fields_ = (("max", c_uint), ("high", c_uint), ("partial", c_uint), ("low", c_uint), ("none", c_uint))


class DeviceAttributes(ctypes.Structure):
    """nvmlDeviceAttributes_t."""

    _fields_ = (
        ("multiprocessors", c_uint),
        ("copy_engines", c_uint),
        ("decoders", c_uint),
        ("encoders", c_uint),
        ("jpegs", c_uint),
        ("ofas", c_uint),
        ("gpu_instance_slices", c_uint),
        ("compute_instance_slices", c_uint),
        ("memory_mib", c_ulonglong),
    )


class GpmMetric(ctypes.Structure):
    """nvmlGpmMetric_t; the names it points to are not used."""

    _fields_ = (
        ("metric_id", c_uint),
        ("returned", c_uint),
        ("value", c_double),
        ("short_name", c_char_p),
        ("long_name", c_char_p),
        ("unit", c_char_p),
    )


#: Metrics asked for at once; the header's array is longer, and only the first `count` entries are touched.
GPM_METRICS = 32


class GpmMetricsGet(ctypes.Structure):
    """nvmlGpmMetricsGet_t with a shorter array. Its version is plain 1 (NVML_GPM_METRICS_GET_VERSION)."""

    _fields_ = (
        ("version", c_uint),
        ("count", c_uint),
        ("first", c_void_p),
        ("second", c_void_p),
        ("metrics", GpmMetric * GPM_METRICS),
    )


class GpmSupport(ctypes.Structure):
    """nvmlGpmSupport_t. Its version is plain 1 (NVML_GPM_SUPPORT_VERSION)."""

    _fields_ = (("version", c_uint), ("supported", c_uint))


class OperationalEventConfig(ctypes.Structure):
    """nvmlGpuOperationalEventConfig_v1_t."""

    _fields_ = (("uuid", c_char * 96), ("min_log_level", c_uint), ("min_severity", c_uint))


class WaitedEvent(ctypes.Structure):
    """nvmlEventSetWait_v3_t."""

    _fields_ = (
        ("timeout_ms", c_uint),
        ("data_type", c_uint),
        ("uuid", c_char * 96),
        ("source_module", c_char * 16),
        ("event_type", c_ulonglong),
        ("event_data", c_ulonglong),
        ("group_cursor", c_ulonglong),
        ("instance_id", c_ulonglong),
        ("timestamp_us", c_ulonglong),
        ("trace_id", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
        ("severity", c_uint),
        ("category_id", c_uint),
        ("module_event_code", c_uint),
        ("scope", c_uint),
        ("originator", c_uint),
        ("module_instance", c_uint),
        ("chiplet_id", c_uint),
        ("log_level", c_uint),
        ("attributes", c_uint),
        ("group_cper_size", c_uint),
        ("group_attributes", c_uint),
        ("group_size", c_ubyte),
        ("group_index", c_ubyte),
    )


class ContextCount(ctypes.Structure):
    """nvmlEventSetGetContextCount_v1_t."""

    _fields_ = (("count", c_uint),)


class ContextInfo(ctypes.Structure):
    """nvmlEventSetGetContextInfo_v1_t."""

    _fields_ = (
        ("index", c_uint),
        ("context_type", c_uint),
        ("source_type", c_uint),
        ("data_size", c_uint),
        ("format_version", c_ushort),
    )


class LegacyXid(ctypes.Structure):
    """nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1_t."""

    _fields_ = (("index", c_uint), ("xid", c_uint))


#: nvml.h's name of each structure here, for the comparison with the header.
C_NAMES: dict[str, type[ctypes.Structure]] = {
    "nvmlSample_t": Sample,
    "nvmlProcessInfo_t": ProcessInfo,
    "nvmlProcessUtilizationSample_t": ProcessUtilization,
    "nvmlGpuUptime_v1_t": Uptime,
    "nvmlMarginTemperature_v1_t": Margin,
    "nvmlTemperature_v1_t": Temperature,
    "nvmlUtilization_t": Utilization,
    "nvmlMemory_v2_t": Memory,
    "nvmlGpuFabricInfo_v3_t": FabricInfo,
    "nvmlGpuFabricInfo_v2_t": OlderFabricInfo,
    "nvmlEccSramErrorStatus_v1_t": SramEcc,
    "nvmlRowRemapperHistogramValues_t": RowRemapHistogram,
    "nvmlDeviceAttributes_t": DeviceAttributes,
    "nvmlGpmMetric_t": GpmMetric,
    "nvmlGpmSupport_t": GpmSupport,
    "nvmlGpuOperationalEventConfig_v1_t": OperationalEventConfig,
    "nvmlEventSetWait_v3_t": WaitedEvent,
    "nvmlEventSetGetContextCount_v1_t": ContextCount,
    "nvmlEventSetGetContextInfo_v1_t": ContextInfo,
    "nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1_t": LegacyXid,
}
