"""A helper process at the other end of two pipes, which never makes its owner wait longer than asked."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from rankscope.errors import ProbeError
from rankscope.probes.nvml_messages import Message, Unpacker, pack

#: How long `close` waits for an orderly end, then again after SIGTERM, s.
GOODBYE_S = 2.5


class HelperProcess:
    """One helper: started at once, asked and listened to without blocking."""

    def __init__(
        self, module: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        """Start `python -m module arguments`. Raises ProbeError where no process can be started."""
        # -P: the working directory is the user's and must not be imported from.
        command = [sys.executable, "-P", "-m", module, *arguments]
        chosen = dict(os.environ if environment is None else environment)
        chosen.pop("RANKSCOPE_ATTACH", None)
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=chosen,
            )
        except OSError as error:
            raise ProbeError(f"cannot start ({error.strerror})", where=module) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to = self._process.stdin
        self._from = self._process.stdout
        os.set_blocking(self._to.fileno(), False)
        os.set_blocking(self._from.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._from.fileno(), select.POLLIN)
        self._unpacker = Unpacker()
        self._ended = False
        self.pid = self._process.pid

    def send(self, *messages: Message) -> bool:
        """Send messages, each of which fits one atomic write; False where the helper does not read or is gone."""
        packed = [pack(message) for message in messages]
        # All at once where that is atomic too: it wakes the helper once.
        writes = [b"".join(packed)] if sum(map(len, packed)) <= select.PIPE_BUF else packed
        try:
            return all(self._to.write(data) is not None for data in writes)
        except OSError:
            return False

    def receive(self, wait_ms: int = 0) -> list[Message]:
        """What has arrived, after waiting up to `wait_ms` for the first. Raises ProbeError for what is no message."""
        if self._ended or not self._poll.poll(wait_ms):
            return []
        messages: list[Message] = []
        while True:
            try:
                data = os.read(self._from.fileno(), 65536)
            except BlockingIOError:
                return messages
            if not data:
                self._ended = True
                return messages
            messages += self._unpacker.feed(data)

    def exit_status(self) -> int | None:
        """Its exit status (-n for signal n), or None while it lives."""
        return self._process.poll()

    def request_end(self) -> None:
        """Let it end in order: its input closes."""
        self._to.close()

    def kill(self) -> None:
        """Kill it. A process stuck in the driver dies when the driver lets go."""
        self._process.kill()

    def close(self, *, may_kill: bool) -> bool:
        """End it: in order, then by SIGTERM, then, where allowed, by SIGKILL; returns whether it is gone."""
        self.request_end()
        gone = self._gone_within(GOODBYE_S)
        if not gone:
            self._process.terminate()
            gone = self._gone_within(GOODBYE_S)
        if not gone and may_kill:
            self.kill()
            gone = self._gone_within(GOODBYE_S)
        self._from.close()
        return gone

    def _gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        return True
