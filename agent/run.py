"""`rankscope run`: the job in the foreground, its agent beside it, the verdict at the end.

The job comes first: where it cannot be watched, that is one line, and the job runs as if nothing had been asked.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.agent.config import Settings, ring_root
from rankscope.agent.export import check_export
from rankscope.agent.job_signals import JobSignal, signal_event
from rankscope.agent.plan import Plan, write_plan
from rankscope.agent.processes import PROC, process_stat
from rankscope.agent.pythons import JobPythons
from rankscope.agent.recording_file import new_recording_path, state_directory
from rankscope.agent.supervisor import (
    AgentProcess,
    SignalsHeld,
    Supervisor,
    exit_status,
    has_terminal,
    spawn_job,
)
from rankscope.errors import ConfigurationError, RankscopeError, RingError
from rankscope.finding import Verdict
from rankscope.identity import host_name, job_name, safe_name
from rankscope.ring import SUFFIX
from rankscope.window import Window

if TYPE_CHECKING:
    from rankscope.rules.history import PastRun

#: How often an agent that dies is started again without much ado; after that once in the longest pause, seconds.
MAX_RESTARTS = 5
_LONGEST_PAUSE_SECONDS = 60.0
#: What the agent may take at the end besides draining the outbox.
_FINISH_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a watched run ended. No recording or verdict where the job could not be watched."""

    #: The job's own exit status, 128+n for a signal.
    exit_status: int
    recording: Path | None
    verdict: Verdict | None
    window: Window | None
    #: The job was interrupted by a signal that came through us.
    interrupted: bool = False


def run_job(
    command: Sequence[str],
    *,
    settings: Settings,
    job: str = "",
    environ: Mapping[str, str] | None = None,
    job_environ: Mapping[str, str] | None = None,
    agent_environ: Mapping[str, str] | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),  # noqa: T201 - standard error of the command
    progress: Callable[[Path], None] = lambda _recording: None,
    rings_made: Callable[[Path], None] = lambda _rings: None,
    job_ended: Callable[[], None] = lambda: None,
) -> RunResult:
    """Run `command` watched and give the verdict. Call it from the main thread, before any other is started.

    `environ` is the environment to begin with, `job_environ` and `agent_environ` what either gets besides; `output`
    takes the job's standard output and error; `progress` is called with the recording twice a second or so.
    `rings_made` hears where the ranks' rings will be, once the job runs, and `job_ended` that it does no more. Raises
    ConfigurationError where the command cannot be started.
    """
    environ = dict(os.environ if environ is None else environ)
    name = safe_name(job) if job else _name(command, environ)
    for_job = environ | {"RANKSCOPE_JOB": name} | dict(job_environ or {})
    try:
        rings, recording = _places(settings, environ, name)
    except (RankscopeError, OSError) as error:
        say(f"rankscope: the job runs unwatched: {error}")
        return RunResult(_run_unwatched(command, for_job, output), None, None, None)
    for_job |= {
        "RANKSCOPE_ATTACH": "1",
        "RANKSCOPE_DIR": str(rings),
        # Rings go with the run; what a rank leaves for a person stays beside the recording.
        "RANKSCOPE_SNAPSHOTS": str(recording.parent),
        "RANKSCOPE_STACK_SIGNAL": settings.hang.stack_signal,
        "RANKSCOPE_FLIGHT": str(int(settings.hang.flight_recorder)),
        "RANKSCOPE_WINDOWS": str(int(settings.windows.period_seconds > 0)),
    }
    for_agent = environ | dict(agent_environ or {})
    try:
        check_export(settings.export, for_agent)
    except ConfigurationError as error:
        # These variables may be meant for others: that costs the export, and not the recording.
        say(f"rankscope: nothing is exported, the job is recorded all the same: {error}")
        for_agent |= {"OTEL_SDK_DISABLED": "true"}
    run = _Run(name, rings, recording, settings, for_agent, say)
    own_group = not has_terminal()
    try:
        with SignalsHeld():
            agent = run.start_agent()
            try:
                pid = spawn_job(command, for_job, own_group=own_group, output=output)
            except RankscopeError:
                run.discard(agent)
                raise
            pythons = JobPythons(pid)
            rings_made(rings)

            def tick() -> None:
                if not run.seen_rank():
                    pythons.look()
                progress(recording)

            supervisor = Supervisor(pid, own_group, agent, run.restart_agent, tick)
            status = exit_status(supervisor.wait_job())
            job_ended()
            finished = supervisor.end_agent(_FINISH_SECONDS + settings.export.drain_seconds)
        if not finished:
            say(f"rankscope: the agent did not finish; the verdict rests on what it had written{run.last_words()}")
        if not run.seen_rank():
            say(f"rankscope: {pythons.advice()}")
    finally:
        shutil.rmtree(rings, ignore_errors=True)
    return run.conclude(status, supervisor.passed_on)


def _run_unwatched(command: Sequence[str], environ: Mapping[str, str], output: Path | None) -> int:
    own_group = not has_terminal()
    with SignalsHeld():
        pid = spawn_job(command, environ, own_group=own_group, output=output)
        return exit_status(Supervisor(pid, own_group, None, lambda: None, lambda: None).wait_job())


