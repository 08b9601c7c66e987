"""The simulated node: faults begin and end at the steps of the ranks they hit, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rankscope.simulator.node import SimulatedNode
from rankscope.simulator.scenario_file import SCENARIO_VARIABLE, load_scenario


def _until(condition: Callable[[], bool]) -> bool:
    """Whether the condition holds within half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def node(tmp_path: Path):
    """Makes a running node from the text of a scenario."""

    @contextmanager
    def node(text: str) -> Iterator[SimulatedNode]:
        path = tmp_path / "scenario.toml"
        path.write_text(text)
        with SimulatedNode(load_scenario(path), tmp_path / "node") as made:
            yield made

    return node


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_fault_begins_at_its_step_of_its_rank_and_ends(node):
    """GPU 2 slows when rank 2 reaches step 10, whatever the others do, and recovers at step 20."""
    text = '[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = 2\nseverity = 1.5\nfrom_step = 10\nto_step = 20\n'
    with node(text) as made:
        gpus = made.state.gpus
        gpus[0].step, gpus[2].step = 90, 9
        assert _until(lambda: made.step == 90)
        assert gpus[2].work_factor == 1.0
        gpus[2].step = 10
        assert _until(lambda: gpus[2].work_factor == 1.5)
        assert [gpu.work_factor for gpu in gpus] == [1.0, 1.0, 1.5, 1.0]
        gpus[2].step = 20
        assert _until(lambda: gpus[2].work_factor == 1.0)


def test_confounders_are_there_before_the_first_step(node):
    """An old Xid is in the log and the spread on the GPU while no rank has begun."""
    text = '[[confounder]]\nkind = "old-xid"\ngpu = 1\n[[confounder]]\nkind = "silicon-spread"\ngpu = 3\n'
    with node(text) as made:
        assert _until(lambda: "Xid" in made.kernel_log_path.read_text())
        assert _until(lambda: made.state.gpus[3].work_factor == pytest.approx(1.08))


def test_slow_storage_shows_in_the_counters_only_where_the_scenario_says_so(node):
    """With counters, I/O pressure rises from the step on; the twin without stays calm."""
    text = '[[fault]]\nclass = "slow-storage"\nfrom_step = 5\n'

    def waited(made: SimulatedNode) -> int:
        return int((made.proc_root / "pressure/io").read_text().split("total=")[1].split()[0])

    with node(text) as made:
        made.state.gpus[0].step = 5
        assert _until(lambda: waited(made) > 300_000)
    with node(text + "counters = false\n") as made:
        made.state.gpus[0].step = 5
        began = time.monotonic()
        assert _until(lambda: time.monotonic() - began > 0.5)
        assert waited(made) < 100_000


def test_competitors_take_the_victims_core_and_are_gone_at_the_end(node):
    """A busy victim is bound to one core, loses most of it to real processes, and nothing is left behind."""
    text = '[[fault]]\nclass = "cpu-contention"\nrank = 1\nseverity = 3\nfrom_step = 5\n'
    victim = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        with node(text) as made:
            made.state.gpus[1].set_process(victim.pid, 1)
            assert _until(lambda: len(os.sched_getaffinity(victim.pid)) == 1)
            made.state.gpus[1].step = 5
            assert _until(lambda: len(_children() - {victim.pid}) == 3)
            competitors = _children() - {victim.pid}
            assert _until(lambda: all(_cpu_ticks(pid) > 5 for pid in competitors))
        assert not competitors & _children()
    finally:
        victim.kill()
        victim.wait()


def _children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def test_what_the_agent_is_given_does_not_name_the_scenario(node):
    """Only the ranks are told what is injected; neither the agent's environment nor the node's files say it."""
    with node('[[fault]]\nclass = "host-sync"\n') as made:
        assert SCENARIO_VARIABLE in made.job_environment()
        assert SCENARIO_VARIABLE not in made.agent_environment()
        files = [path for path in made.state.path.parent.iterdir() if path.is_file()]
        assert files
        assert not any(b"host-sync" in path.read_bytes() for path in files)
