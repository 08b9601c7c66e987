"""What this process may see, as a profile of privileges: which it has, what each of the others would add, and how.

Sources: capabilities(7), proc(5) (hidepid, ptrace access modes), Kubernetes' Pod Security Standards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankscope.agent.places import first_pid_namespace, parse_cgroup, sees_every_process

#: Bits of capabilities that open a source (linux/capability.h).
CAPABILITIES = {"DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "SYS_PTRACE": 19, "SYSLOG": 34}
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the kernel lets this process do."""

    root: bool
    capabilities: frozenset[str]
    container: bool
    #: In the host's PID namespace.
    host_processes: bool
    #: And /proc hides nobody's.
    every_process: bool
    kernel_log: bool
    gpu_nodes: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """Something that opens sources: what it adds, how a container or service gets it, what admits it."""

    name: str
    has: Callable[[Facts], bool]
    adds: str
    container: str
    service: str
    #: Least Pod Security level that admits it.
    level: str


GRANTS = (
    Grant(
        "GPU device nodes and the driver's library",
        lambda facts: facts.gpu_nodes,
        "what NVML tells: clocks, power, throttling, ECC, links, processes; Xids as events",
        "runtime class nvidia, NVIDIA_VISIBLE_DEVICES=all, NVIDIA_DRIVER_CAPABILITIES=utility",
        "nothing: the nodes are open to every user",
        "restricted",
    ),
    Grant(
        "the host's process namespace",
        lambda facts: facts.host_processes and facts.every_process,
        "the ranks' processes: CPU, waiting for a core, how they ended; NVML's process ids by name",
        "hostPID: true",
        "nothing; where /proc is mounted with hidepid, the group it names (gid=)",
        "privileged",
    ),
    Grant(
        "the kernel log",
        lambda facts: facts.kernel_log,
        "Xids with their text, GPUs fallen off the bus, PCIe and memory errors, kills for memory, tasks that hang",
        "the node's /var/log/journal mounted, and its group or root; /dev/kmsg is closed unless privileged",
        "AmbientCapabilities=CAP_SYSLOG, or the group systemd-journal where journald keeps the kernel's log",
        "privileged",
    ),
    Grant(
        "other users' rings",
        # Root alone is not enough: a container drops what lets it read other users' files.
        lambda facts: facts.root and bool(facts.capabilities & {"DAC_OVERRIDE", "DAC_READ_SEARCH"}),
        "ranks of every user: rings are readable by their owner only",
        "runAsUser: 0 and capability DAC_READ_SEARCH",
        "User=root",
        "privileged",
    ),
    Grant(
        "looking into other users' processes (PTRACE_MODE_READ)",
        lambda facts: "SYS_PTRACE" in facts.capabilities,
        "their I/O, wait channel, standard error, five names of their environment; rings in a container's own /dev/shm",
        "capability SYS_PTRACE, beside hostPID",
        "AmbientCapabilities=CAP_SYS_PTRACE",
        "privileged",
    ),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A name for what this process may see."""

    name: str
    meaning: str
    facts: Facts

    @property
    def has(self) -> list[Grant]:
        """What it has."""
        return [grant for grant in GRANTS if grant.has(self.facts)]

    @property
    def lacks(self) -> list[Grant]:
        """What would add more."""
        return [grant for grant in GRANTS if not grant.has(self.facts)]

    def document(self) -> dict[str, object]:
        """As plain values."""
        in_container = self.facts.container
        return {
            "name": self.name,
            "meaning": self.meaning,
            "has": [grant.name for grant in self.has],
            "lacks": [
                {"grant": grant.name, "adds": grant.adds, "how": grant.container if in_container else grant.service}
                for grant in self.lacks
            ],
        }


#: Name -> meaning, from the least on. `profile_of` says which it is.
PROFILES = {
    "container": "in a container's own process namespace: rings in directories it mounts, GPUs, its own processes",
    "job-user": "as an ordinary user on the host: that user's ranks and processes, GPUs, the host's public counters",
    "node-unprivileged": "as an ordinary user in a container of its own, with the host's processes",
    "node": "as root or with some capabilities, with the host's processes",
    "node-full": "with the host's processes, the kernel log, every user's rings and processes: nothing is missing",
}


def profile_of(facts: Facts) -> Profile:
    """The profile that these facts make."""
    if not facts.host_processes:
        name = "container"
    elif all(grant.has(facts) for grant in GRANTS if grant is not GRANTS[0]):
        name = "node-full"
    elif facts.root or facts.capabilities:
        name = "node"
    else:
        name = "node-unprivileged" if facts.container else "job-user"
    return Profile(name, PROFILES[name], facts)


def gather_facts(proc: Path = Path("/proc"), kernel_log: Path = Path("/dev/kmsg"), dev: Path = Path("/dev")) -> Facts:
    """What holds for this process now."""
    try:
        status = (proc / "self/status").read_text(errors="replace")
    except OSError:
        status = ""
    try:
        cgroup = (proc / "self/cgroup").read_text(errors="replace")
    except OSError:
        cgroup = ""
    host = first_pid_namespace(proc)
    marked = any(mark.exists() for mark in _CONTAINER_MARKS)
    return Facts(
        root=os.geteuid() == 0,
        capabilities=parse_capabilities(status),
        container=marked or parse_cgroup(cgroup).container is not None or not host,
        host_processes=host,
        every_process=sees_every_process(proc),
        kernel_log=_readable(kernel_log),
        gpu_nodes=(dev / "nvidiactl").exists(),
    )


def parse_capabilities(status: str) -> frozenset[str]:
    """Those of CAPABILITIES that are effective, of a /proc/PID/status. Never raises."""
    for line in status.splitlines():
        name, _, mask = line.partition(":")
        digits = mask.strip()
        if name == "CapEff" and digits and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            bits = int(digits, 16)
            return frozenset(name for name, bit in CAPABILITIES.items() if bits >> bit & 1)
    return frozenset()


def _readable(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
