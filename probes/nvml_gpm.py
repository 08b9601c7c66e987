"""GPM at the edge to NVML: means over the time between two samples of the hardware counters (Hopper and later)."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rankscope.probes.nvml_api import NOT_SUPPORTED, NvmlFailure
from rankscope.probes.nvml_call import raw
from rankscope.probes.nvml_structures import GpmMetricsGet, GpmSupport

#: nvml.h, nvmlGpmMetricsGet: "The interval between these two nvmlGpmSampleGet() calls should be greater than 100ms".
FLOOR_NS = 100_000_000

#: GPM calls for two devices at once have been seen to crash the process (leptonai/gpud warns of it), so that one is
#: made at a time; who does not get its turn within this goes without, rather than wait for a GPU that hangs, s.
_TURN_S = 0.02
_turn = threading.Lock()

#: GPM metric id -> (metric, factor to its unit). Ratios are per cent, traffic is MiB/s in NVML.
GPM_METRICS: dict[int, tuple[str, float]] = {
    1: ("gpu.graphics_active_ratio", 1e-2),
    2: ("gpu.sm_active_ratio", 1e-2),
    3: ("gpu.sm_occupancy_ratio", 1e-2),
    4: ("gpu.integer_active_ratio", 1e-2),
    5: ("gpu.tensor_active_ratio", 1e-2),
    6: ("gpu.tensor_dfma_active_ratio", 1e-2),
    7: ("gpu.tensor_hmma_active_ratio", 1e-2),
    9: ("gpu.tensor_imma_active_ratio", 1e-2),
    10: ("gpu.dram_active_ratio", 1e-2),
    11: ("gpu.fp64_active_ratio", 1e-2),
    12: ("gpu.fp32_active_ratio", 1e-2),
    13: ("gpu.fp16_active_ratio", 1e-2),
    20: ("gpu.pcie_tx_bytes_per_second", 1048576.0),
    21: ("gpu.pcie_rx_bytes_per_second", 1048576.0),
    60: ("gpu.nvlink_rx_bytes_per_second", 1048576.0),
    61: ("gpu.nvlink_tx_bytes_per_second", 1048576.0),
}

#: nvmlGpmMetric_t (nvml_structures.GpmMetric): id, return code, value, and three texts that are not used.
_METRIC = struct.Struct("<IId24x")


def require_gpm(library: Any, handle: Any) -> None:
    """Raises NvmlFailure where the device has no GPM."""
    support = GpmSupport(1, 0)
    raw(library, "nvmlGpmQueryDeviceSupport", handle, ctypes.byref(support))
    if not support.supported:
        raise NvmlFailure(NOT_SUPPORTED, "no GPM on this device")


class GpmWindow:
    """Two sample buffers, used in turn. `take` fills one from the device. They live as long as the process."""

    def __init__(self, library: Any, take: Callable[[ctypes.c_void_p], None]) -> None:
        self._library = library
        self._take = take
        self._first, self._second = ctypes.c_void_p(), ctypes.c_void_p()
        for buffer in (self._first, self._second):
            raw(library, "nvmlGpmSampleAlloc", ctypes.byref(buffer))
        self._taken_ns: int | None = None
        self._get = GpmMetricsGet(1, len(GPM_METRICS))
        for place, metric in enumerate(GPM_METRICS):
            self._get.metrics[place].metric_id = metric
        begin = GpmMetricsGet.metrics.offset
        self._answers = memoryview(self._get).cast("B")[begin : begin + len(GPM_METRICS) * _METRIC.size]

    def read(self, now_ns: int) -> Mapping[int, tuple[int, float]] | None:
        """Metric id -> (code, mean since the last sample); None for the first, within the floor of the last, and where
        another device has its turn.
        """
        if not _turn.acquire(timeout=_TURN_S):
            return None
        try:
            return self._read(now_ns)
        finally:
            _turn.release()

    def _read(self, now_ns: int) -> Mapping[int, tuple[int, float]] | None:
        if self._taken_ns is None:
            self._take(self._first)
            self._taken_ns = now_ns
            return None
        if now_ns - self._taken_ns <= FLOOR_NS:
            return None
        self._take(self._second)
        self._taken_ns = now_ns
        self._get.first, self._get.second = self._first, self._second
        self._first, self._second = self._second, self._first
        raw(self._library, "nvmlGpmMetricsGet", ctypes.byref(self._get))
        return {metric: (returned, value) for metric, returned, value in _METRIC.iter_unpack(self._answers)}
