"""Ranks' processes: pure parsing, real processes, and trees that only a test can make."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rankscope.metrics import METRICS
from rankscope.probes import process_tree
from rankscope.probes.process import ProcessProbe
from rankscope.probes.process_files import parse_stat, process_state, wait_channel
from rankscope.reading import Outcome

TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
DEADLINE_S = 20.0


def stat_line(
    pid: int = 7,
    *,
    name: str = "python3",
    state: str = "S",
    parent: int = 1,
    cpu: int = 0,
    faults: int = 0,
    blkio: int = 0,
) -> str:
    """A /proc/PID/stat; `cpu` and `blkio` in ticks."""
    fields = ["0"] * 50
    values = {4: parent, 12: faults, 14: cpu, 15: 0, 22: 100, 24: 5, 42: blkio}
    for field, value in values.items():
        fields[field - 3] = str(value)
    fields[0] = state
    return f"{pid} ({name}) {' '.join(fields)}\n"


class Tree:
    """A /proc of our own."""

    def __init__(self, root: Path, *, children_files: bool = True) -> None:
        self.root = root
        self.children_files = children_files

    def add(self, pid: int, *, parent: int = 1, state: str = "S", cpu: int = 0, blkio: int = 0, read: int = 0) -> None:
        """Write or rewrite a process."""
        main = self.root / f"{pid}/task/{pid}"
        main.mkdir(parents=True, exist_ok=True)
        (self.root / f"{pid}/stat").write_text(
            stat_line(pid, state=state, parent=parent, cpu=cpu, faults=3, blkio=blkio)
        )
        (self.root / f"{pid}/io").write_text(f"rchar: 1\nread_bytes: {read}\nwrite_bytes: {2 * read}\n")
        (main / "schedstat").write_text("1000 2000 3\n")
        (main / "status").write_text(
            "Name:\tx\nCpus_allowed_list:\t2-3,8\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t6\n"
        )
        node = self.root / "sys/devices/system/node/node1"
        node.mkdir(parents=True, exist_ok=True)
        (node / "cpulist").write_text("2-9\n")
        if self.children_files:
            (main / "children").touch()

    def adopt(self, pid: int, children: list[int], thread: int | None = None) -> None:
        """Write a thread's list of children."""
        task = self.root / f"{pid}/task/{thread or pid}"
        task.mkdir(parents=True, exist_ok=True)
        (task / "children").write_text("".join(f"{child} " for child in children))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A fresh tree whose kernel keeps lists of children."""
    return Tree(tmp_path)


def values(probe: ProcessProbe, now_ns: int = 0) -> dict[tuple[str, str], float]:
    """One read, by metric and device."""
    return {(r.metric, r.device): r.value for r in probe.read("process", now_ns).readings}


def until(done: Callable[[], bool]) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_command_with_brackets_and_spaces_is_no_trap() -> None:
    """The fields are counted from the last bracket."""
    stat = parse_stat(stat_line(name="a) R 1 (b", state="D", parent=42, cpu=150, blkio=7))
    assert stat is not None
    assert (stat.state, stat.parent, stat.cpu_ns, stat.blkio_ns) == ("D", 42, 150 * TICK_NS, 7 * TICK_NS)
    assert stat.resident_bytes == 5 * PAGE


def test_a_rank_and_its_workers_give_every_process_metric(tree: Tree) -> None:
    """All process.* metrics come under the rank's name; workers are added to storage, kept apart in CPU time."""
    tree.add(10, cpu=5, blkio=1, read=100)
    tree.add(11, parent=10, cpu=7, blkio=2, read=1000, state="D")
    tree.add(12, parent=10, cpu=8)
    tree.adopt(10, [11, 12])
    probe = ProcessProbe(tree.root, tree.root / "sys")
    probe.set_ranks({3: 10})
    read = values(probe)
    assert {metric for metric, _ in read} == {name for name in METRICS if name.startswith("process.")}
    assert {device for _, device in read} == {"rank:3"}
    got = {metric.partition(".")[2]: value for (metric, _), value in read.items()}
    assert got == {
        "cpu_ns": 5 * TICK_NS,
        "runqueue_ns": 2000,
        "read_bytes": 1100,
        "write_bytes": 2200,
        "blkio_ns": 3 * TICK_NS,
        "worker_cpu_ns": 15 * TICK_NS,
        "workers_blocked": 1,
        "major_faults": 3,
        "involuntary_switches": 6,
        "voluntary_switches": 5,
        "cpus_allowed": 3,
        "numa_node": 1,
        "resident_bytes": 5 * PAGE,
    }
    probe.close()


