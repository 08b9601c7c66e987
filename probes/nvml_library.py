"""The edge to NVML: nvidia-ml-py behind the narrow Protocol of nvml_api, its errors translated once.

Every call may block for long or for good; only the helper process makes them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pynvml

from rankscope.probes.nvml_api import (
    DOWN,
    FUNCTION_NOT_FOUND,
    INVALID_ARGUMENT,
    LIBRARY_NOT_FOUND,
    NEVER,
    TIMEOUT,
    UNKNOWN,
    GpuIdentity,
    NvmlFailure,
)
from rankscope.probes.nvml_fields import FieldBatch

_XID_EVENTS = 0x8  # nvmlEventTypeXidCriticalError
_GRAPHICS_SENSOR = 0  # NVML_TEMPERATURE_GPU
_SLOWDOWN_THRESHOLD = 1  # NVML_TEMPERATURE_THRESHOLD_SLOWDOWN


class NvmlGpu:
    """One GPU through nvidia-ml-py."""

    def __init__(self, library: Any, index: int) -> None:
        self._library = library
        self.handle = _call(pynvml.nvmlDeviceGetHandleByIndex, index)
        pci = _call(pynvml.nvmlDeviceGetPciInfo, self.handle)
        self.identity = GpuIdentity(
            uuid=_call(pynvml.nvmlDeviceGetUUID, self.handle),
            index=index,
            pci=f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}",
            name=_call(pynvml.nvmlDeviceGetName, self.handle),
        )

    def utilization(self) -> tuple[int, int]:
        rates = _call(pynvml.nvmlDeviceGetUtilizationRates, self.handle)
        return rates.gpu, rates.memory

    def clock_mhz(self, kind: int) -> int:
        return int(_call(pynvml.nvmlDeviceGetClockInfo, self.handle, kind))

    def max_clock_mhz(self, kind: int) -> int:
        return int(_call(pynvml.nvmlDeviceGetMaxClockInfo, self.handle, kind))

    def clock_event_reasons(self) -> int:
        # The older name is the only one before R535.
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return int(_first_known(names, self.handle))

    def memory(self) -> tuple[int, int]:
        # Version 1 counts the driver's reserve as used.
        info = _call(pynvml.nvmlDeviceGetMemoryInfo, self.handle, pynvml.nvmlMemory_v2)
        return info.used, info.total

    def temperature(self) -> int:
        # GetTemperature goes with CUDA 14, GetTemperatureV came with R570.
        names = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        return int(_first_known(names, self.handle, _GRAPHICS_SENSOR))

    def slowdown_temperature(self) -> int:
        return int(_call(pynvml.nvmlDeviceGetTemperatureThreshold, self.handle, _SLOWDOWN_THRESHOLD))

    def read_fields(self, batch: FieldBatch) -> None:
        batch.reset()
        code = self._library.nvmlDeviceGetFieldValues(self.handle, len(batch.wanted), batch.array)
        if code:
            raise NvmlFailure(code, _text(code))


class NvmlLibrary:
    """The loaded and initialised library with the GPUs it found."""

    def __init__(self, path: str | None = None) -> None:
        """Load `path`, or what the dynamic linker finds as libnvidia-ml.so.1. Raises NvmlFailure."""
        if path is not None:
            try:
                pynvml.nvmlLib = ctypes.CDLL(path)
            except OSError as error:
                raise NvmlFailure(LIBRARY_NOT_FOUND, str(error)) from None
        _call(pynvml.nvmlInit)
        self.driver = str(_call(pynvml.nvmlSystemGetDriverVersion))
        self.gpus: list[NvmlGpu] = []
        #: (index, failure) of GPUs that are counted but give no handle.
        self.unreachable: list[tuple[int, NvmlFailure]] = []
        for index in range(_call(pynvml.nvmlDeviceGetCount)):
            try:
                self.gpus.append(NvmlGpu(pynvml.nvmlLib, index))
            except NvmlFailure as failure:
                self.unreachable.append((index, failure))
        self._events: Any = None

    def watch_xids(self) -> int:
        """Ask for Xid events of every GPU; returns how many GPUs offer them. Raises NvmlFailure."""
        self._events = _call(pynvml.nvmlEventSetCreate)
        watched = 0
        for gpu in self.gpus:
            try:
                _call(pynvml.nvmlDeviceRegisterEvents, gpu.handle, _XID_EVENTS, self._events)
                watched += 1
            except NvmlFailure as failure:
                if failure.code not in NEVER | DOWN | {INVALID_ARGUMENT, UNKNOWN}:
                    raise
        return watched

    def wait_xid(self, timeout_ms: int) -> tuple[GpuIdentity | None, int] | None:
        """The next Xid, or None when the time is over. Raises NvmlFailure."""
        try:
            data = _call(pynvml.nvmlEventSetWait_v2, self._events, timeout_ms)
        except NvmlFailure as failure:
            if failure.code == TIMEOUT:
                return None
            raise
        if data.eventType != _XID_EVENTS:
            return None
        return self._owner(data.device), int(data.eventData)

    def _owner(self, handle: Any) -> GpuIdentity | None:
        address = ctypes.cast(handle, ctypes.c_void_p).value
        for gpu in self.gpus:
            if ctypes.cast(gpu.handle, ctypes.c_void_p).value == address:
                return gpu.identity
        return None

    def close(self) -> None:
        """Shut NVML down in order: a monitor that was killed has been followed by firmware faults."""
        if self._events is not None:
            _call(pynvml.nvmlEventSetFree, self._events)
        _call(pynvml.nvmlShutdown)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise NvmlFailure(int(error.value), str(error)) from None


def _first_known(names: tuple[str, str], *arguments: Any) -> Any:
    """Call the first of two names that both nvidia-ml-py and the library know."""
    if hasattr(pynvml, names[0]):
        try:
            return _call(getattr(pynvml, names[0]), *arguments)
        except NvmlFailure as failure:
            if failure.code != FUNCTION_NOT_FOUND:
                raise
    return _call(getattr(pynvml, names[1]), *arguments)


def _text(code: int) -> str:
    return str(pynvml.NVMLError(code))
