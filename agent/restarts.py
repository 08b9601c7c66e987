"""An experiment with what a process reads only when it starts: the job is run anew for every window.

One run is one window, since runs differ by more than their steps do: layout of memory, placement, what was cached.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rankscope.agent.environment_knob import Variable
from rankscope.agent.processes import ProcessHandle, descendants, process_stat, signal_name
from rankscope.agent.pythons import JobPythons
from rankscope.agent.ring_steps import HostSteps
from rankscope.agent.supervisor import SignalsHeld, Supervisor, exit_status, spawn_job
from rankscope.agent.switchback import Design
from rankscope.errors import ConfigurationError, RingError
from rankscope.rules.switchback import LEAST_BLOCKS, Decision, Effect, Stretch, effect

#: From SIGTERM to SIGKILL: torchrun gives its ranks 30 s.
_GRACE_SECONDS = 40.0
#: How long a killed process may take to be gone: the driver frees a GPU's memory first.
_GONE_SECONDS = 30.0
_OUTPUT_LINES = 20
#: Exit status where the job did nothing wrong and there is no answer all the same.
_CANNOT = 2


class _Run:
    """One run of the job: looks on until its window is full, then ends it."""

    def __init__(self, pid: int, rings: Path, design: Design, limit_seconds: float) -> None:
        self._pid = pid
        self._design = design
        self._limit_seconds = limit_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._take, name="experiment", daemon=True)
        self._kill_at: float | None = None
        self._due = time.monotonic() + limit_seconds
        self._main = threading.get_ident()
        self.steps = HostSteps(rings, self._over)
        self.pythons = JobPythons(pid)
        self.taken: list[int] | None = None
        #: Why there is no window, where that is not the end of the job.
        self.trouble = ""

    def wait(self, check: Callable[[HostSteps], str]) -> tuple[int, bool]:
        """(the job's exit status, whether a signal came for it). `check` says what is wrong with a run's ranks."""
        supervisor = Supervisor(self._pid, True, None, lambda: None, lambda: self._look(check))
        self._thread.start()
        try:
            status = exit_status(supervisor.wait_job())
        finally:
            self._over.set()
            self._thread.join()
        self._leave_nothing()
        return status, bool(supervisor.passed_on)

    def _take(self) -> None:
        design = self._design
        try:
            self.taken = self.steps.take(0, design.warm_up_steps + design.settle_steps, design.window_steps)
        except (RingError, OSError) as error:
            self.trouble = str(error)
        # Wakes the supervisor, which waits for signals: every second counts in each of many runs.
        signal.pthread_kill(self._main, signal.SIGCHLD)

    def _look(self, check: Callable[[HostSteps], str]) -> None:
        now = time.monotonic()
        if self._kill_at is not None:
            if now >= self._kill_at:
                self._kill_all()
            return
        if self._thread.is_alive():
            self.pythons.look()
            if now < self._due:
                return
            self.trouble = f"its window was not full after {self._limit_seconds:g} s"
        elif self.taken is not None:
            # Its processes are still there to be looked at.
            self.trouble = check(self.steps)
        self._kill_at = now + _GRACE_SECONDS
        self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            pass

    def _kill_all(self) -> None:
        for pid in descendants(self._pid):
            stat = process_stat(pid)
            if stat is not None:
                handle = ProcessHandle(pid, stat.start_ticks)
                handle.send(signal.SIGKILL)
                handle.close()
        self._signal_group(signal.SIGKILL)

    def _leave_nothing(self) -> None:
        """End ranks that outlived their launcher: they would be the next run's neighbours."""
        deadline = time.monotonic() + _GONE_SECONDS
        for rank in self.steps.identities():
            handle = ProcessHandle(rank.pid, rank.start_ticks)
            while handle.alive() and time.monotonic() < deadline:
                handle.send(signal.SIGKILL)
                time.sleep(0.01)
            handle.close()
        self.steps.close()


class Restarts:
    """Runs `command` anew for each window, in random order, until it is decided. Call `run` from the main thread."""

    def __init__(
        self,
        command: Sequence[str],
        variable: Variable,
        design: Design,
        *,
        rings: Path,
        environ: Mapping[str, str],
        limit_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        """`rings` is a directory of our own, made and removed for every run; a window has to be full in the limit."""
        self._command = command
        self._variable = variable
        self._design = design
        self._rings = rings
        self._environ = dict(environ)
        self._limit_seconds = limit_seconds
        self._say = say
        self.stretches: list[Stretch] = []
        self.found: Effect | None = None
        self.error = ""
        #: What the command ends with: 0, the status of a job that failed, 2 where there is no answer otherwise.
        self.exit_status = 0
        #: What each run took from its start until all of it was gone, s.
        self.run_seconds: list[float] = []

    def run(self) -> None:
        """Run and restart. Raises ConfigurationError where the command cannot be started."""
        with SignalsHeld(), tempfile.TemporaryDirectory(prefix="rankscope-experiment-") as directory:
            output = Path(directory) / "job.log"
            # What is compiled, fetched and cached by the first run of either kind is no part of its steps; and a
            # value that the job cannot run with shows at once.
            for on in (False, True):
                if self._window(on, output) is None:
                    return
            self._say_cost()
            draw = random.Random(self._design.seed)
            for block in range(self._design.max_blocks):
                states = [True, False]
                draw.shuffle(states)
                for on in states:
                    taken = self._window(on, output)
                    if taken is None:
                        return
                    self.stretches.append(Stretch(block, on, np.array(taken) / 1e6))
                self.found = effect(self.stretches, margin=self._design.margin, alpha=self._design.alpha)
                if self.found is not None and self.found.decision is not Decision.UNDECIDED:
                    self._say(f"rankscope: the experiment is decided after {block + 1} blocks: {self.found.decision}")
                    return

    def _say_cost(self) -> None:
        each = statistics.fmean(self.run_seconds)
        least, most = (2 * blocks * each for blocks in (LEAST_BLOCKS, self._design.max_blocks))
        self._say(
            f"rankscope: the job runs with either value; a run takes {_time(each)}, {LEAST_BLOCKS} blocks (the least) "
            f"{_time(least)}, {self._design.max_blocks} (the most) {_time(most)}"
        )

    def _window(self, on: bool, output: Path) -> list[int] | None:
        """ns of the window's steps of one run; None where it gave none, with the reason in `error`."""
        began = time.monotonic()
        environ = self._variable.applied(self._environ, on)
        environ |= {"RANKSCOPE_ATTACH": "1", "RANKSCOPE_DIR": str(self._rings)}
        try:
            self._rings.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._rings.mkdir(mode=0o700)
        except OSError as error:
            todo = "set RANKSCOPE_DIR to a directory in memory that you may write"
            raise ConfigurationError(f"cannot be made ({error.strerror})", where=str(self._rings), todo=todo) from error
        try:
            pid = spawn_job(self._command, environ, own_group=True, output=output)
            run = _Run(pid, self._rings, self._design, self._limit_seconds)
            status, interrupted = run.wait(lambda steps: self._strays(steps, on))
        finally:
            shutil.rmtree(self._rings, ignore_errors=True)
        self.run_seconds.append(time.monotonic() - began)
        if run.taken is not None and not run.trouble and not interrupted:
            return run.taken
        self.error = f"run {len(self.run_seconds)}, with {self._variable.told(on)}: "
        if run.trouble:
            self.error += run.trouble
            self.exit_status = _CANNOT
        else:
            self.error += self._ended(run, status, interrupted)
            self.exit_status = status or _CANNOT
        if not interrupted:
            self._say_output(output)
        return None

    def _strays(self, steps: HostSteps, on: bool) -> str:
        stray = next((said for rank in steps.identities() if (said := self._variable.astray(on, rank))), "")
        return f"{stray}: the job's launcher does not pass it on" if stray else ""

    def _ended(self, run: _Run, status: int, interrupted: bool) -> str:
        ended = f"the job ended with {status}" + (f" ({signal_name(status - 128)})" if status > 128 else "")
        if interrupted:
            return f"interrupted, {ended}"
        if not run.steps.identities():
            return f"{ended} before its first step" if status else f"{ended}; {run.pythons.advice()}"
        design = self._design
        needed = design.warm_up_steps + design.settle_steps + design.window_steps
        todo = "" if status else "; lower --window-steps, or give it more steps"
        return f"{ended} after {run.steps.seen} steps, before the {needed} of a window{todo}"

    def _say_output(self, output: Path) -> None:
        try:
            lines = output.read_text(errors="replace").splitlines()[-_OUTPUT_LINES:]
        except OSError:
            return
        if lines:
            self._say("rankscope: the last lines of that run:")
        for line in lines:
            self._say("  " + "".join(each for each in line if each.isprintable() or each == "\t"))


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
