"""How fast the cores may run and do run (cpufreq), and how often heat slowed them (thermal_throttle)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rankscope.errors import Unsupported
from rankscope.probes.sysfs import children, read_number, read_text
from rankscope.reading import Group, Priority, ProbeResult, Reading

_NS = 10**9
_MS_NS = 10**6
_KHZ_A_MHZ = 1000
#: Cores come and go with an operator's hand: they are looked for this often, ns.
_LOOK_NS = 300 * _NS

#: File of thermal_throttle -> (metric, value of one unit). Counts and times (Linux 5.6 on) of x86.
_CORE = {
    "core_throttle_count": ("host.cpu_core_throttles", 1),
    "core_throttle_total_time_ms": ("host.cpu_core_throttled_ns", _MS_NS),
}
_PACKAGE = {
    "package_throttle_count": ("host.cpu_package_throttles", 1),
    "package_throttle_total_time_ms": ("host.cpu_package_throttled_ns", _MS_NS),
}


def frequencies(khz: Sequence[int]) -> dict[str, float]:
    """Mean and lowest frequency of cores, of readings in kHz; nothing of none."""
    if not khz:
        return {}
    return {
        "host.cpu_frequency_mhz": sum(khz) / len(khz) / _KHZ_A_MHZ,
        "host.cpu_frequency_min_mhz": min(khz) / _KHZ_A_MHZ,
    }


def limits(configured_khz: Sequence[int], possible_khz: Sequence[int], governors: Sequence[str]) -> dict[str, float]:
    """What the configuration lets the cores do, and what they could; what is not known is left out."""
    values: dict[str, float] = {}
    if configured_khz:
        values["host.cpu_frequency_limit_mhz"] = min(configured_khz) / _KHZ_A_MHZ
    if possible_khz:
        values["host.cpu_frequency_max_mhz"] = max(possible_khz) / _KHZ_A_MHZ
    if governors:
        values["host.cpu_governor_performance_ratio"] = governors.count("performance") / len(governors)
    return values


class CpuClockProbe:
    """Probe of frequencies, of their limits, and of thermal throttling. A virtual machine often offers none."""

    name = "cpu-clock"
    groups: Sequence[Group] = (
        Group("frequency", 10 * _NS, 2 * _NS, "a file a core: a core that stays slow is slow for long", Priority.LOW),
        Group("limits", 60 * _NS, 10 * _NS, "configuration", Priority.LOW),
        Group("throttle", 10 * _NS, 2 * _NS, "counts and times: a read loses only when in the period it was"),
    )

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._cpu = sys / "devices/system/cpu"
        #: Directories of one thread of each core, and of one of each package, and when they were looked for.
        self._cores: tuple[Path, ...] = ()
        self._packages: tuple[Path, ...] = ()
        self._looked_ns: int | None = None

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """One group now. Raises Unsupported where the kernel offers none of it, PermissionDenied, ProbeError."""
        if group == "throttle":
            self._find_cores(now_ns)
            values = _summed(self._cores, _CORE) | _summed(self._packages, _PACKAGE)
        else:
            values = self._frequency() if group == "frequency" else self._limits()
        return ProbeResult([Reading(metric, value, now_ns) for metric, value in values.items()])

    def close(self) -> None:
        """Nothing is held."""

    def _policies(self) -> list[Path]:
        found = children(self._cpu / "cpufreq", "policy*")
        if not found:
            raise Unsupported("no frequency is told here", where=str(self._cpu / "cpufreq"))
        return found

    def _frequency(self) -> dict[str, float]:
        return frequencies(_numbers(policy / "scaling_cur_freq" for policy in self._policies()))

    def _limits(self) -> dict[str, float]:
        policies = self._policies()
        governors = [text.strip() for policy in policies if (text := read_text(policy / "scaling_governor"))]
        return limits(
            _numbers(policy / "scaling_max_freq" for policy in policies),
            _numbers(policy / "cpuinfo_max_freq" for policy in policies),
            governors,
        )

    def _find_cores(self, now_ns: int) -> None:
        """Every thread of a core counts the same heat: one is asked of each core, and one of each package."""
        if self._looked_ns is not None and now_ns - self._looked_ns < _LOOK_NS:
            return
        cores: dict[tuple[int | None, int | None], Path] = {}
        packages: dict[int | None, Path] = {}
        for cpu in children(self._cpu, "cpu[0-9]*"):
            if not (cpu / "thermal_throttle").is_dir():
                continue
            package = read_number(cpu / "topology/physical_package_id")
            core = read_number(cpu / "topology/core_id")
            cores.setdefault((package, core), cpu / "thermal_throttle")
            packages.setdefault(package, cpu / "thermal_throttle")
        if not cores:
            raise Unsupported("no thermal throttling is told here", where=str(self._cpu / "cpu0/thermal_throttle"))
        self._cores, self._packages, self._looked_ns = tuple(cores.values()), tuple(packages.values()), now_ns


def _numbers(paths: Iterable[Path]) -> list[int]:
    return [number for path in paths if (number := read_number(path)) is not None]


def _summed(directories: Iterable[Path], files: Mapping[str, tuple[str, int]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for directory in directories:
        for name, (metric, unit) in files.items():
            number = read_number(directory / name)
            if number is not None:
                values[metric] = values.get(metric, 0) + number * unit
    return values
