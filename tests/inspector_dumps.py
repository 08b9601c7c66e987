"""What NCCL's Inspector would have written of a job that never ran (NVIDIA/nccl, plugins/profiler/inspector).

Each collective's kernels end together, a transfer after the last rank has come; so the last one's is the shortest.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEGIN_US = 1_790_000_000_000_000


@dataclass(frozen=True)
class Plan:
    """What the job does. Ranks and hosts are numbered alike in every communicator given."""

    #: Members (global ranks) of each communicator.
    communicators: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"0xabc1": (0, 1, 2, 3)})
    steps: int = 20
    #: Collectives of a step in each communicator.
    count: int = 4
    size_bytes: int = 32 << 20
    transfer_us: int = 400
    #: Rank that comes late, and by how much.
    late: int | None = None
    late_us: int = 5_000
    #: Communicator whose transfers take this many times as long, from a step on.
    slow: str | None = None
    factor: float = 2.0
    from_step: int = 0
    version: str = "v4.2"
    verbose: bool = False
    per_host: int = 4
    seed: int = 1


def write(directory: Path, plan: Plan, pids: Sequence[int] = ()) -> Path:
    """One file a process, named as the plugin names them."""
    directory.mkdir(exist_ok=True)
    for rank, lines in documents(plan, pids).items():
        host, pid = place(plan, rank, pids)
        (directory / f"{host}-pid{pid}.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def place(plan: Plan, rank: int, pids: Sequence[int] = ()) -> tuple[str, int]:
    """Host and process of a rank."""
    return f"node{rank // plan.per_host}", pids[rank] if pids else 1000 + rank


def documents(plan: Plan, pids: Sequence[int] = ()) -> dict[int, list[dict[str, Any]]]:
    """The lines of each rank's file."""
    noise = random.Random(plan.seed)
    lines: dict[int, list[dict[str, Any]]] = {rank: [] for members in plan.communicators.values() for rank in members}
    clock = BEGIN_US
    for step in range(plan.steps):
        for communicator, members in plan.communicators.items():
            for number in range(plan.count):
                late = {rank: noise.randrange(8) for rank in members}
                if plan.late in late and number == plan.count - 1:
                    late[plan.late] += plan.late_us
                transfer = plan.transfer_us + noise.randrange(8)
                if communicator == plan.slow and step >= plan.from_step:
                    transfer = int(transfer * plan.factor)
                last = max(late.values())
                clock += last + transfer + 200
                for rank, each in late.items():
                    lines[rank] += _operation(
                        plan,
                        communicator,
                        members,
                        rank,
                        step * plan.count + number,
                        last - each + transfer,
                        clock,
                        pids,
                    )
        clock += 20_000
    return lines


def _operation(
    plan: Plan,
    communicator: str,
    members: tuple[int, ...],
    rank: int,
    sequence: int,
    duration_us: int,
    clock: int,
    pids: Sequence[int],
) -> Iterator[dict[str, Any]]:
    host, pid = place(plan, rank, pids)
    header = {"id": communicator, "rank": members.index(rank), "n_ranks": len(members), "nnodes": 1}
    metadata = {
        "inspector_output_format_version": plan.version,
        "git_rev": "",
        "rec_mechanism": "nccl_profiler_interface",
        "dump_timestamp_us": clock + 100,
        "hostname": host,
        "pid": pid,
    }
    bus = plan.size_bytes * 2 * (len(members) - 1) / len(members) / duration_us / 1e3
    body: dict[str, Any] = {
        "coll": "AllReduce",
        "coll_sn": sequence,
        "coll_msg_size_bytes": plan.size_bytes,
        "coll_exec_time_us": duration_us,
        "coll_timing_source": "kernel_gpu",
        "coll_algobw_gbs": round(plan.size_bytes / duration_us / 1e3, 6),
        "coll_busbw_gbs": round(bus, 6),
    }
    if plan.verbose:
        body["event_trace_ts"] = {"coll_start_ts": clock - duration_us, "coll_stop_ts": clock, "kernel_events": []}
    if plan.version == "v4.3":
        yield {
            "header": header,
            "metadata": metadata,
            "dump_stats": {"coll_records": 1, "coll_dropped_since_last_dump": 0, "p2p_records": 0},
        }
        yield {"coll_perf": body}
    else:
        yield {"header": header, "metadata": metadata, "coll_perf": body}