def test_a_rank_that_may_run_on_several_nodes_has_none(tree: Tree) -> None:
    """The node is told only where all cores are of one; nonsense in the list tells nothing."""
    tree.add(10)
    (tree.root / "sys/devices/system/node/node1/cpulist").write_text("3\n")
    read = {metric for metric, _ in values(started(tree))}
    assert "process.cpus_allowed" in read
    assert "process.numa_node" not in read
    (tree.root / "10/task/10/status").write_text("Cpus_allowed_list:\t3-1\n")
    assert "process.cpus_allowed" not in {metric for metric, _ in values(started(tree))}


def started(tree: Tree) -> ProcessProbe:
    """A probe of rank 0, process 10."""
    probe = ProcessProbe(tree.root, tree.root / "sys")
    probe.set_ranks({0: 10})
    return probe


def test_sums_over_workers_only_grow(tree: Tree) -> None:
    """A worker that ends takes nothing away, and its successor under the same process id is counted anew."""
    tree.add(10)
    tree.add(11, parent=10, cpu=7)
    tree.adopt(10, [11])
    probe = ProcessProbe(tree.root)
    probe.set_ranks({0: 10})
    worker_cpu = ("process.worker_cpu_ns", "rank:0")
    assert values(probe)[worker_cpu] == 7 * TICK_NS
    tree.add(11, parent=10, cpu=9)
    assert values(probe)[worker_cpu] == 9 * TICK_NS
    tree.add(11, parent=10, cpu=9, state="Z")
    assert values(probe)[worker_cpu] == 9 * TICK_NS
    tree.add(11, parent=10, cpu=2)
    assert values(probe)[worker_cpu] == 11 * TICK_NS
    probe.close()


def test_workers_of_other_threads_and_of_a_fork_server_are_found(tree: Tree) -> None:
    """A full look goes through all threads and down the generations."""
    for pid in (10, 11, 12, 13):
        tree.add(pid, cpu=1)
    tree.adopt(10, [11], thread=99)
    tree.adopt(11, [12, 13])
    assert sorted(process_tree.ProcessTree(tree.root).descendants(10, 0)) == [11, 12, 13]


def test_a_new_worker_is_found_without_a_full_look(tree: Tree) -> None:
    """Children of the main thread are asked for at every read."""
    tree.add(10)
    found = process_tree.ProcessTree(tree.root)
    assert found.descendants(10, 0) == []
    tree.adopt(10, [11])
    assert found.descendants(10, 1) == [11]


def test_a_kernel_without_lists_of_children_is_looked_through(tmp_path: Path) -> None:
    """Where there is no children file, parents are looked up, not at every read."""
    tree = Tree(tmp_path, children_files=False)
    for pid, parent in ((10, 1), (11, 10), (12, 11), (50, 1)):
        tree.add(pid, parent=parent)
    found = process_tree.ProcessTree(tmp_path)
    assert sorted(found.descendants(10, 0)) == [11, 12]
    tree.add(13, parent=10)
    assert sorted(found.descendants(10, process_tree.SCAN_NS - 1)) == [11, 12]
    assert sorted(found.descendants(10, process_tree.SCAN_NS)) == [11, 12, 13]


def test_a_flood_of_children_is_bounded(tree: Tree) -> None:
    """No more than the limit is followed, and a loop among the lists ends."""
    tree.add(10)
    tree.adopt(10, list(range(100, 1000)))
    assert len(process_tree.ProcessTree(tree.root).descendants(10, 0)) == process_tree.MAX_DESCENDANTS
    tree.add(11)
    tree.adopt(10, [11])
    tree.adopt(11, [10])
    assert process_tree.ProcessTree(tree.root).descendants(10, 0) == [11]


