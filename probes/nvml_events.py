"""Events of GPUs at the edge to NVML: Xids and other event bits, and structured GPU events where the driver has them.

The structured format (nvml.h 13.5, nvmlEventSetRegisterGpuOperationalEvents_v1, Turing and later) comes beside the
event bits: one incident may be told in both. Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import pynvml

from rankscope.probes.nvml_api import DOWN, INVALID_ARGUMENT, NEVER, TIMEOUT, UNKNOWN, GpuEvent, NvmlFailure
from rankscope.probes.nvml_call import call, optional, raw
from rankscope.probes.nvml_gpu import NvmlGpu
from rankscope.probes.nvml_structures import ContextCount, ContextInfo, LegacyXid, OperationalEventConfig, WaitedEvent

XID = 0x8  # nvmlEventTypeXidCriticalError
#: Event bits that tell of trouble, by our word (nvml.h, nvmlEventType*). P-state and clock changes are none.
EVENT_BITS = {
    0x2: "double-bit-ecc",
    0x80: "power-source-change",
    0x200: "single-bit-ecc-storm",
    0x400: "dram-retirement",
    0x800: "dram-retirement-failure",
    0x1000: "poison-non-fatal",
    0x2000: "poison-fatal",
    0x4000: "gpu-unavailable",
    0x8000: "recovery-action",
}
#: NVML_GPU_OPERATIONAL_EVENT_LOG_LEVEL_NOTICE: below are telemetry and diagnostics in large numbers.
_LEAST_LOG_LEVEL = 30
_STRUCTURED = 1  # NVML_EVENT_DATA_TYPE_GPU_OPERATIONAL_EVENT
_LEGACY_XID = 1  # NVML_GPU_OPERATIONAL_EVENT_CONTEXT_TYPE_LEGACY_XID
#: nvmlOperationalEventSeverity_t.
SEVERITIES = {10: "informational", 20: "corrected", 30: "recoverable", 40: "fatal"}
#: NVML_OPERATIONAL_EVENT_ATTR_*.
_ATTRIBUTES = ("uncontained", "latent", "propagated", "component-reset", "threshold-exceeded", "primary", "overflow")
_NO_INSTANCE = 0xFFFFFFFF  # NVML_GPU_INSTANCE_ID_ANY


class EventWatch:
    """One event set over all GPUs."""

    def __init__(self, library: Any, gpus: Sequence[NvmlGpu]) -> None:
        """Register every GPU. Raises NvmlFailure where the set cannot be made."""
        self._library = library
        self._gpus = gpus
        self._set = call(pynvml.nvmlEventSetCreate)
        #: GPUs that offer event bits, and those that offer structured events.
        self.watched = sum(self._register(gpu) for gpu in gpus)
        self.structured = sum(self._subscribe(gpu) for gpu in gpus)

    def wait(self, timeout_ms: int) -> GpuEvent | None:
        """The next event, or None when the time is over. Raises NvmlFailure."""
        try:
            return self._wait_structured(timeout_ms) if self.structured else self._wait_bits(timeout_ms)
        except NvmlFailure as failure:
            if failure.code == TIMEOUT:
                return None
            raise

    def close(self) -> None:
        """Free the set. Raises NvmlFailure."""
        call(pynvml.nvmlEventSetFree, self._set)

    def _register(self, gpu: NvmlGpu) -> bool:
        offered = optional(call, pynvml.nvmlDeviceGetSupportedEventTypes, gpu.handle) or 0
        wanted = XID | sum(bit for bit in EVENT_BITS if offered & bit)
        try:
            call(pynvml.nvmlDeviceRegisterEvents, gpu.handle, wanted, self._set)
        except NvmlFailure as failure:
            if failure.code not in NEVER | DOWN | {INVALID_ARGUMENT, UNKNOWN}:
                raise
            return False
        return True

    def _subscribe(self, gpu: NvmlGpu) -> bool:
        config = OperationalEventConfig(gpu.uuid.encode(), _LEAST_LOG_LEVEL, 0)
        try:
            raw(self._library, "nvmlEventSetRegisterGpuOperationalEvents_v1", self._set, ctypes.byref(config))
        except NvmlFailure:
            # An older driver, or no permission: event bits remain.
            return False
        return True

    def _wait_bits(self, timeout_ms: int) -> GpuEvent | None:
        data = call(pynvml.nvmlEventSetWait_v2, self._set, timeout_ms)
        address = ctypes.cast(data.device, ctypes.c_void_p).value
        owner = next((g for g in self._gpus if ctypes.cast(g.handle, ctypes.c_void_p).value == address), None)
        return _of_bits(owner, data.eventType, data.eventData, data.gpuInstanceId)

    def _wait_structured(self, timeout_ms: int) -> GpuEvent | None:
        event = WaitedEvent(timeout_ms=timeout_ms)
        raw(self._library, "nvmlEventSetWait_v3", self._set, ctypes.byref(event))
        uuid = event.uuid.decode(errors="replace")
        owner = next((gpu for gpu in self._gpus if gpu.uuid == uuid), None)
        if event.data_type != _STRUCTURED:
            return _of_bits(owner, event.event_type, event.event_data, event.gpu_instance)
        module = event.source_module.decode(errors="replace")
        attributes: dict[str, str | int | None] = {
            "source_module": module,
            "event_code": event.module_event_code,
            "severity": SEVERITIES.get(event.severity, str(event.severity)),
            "xid": self._legacy_xid(),
            "group": event.group_cursor,
            "group_index": event.group_index,
            "group_size": event.group_size,
            "flags": ",".join(word for n, word in enumerate(_ATTRIBUTES) if event.attributes >> n & 1),
        }
        return GpuEvent(
            owner.identity if owner else None, name=f"{module} {event.module_event_code}", attributes=attributes
        )

    def _legacy_xid(self) -> int | None:
        """The Xid that the last event carries, if it carries one."""
        count = ContextCount()
        try:
            raw(self._library, "nvmlEventSetGetContextCount_v1", self._set, ctypes.byref(count))
            for index in range(count.count):
                info, xid = ContextInfo(index=index), LegacyXid(index=index)
                raw(self._library, "nvmlEventSetGetContextInfo_v1", self._set, ctypes.byref(info))
                if info.context_type == _LEGACY_XID:
                    name = "nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1"
                    raw(self._library, name, self._set, ctypes.byref(xid))
                    return int(xid.xid)
        except NvmlFailure as failure:
            if failure.code in DOWN:
                raise
        return None


def _of_bits(gpu: NvmlGpu | None, event_type: int, data: int, instance: int) -> GpuEvent | None:
    identity = gpu.identity if gpu else None
    if event_type == XID:
        return GpuEvent(
            identity, xid=int(data), attributes={"gpu_instance": None if instance == _NO_INSTANCE else instance}
        )
    name = EVENT_BITS.get(event_type)
    return None if name is None else GpuEvent(identity, name=name)
