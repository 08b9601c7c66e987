"""The control groups that hold the ranks: CPU quota and its throttling, memory and its limit, pressure.

A limit is often set on a group above the one that holds the process (a pod, a Slurm job). CPU figures are those of the
nearest group that has a quota, memory figures of the group whose limit is the smallest; without one, of the rank's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rankscope.errors import PermissionDenied, ProbeError, Unsupported
from rankscope.probes import cgroup_files as files
from rankscope.probes.held_file import HeldFile
from rankscope.probes.numbers import whole
from rankscope.probes.pressure import RESOURCES
from rankscope.probes.pressure import parse as parse_pressure
from rankscope.probes.sysfs import read_text
from rankscope.reading import Group, Outcome, Priority, ProbeResult, Reading

_NS = 10**9
#: Groups above one that are looked through.
_MAX_DEPTH = 32
#: Limits and memberships are looked at anew this often, ns.
_LOOK_NS = 30 * _NS


class _Group:
    """One control group, and the groups above that bound it."""

    def __init__(
        self,
        device: str,
        cpu: Path | None,
        memory: Path | None,
        pressure: Path | None,
        version: int,
        accounting: Path | None = None,
    ) -> None:
        """`accounting` is where version 1 keeps CPU time."""
        self.device = device
        self._version = version
        self._cpu_limit, cpu_at = _tightest(cpu, version, _cpu_limit, nearest=True)
        self._memory_limit, memory_at = _tightest(memory, version, _memory_limit, nearest=False)
        self._files: dict[str, HeldFile] = {}
        if cpu_at is not None:
            self._files["cpu.stat"] = HeldFile(cpu_at / "cpu.stat")
        if memory_at is not None:
            names = (
                ("memory.current", "memory.events", "memory.stat")
                if version == 2
                else ("memory.usage_in_bytes", "memory.oom_control", "memory.stat", "memory.failcnt")
            )
            self._files |= {name: HeldFile(memory_at / name) for name in names}
        if accounting is not None:
            self._files["cpuacct.usage"] = HeldFile(accounting / "cpuacct.usage")
        if pressure is not None:
            self._files |= {f"{name}.pressure": HeldFile(pressure / f"{name}.pressure") for name in RESOURCES}

    def values(self) -> dict[str, float]:
        """What can be read now. A file that does not exist is not asked for again. Raises PermissionDenied."""
        values: dict[str, float] = {}
        if self._cpu_limit is not None:
            values["cgroup.cpu_limit"] = self._cpu_limit
        if self._memory_limit is not None:
            values["cgroup.memory_limit_bytes"] = self._memory_limit
        for name, file in list(self._files.items()):
            try:
                values |= self._parsed(name, file.read())
            except Unsupported:
                self._files.pop(name).close()
            except PermissionDenied:
                raise
            except ProbeError:
                continue  # the group is being removed
        return values

    def _parsed(self, name: str, text: str) -> Mapping[str, float]:
        if name.endswith(".pressure"):
            resource = name.removesuffix(".pressure")
            return {f"cgroup.pressure_{resource}_{kind}_ns": value for kind, value in parse_pressure(text).items()}
        if name == "cpu.stat":
            return files.parse_cpu_stat(text)
        if name == "memory.stat":
            return files.parse_memory_stat(text, version=self._version)
        if name in ("memory.events", "memory.oom_control"):
            return files.parse_memory_events(text)
        metric = {
            "memory.current": "cgroup.memory_bytes",
            "memory.usage_in_bytes": "cgroup.memory_bytes",
            "memory.failcnt": "cgroup.memory_limit_hits",
            "cpuacct.usage": "cgroup.cpu_ns",
        }[name]
        value = whole(text)
        return {} if value is None else {metric: value}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class CgroupProbe:
    """Probe of the ranks' control groups; `set_ranks` says which processes they are."""

    name = "cgroup"
    groups: Sequence[Group] = (
        Group("cgroup", _NS, _NS // 5, "counters and totals; quotas throttle within a step", Priority.HIGH),
    )

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = proc
        self._root = sys / "fs/cgroup"
        self._pids: tuple[int, ...] = ()
        self._groups: dict[str, _Group] = {}
        self._looked_ns: int | None = None
        self._said: set[str] = set()

    def set_ranks(self, pids: Mapping[int, int]) -> None:
        """Watch the groups of these processes from now on: rank -> process id."""
        if (now := tuple(sorted(pids.values()))) != self._pids:
            self._pids = now
            self._looked_ns = None

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """Every group now. Raises Unsupported where the kernel keeps none."""
        if not self._root.is_dir():
            raise Unsupported("no control groups here", where=str(self._root))
        outcomes: list[tuple[str, Outcome, str]] = []
        if self._looked_ns is None or now_ns - self._looked_ns >= _LOOK_NS:
            self._looked_ns = now_ns
            self._look(outcomes)
        readings: list[Reading] = []
        for watched in self._groups.values():
            try:
                values = watched.values()
            except PermissionDenied as error:
                self._say(outcomes, watched.device, Outcome.NO_PERMISSION, str(error))
                continue
            readings += [Reading(metric, value, now_ns, watched.device) for metric, value in values.items()]
        return ProbeResult(readings, (), outcomes)

    def close(self) -> None:
        """Close every file."""
        for watched in self._groups.values():
            watched.close()
        self._groups = {}

    def _look(self, outcomes: list[tuple[str, Outcome, str]]) -> None:
        """Find the ranks' groups and their limits anew."""
        self.close()
        for pid in self._pids:
            try:
                text = read_text(self._proc / str(pid) / "cgroup")
            except ProbeError as error:
                self._say(outcomes, "", Outcome.NO_PERMISSION, str(error))
                continue
            if text is None:
                continue
            found = self._group(files.parse_membership(text))
            if found is None:
                reason = f"the group of process {pid} is not below {self._root}; mount the host's there"
                self._say(outcomes, "", Outcome.UNSUPPORTED, reason)
            elif found.device not in self._groups:
                self._groups[found.device] = found
            else:
                found.close()

    def _group(self, membership: Mapping[str, str]) -> _Group | None:
        """The group of version 2 where it has controllers, else those of version 1; None where neither is here."""
        unified, root = membership.get(""), self._unified()
        path = None if unified is None or root is None else _below(root, unified)
        if path is not None and "memory" not in membership:
            return _Group(str(unified), path, path, path, 2)
        cpu, memory = membership.get("cpu"), membership.get("memory")
        cpu_path = None if cpu is None else _below(self._root / "cpu", cpu)
        memory_path = None if memory is None else _below(self._root / "memory", memory)
        if cpu_path is None and memory_path is None:
            return None
        device = str(memory if memory_path is not None else cpu)
        # Mounted with the CPU controller nearly everywhere, or by itself; the root's is the whole host's.
        counted = membership.get("cpuacct", "..")
        accounting = _below(self._root / "cpuacct", counted) or cpu_path if counted != "/" or device == "/" else None
        # Where both versions are mounted, version 2 keeps the pressure.
        return _Group(device, cpu_path, memory_path, path, 1, accounting)

    def _unified(self) -> Path | None:
        for path in (self._root, self._root / "unified"):
            if (path / "cgroup.controllers").exists():
                return path
        return None

    def _say(self, outcomes: list[tuple[str, Outcome, str]], device: str, outcome: Outcome, reason: str) -> None:
        if (key := f"{device} {reason}") not in self._said and len(self._said) < 100:
            self._said.add(key)
            outcomes.append((device, outcome, reason))


def _below(root: Path, path: str) -> Path | None:
    """The directory of a group, or None where it lies outside of what is mounted here."""
    if ".." in path.split("/"):
        return None
    found = root / path.lstrip("/")
    return found if found.is_dir() else None


def _above(group: Path) -> Iterator[Path]:
    """A group and those above it, up to the root of the mount."""
    for depth, path in enumerate((group, *group.parents)):
        if depth >= _MAX_DEPTH or not ((path / "cgroup.procs").exists() or depth == 0):
            return
        yield path


def _cpu_limit(group: Path, version: int) -> float | None:
    if version == 2:
        return files.parse_cpu_max(read_text(group / "cpu.max") or "")
    quota, period = (read_text(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    return files.cores(quota, period)


def _memory_limit(group: Path, version: int) -> float | None:
    return files.parse_limit(read_text(group / ("memory.max" if version == 2 else "memory.limit_in_bytes")) or "")


def _tightest(
    group: Path | None, version: int, limit_of: Callable[[Path, int], float | None], *, nearest: bool
) -> tuple[float | None, Path | None]:
    """The limit that binds and the group that has it; without one, None and the group itself."""
    if group is None:
        return None, None
    best: tuple[float | None, Path] = (None, group)
    for path in _above(group):
        try:
            limit = limit_of(path, version)
        except ProbeError:
            continue
        if limit is not None and (best[0] is None or limit < best[0]):
            best = (limit, path)
            if nearest:
                break
    return best
