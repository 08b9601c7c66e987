"""The wall clock of a test's own processes, set without setting anybody else's."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("stepped_clock.c")
_FORMAT = "<2q"
HOUR_NS = 3600 * 10**9


class SteppedClock:
    """A library that processes preload, and the file that it reads."""

    def __init__(self, place: Path) -> None:
        self._library = place / "stepped_clock.so"
        self._file = place / "stepped_clock"
        #: What was set and slept so far, ns.
        self.set_ns = self.slept_ns = 0
        self._write()
        compiler = os.environ.get("CC") or "cc"
        command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(self._library), str(_SOURCE)]
        subprocess.run(command, check=True)

    def environment(self) -> dict[str, str]:
        """What puts a process under this clock."""
        return {"LD_PRELOAD": str(self._library), "STEPPED_CLOCK": str(self._file)}

    def set_wall(self, by_ns: int) -> None:
        """Set the wall clock forward, or back, in all of them at once."""
        self.set_ns += by_ns
        self._write()

    def sleep(self, ns: int) -> None:
        """Let them find that the host has slept."""
        self.slept_ns += ns
        self._write()

    def _write(self) -> None:
        # Over the old numbers, and not in their file's place: it is mapped.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(descriptor, struct.pack(_FORMAT, self.set_ns + self.slept_ns, self.slept_ns), 0)
        os.close(descriptor)
