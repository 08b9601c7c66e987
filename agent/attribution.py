"""Which process, rank, container, pod or Slurm job uses which GPU or MIG instance, and how much of it.

Joined on the UUIDs and process ids that NVML and the ranks themselves announce; never on an index, whose order differs
between NVML and CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rankscope.agent.places import Place, place_of
from rankscope.agent.processes import PROC, process_stat
from rankscope.gpu_device import part_of
from rankscope.reading import Event, Reading, Severity

_MEMORY = "gpu_process.memory_used_bytes"
_UTILIZATION = "gpu_process.sm_utilization_ratio"
_COUNT = "gpu.processes"
_OF_DEVICE = "gpu.utilization_ratio"
#: A rank's own helpers (loader workers, a fork server) are this many generations below it at most.
_GENERATIONS = 4


@dataclass(frozen=True, slots=True)
class RankProcess:
    """A rank as it announced itself, with its process as this host numbers it."""

    job: str
    rank: int
    pid: int
    gpu_uuid: str | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """One process on one GPU or MIG instance. What nobody says is None."""

    #: GPU-... or MIG-...
    device: str
    #: The GPU of a MIG instance, else the device itself.
    gpu_uuid: str
    pid: int
    process: str | None
    job: str | None
    rank: int | None
    #: "rank" itself, a process "below" it, or None for a stranger.
    relation: str | None
    memory_used_bytes: float | None
    #: Its own share of the SMs' time, only where NVML tells it by process.
    sm_utilization_ratio: float | None
    #: Of the whole device, whoever caused it.
    device_utilization_ratio: float | None
    #: Processes on the device.
    sharers: int
    place: Place = field(default_factory=Place)

    def document(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)


def attribute(
    readings: Iterable[Reading],
    ranks: Iterable[RankProcess],
    parents: Mapping[str, str] | None = None,
    *,
    proc: Path = PROC,
    place: Callable[[int], Place] = place_of,
) -> list[Use]:
    """Every process on every device; the last reading of each metric counts. `parents` maps MIG instances to GPUs.

    A rank whose GPU shows no process (NVML shows none in some containers) is listed by what it announced.
    """
    parents = parents or {}
    memory: dict[tuple[str, int], float | None] = {}
    utilization: dict[tuple[str, int], float] = {}
    of_device: dict[str, float] = {}
    for reading in readings:
        part = part_of(reading.device)
        if reading.metric == _OF_DEVICE:
            of_device[reading.device] = reading.value
        elif part.pid is not None and reading.metric == _MEMORY:
            memory[part.uuid, part.pid] = reading.value
        elif part.pid is not None and reading.metric == _UTILIZATION:
            utilization[part.uuid, part.pid] = reading.value
    on_instance = {pid for device, pid in memory if device in parents}
    for device, pid in utilization:
        # Of a process on an instance the SMs' share is told by GPU.
        if pid not in on_instance:
            memory.setdefault((device, pid), None)
    by_pid = {rank.pid: rank for rank in ranks}
    for rank in by_pid.values():
        if rank.gpu_uuid and not any(pid == rank.pid for _, pid in memory):
            memory[_full(rank.gpu_uuid, memory), rank.pid] = None
    uses = []
    for (device, pid), used in sorted(memory.items()):
        gpu = parents.get(device, device)
        found, relation = _rank_of(pid, by_pid, proc)
        uses.append(
            Use(
                device=device,
                gpu_uuid=gpu,
                pid=pid,
                process=_name(pid, proc),
                job=found.job if found else None,
                rank=found.rank if found else None,
                relation=relation,
                memory_used_bytes=used,
                sm_utilization_ratio=utilization.get((device, pid), utilization.get((gpu, pid))),
                device_utilization_ratio=of_device.get(device),
                sharers=sum(other == device for other, _ in memory),
                place=place(pid),
            )
        )
    return uses


def _full(uuid: str, known: Iterable[tuple[str, int]]) -> str:
    """A UUID as NVML spells it: torch prints it without its prefix."""
    spelled = {device for device, _ in known}
    return next((f"{prefix}{uuid}" for prefix in ("GPU-", "MIG-") if f"{prefix}{uuid}" in spelled), uuid)


def _rank_of(pid: int, ranks: Mapping[int, RankProcess], proc: Path) -> tuple[RankProcess | None, str | None]:
    at = pid
    for generation in range(_GENERATIONS + 1):
        if at in ranks:
            return ranks[at], "below" if generation else "rank"
        stat = process_stat(at, proc)
        if stat is None or stat.parent <= 1:
            break
        at = stat.parent
    return None, None


def _name(pid: int, proc: Path) -> str | None:
    try:
        return (proc / str(pid) / "comm").read_text(errors="replace").strip() or None
    except OSError:
        return None


_ABOUT = ("gpu_process.", _OF_DEVICE, _COUNT)


class GpuUse:
    """Follows who uses the GPUs of one job's ranks; tells of strangers on them."""

    def __init__(self, job: str, proc: Path = PROC) -> None:
        self._job = job
        self._proc = proc
        self._parents: dict[str, str] = {}
        self._last: dict[str, Reading] = {}
        self._strangers: set[tuple[str, int]] = set()
        self._places: dict[int, Place] = {}
        self.uses: list[Use] = []

    def take(
        self, readings: Iterable[Reading], events: Iterable[Event], ranks: Iterable[RankProcess], now_ns: int
    ) -> list[Event]:
        """What a round of probes says; an event for each stranger that is new on a rank's device."""
        for event in events:
            if event.kind == "gpu-described" and isinstance(parent := event.attributes.get("parent"), str):
                self._parents[event.device] = parent
        told: list[Reading] = []
        covered: set[str] = set()
        for reading in readings:
            metric = reading.metric
            # Of hundreds of readings a second these are few.
            if not metric.startswith(_ABOUT):
                continue
            if metric == _OF_DEVICE:
                self._last[reading.device] = reading
            elif metric == _COUNT:
                covered.add(reading.device)
            else:
                told.append(reading)
                covered.add(part_of(reading.device).uuid)
        if not covered:
            return []
        # A round tells of some of the GPUs: what was known of the others stays.
        kept = [use for use in self.uses if use.device not in covered and use.gpu_uuid not in covered]
        ranks = list(ranks)
        everything = [*self._last.values(), *told]
        found = attribute(everything, ranks, self._parents, proc=self._proc, place=self._place)
        self._places = {use.pid: use.place for use in (*kept, *found)}
        told_of = {(use.device, use.pid) for use in found}
        self.uses = [*(use for use in kept if (use.device, use.pid) not in told_of), *found]
        return self._tell_strangers(now_ns)

    def _place(self, pid: int) -> Place:
        """Where a process runs, asked once for as long as it uses a GPU."""
        known = self._places.get(pid)
        return place_of(pid, self._proc) if known is None else known

    def _tell_strangers(self, now_ns: int) -> list[Event]:
        # Where NVML's numbers are another namespace's, nobody is known, and nobody a stranger.
        known = (use for use in self.uses if use.relation == "rank" and use.memory_used_bytes is not None)
        ours = {use.device for use in known if use.job == self._job}
        strangers = {(use.device, use.pid): use for use in self.uses if use.device in ours and use.relation is None}
        new = [use for key, use in strangers.items() if key not in self._strangers]
        self._strangers = set(strangers)
        return [_shared(use, now_ns) for use in new]


def _shared(use: Use, now_ns: int) -> Event:
    where = use.place.known()
    size = "" if use.memory_used_bytes is None else f", {use.memory_used_bytes / 2**20:.0f} MiB"
    name = use.process or "a process that is not seen here"
    text = f"{name} (pid {use.pid}{size}) uses {use.device} beside the job"
    attributes: dict[str, str | int | float | None] = {
        "pid": use.pid,
        "process": use.process,
        "memory_bytes": use.memory_used_bytes,
        **where,
    }
    return Event("gpu-shared", now_ns, text, Severity.WARNING, use.device, attributes=attributes)
