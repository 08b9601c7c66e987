"""The built-in probes, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rankscope.errors import ConfigurationError
from rankscope.probes.cgroup import CgroupProbe
from rankscope.probes.cpu import CpuProbe
from rankscope.probes.cpu_clock import CpuClockProbe
from rankscope.probes.disk import DiskProbe
from rankscope.probes.edac import EdacProbe
from rankscope.probes.filesystem import FilesystemProbe
from rankscope.probes.infiniband import InfinibandProbe
from rankscope.probes.kernel_log import KernelLogProbe
from rankscope.probes.kernel_log_journal import Journal
from rankscope.probes.lustre import LustreProbe
from rankscope.probes.memory import MemoryProbe
from rankscope.probes.network import NetworkProbe
from rankscope.probes.nfs import NfsProbe
from rankscope.probes.numa import NumaProbe
from rankscope.probes.nvml import NvmlProbe
from rankscope.probes.pcie import PcieProbe
from rankscope.probes.pressure import PressureProbe
from rankscope.probes.process import ProcessProbe
from rankscope.probes.tcp import TcpProbe
from rankscope.reading import Probe

_KERNEL_LOG = Path("/dev/kmsg")


@runtime_checkable
class FollowsRanks(Probe, Protocol):
    """A probe that reads through the ranks' processes, and is told when they change."""

    def set_ranks(self, pids: Mapping[int, int]) -> None:
        """These are the processes from now on: rank -> process id. Called in the thread that reads."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """Where the built-in probes look, and how patient they are."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    kernel_log: Path = _KERNEL_LOG
    #: Tell what the kernel logged before the start too, marked as history.
    kernel_log_history: bool = False
    #: Path of an NVML library to use instead of the one the linker finds.
    nvml_library: str | None = None
    #: After this long without an answer an NVML call counts as stalled, ns.
    nvml_deadline_ns: int = 5 * 10**9
    #: Kill an NVML helper that has been stuck for this long, ns; None: never.
    nvml_replace_stuck_after_ns: int | None = None
    #: Groups of NVML that are not read, and metrics.
    nvml_unread: frozenset[str] = frozenset()
    #: Environment of the NVML helper; None: the agent's own.
    nvml_environment: Mapping[str, str] | None = None


def _nvml(settings: ProbeSettings) -> NvmlProbe:
    return NvmlProbe(
        library=settings.nvml_library,
        deadline_ns=settings.nvml_deadline_ns,
        replace_stuck_after_ns=settings.nvml_replace_stuck_after_ns,
        unread=settings.nvml_unread,
        environment=settings.nvml_environment,
    )


#: Name -> maker, for the probes that need nothing but the settings. The kernel log needs NVML's addresses besides.
_MAKERS: tuple[Callable[[ProbeSettings], Probe], ...] = (
    lambda settings: CpuProbe(settings.proc),
    lambda settings: CpuClockProbe(settings.sys),
    lambda settings: MemoryProbe(settings.proc),
    lambda settings: NumaProbe(settings.sys),
    lambda settings: EdacProbe(settings.sys),
    lambda settings: PressureProbe(settings.proc),
    lambda settings: CgroupProbe(settings.proc, settings.sys),
    lambda settings: DiskProbe(settings.proc),
    lambda settings: FilesystemProbe(settings.proc),
    lambda settings: NfsProbe(settings.proc),
    lambda settings: LustreProbe(settings.proc, settings.sys),
    lambda settings: NetworkProbe(settings.proc, settings.sys),
    lambda settings: TcpProbe(settings.proc),
    lambda settings: InfinibandProbe(settings.sys),
    lambda settings: PcieProbe(settings.sys),
    lambda settings: ProcessProbe(settings.proc, settings.sys),
)


def _journal(settings: ProbeSettings) -> Callable[[bool], Journal]:
    """Opens journald's copy of the kernel log: of this boot, which a container shares with its host."""

    def opened(from_start: bool) -> Journal:
        try:
            boot = (settings.proc / "sys/kernel/random/boot_id").read_text()
        except OSError:
            boot = None
        return Journal(from_start=from_start, boot_id=boot)

    return opened


def built_in(settings: ProbeSettings | None = None) -> list[Probe]:
    """Every built-in probe. The kernel log names GPUs by NVML's addresses and opens its breaker."""
    chosen = settings or ProbeSettings()
    nvml = _nvml(chosen)
    kernel_log = KernelLogProbe(
        chosen.kernel_log,
        uuid_of=nvml.uuid_of_pci,
        listener=nvml.heed,
        history=chosen.kernel_log_history,
        journal=_journal(chosen) if chosen.kernel_log == _KERNEL_LOG else None,
    )
    return distinct([kernel_log, nvml, *(make(chosen) for make in _MAKERS)])


def distinct(probes: Iterable[Probe]) -> list[Probe]:
    """The probes as a list; raises ConfigurationError where two have one name."""
    listed = list(probes)
    names = [probe.name for probe in listed]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two probes named {name!r}", where="probes", todo="rename one of them")
    return listed
