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
from rankscope.agent.ring_steps import HostSteps
from rankscope.errors import ConfigurationError, RingError
from rankscope.rules.switchback import Decision, Effect, Stretch, effect

_KNOB_SECONDS = 60.0


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
        steps = HostSteps(self.rings, self._over)
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
