"""The NVML library at the edge: loaded, initialised, its GPUs found, its events watched, shut down in order.

Every call may block for long or for good; only the helper process makes them.
"""

from __future__ import annotations

import ctypes

import pynvml

from rankscope.probes.nvml_api import LIBRARY_NOT_FOUND, Facts, GpuEvent, NvmlFailure
from rankscope.probes.nvml_call import call
from rankscope.probes.nvml_events import EventWatch
from rankscope.probes.nvml_facts import relations
from rankscope.probes.nvml_gpu import NvmlGpu


class NvmlLibrary:
    """The loaded and initialised library with the GPUs it found."""

    def __init__(self, path: str | None = None) -> None:
        """Load `path`, or what the dynamic linker finds as libnvidia-ml.so.1. Raises NvmlFailure."""
        if path is not None:
            try:
                pynvml.nvmlLib = ctypes.CDLL(path)
            except OSError as error:
                raise NvmlFailure(LIBRARY_NOT_FOUND, str(error)) from None
        call(pynvml.nvmlInit)
        self.driver = str(call(pynvml.nvmlSystemGetDriverVersion))
        self.gpus: list[NvmlGpu] = []
        #: (index, failure) of GPUs that are counted but give no handle.
        self.unreachable: list[tuple[int, NvmlFailure]] = []
        for index in range(call(pynvml.nvmlDeviceGetCount)):
            try:
                self.gpus.append(NvmlGpu(pynvml.nvmlLib, index))
            except NvmlFailure as failure:
                self.unreachable.append((index, failure))
        self._events: EventWatch | None = None

    def relations(self, gpu: NvmlGpu) -> Facts:
        """How a GPU stands to the others. May wait for any of them. Raises NvmlFailure where one is down."""
        return relations(gpu.handle, {peer.identity.index: peer.handle for peer in self.gpus if peer is not gpu})

    def watch_events(self) -> int:
        """Ask for the events of every GPU; returns how many GPUs offer them. Raises NvmlFailure."""
        self._events = EventWatch(pynvml.nvmlLib, self.gpus)
        return self._events.watched

    def wait_event(self, timeout_ms: int) -> GpuEvent | None:
        """The next event, or None when the time is over. Raises NvmlFailure."""
        return None if self._events is None else self._events.wait(timeout_ms)

    def close(self) -> None:
        """Shut NVML down in order: a monitor that was killed has been followed by firmware faults."""
        if self._events is not None:
            self._events.close()
        call(pynvml.nvmlShutdown)
