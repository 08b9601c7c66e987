"""The shared state of one simulated host: a mapped file that ranks, physics and the NVML library all see."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import threading
import uuid as uuid_module
from pathlib import Path
from typing import Any

from rankscope.errors import SimulatorError
from rankscope.simulator.gpu import Gpu
from rankscope.simulator.layout import EVENT_SLOTS, MAGIC, MAX_GPUS, VERSION, NodeRecord
from rankscope.simulator.profiles import GpuProfile, profile_named

STATE_VARIABLE = "RANKSCOPE_SIM_NVML_STATE"
XID_EVENT = 0x8  # nvmlEventTypeXidCriticalError
# PCI buses of the eight GPUs of an HGX H100 board, as commonly listed; more GPUs go on counting from there.
_PCI_BUSES = (0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF, *range(0xE0, 0x100), *range(0x62, 0x7A))


class NodeState:
    """One simulated host: `create` it, `open` it in other processes, move its `gpus`.

    Point NVML at it with the environment variable `RANKSCOPE_SIM_NVML_STATE` (`STATE_VARIABLE`).
    """

    def __init__(self, path: Path, record: Any) -> None:
        self.path = path
        self.record = record
        self.gpus: tuple[Gpu, ...] = tuple(Gpu(record.gpus[i], i) for i in range(record.gpu_count))
        self._event_lock = threading.Lock()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        profile: str,
        gpus: int,
        driver: str = "580.95.05",
        host: str = "node0",
        seed: int = 1,
    ) -> NodeState:
        """Write a fresh host of `gpus` idle, healthy GPUs of one profile.

        Raises `SimulatorError` for an unknown profile, a count out of range, a driver version that is none,
        or a file that cannot be written. An existing file is replaced as a whole; maps of it stay on the old.
        """
        target = Path(path)
        spec = profile_named(profile)
        if not 1 <= gpus <= MAX_GPUS:
            raise SimulatorError(f"{gpus} GPUs", where=str(target), todo=f"choose 1 to {MAX_GPUS}")
        record = NodeRecord()
        _fill_node(record, spec, gpus, driver, host)
        for index in range(gpus):
            _fill_gpu(record.gpus[index], spec, index, host, seed)
        fresh = target.with_name(target.name + ".new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(bytes(record))
            fresh.replace(target)
        except OSError as error:
            raise SimulatorError(
                f"cannot write the node state: {error.strerror}",
                where=str(target),
                todo="choose a writable directory",
            ) from error
        return cls.open(target)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> NodeState:
        """Map an existing host. Raises `SimulatorError` if it is missing, foreign or of another version."""
        target = Path(path)
        try:
            with target.open("r+b") as file:
                if os.fstat(file.fileno()).st_size != ctypes.sizeof(NodeRecord):
                    raise SimulatorError("not a node state of this version", where=str(target), todo="create it again")
                record = NodeRecord.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(NodeRecord)))
        except OSError as error:
            raise SimulatorError(
                f"cannot open the node state: {error.strerror}", where=str(target), todo="create it first"
            ) from error
        if record.magic != MAGIC or record.version != VERSION or not 1 <= record.gpu_count <= MAX_GPUS:
            raise SimulatorError("not a node state of this version", where=str(target), todo="create it again")
        return cls(target, record)

    @property
    def host(self) -> str:
        """The host's name."""
        return str(self.record.host.decode())

    @property
    def profile(self) -> str:
        """The profile its GPUs were made from."""
        return str(self.record.profile.decode())

    @property
    def driver_version(self) -> str:
        """The driver it pretends to run."""
        return str(self.record.driver_version.decode())

    @property
    def hang_until_monotonic_ns(self) -> int:
        """Every call on any GPU blocks until CLOCK_MONOTONIC has passed this: the lock of a GPU group."""
        return int(self.record.hang_until_monotonic_ns)

    @hang_until_monotonic_ns.setter
    def hang_until_monotonic_ns(self, value: int) -> None:
        self.record.hang_until_monotonic_ns = value

    @property
    def event_count(self) -> int:
        """Events raised since the start."""
        return int(self.record.event_count)

    def push_event(self, gpu: int, data: int, event_type: int = XID_EVENT) -> None:
        """Raise an event on a GPU (by default Xid number `data`); waiters that registered before see it."""
        with self._event_lock:
            count = int(self.record.event_count)
            event = self.record.events[count % EVENT_SLOTS]
            event.sequence = 0
            event.event_type = event_type
            event.event_data = data
            event.structured, event.gpu = 0, gpu
            event.sequence = count + 1
            self.record.event_count = count + 1

    def push_structured_event(
        self,
        gpu: int,
        module: str,
        code: int,
        *,
        severity: int = 30,
        log_level: int = 50,
        legacy_xid: int = 0,
        attributes: int = 0x20,
    ) -> None:
        """Raise a structured GPU event (nvml.h, nvmlEventSetWait_v3_t): by default recoverable, an error, primary."""
        with self._event_lock:
            count = int(self.record.event_count)
            event = self.record.events[count % EVENT_SLOTS]
            event.sequence = event.event_type = event.event_data = 0
            event.structured, event.gpu = 1, gpu
            event.module, event.code = module.encode()[:16], code
            event.severity, event.log_level = severity, log_level
            event.legacy_xid, event.attributes = legacy_xid, attributes
            event.group_cursor, event.group_index, event.group_size = count + 1, 0, 1
            event.sequence = count + 1
            self.record.event_count = count + 1

    def environment(self, library_directory: str | os.PathLike[str]) -> dict[str, str]:
        """The variables a process needs to see this host through NVML; `library_directory` is `build()`'s."""
        present = os.environ.get("LD_LIBRARY_PATH", "")
        directories = os.fspath(library_directory) + (os.pathsep + present if present else "")
        return {"LD_LIBRARY_PATH": directories, STATE_VARIABLE: str(self.path.absolute())}


