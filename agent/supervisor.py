"""The processes of a watched run: the job in the foreground, the agent beside it, and the signals between.

The calling thread blocks the signals it minds and takes them one by one with what the kernel says of their origin, so
that a Ctrl-C, which a terminal sends to the whole foreground group, reaches the job once and not twice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rankscope.agent.daemon import READY
from rankscope.agent.job_signals import JobSignal, process_name
from rankscope.errors import ConfigurationError

_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_MINDED = frozenset({*_FORWARDED, signal.SIGCHLD})
#: What a terminal's keys send.
_KEYS = (signal.SIGINT, signal.SIGQUIT)
#: si_code of a signal that the kernel raised itself: by a terminal's keys, to the whole foreground group (SI_KERNEL).
_FROM_KERNEL = 0x80
#: Python ignores these; a job expects them at their defaults.
_DEFAULTS = (signal.SIGPIPE, signal.SIGXFSZ)
#: How long a job waits for its agent to be ready. It starts unwatched rather than late.
_READY_SECONDS = 10.0


def exit_status(wait_status: int) -> int:
    """Exit status as a shell gives it: 128+n for a signal."""
    code = os.waitstatus_to_exitcode(wait_status)
    return 128 - code if code < 0 else code


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, whose keys signal a whole group."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _send_to_main_thread(number: int, _frame: object) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, number)


class AgentProcess:
    """The agent as a child: in a session of its own, so that no terminal's signal reaches it."""

    def __init__(self, plan: Path, environ: Mapping[str, str], log: Path) -> None:
        environ = {key: value for key, value in environ.items() if key != "RANKSCOPE_ATTACH"}
        read_end, self._pipe = os.pipe2(os.O_CLOEXEC)
        self._ready, write_end = os.pipe2(os.O_CLOEXEC)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log_end = os.open(log, flags, 0o600)
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "rankscope.agent.daemon", str(plan)],
                environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read_end, 0),
                    (os.POSIX_SPAWN_DUP2, write_end, 1),
                    (os.POSIX_SPAWN_DUP2, log_end, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULTS,
            )
        finally:
            for descriptor in (read_end, write_end, log_end):
                os.close(descriptor)
        #: Exit status, once it has ended.
        self.status: int | None = None

    def wait_ready(self) -> bool:
        """Whether it watches now; False where it ended, or takes too long."""
        import select

        readable, _, _ = select.select([self._ready], [], [], _READY_SECONDS)
        return bool(readable) and os.read(self._ready, len(READY)) == READY

    def stop(self) -> None:
        """Ask it to finish."""
        if self.status is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the pipes: an agent that still runs takes that as the end."""
        os.close(self._pipe)
        os.close(self._ready)


def spawn_job(command: Sequence[str], environ: Mapping[str, str], *, own_group: bool, output: Path | None) -> int:
    """Start the job with our standard files (or its output in a file). Raises ConfigurationError."""
    actions = []
    if output is not None:
        actions = [
            (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
    spawn = partial(os.posix_spawnp, setpgroup=0) if own_group else os.posix_spawnp
    try:
        return spawn(command[0], list(command), dict(environ), file_actions=actions, setsigmask=(), setsigdef=_DEFAULTS)
    except OSError as error:
        raise ConfigurationError(
            f"cannot start the command ({error.strerror})", where=command[0], todo="name a command that is on PATH"
        ) from error


@dataclass(slots=True)
class Supervisor:
    """Waits for the job, passes signals on, and brings a dead agent back."""

    job: int
    own_group: bool
    agent: AgentProcess | None
    #: Starts the agent again; None where it is not to be started, or not yet.
    revive: Callable[[], AgentProcess | None]
    #: Called twice a second or so.
    tick: Callable[[], None]
    #: Signals passed on to the job, in order.
    passed_on: list[JobSignal] = field(default_factory=list)

    def wait_job(self) -> int:
        """The job's wait status."""
        while True:
            # First the children: a signal may have come before this wait began.
            pid, status = os.waitpid(self.job, os.WNOHANG)
            if pid:
                self._take_late_signals()
                return status
            self._look_after_agent()
            found = signal.sigtimedwait(_MINDED, 0.5)
            if found is not None and found.si_signo != signal.SIGCHLD:
                self._pass_on(found)
            self.tick()

    def _take_late_signals(self) -> None:
        """What came before its end was noticed was for the job: a Ctrl-C among it does not ask the agent to hurry."""
        while (found := signal.sigtimedwait(_MINDED, 0)) is not None:
            if found.si_signo != signal.SIGCHLD:
                self._note(found)

    def _note(self, found: signal.struct_siginfo) -> bool:
        """Remember a signal; returns whether the kernel gave it to the whole foreground group, the job included."""
        keys = found.si_code == _FROM_KERNEL
        if not self.own_group and found.si_pid == os.getpid() and found.si_signo in _KEYS:
            # Another thread took it, and what the kernel said of it is gone: at a terminal such signals are typed.
            keys = True
        sender = "" if keys else process_name(found.si_pid)
        self.passed_on.append(JobSignal(found.si_signo, time.monotonic_ns(), found.si_pid, sender, keys))
        return keys

    def _pass_on(self, found: signal.struct_siginfo) -> None:
        keys = self._note(found)
        try:
            if self.own_group:
                os.killpg(self.job, found.si_signo)
            elif not keys:
                os.kill(self.job, found.si_signo)
        except ProcessLookupError:
            # It has just ended; the next wait takes it.
            pass

    def _look_after_agent(self) -> None:
        if self.agent is not None and self._reap(self.agent):
            self.agent.close()
            self.agent = None
        if self.agent is None:
            self.agent = self.revive()

    @staticmethod
    def _reap(agent: AgentProcess) -> bool:
        if agent.status is None:
            pid, status = os.waitpid(agent.pid, os.WNOHANG)
            if pid:
                agent.status = exit_status(status)
        return agent.status is not None

    def end_agent(self, seconds: float) -> bool:
        """Have the agent finish within `seconds`, or end it; a Ctrl-C ends it at once. Whether it finished itself."""
        agent = self.agent
        if agent is None:
            return False
        agent.stop()
        deadline = time.monotonic() + seconds
        while not self._reap(agent):
            left = deadline - time.monotonic()
            found = signal.sigtimedwait(_MINDED, max(0.0, min(left, 0.5)))
            if left <= 0 or (found is not None and found.si_signo in (signal.SIGINT, signal.SIGTERM)):
                agent.kill()
                _, status = os.waitpid(agent.pid, 0)
                agent.status = exit_status(status)
        agent.close()
        return agent.status == 0


class SignalsHeld:
    """Blocks what the supervisor minds in the main thread, which calls this, for as long as the context lasts.

    A thread that a library started before (numpy's linear algebra does) has them unblocked, so that the kernel gives it
    those that come while the main thread does not wait for any: what it takes is sent on to the main thread.
    """

    def __enter__(self) -> SignalsHeld:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _MINDED)
        # What is ignored stays so: an ignored signal is ignored by the job too, a handled one is not.
        self._handlers = {
            number: handler
            for number in _FORWARDED
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
        }
        for number in self._handlers:
            signal.signal(number, _send_to_main_thread)
        return self

    def __exit__(self, *_: object) -> None:
        # What came while nobody waited for it was meant for a job that is over: only a Ctrl-C still counts.
        while (found := signal.sigtimedwait(_MINDED - {signal.SIGINT}, 0)) is not None:
            del found
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
