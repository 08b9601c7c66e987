"""Where a process runs: its container, pod and Slurm job, as the kernel's files name them. Parsers are pure.

Sources of the formats: Kubernetes' pkg/kubelet/cm (cgroup names of both drivers), the runtimes' own prefixes (docker,
cri-containerd, crio, libpod, nerdctl), Slurm's cgroup plugins (v1: /slurm/uid_U/job_J/step_S/task_T; v2:
/system.slice/slurmstepd.scope/job_J/step_S/user/task_T).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rankscope.agent.processes import process_stat

#: The only variables of a process's environment that are looked at: others may hold secrets.
ENVIRONMENT = {
    "SLURM_JOB_ID": "slurm_job",
    "SLURM_STEP_ID": "slurm_step",
    "SLURM_PROCID": "slurm_task",
    "POD_NAME": "pod_name",
    "POD_NAMESPACE": "pod_namespace",
}
_PREFIXES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
}
_SCOPE = re.compile(r"^(?:([a-z][a-z-]*)-)?([0-9a-f]{64})(?:\.scope)?$")
# A static pod is named by a hash of 32 digits.
_POD = re.compile(
    r"^(?:kubelet-)?(?:kubepods-)?(?:burstable-|besteffort-)?pod([0-9a-f]{8}[-_0-9a-f]{24,28})(?:\.slice)?$"
)
_SLURM = re.compile(
    r"/[^/]*slurm[^/]*(?:/[^/]+)*?/job_(\d{1,10})(?:/step_([a-z]{1,16}|\d{1,10}))?(?:(?:/user)?/task_(\d{1,10}))?"
)


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of where a process runs; None where it is in none, or where the kernel does not say."""

    container: str | None = None
    #: docker, containerd, cri-o or podman.
    runtime: str | None = None
    #: UID of the pod.
    pod: str | None = None
    pod_name: str | None = None
    pod_namespace: str | None = None
    slurm_job: str | None = None
    #: A number, or batch, extern, interactive.
    slurm_step: str | None = None
    slurm_task: str | None = None

    def known(self) -> dict[str, str]:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def parse_cgroup(text: str) -> Place:
    """A /proc/PID/cgroup, of version 1, 2 or both. Never raises."""
    container = runtime = pod = None
    slurm: tuple[str | None, str | None, str | None] = (None, None, None)
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        parts = path.split("/")
        for before, part in zip(["", *parts], parts, strict=False):
            if found := _POD.match(part):
                pod = _uid(found[1])
            elif found := _SCOPE.match(part):
                container = found[2]
                runtime = _PREFIXES.get(found[1] or before, runtime if found[1] is None else None)
        if (job := _SLURM.search(path)) and (slurm[0] is None or job[3] is not None):
            slurm = job[1], job[2], job[3]
    return Place(container, runtime, pod, None, None, *slurm)


def _uid(text: str) -> str:
    digits = text.replace("_", "").replace("-", "")
    if "_" not in text and "-" not in text:
        return digits
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def parse_environment(data: bytes) -> dict[str, str]:
    """What a /proc/PID/environ says of the place, by the fields of Place. Never raises."""
    found = {}
    for entry in data.split(b"\0"):
        name, _, value = entry.partition(b"=")
        place = ENVIRONMENT.get(name.decode("ascii", "replace"))
        text = value.decode("utf-8", "replace")
        if place is not None and 0 < len(text) <= 253 and text.isprintable():
            found[place] = text
    return found


def parse_namespace_pids(text: str) -> tuple[int, ...]:
    """Its process ids of a /proc/PID/status, from the reader's namespace inwards; () where it says none."""
    for line in text.splitlines():
        if line.startswith("NSpid:"):
            words = line.split()[1:]
            if all(word.isascii() and word.isdigit() and len(word) <= 10 for word in words):
                return tuple(map(int, words))
    return ()


def place_of(pid: int, proc: Path = Path("/proc")) -> Place:
    """Where a process runs, from its cgroup and what its environment says besides; nothing where it is gone."""
    try:
        place = parse_cgroup((proc / str(pid) / "cgroup").read_text(errors="replace"))
    except OSError:
        return Place()
    known: Mapping[str, str] = {}
    try:
        known = parse_environment((proc / str(pid) / "environ").read_bytes())
    except OSError:
        # Another user's: only the cgroup is public.
        pass
    return Place(**{**known, **place.known()})


def find_process(pid: int, start_ticks: int, proc: Path = Path("/proc")) -> int | None:
    """The process as this namespace numbers it, of one that calls itself `pid`; None where it is not seen.

    A rank in a container announces the number it has there. The start time tells it from others of that number.
    """
    stat = process_stat(pid, proc)
    if stat is not None and start_ticks in (0, stat.start_ticks):
        return pid
    if not start_ticks:
        return None
    for name in (entry.name for entry in proc.iterdir()):
        if not (name.isascii() and name.isdigit()):
            continue
        try:
            numbers = parse_namespace_pids((proc / name / "status").read_text(errors="replace"))
        except OSError:
            continue
        if len(numbers) > 1 and numbers[-1] == pid:
            stat = process_stat(int(name), proc)
            if stat is not None and stat.start_ticks == start_ticks:
                return int(name)
    return None


#: Inode of the first PID namespace (linux/proc_ns.h: PROC_PID_INIT_INO).
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


def first_pid_namespace(proc: Path = Path("/proc")) -> bool:
    """Whether this process lives in the host's PID namespace."""
    try:
        return (proc / "self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def sees_every_process(proc: Path = Path("/proc")) -> bool:
    """Whether what is not seen is gone: not so in a PID namespace of its own, or where /proc hides others'."""
    try:
        mounts = (proc / "self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    hidden = any(" - proc " in line and re.search(r"hidepid=(?!0\b|off\b)", line) for line in mounts)
    return first_pid_namespace(proc) and (not hidden or os.getuid() == 0)
