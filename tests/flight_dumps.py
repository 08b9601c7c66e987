"""Flight-recorder dumps of jobs that never ran: programs of collectives, run by a small model of a device, with faults.

Hosts enqueue and run ahead; a device takes its operations in order; a collective ends when every member's device is at
it. A fault stops a host, a device, or only a rank's view of its device. The dumps are what the recorder would write.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: Operations a host may be ahead of its device.
AHEAD = 6
BEGIN_NS = 1_790_000_000_000_000_000


@dataclass(frozen=True)
class Step:
    """One collective in a rank's program."""

    group: str
    name: str
    size: int = 1024
    dtype: str = "BFloat16"
    line: int = 1


@dataclass
class Fault:
    """What goes wrong: kind "host", "device", "view", "gone", or "" for what the programs do by themselves."""

    kind: str = ""
    ranks: tuple[int, ...] = ()
    at: int = 0
    #: Hosts that stop besides, each at a place of its own.
    hosts: dict[int, int] = field(default_factory=dict)


@dataclass
class Job:
    """Ranks, their groups and programs."""

    groups: dict[str, tuple[int, ...]]
    programs: dict[int, list[Step]]
    descriptions: dict[str, str] = field(default_factory=dict)

    def numbers(self, rank: int) -> dict[str, int]:
        """The rank's own numbers of its groups: only those it is in, in the order of creation."""
        mine = [name for name, ranks in self.groups.items() if rank in ranks]
        return {name: number for number, name in enumerate(mine)}


