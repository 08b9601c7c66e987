"""What the NVML probe says of one simulated GPU, whole, as text; `python tests/golden_gpu.py` writes the golden files.

Every counter of the GPU has a value of its own, so that one read in another's place shows.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from ctypes import c_uint32, c_uint64
from dataclasses import dataclass
from pathlib import Path

from watched_nvml import Watched

from rankscope.gpu_device import part_of
from rankscope.metrics import METRICS
from rankscope.probes.nvml import NvmlProbe
from rankscope.simulator.build import build
from rankscope.simulator.gpu import EccKind, EccLifetime, Gpu, MemoryLocation
from rankscope.simulator.layout import GpuRecord, LinkRecord
from rankscope.simulator.state import NodeState

GOLDEN = Path(__file__).parent / "probes" / "golden"
#: Metrics whose values depend on the machine and the moment.
_CHANGING = frozenset({"gpu.driver_latency_ns"})
_COUNTED = ("throttle_", "pcie_", "remapped_", "retired_", "sram_")
#: Share of the time between the two reads that each GPM integral grows by.
_ACTIVE = {
    "gpm_graphics_ns": 0.95,
    "gpm_sm_ns": 0.9,
    "gpm_occupancy_ns": 0.45,
    "gpm_integer_ns": 0.1,
    "gpm_tensor_ns": 0.6,
    "gpm_dfma_ns": 0.01,
    "gpm_hmma_ns": 0.55,
    "gpm_imma_ns": 0.04,
    "gpm_dram_ns": 0.5,
    "gpm_fp64_ns": 0.02,
    "gpm_fp32_ns": 0.2,
    "gpm_fp16_ns": 0.05,
}
_BETWEEN_NS = 2_000_000_000


@dataclass(frozen=True)
class Case:
    """One golden file: a profile under a driver, split by MIG or whole."""

    profile: str
    driver: str
    mig: bool = False

    @property
    def path(self) -> Path:
        """Where its golden file lies."""
        return GOLDEN / f"{self.profile}{'.mig' if self.mig else ''}.txt"


CASES = (
    Case("H100-SXM5-80GB", "580.95.05"),
    Case("H100-SXM5-80GB", "595.45.04", mig=True),
    Case("A100-SXM4-80GB", "575.57.08"),
    Case("B200", "595.45.04"),
    Case("T4", "570.172.08"),
)


def fill(gpu: Gpu, *, mig: bool) -> None:
    """Give every counter of a GPU, and of each of its links, a value of its own."""
    for place, (name, kind) in enumerate(GpuRecord._fields_):
        if kind in (c_uint32, c_uint64) and name.startswith(_COUNTED) and "_max_" not in name:
            setattr(gpu.record, name, 1000 + place)
    gpu.sram_threshold_exceeded = gpu.remap_pending = gpu.retired_pending = True
    gpu.remap_failure = False
    gpu.pcie_generation, gpu.pcie_width = gpu.pcie_max_generation - 1, gpu.pcie_max_width
    gpu.remapped_corrected, gpu.remapped_uncorrected = 3, 2
    for place, location in enumerate(MemoryLocation):
        for lifetime in EccLifetime:
            for kind in EccKind:
                count = 10 * place + 2 * lifetime + kind + 1
                if location is not MemoryLocation.CBU or kind is EccKind.UNCORRECTED:
                    gpu.add_ecc_errors(lifetime, kind, location, count)
    gpu.recovery_action, gpu.uptime_seconds, gpu.energy_mj = 3, 86_461, 5_000_000_000
    gpu.utilization_percent, gpu.memory_utilization_percent = 97, 41
    gpu.sm_clock_mhz, gpu.memory_clock_mhz, gpu.performance_state = 1305, gpu.max_memory_clock_mhz, 2
    gpu.clock_event_reasons = 0x24
    gpu.power_instant_mw, gpu.power_average_mw = 65_500, 64_250
    gpu.power_limit_mw = gpu.power_default_limit_mw - 1000
    gpu.power_requested_limit_mw = gpu.power_default_limit_mw - 2000
    gpu.temperature_celsius, gpu.memory_temperature_celsius = 61.0, 72.0
    gpu.fabric_health_mask, gpu.fabric_health_summary = 0x2AA, 1
    gpu.moved_at_monotonic_ns = 1_000_000_000
    if mig:
        gpu.split([(60, 40 << 30), (32, 20 << 30)])
    gpu.set_process(4711, 30 << 30, mig=0 if mig else None)
    gpu.set_process(4712, 2 << 30, slot=1, mig=1 if mig else None)
    gpu.record.processes[0].sm_utilization = gpu.record.processes[1].sm_utilization = 40
    for number, link in enumerate(gpu.links):
        for place, (name, kind) in enumerate(LinkRecord._fields_):
            if kind is c_uint64:
                setattr(link.record, name, 100 * number + place)
        link.set_fec_corrected([1000 * number + n for n in range(16)])
        link.effective_ber, link.symbol_ber = 3 << 8 | 15, 7 << 8 | 9
        link.state = 0 if number == 5 else 1


def move(gpu: Gpu) -> None:
    """What happens between the two reads of GPM, and what the driver samples."""
    for name, share in _ACTIVE.items():
        setattr(gpu, name, getattr(gpu, name) + round(share * _BETWEEN_NS))
    for number, instance in enumerate(mig for mig in gpu.migs if mig.present):
        instance.gpm_sm_ns += round((0.8 - 0.3 * number) * _BETWEEN_NS)
        instance.gpm_tensor_ns += round((0.4 - 0.3 * number) * _BETWEEN_NS)
    gpu.pcie_tx_bytes += 64 << 20
    gpu.pcie_rx_bytes += 32 << 20
    for link in gpu.links:
        link.data_tx_kib += 2048
        link.data_rx_kib += 1024
    gpu.moved_at_monotonic_ns += _BETWEEN_NS
    now_us = time.time_ns() // 1000
    for n in range(3):
        gpu.utilization_percent, gpu.power_instant_mw = 97 - n, 65_500 + n
        gpu.push_sample(now_us + 139_000 * n)


def settle(watched: Watched, without: str = "") -> None:
    """Every group but one is asked for once and has answered."""
    for group in watched.probe.groups:
        if group.name != without:
            watched.read(group.name)
    while any(gpu.awaited for gpu in watched.probe._gpus.values()):
        watched.keep(watched.probe.read_devices("fast", time.monotonic_ns(), frozenset()))
        time.sleep(0.002)


def said(case: Case, library: Path, directory: Path) -> str:
    """All that the probe says of the case, through its real helper over the simulated library."""
    node = NodeState.create(directory / "node", profile=case.profile, gpus=1, driver=case.driver)
    fill(node.gpus[0], mig=case.mig)
    watched = Watched(NvmlProbe(environment={**os.environ, **node.environment(library)}))
    try:
        watched.read_until(lambda: bool(watched.probe.gpus))
        settle(watched)
        time.sleep(0.11)  # GPM's floor
        watched.readings.clear()
        move(node.gpus[0])
        settle(watched)
        # What fell back to another field answers now; GPM would have nothing new.
        settle(watched, without="gpm")
    finally:
        watched.probe.close()
    return _text(watched, case)


def _text(watched: Watched, case: Case) -> str:
    names = {watched.probe.gpus[0].uuid: "GPU"}
    described = [event for event in watched.events if event.kind == "gpu-described"]
    for number, event in enumerate(e for e in described if e.device.startswith("MIG-")):
        names[event.device] = f"MIG-{number}"
    values: dict[str, dict[str, list[float]]] = {}
    for reading in watched.readings:
        part = part_of(reading.device)
        device = names[part.uuid] + reading.device.removeprefix(part.uuid)
        values.setdefault(reading.metric, {}).setdefault(device, []).append(reading.value)
    lines = [f"# {case.profile}, driver {case.driver}{', split by MIG' if case.mig else ''}"]
    for name, metric in METRICS.items():
        for device, found in sorted(values.pop(name, {}).items(), key=_by_number):
            shown = found if "_sample_" in name else found[-1:]
            text = "(changes)" if name in _CHANGING else " ".join(f"{value:.12g}" for value in shown)
            lines.append(f"{name} {device} {metric.unit} {'counter' if metric.counter else 'gauge'} {text}")
    absent = [(reason.partition(": "), outcome) for _, outcome, reason in watched.outcomes]
    lines += sorted(
        f"{metric} is absent: {outcome}, {why}"
        for (metrics, _, why), outcome in absent
        for metric in metrics.split(", ")
    )
    for event in described:
        for key, value in sorted(event.attributes.items()):
            # CPUs are those of this machine.
            shown_value = "(this machine's)" if key == "cpu_affinity" else names.get(str(value), value)
            lines.append(f"{names[event.device]} {key} = {shown_value}")
    others = sorted(event.kind for event in watched.events if event.kind != "gpu-described")
    return "\n".join([*lines, *others, ""])


def _by_number(item: tuple[str, list[float]]) -> tuple[str, int]:
    head, _, number = item[0].rpartition(":")
    return head, int(number) if number.isdigit() else -1


def main() -> None:
    """Write every golden file."""
    with tempfile.TemporaryDirectory() as scratch:
        library = build(Path(scratch) / "library")
        for case in CASES:
            GOLDEN.mkdir(exist_ok=True)
            case.path.write_text(said(case, library, Path(scratch)), encoding="utf-8")
            print(f"{case.path.relative_to(Path.cwd())}: written")


if __name__ == "__main__":
    sys.exit(main())
