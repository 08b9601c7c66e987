"""The process of each rank on this host, and the processes it started (loader workers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rankscope.errors import PermissionDenied, ProbeError
from rankscope.probes.held_file import HeldFile
from rankscope.probes.numa import nodes_of_cpus
from rankscope.probes.process_files import (
    ProcessStat,
    parse_allowed,
    parse_io,
    parse_schedstat,
    parse_stat,
    parse_switches,
)
from rankscope.probes.process_tree import ProcessTree
from rankscope.reading import Group, Outcome, ProbeResult, Reading

_NS = 10**9


class _Process:
    """One process with its files held open, and how much its counters have grown since they were last asked."""

    def __init__(self, pid: int, proc: Path) -> None:
        self.pid = pid
        self._stat = HeldFile(proc / f"{pid}/stat")
        self._io: HeldFile | None = HeldFile(proc / f"{pid}/io")
        self._last: dict[str, int] = {}

    def stat(self) -> ProcessStat | None:
        """Its stat, or None once it is gone."""
        try:
            stat = parse_stat(self._stat.read())
        except ProbeError:
            return None
        return None if stat is None or stat.state in "ZX" else stat

    def io(self) -> tuple[int, int] | None:
        """Bytes fetched from and sent to storage, or None. Raises PermissionDenied, once."""
        if self._io is None:
            return None
        try:
            return parse_io(self._io.read())
        except PermissionDenied:
            self._io = None
            raise
        except ProbeError:
            return None

    def grown(self, counter: str, value: int) -> int:
        """Growth of a counter since the last call; all of it the first time."""
        growth = value - self._last.get(counter, 0)
        self._last[counter] = value
        return max(0, growth)

    def close(self) -> None:
        self._stat.close()
        if self._io is not None:
            self._io.close()


class _Rank:
    """One rank's process, its descendants, and sums over them that only grow although workers come and go."""

    def __init__(self, rank: int, pid: int, proc: Path, node_of: Mapping[int, int]) -> None:
        self.device = f"rank:{rank}"
        self.own = _Process(pid, proc)
        self.workers: dict[int, _Process] = {}
        self.gone = False
        self.said_io = False
        self._schedstat = HeldFile(proc / f"{pid}/task/{pid}/schedstat")
        self._status = HeldFile(proc / f"{pid}/task/{pid}/status")
        self._sums: dict[str, int] = {}
        self._node_of = node_of

    def main_thread(self) -> dict[str, float]:
        """Run-queue wait, switches and placement of the main thread; what cannot be read is left out."""
        values: dict[str, float] = {}
        try:
            if (times := parse_schedstat(self._schedstat.read())) is not None:
                values["process.runqueue_ns"] = times[1]
            status = self._status.read()
            values |= parse_switches(status)
            if allowed := parse_allowed(status):
                values["process.cpus_allowed"] = len(allowed)
                nodes = {self._node_of.get(cpu) for cpu in allowed}
                if len(nodes) == 1 and (node := nodes.pop()) is not None:
                    values["process.numa_node"] = node
        except ProbeError:
            return values
        return values

    def add(self, process: _Process, counter: str, value: int) -> None:
        """Add what a process's counter grew by to the rank's sum."""
        self._sums[counter] = self._sums.get(counter, 0) + process.grown(counter, value)

    def sums(self) -> dict[str, int]:
        """The sums so far."""
        return self._sums

    def close(self) -> None:
        for process in (self.own, *self.workers.values()):
            process.close()
        self._schedstat.close()
        self._status.close()


