"""Which processes descend from a rank: loader workers, and what a fork server started for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rankscope.errors import ProbeError
from rankscope.probes.held_file import HeldFile
from rankscope.probes.process_files import parse_children, parse_stat

_ChildrenOf = Callable[[int], list[int] | None]

#: All threads of all descendants are asked this often, and the rank's main thread, which starts nearly all, always, ns.
#: A rank has about a hundred threads and each costs about 15 us to ask.
FULL_LOOK_NS = 10 * 10**9
#: Where the kernel keeps no list of children (CONFIG_PROC_CHILDREN), all processes are looked through this often, ns.
SCAN_NS = 5 * 10**9
#: Descendants followed for one rank, so that a fork bomb cannot sink the agent.
MAX_DESCENDANTS = 128


class ProcessTree:
    """Finds descendants by the kernel's lists of children, else by the parents of all processes."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._looked_ns: dict[int, int] = {}
        self._scanned_ns: int | None = None
        self._children: dict[int, list[int]] = {}
        #: The list of a rank's main thread, held open: None where the kernel keeps none.
        self._main: dict[int, HeldFile | None] = {}

    def descendants(self, pid: int, now_ns: int) -> list[int]:
        """Descendants seen now: all of them when a full look is due, else the main thread's children, perhaps none."""
        if pid not in self._main:
            path = self._proc / f"{pid}/task/{pid}/children"
            self._main[pid] = HeldFile(path) if path.exists() else None
        main = self._main[pid]
        if main is None:
            return self._walk(pid, self._scanned(now_ns).get)
        looked = self._looked_ns.get(pid)
        if looked is not None and now_ns - looked < FULL_LOOK_NS:
            try:
                return parse_children(main.read())[:MAX_DESCENDANTS]
            except ProbeError:
                return []
        self._looked_ns[pid] = now_ns
        return self._walk(pid, self._children_of)

    def look_anew(self) -> None:
        """Look in full at the next call, because other ranks are asked for; closes what is held."""
        for main in self._main.values():
            if main is not None:
                main.close()
        self._main.clear()
        self._looked_ns.clear()
        self._scanned_ns = None

    def _walk(self, pid: int, children_of: _ChildrenOf) -> list[int]:
        found: list[int] = []
        frontier = [pid]
        while frontier and len(found) < MAX_DESCENDANTS:
            children = children_of(frontier.pop()) or []
            new = [child for child in children if child not in found and child != pid]
            found += new
            frontier += new
        return found[:MAX_DESCENDANTS]

    def _children_of(self, pid: int) -> list[int]:
        try:
            threads = [int(task.name) for task in (self._proc / f"{pid}/task").iterdir()]
        except (OSError, ValueError):
            return []
        return [child for thread in threads for child in self._children_of_thread(pid, thread)]

    def _children_of_thread(self, pid: int, thread: int) -> list[int]:
        try:
            return parse_children((self._proc / f"{pid}/task/{thread}/children").read_text())
        except OSError:
            return []

    def _scanned(self, now_ns: int) -> dict[int, list[int]]:
        if self._scanned_ns is None or now_ns - self._scanned_ns >= SCAN_NS:
            self._scanned_ns = now_ns
            self._children = children_by_parent(self._proc)
        return self._children


def children_by_parent(proc: Path) -> dict[int, list[int]]:
    """Parent -> children of every process there is."""
    children: dict[int, list[int]] = {}
    for process in proc.iterdir():
        if not (process.name.isascii() and process.name.isdigit()):
            continue
        try:
            stat = parse_stat((process / "stat").read_text(errors="replace"))
        except OSError:
            continue
        if stat is not None:
            children.setdefault(stat.parent, []).append(int(process.name))
    return children
