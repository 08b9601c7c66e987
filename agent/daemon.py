"""The agent's process: `python -m rankscope.agent.daemon PLAN`, started by `rankscope run` for one job.

Writes a line to standard output when it watches, ends on SIGTERM or when standard input ends, and says on standard
error why it could not go on.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rankscope.agent.config import Settings
from rankscope.agent.containers import ContainerDirectories
from rankscope.agent.cost import OwnCost
from rankscope.agent.exposition import open_exposition
from rankscope.agent.group_switch import GroupSwitch
from rankscope.agent.job import WatchedJob
from rankscope.agent.loop import Agent, waker
from rankscope.agent.plan import read_plan
from rankscope.agent.sources import build_sources
from rankscope.allocator import share_one_arena
from rankscope.clock import Clock, SystemClock
from rankscope.errors import ConfigurationError, RankscopeError
from rankscope.identity import host_name

#: What the agent says when the job may begin.
READY = b"watching\n"
#: prctl's PR_SET_PDEATHSIG (linux/prctl.h): a signal for when the parent dies, however it dies.
_SET_PARENT_DEATH_SIGNAL = 1


def go_on_when_parent_dies() -> None:
    """An experiment stops the agent (SIGSTOP) for its off windows: killed in one, it would leave it stopped for ever.

    So the kernel wakes the agent when its parent dies, and whoever wakes the agent wakes its helpers.
    """

    def wake_helpers(_number: int, _frame: object) -> None:
        for pid in OwnCost().children():
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue

    signal.signal(signal.SIGCONT, wake_helpers)
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGCONT))


def look_for_cycles_less() -> None:
    """Readings are made and dropped by the hundred, every second, without a cycle among them: look for one after
    10,000 objects that stay, and not among those that were there from the start.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def build_agent(jobs: list[WatchedJob], settings: Settings, clock: Clock) -> Agent:
    """An agent over every source of this host."""

    def ranks() -> Mapping[int, int]:
        # Two jobs at once have ranks of one number: then neither gets the other's counters.
        of_jobs = [{rank.identity.rank: rank.handle.pid for rank in job.watcher.ranks if not rank.gone} for job in jobs]
        busy = [of_job for of_job in of_jobs if of_job]
        return busy[0] if len(busy) == 1 else {}

    agent = Agent(jobs, settings, build_sources(settings, ranks), clock=clock)
    look_for_cycles_less()
    wake_read, wake_write = waker()

    def stop(number: int, _frame: object) -> None:
        agent.stop(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    agent.wake_on(wake_read, lambda: _drain(wake_read))
    return agent


def _drain(descriptor: int) -> None:
    try:
        os.read(descriptor, 4096)
    except BlockingIOError:
        pass


def watch_plan(path: Path) -> None:
    """Watch the job of a plan until it is over. Raises RankscopeError."""
    plan = read_plan(path)
    if plan.follow_parent:
        go_on_when_parent_dies()
    share_one_arena()
    clock = SystemClock()
    try:
        exposition = open_exposition(plan.settings, clock)
    except ConfigurationError as error:
        # Another run of this host may have the port: the job is watched all the same.
        sys.stderr.write(f"rankscope: {error}\n")
        exposition = None
    job = WatchedJob(
        job=plan.job,
        host=host_name(),
        recording=Path(plan.recording),
        rings=Path(plan.rings),
        settings=plan.settings,
        clock=clock,
        environ=os.environ,
        restart=plan.restart,
        containers=ContainerDirectories(Path(plan.rings), clock).paths,
        exposition=exposition,
    )
    agent = build_agent([job], plan.settings, clock)
    if plan.follow_parent:

        def parent() -> None:
            if not os.read(0, 4096):
                agent.stop("the process that started it is gone")

        agent.wake_on(0, parent)
    job.poll()
    os.write(1, READY)
    switch = GroupSwitch(Path(plan.rings))

    def each_round() -> None:
        agent.leave_out(switch.left_out())
        if exposition is not None:
            exposition.refresh()

    agent.run(each_round)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 could not."""
    try:
        watch_plan(Path(arguments[0]))
    except RankscopeError as error:
        sys.stderr.write(f"rankscope: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