class ProcessProbe:
    """Probe of the ranks' processes; `set_ranks` says which they are."""

    name = "process"
    groups: Sequence[Group] = (Group("process", 2 * _NS, _NS // 5, "counters; only the state of workers is a sample"),)

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = proc
        self._node_of = nodes_of_cpus(sys)
        self._tree = ProcessTree(proc)
        self._ranks: dict[int, _Rank] = {}
        self._delay_accounting: bool | None = None
        self._asked_delay_accounting = False

    def set_ranks(self, pids: Mapping[int, int]) -> None:
        """Watch these processes from now on: rank -> process id. One that stays is watched on without a gap."""
        for rank in [r for r, watched in self._ranks.items() if pids.get(r) != watched.own.pid]:
            self._ranks.pop(rank).close()
            self._tree.look_anew()
        for rank, pid in pids.items():
            if rank not in self._ranks:
                self._ranks[rank] = _Rank(rank, pid, self._proc, self._node_of)
                self._tree.look_anew()

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """Every rank's counters now; a process that is gone is said once."""
        readings: list[Reading] = []
        outcomes: list[tuple[str, Outcome, str]] = []
        if self._ranks and not self._asked_delay_accounting:
            self._ask_delay_accounting(outcomes)
        for rank in self._ranks.values():
            if rank.gone:
                continue
            values = self._values(rank, outcomes, now_ns)
            if values is None:
                rank.gone = True
                outcomes.append((rank.device, Outcome.NO_DATA, f"process {rank.own.pid} is gone"))
                continue
            readings += [Reading(metric, value, now_ns, rank.device) for metric, value in values.items()]
        return ProbeResult(readings, (), outcomes)

    def close(self) -> None:
        """Close every file."""
        self.set_ranks({})

    def _values(self, rank: _Rank, outcomes: list[tuple[str, Outcome, str]], now_ns: int) -> dict[str, float] | None:
        stat = rank.own.stat()
        if stat is None:
            return None
        self._find_workers(rank, now_ns)
        self._add_io(rank, rank.own, outcomes)
        rank.add(rank.own, "process.blkio_ns", stat.blkio_ns)
        blocked = 0
        for pid, worker in list(rank.workers.items()):
            theirs = worker.stat()
            if theirs is None:
                rank.workers.pop(pid).close()
                continue
            blocked += theirs.state == "D"
            rank.add(worker, "process.worker_cpu_ns", theirs.cpu_ns)
            rank.add(worker, "process.blkio_ns", theirs.blkio_ns)
            self._add_io(rank, worker, outcomes)
        values: dict[str, float] = {
            "process.cpu_ns": stat.cpu_ns,
            "process.major_faults": stat.major_faults,
            "process.resident_bytes": stat.resident_bytes,
            "process.workers_blocked": blocked,
            "process.worker_cpu_ns": 0,
        }
        values |= rank.main_thread() | rank.sums()
        # Zero may mean that the kernel does not count at all.
        if self._delay_accounting is False or (self._delay_accounting is None and not values["process.blkio_ns"]):
            del values["process.blkio_ns"]
        return values

    def _find_workers(self, rank: _Rank, now_ns: int) -> None:
        for pid in self._tree.descendants(rank.own.pid, now_ns):
            if pid not in rank.workers:
                rank.workers[pid] = _Process(pid, self._proc)

    def _add_io(self, rank: _Rank, process: _Process, outcomes: list[tuple[str, Outcome, str]]) -> None:
        try:
            io = process.io()
        except PermissionDenied as error:
            if not rank.said_io:
                rank.said_io = True
                outcomes.append((rank.device, Outcome.NO_PERMISSION, str(error)))
            return
        if io is not None:
            rank.add(process, "process.read_bytes", io[0])
            rank.add(process, "process.write_bytes", io[1])

    def _ask_delay_accounting(self, outcomes: list[tuple[str, Outcome, str]]) -> None:
        """Since Linux 5.14 the kernel counts time blocked on storage only where this setting is on."""
        self._asked_delay_accounting = True
        try:
            self._delay_accounting = (self._proc / "sys/kernel/task_delayacct").read_text().strip() != "0"
        except OSError:
            return
        if not self._delay_accounting:
            reason = "process.blkio_ns: delay accounting is off; sysctl kernel.task_delayacct=1 turns it on"
            outcomes.append(("", Outcome.UNSUPPORTED, reason))