def parallel_job(data: int, tensor: int, steps: int = 12, *, pipeline: int = 1) -> Job:
    """Every rank in one tensor-, one data- and one pipeline-parallel group, with the world's group first."""
    size = data * tensor * pipeline
    groups: dict[str, tuple[int, ...]] = {"0": tuple(range(size))}
    descriptions = {"0": "default_pg"}

    def add(description: str, members: Callable[[int], tuple[int, ...]]) -> None:
        for ranks in sorted({members(rank) for rank in range(size)}):
            name = str(len(groups))
            groups[name], descriptions[name] = ranks, description

    def stage(rank: int) -> int:
        return rank // (data * tensor)

    add("TENSOR", lambda rank: tuple(r for r in range(size) if r // tensor == rank // tensor))
    add("DATA", lambda rank: tuple(r for r in range(size) if stage(r) == stage(rank) and r % tensor == rank % tensor))
    programs: dict[int, list[Step]] = {}
    for rank in range(size):
        mine = {descriptions[name]: name for name, ranks in groups.items() if rank in ranks}
        program = []
        for step in range(steps):
            program += [Step(mine["TENSOR"], "_all_gather_base", 4096, line=10)] * 2
            program += [Step(mine["TENSOR"], "_reduce_scatter_base", 8192, line=20)]
            program += [Step(mine["DATA"], "all_reduce", 1024 + step, line=30)]
            if step % 4 == 3:
                program.append(Step("0", "all_reduce", 1, "Float", line=40))
        programs[rank] = program
    return Job(groups, programs, descriptions)


def dumps(
    job: Job, fault: Fault, *, only_active: bool = False, seed: int = 0, stacks: bool = True, timing: bool = False
) -> dict[int, dict[str, Any]]:
    """The dump of every rank that left one, after the job has come to rest."""
    host = dict.fromkeys(job.programs, 0)
    device = dict.fromkeys(job.programs, 0)
    view: dict[int, int | None] = dict.fromkeys(job.programs, None)
    sequence = {rank: _sequences(program) for rank, program in job.programs.items()}
    shuffled = random.Random(seed)
    moved = True
    while moved:
        moved = False
        order = list(job.programs)
        shuffled.shuffle(order)
        for rank in order:
            stopped = rank in fault.ranks and fault.kind in ("host", "gone") and host[rank] >= fault.at
            stopped = stopped or host[rank] >= fault.hosts.get(rank, AHEAD + len(job.programs[rank]))
            seen = device[rank] if view[rank] is None else view[rank]
            assert seen is not None
            if not stopped and host[rank] < len(job.programs[rank]) and host[rank] - seen < AHEAD:
                host[rank] += 1
                moved = True
        for rank in order:
            if not _may_end(job, fault, rank, host, device, sequence):
                continue
            moved = True
            for member in job.groups[job.programs[rank][device[rank]].group]:
                if (
                    member in fault.ranks
                    and fault.kind == "view"
                    and device[member] >= fault.at
                    and view[member] is None
                ):
                    view[member] = device[member]
                device[member] += 1
    found = {}
    for rank in job.programs:
        if fault.kind == "gone" and rank in fault.ranks:
            continue
        seen = device[rank] if view[rank] is None else view[rank]
        assert seen is not None
        # A device that stands still starts nothing.
        starts = timing and not (fault.kind == "device" and rank in fault.ranks)
        found[rank] = _document(job, rank, host[rank], seen, only_active=only_active, stacks=stacks, timing=starts)
    return found


def _sequences(program: list[Step]) -> list[int]:
    counts: dict[str, int] = {}
    numbers = []
    for step in program:
        counts[step.group] = counts.get(step.group, 0) + 1
        numbers.append(counts[step.group])
    return numbers


def _may_end(
    job: Job,
    fault: Fault,
    rank: int,
    host: dict[int, int],
    device: dict[int, int],
    sequence: dict[int, list[int]],
) -> bool:
    if device[rank] >= host[rank]:
        return False
    step, number = job.programs[rank][device[rank]], sequence[rank][device[rank]]
    for member in job.groups[step.group]:
        at = device[member]
        if at >= host[member] or (member in fault.ranks and fault.kind == "device" and at >= fault.at):
            return False
        other = job.programs[member][at]
        if (other.group, sequence[member][at]) != (step.group, number):
            return False
        if (other.name, other.size, other.dtype) != (step.name, step.size, step.dtype):
            return False
    return True


def _document(
    job: Job, rank: int, host: int, device: int, *, only_active: bool, stacks: bool, timing: bool
) -> dict[str, Any]:
    numbers = job.numbers(rank)
    sequence = _sequences(job.programs[rank])
    entries = []
    status: dict[str, dict[str, int]] = {}
    for place, step in enumerate(job.programs[rank][:host]):
        ended = place < device
        told = status.setdefault(
            str(numbers[step.group]),
            {"last_enqueued_collective": -1, "last_started_collective": -1, "last_completed_collective": -1},
        )
        told["last_enqueued_collective"] = sequence[place]
        if ended:
            told["last_completed_collective"] = sequence[place]
        if ended and only_active:
            continue
        started = timing and not ended and place == device
        size = len(job.groups[step.group])
        gathered, scattered = step.size * size, step.size // size
        output = {"_all_gather_base": gathered, "_reduce_scatter_base": scattered}.get(step.name, step.size)
        created = BEGIN_NS + place * 1_000_000 + rank * 1000
        entries.append(
            {
                "record_id": place,
                "pg_id": numbers[step.group],
                "process_group": (step.group, job.descriptions.get(step.group, "undefined")),
                "collective_seq_id": sequence[place],
                "p2p_seq_id": 0,
                "op_id": sequence[place],
                "profiling_name": f"nccl:{step.name}",
                "time_created_ns": created,
                "input_sizes": [[step.size]],
                "input_dtypes": [step.dtype],
                "output_sizes": [[output]],
                "output_dtypes": [step.dtype],
                "state": "completed" if ended else "started" if started else "scheduled",
                "time_discovered_started_ns": created + 1000 if ended or started else None,
                "time_discovered_completed_ns": created + 2000 if ended else None,
                "retired": ended,
                "timeout_ms": 600_000,
                "is_p2p": False,
            }
            | ({"frames": _frames(step)} if stacks else {})
        )
    return {
        "version": "2.9",
        "pg_config": {
            name: {"name": name, "desc": job.descriptions.get(name, "undefined"), "ranks": str(list(ranks))}
            for name, ranks in job.groups.items()
            if rank in ranks
        },
        "pg_status": status,
        "entries": entries,
        "nccl_version": "2.27.3",
    }


def _frames(step: Step) -> list[dict[str, Any]]:
    library = "/opt/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
    return [
        {"name": step.name.strip("_"), "filename": library, "line": 3000},
        {"name": "train_step", "filename": "/home/user/job/train.py", "line": step.line},
    ]
