"""What shares a GPU: its processes, and its MIG instances as devices of their own."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope.gpu_device import process_on
from rankscope.probes.nvml_api import NOT_FOUND, Device, Gpu, NvmlFailure
from rankscope.probes.nvml_calls import ratio
from rankscope.probes.nvml_gpm import GPM_METRICS
from rankscope.probes.nvml_sample import GpuSample, Refusals

_MEMORY = "gpu_process.memory_used_bytes"
_UTILIZATION = "gpu_process.sm_utilization_ratio"


class PartsReader:
    """Reads processes, MIG instances and GPM of one GPU. Each method raises NvmlFailure where the GPU is down."""

    def __init__(self, gpu: Gpu, refusals: Refusals) -> None:
        self._gpu = gpu
        self._refusals = refusals
        self._instances: Sequence[Device] = ()
        #: Wall time of the newest sample of process utilization, us.
        self._utilization_seen_us = 0

    def look_for_instances(self, sample: GpuSample, now_ns: int) -> None:
        """See which MIG instances there are, and say what is fixed of one that is new."""
        if self._refusals.paused("gpu.mig_mode", now_ns):
            return
        try:
            mode = self._gpu.mig_mode()
            found = self._gpu.mig_instances() if mode == 1 else ()
            known = {instance.uuid for instance in self._instances}
            for instance in found:
                if instance.uuid not in known:
                    sample.facts[instance.uuid] = instance.facts()
        except NvmlFailure as failure:
            self._refusals.refused(sample, "gpu.mig_mode", failure.code, str(failure), now_ns)
            return
        self._refusals.taken("gpu.mig_mode")
        sample.values["gpu.mig_mode"] = mode
        self._instances = found

    def read_instances(self, sample: GpuSample) -> None:
        """Memory of each MIG instance."""
        for instance in self._instances:
            try:
                used, total, _ = instance.memory()
            except NvmlFailure as failure:
                # It may be gone since the last look; the next one says so.
                self._refusals.raise_if_down(failure)
                continue
            sample.parts.append((instance.uuid, "gpu.memory_used_bytes", used))
            sample.parts.append((instance.uuid, "gpu.memory_total_bytes", total))

    def read_gpm(self, sample: GpuSample, now_ns: int) -> None:
        """GPM of the GPU, and of each MIG instance."""
        if all(self._refusals.paused(metric, now_ns) for metric, _ in GPM_METRICS.values()):
            return
        try:
            found = self._gpu.gpm(now_ns)
        except NvmlFailure as failure:
            for metric, _ in GPM_METRICS.values():
                self._refusals.refused(sample, metric, failure.code, str(failure), now_ns)
            return
        values = sample.values
        for number, (code, value) in (found or {}).items():
            metric, factor = GPM_METRICS[number]
            if code == 0:
                values[metric] = value * factor
                self._refusals.taken(metric)
            elif not self._refusals.paused(metric, now_ns):
                self._refusals.refused(sample, metric, code, f"GPM metric {number} answered code {code}", now_ns)
        for instance in self._instances:
            try:
                own = instance.gpm(now_ns)
            except NvmlFailure as failure:
                # It may be gone since the last look; the next one says so.
                self._refusals.raise_if_down(failure)
                continue
            for number, (code, value) in (own or {}).items():
                if code == 0:
                    metric, factor = GPM_METRICS[number]
                    sample.parts.append((instance.uuid, metric, value * factor))

    def read_processes(self, sample: GpuSample, now_ns: int) -> None:
        """Processes of the GPU, or, where it is split, of each of its instances; and what each had of the SMs."""
        if not self._refusals.paused(_MEMORY, now_ns):
            devices: Sequence[Device] = self._instances or (self._gpu,)
            try:
                found = {device.uuid: device.processes() for device in devices}
            except NvmlFailure as failure:
                for metric in ("gpu.processes", _MEMORY):
                    self._refusals.refused(sample, metric, failure.code, str(failure), now_ns)
                found = {}
            else:
                self._refusals.taken(_MEMORY)
            for uuid, processes in found.items():
                sample.parts.append((uuid, "gpu.processes", len(processes)))
                sample.parts += ((process_on(uuid, pid), _MEMORY, used) for pid, used in processes if used is not None)
        if not self._refusals.paused(_UTILIZATION, now_ns):
            self._read_utilization(sample, now_ns)

    def _read_utilization(self, sample: GpuSample, now_ns: int) -> None:
        try:
            found = self._gpu.process_utilization(self._utilization_seen_us)
        except NvmlFailure as failure:
            if failure.code == NOT_FOUND:
                # Nobody used the GPU since: normal, and nothing to tell.
                return
            self._refusals.refused(sample, _UTILIZATION, failure.code, str(failure), now_ns)
            return
        self._refusals.taken(_UTILIZATION)
        latest: dict[int, tuple[int, int]] = {}
        for pid, at_us, percent in found:
            latest[pid] = max(latest.get(pid, (0, 0)), (at_us, percent))
        for pid, (at_us, percent) in latest.items():
            self._utilization_seen_us = max(self._utilization_seen_us, at_us)
            share = ratio(percent)
            if share is not None:
                sample.parts.append((process_on(self._gpu.uuid, pid), _UTILIZATION, share))
