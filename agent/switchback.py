"""Turning a knob on and off in random order while a job runs, by the steps in its ranks' rings."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from rankscope.agent.group_switch import write_groups
from rankscope.agent.processes import descendants
from rankscope.errors import ConfigurationError, RingError
from rankscope.records import StepRecord
from rankscope.ring import SUFFIX, RingReader
from rankscope.rules.switchback import Decision, Effect, Stretch, effect

_LOOK_SECONDS = 0.05
_KNOB_SECONDS = 60.0
#: Time between two looks for rings that are new, and after which a rank that says nothing is not waited for, unless
#: steps are long.
_NEW_RINGS_NS = 10**9
_SILENT_NS = 10 * 10**9


class Knob(Protocol):
    """What is turned. `set` returns when it is; it raises ConfigurationError where it cannot be."""

    @property
    def name(self) -> str:
        """What it is called in the outcome."""
        ...

    @property
    def rest(self) -> bool:
        """How it is left in the end."""
        ...

    def set(self, on: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class CommandKnob:
    """A command run at each switch, by the shell."""

    on_command: str
    off_command: str
    name: str = "command"
    rest: bool = False

    def set(self, on: bool) -> None:
        command = self.on_command if on else self.off_command
        if not command:
            return
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_KNOB_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(
                f"the command took over {_KNOB_SECONDS:.0f} s: {command}", where="experiment"
            ) from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            why = f": {said[-1][:200]}" if said else ""
            raise ConfigurationError(f"the command ended with {done.returncode}{why}", where=f"experiment: {command}")


@dataclass(frozen=True, slots=True)
class AgentKnob:
    """The agent beside the job: stopped (SIGSTOP, with its children) where off. It wakes when we die (daemon)."""

    name: str = "agent"
    rest: bool = True

    def set(self, on: bool) -> None:
        for pid in _agents(os.getpid()):
            for each in (pid, *descendants(pid)):
                try:
                    os.kill(each, signal.SIGCONT if on else signal.SIGSTOP)
                except ProcessLookupError:
                    pass


@dataclass(slots=True)
class GroupKnob:
    """Groups of probes (probe/group), which the agent does not read where off. `rings` is known once the job begins."""

    groups: tuple[str, ...]
    #: Time between two looks of the agent, s.
    poll_seconds: float
    rings: Path | None = None
    rest: bool = True

    @property
    def name(self) -> str:
        return f"reading of {', '.join(self.groups)}"

    def set(self, on: bool) -> None:
        if self.rings is None:
            return
        try:
            write_groups(self.rings, () if on else self.groups)
        except OSError as error:
            raise ConfigurationError(f"cannot be written ({error.strerror})", where=str(self.rings)) from error
        time.sleep(1.5 * self.poll_seconds)


def _agents(parent: int) -> list[int]:
    found = []
    for pid in descendants(parent):
        try:
            if b"rankscope.agent.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class Design:
    """How the windows are laid: steps that count in each, steps before them in which the knob's effect settles."""

    window_steps: int = 20
    settle_steps: int = 3
    warm_up_steps: int = 10
    max_blocks: int = 200
    #: Share of the step that does not matter.
    margin: float = 0.005
    alpha: float = 0.05
    seed: int = 0


@dataclass(slots=True)
class Switchback:
    """Switches the knob between steps; runs in a thread of its own until decided or told to stop.

    `say` hears one line when it is decided or cannot go on.
    """

    rings: Path
    knob: Knob
    design: Design
    say: Callable[[str], None]
    stretches: list[Stretch] = field(default_factory=list)
    #: The effect as of the last block.
    found: Effect | None = None
    error: str = ""
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, as soon as a rank has attached."""
        self._thread = threading.Thread(target=self._run, name="experiment", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The job is over."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_KNOB_SECONDS)

    def _run(self) -> None:
        try:
            self._switch_on_and_off()
        except (ConfigurationError, RingError, OSError) as error:
            self.error = str(error)
            self.say(f"rankscope: the experiment ends: {error}")
        finally:
            try:
                # Whatever happened: the agent goes on, and the command's state is the one off leaves.
                self.knob.set(self.knob.rest)
            except ConfigurationError:
                pass

    def _switch_on_and_off(self) -> None:
        steps = _Steps(self.rings, self._over)
        if not steps.skip(self.design.warm_up_steps):
            return
        draw = random.Random(self.design.seed)
        for block in range(self.design.max_blocks):
            states = [True, False]
            draw.shuffle(states)
            for on in states:
                self.knob.set(on)
                taken = steps.take(time.monotonic_ns(), self.design.settle_steps, self.design.window_steps)
                if taken is None:
                    return
                self.stretches.append(Stretch(block, on, np.array(taken) / 1e6))
            self.found = effect(self.stretches, margin=self.design.margin, alpha=self.design.alpha)
            if self.found is not None and self.found.decision is not Decision.UNDECIDED:
                self.say(f"rankscope: the experiment is decided after {block + 1} blocks: {self.found.decision}")
                return


@dataclass(slots=True)
class _Ring:
    """One rank's ring, the last step heard of it, and when that was, CLOCK_MONOTONIC ns."""

    reader: RingReader
    heard_ns: int
    last: int | None = None


class _Steps:
    """The steps of this host's ranks as the last of them ends each: as long as the slowest rank's.

    Rings that come later, of a rank that was restarted, count from then on; a rank that says nothing any more is not
    waited for.
    """

    def __init__(self, rings: Path, over: threading.Event) -> None:
        self._directory = rings
        self._over = over
        self._rings: dict[Path, _Ring] = {}
        self._look_due_ns = 0
        #: Step -> (earliest begin, longest duration) of the ranks that have ended it, ns.
        self._ended: dict[int, tuple[int, int]] = {}
        self._longest_ns = 0

    def skip(self, count: int) -> bool:
        """Let that many steps go by; False where the job ended before."""
        return self.take(0, count, 0) is not None

    def take(self, after_ns: int, settle: int, count: int) -> list[int] | None:
        """ns of `count` steps, after the first `settle` of those that began after `after_ns`; None at the job's end."""
        seen = 0
        taken: list[int] = []
        while seen < settle + count:
            for start_ns, length_ns in self._next():
                if start_ns < after_ns or seen >= settle + count:
                    continue
                seen += 1
                if seen > settle:
                    taken.append(length_ns)
            if seen < settle + count and self._over.wait(_LOOK_SECONDS):
                return None
        return taken

    def _next(self) -> list[tuple[int, int]]:
        now = time.monotonic_ns()
        if not self._rings or now >= self._look_due_ns:
            self._look_due_ns = now + _NEW_RINGS_NS
            self._look(now)
        for ring in self._rings.values():
            for record in ring.reader.read().records:
                if isinstance(record, StepRecord):
                    length_ns = record.end_ns - record.start_ns
                    begin_ns, longest_ns = self._ended.get(record.step, (record.start_ns, 0))
                    self._ended[record.step] = min(begin_ns, record.start_ns), max(longest_ns, length_ns)
                    self._longest_ns = max(self._longest_ns, length_ns)
                    ring.last, ring.heard_ns = record.step, now
        silent_ns = max(_SILENT_NS, 3 * self._longest_ns)
        passed = min(
            (ring.last for ring in self._rings.values() if ring.last is not None and now - ring.heard_ns < silent_ns),
            default=-1,
        )
        return [self._ended.pop(step) for step in sorted(self._ended) if step <= passed]

    def _look(self, now: int) -> None:
        for path in self._directory.glob(f"*{SUFFIX}"):
            if path not in self._rings:
                self._rings[path] = _Ring(RingReader(path), now)