@pytest.mark.parametrize(("setting", "present", "said"), [("0", False, True), ("1", True, False), (None, True, False)])
def test_time_blocked_on_storage_is_absent_where_it_is_not_counted(
    tree: Tree, setting: str | None, present: bool, said: bool
) -> None:
    """With delay accounting off the zero is no value, and that is said once."""
    tree.add(10, blkio=4)
    if setting is not None:
        (tree.root / "sys/kernel").mkdir(parents=True)
        (tree.root / "sys/kernel/task_delayacct").write_text(f"{setting}\n")
    probe = ProcessProbe(tree.root)
    probe.set_ranks({0: 10})
    results = [probe.read("process", 0) for _ in range(3)]
    assert [len(result.outcomes) for result in results] == [int(said), 0, 0]
    assert ("process.blkio_ns" in {r.metric for r in results[2].readings}) is present
    probe.close()


def test_a_rank_that_is_gone_is_said_once_and_the_others_go_on(tree: Tree) -> None:
    """A process that ended gives no readings any more, never zeros."""
    tree.add(10, cpu=1)
    tree.add(20, cpu=2)
    probe = ProcessProbe(tree.root)
    probe.set_ranks({0: 10, 1: 20})
    probe.read("process", 0)
    tree.add(10, state="Z")
    results = [probe.read("process", 0) for _ in range(2)]
    assert [(d, o) for d, o, _ in results[0].outcomes] == [("rank:0", Outcome.NO_DATA)]
    assert results[1].outcomes == []
    assert {r.device for r in results[1].readings} == {"rank:1"}
    probe.close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A real process with a busy child."""
    code = (
        "import os, sys, time\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    end = time.monotonic() + 60\n"
        "    while time.monotonic() < end: pass\n"
        "    os._exit(0)\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush()\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = psutil.Process(process.pid).children()
        yield process
        for child in children:
            child.kill()
        process.kill()


def test_a_real_rank_and_its_worker_are_read(sleeper: subprocess.Popen[bytes]) -> None:
    """On the running kernel the worker's CPU time grows while the rank's own hardly does."""
    probe = ProcessProbe()
    probe.set_ranks({5: sleeper.pid})
    seen: dict[tuple[str, str], float] = {}

    def worked() -> bool:
        seen.update(values(probe, time.monotonic_ns()))
        return seen["process.worker_cpu_ns", "rank:5"] >= 5 * TICK_NS

    until(worked)
    assert seen["process.resident_bytes", "rank:5"] > 2**20
    assert seen["process.cpu_ns", "rank:5"] < 60 * 10**9
    assert seen["process.workers_blocked", "rank:5"] == 0
    assert ("process.runqueue_ns", "rank:5") in seen
    probe.close()


def test_nothing_stays_open_after_the_ranks_are_let_go(sleeper: subprocess.Popen[bytes]) -> None:
    """Ranks that come and go leave no descriptor behind."""
    own = psutil.Process()
    before = own.num_fds()
    probe = ProcessProbe()
    for _ in range(5):
        probe.set_ranks({0: sleeper.pid})
        probe.read("process", time.monotonic_ns())
        assert own.num_fds() > before
        probe.set_ranks({})
    assert own.num_fds() == before


def test_the_state_of_a_process_is_the_kernels(sleeper: subprocess.Popen[bytes]) -> None:
    """Sleeping, running, stopped and gone are told apart."""
    child = psutil.Process(sleeper.pid).children()[0]
    until(lambda: process_state(sleeper.pid) == "S")
    assert process_state(child.pid) == "R"
    os.kill(sleeper.pid, signal.SIGSTOP)
    until(lambda: process_state(sleeper.pid) == "T")
    os.kill(sleeper.pid, signal.SIGCONT)
    child.kill()
    sleeper.kill()
    sleeper.wait()
    assert process_state(sleeper.pid) is None
    assert wait_channel(sleeper.pid) is None


def test_the_wait_channel_is_read_as_the_kernel_prints_it(tmp_path: Path) -> None:
    """A name is passed on; "0", which is what a running process has, is none."""
    (tmp_path / "10").mkdir()
    for text, expected in (("nfs_wait_bit_killable", "nfs_wait_bit_killable"), ("0", None), ("", None)):
        (tmp_path / "10/wchan").write_text(text)
        assert wait_channel(10, tmp_path) == expected
