"""The thread that empties the outbox. Nothing it does can hold up the agent."""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from rankscope.clock import Clock, SystemClock
from rankscope.exporters.otlp_send import Backoff, DeliveryStatus, SignalSender
from rankscope.exporters.otlp_settings import Target
from rankscope.exporters.otlp_transport import Transport, check_target, open_transport
from rankscope.exporters.outbox import Outbox, Signal

_SECOND_NS = 1_000_000_000
_log = logging.getLogger("rankscope.export")


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the recording for the thread that calls; waits its turn to write for up to 10 s."""
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    # A power cut that undoes an acknowledgement sends a batch again, byte by byte the same: no need to wait for disks.
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


class Exporter:
    """Sends what waits in the outbox at `path`, by signal and in order, until it is stopped."""

    def __init__(
        self,
        path: Path,
        targets: Mapping[Signal, Target],
        *,
        clock: Clock | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
        say: Callable[[str], None] = _log.warning,
        backoff: Backoff | None = None,
        poll_s: float = 10.0,
        open_transport: Callable[[Target, Clock], Transport] = open_transport,
    ) -> None:
        """`say` gets one line at each change of state.

        Raises ConfigurationError where a certificate or the proxy cannot be used.
        """
        for target in targets.values():
            check_target(target)
        self._path = path
        self._targets = targets
        self._clock = clock or SystemClock()
        self._uniform = uniform
        self._say = say
        self._backoff = backoff or Backoff()
        self._poll_s = poll_s
        self._open_transport = open_transport
        self._wake = threading.Event()
        self._stopping = False
        self._deadline_ns = 0
        self._drained = False
        self._senders: tuple[SignalSender, ...] = ()
        self._trouble = ""
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="rankscope-export", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def wake(self) -> None:
        """Say that a batch was committed; without this it is found at the next poll."""
        self._wake.set()

    def status(self) -> tuple[DeliveryStatus, ...]:
        """How each signal stands. Batches and points are in `Outbox.balance`."""
        return tuple(sender.status for sender in self._senders)

    def stop(self, timeout_s: float) -> bool:
        """Send what still waits, for at most `timeout_s`, and end. False where something is left for the next time.

        Receivers that wait out a back-off are tried once more. After this the thread holds no connection to the file,
        unless even its own abort did not return in time.
        """
        self._deadline_ns = self._clock.monotonic_ns() + int(timeout_s * _SECOND_NS)
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            for sender in self._senders:
                sender.abort()
            self._thread.join(1.0)
        return self._drained

    def _run(self) -> None:
        while True:
            try:
                self._send_until_stopped()
                return
            except Exception as error:
                # Whatever it was (a file locked or gone, a full disk), batches are kept and this thread goes on.
                self._failures += 1
                self._report(f"rankscope: {self._path}: export pauses ({type(error).__name__}: {error})")
            if self._stopping:
                return
            self._pause(self._backoff.delay_ns(self._failures, None, self._uniform) / _SECOND_NS)

    def _send_until_stopped(self) -> None:
        connection = connect(self._path)
        try:
            outbox = Outbox(connection)
            self._senders = tuple(self._sender(outbox, target) for target in self._targets.values())
            while not self._stopping:
                waiting = outbox.signals()
                waits = [sender.step() for sender in self._senders if sender.signal in waiting]
                self._trouble, self._failures = "", 0
                due_s = min((wait / _SECOND_NS for wait in waits if wait is not None), default=self._poll_s)
                self._pause(min(due_s, self._poll_s))
            # Each gets its try, also after one that failed.
            left = [sender for sender in self._senders if not self._drain(sender)]
            self._drained = not left
        finally:
            for sender in self._senders:
                sender.close()
            connection.close()

    def _sender(self, outbox: Outbox, target: Target) -> SignalSender:
        return SignalSender(
            outbox,
            target,
            self._open_transport,
            clock=self._clock,
            uniform=self._uniform,
            say=self._say,
            backoff=self._backoff,
        )

    def _drain(self, sender: SignalSender) -> bool:
        """Send all that waits until one attempt fails or the time is up. Whether nothing is left."""
        while self._clock.monotonic_ns() < self._deadline_ns:
            wait_ns = sender.step(now=True)
            if wait_ns is None:
                return True
            if wait_ns:
                return False
        return False

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _report(self, line: str) -> None:
        if line != self._trouble:
            self._trouble = line
            self._say(line)
