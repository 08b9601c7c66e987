"""A probe that the kernel wakes: the loop reads it when its descriptor says so, long before its period is over."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankscope.agent.config import Settings
from rankscope.agent.loop import Agent
from rankscope.agent.sources import Sources
from rankscope.clock import SystemClock
from rankscope.probes.kernel_log import KernelLogProbe
from rankscope.reading import Event, Group, ProbeResult


class PipeProbe:
    """Reads a pipe, by its period once in an hour."""

    name = "pipe"
    groups = (Group("events", 3_600_000_000_000, 1_000_000, ""),)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.heard = b""

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """Whatever is in the pipe."""
        try:
            self.heard += os.read(self.descriptor, 4096)
        except BlockingIOError:
            return ProbeResult()
        return ProbeResult(events=[Event("kernel-log-lost", now_ns, "heard")])

    def close(self) -> None:
        """The pipe is the test's."""


@pytest.fixture(name="pipe")
def make_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that does not block."""
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for end in ends:
        os.close(end)


def test_the_loop_reads_what_is_announced(pipe: tuple[int, int]) -> None:
    """Three things are written, each after the one before was read; none waits for the period."""
    probe = PipeProbe(pipe[0])
    agent = Agent([], Settings(), Sources([probe], tuple), clock=SystemClock())
    give_up = time.monotonic() + 30
    written = []

    def each_round() -> None:
        if len(probe.heard) == len(written):
            if len(written) == 3:
                agent.stop("all was heard")
                return
            written.append(os.write(pipe[1], b"x"))
        if time.monotonic() > give_up:
            agent.stop("the time is over")

    agent.run(each_round)
    assert probe.heard == b"xxx"


def test_a_log_that_is_a_file_has_nothing_to_wait_on(tmp_path: Path) -> None:
    """A regular file is always readable: it is looked at four times a second instead."""
    (tmp_path / "kmsg").write_text("")
    probe = KernelLogProbe(tmp_path / "kmsg")
    assert probe.descriptor is None
    assert probe.groups[0].steady_ns == 250_000_000
    probe.close()


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="/dev/kmsg may not be read here")
def test_this_machines_own_log_wakes() -> None:
    """The kernel's device tells when there is something: looking once a second is for safety only."""
    probe = KernelLogProbe(Path("/dev/kmsg"))
    assert probe.descriptor is not None
    assert probe.groups[0].steady_ns == 1_000_000_000
    probe.close()
