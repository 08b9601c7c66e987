"""Windows of the profiler over a job's ranks: asks for them, one rank at a time, and reads what they leave.

A window holds up every rank that waits for the one it is on. So the windows of all ranks of a job together stay within
the share of its time that is allowed to them, by the cost that the ranks measure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rankscope.agent.config import WindowSettings
from rankscope.agent.ranks import Rank
from rankscope.clock import Clock
from rankscope.control import Command, send
from rankscope.errors import RingError
from rankscope.profiler_window import EXPECTED_NS, SHARE, window_path
from rankscope.reading import Event, Severity

_SECOND_NS = 1_000_000_000
#: An order that brought no trace for this long is forgotten: its rank has not earned the share, or profiles itself.
_PATIENCE_NS = 600 * _SECOND_NS
#: Reading a trace of three steps takes a second or two; what takes longer than this is ended.
_READ_NS = 120 * _SECOND_NS
_RESULT_BYTES = 4 * 1024 * 1024
#: What is kept of the longest stall.
_STALL = ("kernel", "cause", "us", "operator", "source", "host_doing")
_READ_TRACE = "from rankscope.agent.cli import main; main()"


@dataclass(slots=True)
class _Reading:
    """A trace that a child reads."""

    rank: Rank
    path: Path
    child: subprocess.Popen[bytes]
    output: IO[bytes]
    deadline_ns: int


class WindowWatch:
    """The windows of one job on this host."""

    def __init__(self, settings: WindowSettings, clock: Clock) -> None:
        self._period_ns = int(settings.period_seconds * _SECOND_NS)
        self._clock = clock
        self._due_ns: int | None = None
        self._cost_ns = EXPECTED_NS
        self._last: int = -1
        self._suspect: int | None = None
        self._asked: tuple[Rank, int] | None = None
        self._reading: _Reading | None = None

    def suspect(self, rank: int) -> None:
        """This rank was slow: the next window is its."""
        self._suspect = rank

    def check(self, ranks: Sequence[Rank]) -> list[Event]:
        """Ask where it is time to, and read what was left; returns what was found. Never waits."""
        if not self._period_ns:
            return []
        now = self._clock.monotonic_ns()
        events = self._read(now)
        live = sorted(
            (rank for rank in ranks if not (rank.gone or rank.said_goodbye or rank.failed)),
            key=lambda rank: rank.identity.rank,
        )
        if self._reading is None:
            for rank in live:
                if (path := window_path(rank.reader.path, rank.identity.rank)).is_file():
                    self._asked = None
                    events += self._begin(rank, path, now)
                    break
        if self._asked is not None and (now > self._asked[1] or self._asked[0] not in live):
            self._asked = None
        if live and self._asked is None and self._reading is None:
            events += self._ask(live, now)
        return events

    def recorded(self, cost_ns: int) -> None:
        """A window is over and cost so much: the next one is as much later as it takes to earn that."""
        self._cost_ns = cost_ns

    def close(self) -> None:
        """End a child that still reads."""
        if self._reading is not None:
            self._reading.child.kill()
            self._reading.child.wait()
            self._end(self._reading)

    def _ask(self, live: list[Rank], now: int) -> list[Event]:
        hosts = max(1, -(-(live[0].identity.world_size or 1) // len(live)))
        # Agents of other hosts ask too: each takes its part of the share.
        earned_ns = int(self._cost_ns / SHARE * hosts)
        pause_ns = max(self._period_ns, earned_ns)
        if self._due_ns is None:
            self._due_ns = now + pause_ns
        if now < self._due_ns:
            return []
        self._due_ns = now + pause_ns
        numbers = [rank.identity.rank for rank in live]
        following = [number for number in numbers if number > self._last] or numbers
        number = self._suspect if self._suspect in numbers else following[0]
        self._last = number if self._suspect is None else self._last
        self._suspect = None
        rank = live[numbers.index(number)]
        self._asked = rank, now + _PATIENCE_NS
        try:
            send(rank.reader.path, Command.WINDOW)
        except RingError as error:
            self._asked = None
            return [Event("kernel-stalls", now, f"no window of rank {number}: {error}", Severity.WARNING, rank=number)]
        return []

    def _begin(self, rank: Rank, path: Path, now: int) -> list[Event]:
        number = rank.identity.rank
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            path.unlink(missing_ok=True)
            return [_unread(number, now, error.strerror or "cannot be opened")]
        try:
            output = tempfile.TemporaryFile()  # noqa: SIM115 - lives until the child has ended
            environ = {key: value for key, value in os.environ.items() if key != "RANKSCOPE_ATTACH"}
            child = subprocess.Popen(
                [sys.executable, "-c", _READ_TRACE, "trace", "--json", "--top", "5", "/dev/stdin"],
                stdin=descriptor,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=environ,
            )
            os.setpriority(os.PRIO_PROCESS, child.pid, 19)
            self._reading = _Reading(rank, path, child, output, now + _READ_NS)
        except OSError as error:
            return [_unread(number, now, error.strerror or "cannot be read")]
        finally:
            os.close(descriptor)
        return []

    def _read(self, now: int) -> list[Event]:
        reading = self._reading
        if reading is None:
            return []
        number = reading.rank.identity.rank
        if reading.child.poll() is None:
            if now < reading.deadline_ns:
                return []
            reading.child.kill()
            reading.child.wait()
        reading.output.seek(0)
        text = reading.output.read(_RESULT_BYTES)
        self._end(reading)
        try:
            if reading.child.returncode:
                raise ValueError(f"its reader ended with {reading.child.returncode}")
            return [_found(number, now, json.loads(text)["ranks"][0])]
        except (ValueError, LookupError, TypeError) as error:
            return [_unread(number, now, str(error))]

    def _end(self, reading: _Reading) -> None:
        reading.output.close()
        reading.path.unlink(missing_ok=True)
        self._reading = None


def _unread(number: int, now: int, why: str) -> Event:
    return Event("kernel-stalls", now, f"the window of rank {number}: {why}", Severity.WARNING, rank=number)


def _found(number: int, now: int, rank: dict[str, Any]) -> Event:
    """What a window showed, in a line, and the figures behind it."""
    steps = [step["number"] for step in rank["steps"]]
    text = f"rank {number}, steps {min(steps)} to {max(steps)}: {rank['summary']}" if steps else rank["summary"]
    attributes: dict[str, str | int | float | None] = {
        "bound": rank["bound"],
        "step_us": rank["step_us"],
        "idle_fraction": rank["temporal"]["idle_fraction"],
        "overlap_fraction": rank["temporal"]["overlap_fraction"],
        "tensor_fraction": rank["tensor_cores"]["fraction_of_computation"],
        "launches": rank["launches"]["count"],
        "host_wait_fraction": _share_of_idle(rank["idle"]["devices"], "host_wait_us", "kernel_wait_us"),
    }
    if rank["stalls"]:
        stall = rank["stalls"][0]
        text += f"; longest stall {stall['us'] / 1e3:.1f} ms before {stall['kernel']}"
        attributes |= {f"stall_{name}": stall[name] for name in _STALL}
    return Event("kernel-stalls", now, text, rank=number, attributes=attributes)


def _share_of_idle(devices: Sequence[dict[str, Any]], *causes: str) -> float | None:
    """Share of the devices' idle time that these causes have; None where they never idled."""
    total = sum(device["total_us"] for device in devices)
    return round(sum(device[cause] for device in devices for cause in causes) / total, 6) if total else None
