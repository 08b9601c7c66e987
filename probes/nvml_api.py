"""What the probe knows of NVML without loading it: return codes, a GPU's identity, and the calls asked of one GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from rankscope.probes.nvml_fields import FieldBatch

# nvmlReturn_t
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
NO_DATA = 21
VERSION_MISMATCH = 25
UNKNOWN = 999

#: Will not change before something is replaced.
NEVER = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND, VERSION_MISMATCH})
#: No value at the moment: normal.
PASSING = frozenset({NOT_FOUND, TIMEOUT, NO_DATA})
#: The GPU itself is down.
DOWN = frozenset({GPU_IS_LOST, RESET_REQUIRED})


class NvmlFailure(Exception):
    """A call that returned another code than success. `code` is its nvmlReturn_t."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(f"{text} (NVML code {code})")


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """A GPU as NVML names it. `index` is in PCI bus order, which need not be CUDA's; `pci` is dddd:bb:dd."""

    uuid: str
    index: int
    pci: str
    name: str


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """One event. `gpu` is None where its GPU is not known; an Xid has a number, everything else a name."""

    gpu: GpuIdentity | None
    xid: int | None = None
    name: str = ""
    attributes: dict[str, str | int | None] = field(default_factory=dict)


class ProcessUse(NamedTuple):
    """A process with a compute context; `used_bytes` is None where the driver does not tell."""

    pid: int
    used_bytes: int | None


class SampleRing(NamedTuple):
    """What one of the driver's sample buffers held: (wall time us, value), oldest first.

    `full`: as many as the buffer holds, so that older ones may have gone.
    """

    samples: Sequence[tuple[int, int]]
    full: bool


class Fabric(NamedTuple):
    """Registration with the fabric and its health; no summary before version 3 of NVML's structure."""

    state: int
    status: int
    health_mask: int
    health_summary: int | None


#: What is fixed of a device: names and places, by attribute of the `gpu-described` event.
Facts = Mapping[str, str | int | float | None]


class Device(Protocol):
    """What the reader asks of a GPU and of a MIG instance alike. Each raises NvmlFailure."""

    @property
    def uuid(self) -> str:
        """UUID, as "GPU-..." or "MIG-..."."""
        ...

    def memory(self) -> tuple[int, int, int]:
        """Bytes in use (without the driver's own reserve), in all, and reserved."""
        ...

    def processes(self) -> Sequence[ProcessUse]:
        """Processes with a compute context."""
        ...

    def gpm(self, now_ns: int) -> Mapping[int, tuple[int, float]] | None:
        """GPM metric id -> (code, mean since the last call that gave any); None where that is too short ago."""
        ...

    def facts(self) -> Facts:
        """What is fixed of it."""
        ...


class Gpu(Device, Protocol):
    """What the reader asks of one GPU. Each raises NvmlFailure."""

    identity: GpuIdentity

    def utilization(self) -> tuple[int, int]:
        """Per cent of time with a kernel running, and with memory in use."""
        ...

    def clock_mhz(self, kind: int) -> int:
        """Clock of a domain (nvmlClockType_t: 1 SM, 2 memory)."""
        ...

    def max_clock_mhz(self, kind: int) -> int:
        """Highest clock of a domain."""
        ...

    def clock_event_reasons(self) -> int:
        """Bit mask of nvmlClocksEventReason*."""
        ...

    def performance_state(self) -> int | None:
        """P-state, 0 the fastest; None where the driver does not know."""
        ...

    def temperature(self) -> int:
        """Degrees Celsius of the GPU."""
        ...

    def threshold_celsius(self, kind: int) -> int:
        """A threshold (nvmlTemperatureThresholds_t: 0 shutdown, 1 slowdown, 2 memory maximum, 3 GPU maximum)."""
        ...

    def temperature_margin(self) -> int:
        """Degrees left to the nearest slowdown threshold."""
        ...

    def pcie_link(self) -> tuple[int, int]:
        """Generation and lanes of the PCIe link now."""
        ...

    def pcie_link_max(self) -> tuple[int, int]:
        """The highest generation and most lanes that GPU and slot have together."""
        ...

    def uptime_seconds(self) -> int:
        """Seconds since the driver initialised the GPU."""
        ...

    def mig_mode(self) -> int:
        """1 where MIG is on."""
        ...

    def mig_instances(self) -> Sequence[Device]:
        """The MIG instances there are now."""
        ...

    def fabric(self) -> Fabric:
        """State of the NVLink fabric behind it."""
        ...

    def sram_ecc(self) -> Mapping[str, int]:
        """SRAM error counts by the names of nvml_structures.SramEcc."""
        ...

    def row_remap_banks(self) -> Mapping[str, int]:
        """Memory banks by what is left of their spare rows: max, high, partial, low, none."""
        ...

    def samples(self, kind: int, last_seen_us: int) -> SampleRing:
        """The driver's samples (nvmlSamplingType_t) younger than a wall time."""
        ...

    def process_utilization(self, last_seen_us: int) -> Sequence[tuple[int, int, int]]:
        """(pid, wall time us, per cent of the SMs' time) younger than a wall time."""
        ...

    def read_fields(self, batch: FieldBatch) -> None:
        """Fill the batch."""
        ...
