"""One GPU, or one MIG instance of it, at the edge to NVML: behind the Protocols of nvml_api, errors translated."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import pynvml

from rankscope.probes.nvml_api import (
    FUNCTION_NOT_FOUND,
    INSUFFICIENT_SIZE,
    INVALID_ARGUMENT,
    NOT_FOUND,
    VERSION_MISMATCH,
    Fabric,
    Facts,
    GpuIdentity,
    NvmlFailure,
    ProcessUse,
    SampleRing,
)
from rankscope.probes.nvml_call import Question, call, raw, raw_code, text_of
from rankscope.probes.nvml_facts import gpu_facts, mig_facts
from rankscope.probes.nvml_fields import FieldBatch
from rankscope.probes.nvml_gpm import GpmWindow, require_gpm
from rankscope.probes.nvml_structures import (
    FabricInfo,
    Margin,
    Memory,
    OlderFabricInfo,
    ProcessInfo,
    ProcessUtilization,
    RowRemapHistogram,
    Sample,
    SramEcc,
    Temperature,
    Uptime,
    Utilization,
)

_GRAPHICS_SENSOR = 0  # NVML_TEMPERATURE_GPU
_SM_CLOCK, _MEMORY_CLOCK = 1, 2  # NVML_CLOCK_SM, NVML_CLOCK_MEM
#: The older name is the only one before R535.
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_PSTATE_UNKNOWN = 32  # NVML_PSTATE_UNKNOWN
_NOT_AVAILABLE = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE
_PROCESS_TRIES = 3
_SAMPLE_ROOM = 512


class NvmlDevice:
    """What a GPU and a MIG instance answer alike."""

    def __init__(self, library: Any, handle: Any, uuid: str) -> None:
        self._library = library
        self.handle = handle
        self.uuid = uuid
        self._gpm: GpmWindow | None = None
        # Version 1 counts the driver's reserve as used.
        self._memory = Question(library, "nvmlDeviceGetMemoryInfo_v2", Memory.fresh())

    def memory(self) -> tuple[int, int, int]:
        info = self._memory.ask(self.handle)
        return info.used, info.total, info.reserved

    def processes(self) -> Sequence[ProcessUse]:
        room = 32
        for _ in range(_PROCESS_TRIES):
            found, count = (ProcessInfo * room)(), ctypes.c_uint(room)
            code = raw_code(
                self._library, "nvmlDeviceGetComputeRunningProcesses_v3", self.handle, ctypes.byref(count), found
            )
            if code != INSUFFICIENT_SIZE:
                break
            # Processes may come between the two calls.
            room = count.value + 16
        if code:
            raise NvmlFailure(code, text_of(code))
        return [
            ProcessUse(p.pid, None if p.used_bytes == _NOT_AVAILABLE else p.used_bytes) for p in found[: count.value]
        ]

    def gpm(self, now_ns: int) -> Mapping[int, tuple[int, float]] | None:
        if self._gpm is None:
            self._gpm = self._gpm_window()
        return self._gpm.read(now_ns)

    def _gpm_window(self) -> GpmWindow:
        require_gpm(self._library, self.handle)
        return GpmWindow(self._library, lambda buffer: raw(self._library, "nvmlGpmSampleGet", self.handle, buffer))


class NvmlMig(NvmlDevice):
    """One MIG instance: a compute instance within a GPU instance."""

    def __init__(self, library: Any, handle: Any, uuid: str, parent: NvmlGpu) -> None:
        super().__init__(library, handle, uuid)
        self._parent = parent
        self.gpu_instance = int(call(pynvml.nvmlDeviceGetGpuInstanceId, handle))
        self.compute_instance = int(call(pynvml.nvmlDeviceGetComputeInstanceId, handle))

    def facts(self) -> Facts:
        return mig_facts(self._library, self.handle, self._parent.uuid, self.gpu_instance, self.compute_instance)

    def _gpm_window(self) -> GpmWindow:
        parent = self._parent.handle
        require_gpm(self._library, parent)
        instance = ctypes.c_uint(self.gpu_instance)
        return GpmWindow(
            self._library, lambda buffer: raw(self._library, "nvmlGpmMigSampleGet", parent, instance, buffer)
        )


class NvmlGpu(NvmlDevice):
    """One GPU."""

    def __init__(self, library: Any, index: int) -> None:
        handle = call(pynvml.nvmlDeviceGetHandleByIndex, index)
        super().__init__(library, handle, str(call(pynvml.nvmlDeviceGetUUID, handle)))
        pci = call(pynvml.nvmlDeviceGetPciInfo, handle)
        self.identity = GpuIdentity(
            uuid=self.uuid,
            index=index,
            pci=f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}",
            name=call(pynvml.nvmlDeviceGetName, handle),
        )
        self._mig: dict[str, NvmlMig] = {}
        self._capacity: dict[int, int] = {}
        self._fabric_version: type[FabricInfo] | type[OlderFabricInfo] = FabricInfo
        self._utilization = Question(library, "nvmlDeviceGetUtilizationRates", Utilization())
        self._clocks = {
            kind: Question(library, "nvmlDeviceGetClockInfo", ctypes.c_uint(), ctypes.c_uint(kind))
            for kind in (_SM_CLOCK, _MEMORY_CLOCK)
        }
        self._reasons = [Question(library, name, ctypes.c_ulonglong()) for name in _REASONS]
        self._state = Question(library, "nvmlDeviceGetPerformanceState", ctypes.c_uint())
        self._temperature: Question | None = Question(library, "nvmlDeviceGetTemperatureV", Temperature.fresh())
        self._fields = library.nvmlDeviceGetFieldValues
        self._margin = Question(library, "nvmlDeviceGetMarginTemperature", Margin.fresh())

    def utilization(self) -> tuple[int, int]:
        rates = self._utilization.ask(self.handle)
        return rates.gpu, rates.memory

    def clock_mhz(self, kind: int) -> int:
        return int(self._clocks[kind].ask(self.handle).value)

    def max_clock_mhz(self, kind: int) -> int:
        return int(call(pynvml.nvmlDeviceGetMaxClockInfo, self.handle, kind))

    def clock_event_reasons(self) -> int:
        try:
            return int(self._reasons[0].ask(self.handle).value)
        except NvmlFailure as failure:
            if failure.code != FUNCTION_NOT_FOUND or len(self._reasons) == 1:
                raise
            del self._reasons[0]
            return self.clock_event_reasons()

    def performance_state(self) -> int | None:
        state = int(self._state.ask(self.handle).value)
        return None if state == _PSTATE_UNKNOWN else state

    def temperature(self) -> int:
        if self._temperature is not None:
            try:
                return int(self._temperature.ask(self.handle).celsius)
            except NvmlFailure as failure:
                if failure.code != FUNCTION_NOT_FOUND:
                    raise
            # GetTemperature goes with CUDA 14, GetTemperatureV came with R570.
            self._temperature = None
        return int(call(pynvml.nvmlDeviceGetTemperature, self.handle, _GRAPHICS_SENSOR))

    def threshold_celsius(self, kind: int) -> int:
        return int(call(pynvml.nvmlDeviceGetTemperatureThreshold, self.handle, kind))

    def temperature_margin(self) -> int:
        return int(self._margin.ask(self.handle).celsius)

    def pcie_link(self) -> tuple[int, int]:
        return (
            int(call(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, self.handle)),
            int(call(pynvml.nvmlDeviceGetCurrPcieLinkWidth, self.handle)),
        )

    def pcie_link_max(self) -> tuple[int, int]:
        return (
            int(call(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, self.handle)),
            int(call(pynvml.nvmlDeviceGetMaxPcieLinkWidth, self.handle)),
        )

    def uptime_seconds(self) -> int:
        uptime = Uptime()
        raw(self._library, "nvmlDeviceGetGpuUptime_v1", self.handle, ctypes.byref(uptime))
        return int(uptime.seconds)

    def mig_mode(self) -> int:
        return int(call(pynvml.nvmlDeviceGetMigMode, self.handle)[0])

    def mig_instances(self) -> Sequence[NvmlMig]:
        """An instance that is there again keeps its object, and with it what it has sampled."""
        found: dict[str, NvmlMig] = {}
        for place in range(int(call(pynvml.nvmlDeviceGetMaxMigDeviceCount, self.handle))):
            try:
                handle = call(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, self.handle, place)
                uuid = str(call(pynvml.nvmlDeviceGetUUID, handle))
                found[uuid] = self._mig.get(uuid) or NvmlMig(self._library, handle, uuid, self)
                found[uuid].handle = handle
            except NvmlFailure as failure:
                # None at this place, or gone since.
                if failure.code not in (NOT_FOUND, INVALID_ARGUMENT):
                    raise
        self._mig = found
        return tuple(found.values())

    def fabric(self) -> Fabric:
        info = self._fabric_version.fresh()
        try:
            raw(self._library, "nvmlDeviceGetGpuFabricInfoV", self.handle, ctypes.byref(info))
        except NvmlFailure as failure:
            if failure.code != VERSION_MISMATCH or self._fabric_version is OlderFabricInfo:
                raise
            self._fabric_version = OlderFabricInfo
            return self.fabric()
        summary = info.health_summary if isinstance(info, FabricInfo) else None
        return Fabric(info.state, info.status, info.health_mask, summary)

    def sram_ecc(self) -> Mapping[str, int]:
        status = SramEcc.fresh()
        raw(self._library, "nvmlDeviceGetSramEccErrorStatus", self.handle, ctypes.byref(status))
        return {name: getattr(status, name) for name, _ in SramEcc._fields_[1:]}

    def row_remap_banks(self) -> Mapping[str, int]:
        banks = RowRemapHistogram()
        raw(self._library, "nvmlDeviceGetRowRemapperHistogram", self.handle, ctypes.byref(banks))
        return {name: getattr(banks, name) for name, _ in RowRemapHistogram._fields_}

    def samples(self, kind: int, last_seen_us: int) -> SampleRing:
        value_type, count = ctypes.c_uint(), ctypes.c_uint()
        since = ctypes.c_ulonglong(last_seen_us)
        ask = (self._library, "nvmlDeviceGetSamples", self.handle, kind, since, ctypes.byref(value_type))
        if kind not in self._capacity:
            raw(*ask, ctypes.byref(count), None)
            self._capacity[kind] = max(1, count.value)
        # The number told may be what there is now and not what fits: room for more costs 16 bytes a sample.
        room = max(_SAMPLE_ROOM, self._capacity[kind])
        count.value = room
        found = (Sample * room)()
        code = raw_code(*ask, ctypes.byref(count), found)
        if code == NOT_FOUND:
            return SampleRing((), full=False)
        if code:
            raise NvmlFailure(code, text_of(code))
        # nvml.h, nvmlDeviceGetSamples: power, utilization and clocks come as unsigned int.
        samples = [(s.timestamp_us, s.value & 0xFFFFFFFF) for s in found[: count.value]]
        return SampleRing(samples, full=count.value >= self._capacity[kind])

    def process_utilization(self, last_seen_us: int) -> Sequence[tuple[int, int, int]]:
        count, since = ctypes.c_uint(), ctypes.c_ulonglong(last_seen_us)
        name = "nvmlDeviceGetProcessUtilization"
        code = raw_code(self._library, name, self.handle, None, ctypes.byref(count), since)
        if code not in (0, INSUFFICIENT_SIZE):
            raise NvmlFailure(code, text_of(code))
        if not count.value:
            return ()
        found = (ProcessUtilization * count.value)()
        raw(self._library, name, self.handle, found, ctypes.byref(count), since)
        return [(p.pid, p.timestamp_us, p.sm_percent) for p in found[: count.value]]

    def facts(self) -> Facts:
        return gpu_facts(self._library, self.handle)

    def read_fields(self, batch: FieldBatch) -> None:
        batch.reset()
        code = self._fields(self.handle, len(batch.wanted), batch.array)
        if code:
            raise NvmlFailure(code, text_of(code))