def _name(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """The launcher's name of the job, else the script's, else the command's."""
    named = job_name(environ)
    if named != "job":
        return named
    script = next((word for word in command if word.endswith(".py")), command[0])
    return safe_name(Path(script).stem)


def _places(settings: Settings, environ: dict[str, str], name: str) -> tuple[Path, Path]:
    """(a ring directory of this run's own, the file it is recorded in)."""
    root = ring_root(settings, environ)
    sweep(root)
    rings = own_rings(root)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        rings.mkdir(mode=0o700)
    except OSError as error:
        raise RingError(
            f"cannot make a ring directory ({error.strerror})",
            where=str(rings),
            todo="set RANKSCOPE_DIR to a directory in memory that you may write",
        ) from error
    state = settings.recording.state_directory
    try:
        return rings, new_recording_path(Path(state) if state else state_directory(environ), name, host_name())
    except RankscopeError:
        rings.rmdir()
        raise


def own_rings(root: Path) -> Path:
    """The ring directory of this process's run, named so that the next run removes it where this one is killed."""
    own = process_stat(os.getpid())
    return root / f"run-{os.getpid()}-{own.start_ticks if own else 0}"


def sweep(root: Path) -> None:
    """Remove ring directories of runs that were killed, once no rank of theirs lives."""
    for directory in root.glob("run-*-*"):
        words = directory.name.split("-")
        rings = [path.name.split(".") for path in directory.glob(f"*{SUFFIX}")]
        # JOB.RANK.PID.START.ring; a job's name may hold dots too.
        owners = [(words[1], words[2]), *((parts[-3], parts[-2]) for parts in rings if len(parts) >= 5)]
        if directory.stat().st_uid == os.getuid() and not any(_lives(*owner) for owner in owners):
            shutil.rmtree(directory, ignore_errors=True)


def _lives(pid: str, start_ticks: str) -> bool:
    if not (pid.isdigit() and start_ticks.isdigit()):
        return False
    found = process_stat(int(pid), PROC)
    return found is not None and int(start_ticks) in (0, found.start_ticks)


def one_line(error: Exception) -> str:
    """An error of ours as it is, any other with its kind."""
    return str(error) if isinstance(error, RankscopeError) else f"{type(error).__name__}: {error}"


class _Run:
    """What one run keeps between its beginning and its end."""

    def __init__(
        self,
        name: str,
        rings: Path,
        recording: Path,
        settings: Settings,
        agent_environ: dict[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._name = name
        self._rings = rings
        self._recording = recording
        self._settings = settings
        self._agent_environ = agent_environ
        self._say = say
        self._restarts = 0
        self._restart_at = 0.0
        self._seen = False
        self._log = rings / "agent.log"

    def start_agent(self) -> AgentProcess | None:
        """An agent that watches, or None and a line that says why there is none."""
        agent = self._spawn_agent()
        if agent is not None and not agent.wait_ready():
            self._say(f"rankscope: the agent is not ready; the job begins without waiting for it{self.last_words()}")
        return agent

    def restart_agent(self) -> AgentProcess | None:
        """Another agent for the one that died: at once, then after longer and longer pauses: a disk may be full."""
        now = time.monotonic()
        if now < self._restart_at:
            return None
        self._restart_at = now + min(2.0**self._restarts, _LONGEST_PAUSE_SECONDS)
        self._restarts += 1
        if self._restarts == MAX_RESTARTS + 1:
            again = f"an agent is tried again every {_LONGEST_PAUSE_SECONDS:.0f} s"
            self._say(f"rankscope: the agent died {self._restarts} times; {again}{self.last_words()}")
        return self._spawn_agent()

    def _spawn_agent(self) -> AgentProcess | None:
        plan = self._rings / "plan.json"
        try:
            write_plan(Plan(self._name, str(self._recording), str(self._rings), self._settings, self._restarts), plan)
            return AgentProcess(plan, self._agent_environ, self._log)
        except OSError as error:
            if self._restarts <= MAX_RESTARTS + 1:
                self._say(f"rankscope: the job runs unwatched: the agent cannot be started ({error})")
            return None

    def last_words(self) -> str:
        """The last line the agent wrote on standard error, as the end of a sentence."""
        try:
            lines = self._log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f": {lines[-1].removeprefix('rankscope: ')}" if lines else ""

    def seen_rank(self) -> bool:
        """Whether a rank has attached so far."""
        if not self._seen:
            self._seen = any(self._rings.glob(f"*{SUFFIX}"))
        return self._seen

    def discard(self, agent: AgentProcess | None) -> None:
        """There was no job: leave nothing."""
        if agent is not None:
            agent.kill()
            os.waitpid(agent.pid, 0)
            agent.close()
        for suffix in ("", "-wal", "-shm"):
            self._recording.with_name(self._recording.name + suffix).unlink(missing_ok=True)

    def conclude(self, status: int, signals: Sequence[JobSignal]) -> RunResult:
        """The verdict over what was recorded."""
        from rankscope.agent.history import keep_run, past_runs
        from rankscope.agent.verdict import conclude, keep_events, keep_status, keep_verdict

        interrupted = bool(signals)
        history = self._settings.rules.history_file

        def past(window: Window) -> list[PastRun]:
            try:
                return past_runs(history, window)
            except RankscopeError as error:
                self._say(f"rankscope: no history: {error}")
                return []

        try:
            keep_status(self._recording, status)
            keep_events(self._recording, [signal_event(each, self._agent_environ) for each in signals])
            verdict, window = conclude([self._recording], self._settings.rules.classes_file, past)
            try:
                keep_run(history, window, verdict)
            except RankscopeError as error:
                self._say(f"rankscope: not kept in the history: {error}")
            keep_verdict(self._recording, verdict, window)
        except Exception as error:
            # Whatever it is: the job's own status is what `run` ends with.
            self._say(f"rankscope: no verdict: {one_line(error)}")
            return RunResult(status, self._recording, None, None, interrupted)
        return RunResult(status, self._recording, verdict, window, interrupted)
