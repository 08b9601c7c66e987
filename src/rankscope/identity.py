"""Who a rank is: job -> attempt -> rank <-> GPU UUID <-> process."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class RankIdentity:
    """One training process. `pid` with `start_ticks` (field 22 of /proc/PID/stat) names a process for good."""

    job: str
    attempt: int
    rank: int
    world_size: int
    local_rank: int
    host: str
    pid: int
    start_ticks: int
    boot_id: str
    gpu_uuid: str | None = None
    device_clock: str = "host"


def safe_name(text: str, limit: int = 63) -> str:
    """A job or host name made fit for a file name and a label: no separators, no leading dot, bounded."""
    return _UNSAFE.sub("-", text).strip("-.")[:limit] or "unnamed"


def host_name(environ: Mapping[str, str] | None = None) -> str:
    """The host's own name, first label only; $RANKSCOPE_HOST where a container has another than its node."""
    named = (os.environ if environ is None else environ).get("RANKSCOPE_HOST", "")
    return safe_name((named or socket.gethostname()).split(".")[0])


def job_name(environ: Mapping[str, str]) -> str:
    """The job's name: what the user said, else the launcher's id, else the scheduler's, else "job"."""
    for key in ("RANKSCOPE_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        value = environ.get(key, "")
        if value and value != "none":
            return safe_name(value)
    return "job"


def environment_integer(environ: Mapping[str, str], keys: tuple[str, ...], default: int) -> int:
    """The first of `keys` that holds a non-negative integer."""
    for key in keys:
        value = environ.get(key, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return default


def start_ticks(pid: int, proc: Path = Path("/proc")) -> int:
    """Start time of a process in clock ticks since boot, or 0 where it cannot be read."""
    try:
        text = (proc / str(pid) / "stat").read_text()
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def rank_identity(
    environ: Mapping[str, str],
    *,
    boot_id: str,
    gpu_uuid: str | None = None,
    device_clock: str = "host",
    proc: Path = Path("/proc"),
) -> RankIdentity:
    """This process, as torchrun, Slurm or MPI launched it (rank 0 of 1 where nothing says otherwise)."""
    pid = os.getpid()
    return RankIdentity(
        job=job_name(environ),
        attempt=environment_integer(environ, ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"), 0),
        rank=environment_integer(environ, ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"), 0),
        world_size=max(1, environment_integer(environ, ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"), 1)),
        local_rank=environment_integer(environ, ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"), 0),
        host=host_name(environ),
        pid=pid,
        start_ticks=start_ticks(pid, proc),
        boot_id=boot_id,
        gpu_uuid=gpu_uuid,
        device_clock=device_clock,
    )
