"""What the probe knows of NVML without loading it: return codes, a GPU's identity, and the calls asked of one GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rankscope.probes.nvml_fields import FieldBatch

# nvmlReturn_t
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
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


class Gpu(Protocol):
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

    def memory(self) -> tuple[int, int]:
        """Bytes in use (without the driver's own reserve) and in all."""
        ...

    def temperature(self) -> int:
        """Degrees Celsius of the GPU."""
        ...

    def slowdown_temperature(self) -> int:
        """Degrees Celsius at which the hardware slows down."""
        ...

    def read_fields(self, batch: FieldBatch) -> None:
        """Fill the batch."""
        ...