def _fill_node(record: Any, spec: GpuProfile, gpus: int, driver: str, host: str) -> None:
    parts = driver.split(".")
    if not 2 <= len(parts) <= 3 or not all(part.isdecimal() for part in parts):
        raise SimulatorError(f"driver version {driver!r}", where="node.driver", todo="write it like 580.95.05")
    major, minor, patch = (*map(int, parts), 0)[:3]
    record.magic, record.version, record.gpu_count = MAGIC, VERSION, gpus
    record.size_bytes = ctypes.sizeof(NodeRecord)
    record.driver_major, record.driver_minor, record.driver_patch = major, minor, patch
    record.cuda_version = 13000 if major >= 580 else 12090 if major >= 575 else 12080 if major >= 570 else 12020
    record.driver_version = driver.encode()
    record.nvml_version = f"{record.cuda_version // 1000}.{driver}".encode()
    record.profile, record.host = spec.name.encode(), host.encode()[:63]


def _fill_gpu(record: Any, spec: GpuProfile, index: int, host: str, seed: int) -> None:
    digest = hashlib.sha256(f"{seed}/{host}/{index}".encode()).digest()
    rng = random.Random(digest)
    record.uuid = f"GPU-{uuid_module.UUID(bytes=digest[:16], version=4)}".encode()
    record.serial = f"16{rng.randrange(10**11):011d}".encode()
    for name, value in spec.record_fields().items():
        setattr(record, name, value)
    record.pci_bus = _PCI_BUSES[index]
    record.minor_number, record.module_id = index, index + 1
    record.work_factor, record.ecc_enabled, record.step = 1.0, 1, -1
    record.sm_clock_mhz, record.memory_clock_mhz = spec.idle_sm_clock_mhz, spec.idle_memory_clock_mhz
    record.application_clock_mhz = spec.default_application_clock_mhz
    record.clock_event_reasons, record.performance_state = 0x1, spec.idle_performance_state
    record.temperature_celsius = spec.ambient_celsius + rng.uniform(-2.0, 2.0)
    record.memory_temperature_celsius = record.temperature_celsius + 4.0
    record.power_average_mw = record.power_instant_mw = spec.power_idle_mw
    record.power_limit_mw = record.power_requested_limit_mw = spec.power_default_limit_mw
    record.energy_mj = rng.randrange(10**12)  # counters of a host that has been up for weeks
    record.uptime_seconds = 20 * 86_400 + rng.randrange(86_400)
    # As on common boards, the first half of the GPUs is near the first socket.
    record.numa_node = 0 if index < 4 else 1
    record.pcie_generation, record.pcie_width = 1, spec.pcie_max_width
    record.fabric_state, record.fabric_health_summary = 3, 1
    for link in range(spec.nvlink_count):
        record.links[link].state = 1
        record.links[link].remote_index = link
