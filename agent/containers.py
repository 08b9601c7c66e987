"""Ring directories of containers with a /dev/shm of their own, reached through /proc/PID/root."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from rankscope.clock import Clock

#: Containers that are looked into at once.
MAX_CONTAINERS = 256
#: Containers start over seconds. A look asks every process of the host, some 10 us each: where there are thousands it
#: comes more rarely, so that it takes one part in so many of a core at most.
LOOK_NS = 10 * 10**9
_SHARE = 2000
#: One look in so many asks the processes too that were in our own namespace before: few ever leave it.
_ALL_PROCESSES = 6


class ContainerDirectories:
    """Finds `directory` in the mount namespace of every process that may be looked into (PTRACE_MODE_READ)."""

    def __init__(self, directory: Path, clock: Clock, proc: Path = Path("/proc")) -> None:
        self._directory = directory.absolute()
        self._clock = clock
        self._proc = proc
        self._due_ns = 0
        #: Mount namespace -> descriptor of the directory in it.
        self._held: dict[int, int] = {}
        #: Processes that were in our namespace at the last looks, and how many looks there were.
        self._ours: set[str] = set()
        self._looks = 0

    def paths(self) -> list[Path]:
        """The directories there are, looked for now and then, as paths that stay good while this object holds them."""
        now = self._clock.monotonic_ns()
        if now >= self._due_ns:
            began = time.thread_time_ns()
            self._look()
            self._due_ns = now + max(LOOK_NS, (time.thread_time_ns() - began) * _SHARE)
        return [Path(f"/proc/self/fd/{descriptor}") for descriptor in self._held.values()]

    def _look(self) -> None:
        found: dict[int, int] = {}
        for namespace, pid in self._namespaces():
            # Held anew at each look: a directory that was replaced is another one.
            descriptor = self._open(pid)
            if descriptor >= 0:
                found[namespace] = self._keep(namespace, descriptor)
        for namespace in set(self._held) - set(found):
            os.close(self._held.pop(namespace))

    def _keep(self, namespace: int, descriptor: int) -> int:
        held = self._held.get(namespace)
        if held is not None:
            if os.path.samestat(os.fstat(held), os.fstat(descriptor)):
                os.close(descriptor)
                return held
            os.close(held)
        self._held[namespace] = descriptor
        return descriptor

    def _namespaces(self) -> Iterator[tuple[int, int]]:
        """One process of each mount namespace other than ours."""
        proc = str(self._proc)
        try:
            own = _inode(f"{proc}/self/ns/mnt")
        except OSError:
            return
        seen = {own}
        if self._looks % _ALL_PROCESSES == 0:
            self._ours.clear()
        self._looks += 1
        # Hundreds of processes: paths as text cost a third of Path's.
        with os.scandir(proc) as entries:
            names = [entry.name for entry in entries if entry.name.isdigit() and entry.name not in self._ours]
        for name in names:
            try:
                namespace = _inode(f"{proc}/{name}/ns/mnt")
            except OSError:
                continue
            if namespace == own:
                self._ours.add(name)
            elif namespace not in seen and len(seen) <= MAX_CONTAINERS:
                seen.add(namespace)
                yield namespace, int(name)

    def _open(self, pid: int) -> int:
        """The directory in a process's root, or -1. No link on the way is followed: a container made them."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            descriptor = os.open(self._proc / str(pid) / "root", flags)
        except OSError:
            return -1
        for part in self._directory.parts[1:]:
            try:
                inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError:
                os.close(descriptor)
                return -1
            os.close(descriptor)
            descriptor = inner
        if self._is_known(descriptor):
            os.close(descriptor)
            return -1
        return descriptor

    def _is_known(self, descriptor: int) -> bool:
        """Whether it is our own directory, which the container mounts."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._directory.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Let go of every directory."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()


def _inode(path: str) -> int:
    return os.stat(path).st_ino  # noqa: PTH116 - see where it is called
