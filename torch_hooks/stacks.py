"""Stacks of all threads on a signal, written by the interpreter's own fault handler even while the GIL is held."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import IO


class StackDumper:
    """Answers RANKSCOPE_STACK_SIGNAL (default SIGUSR2, "" for never) with stacks appended to a file.

    A signal that already has a handler is left alone: launchers and schedulers use SIGUSR1 and SIGUSR2 for their own.
    """

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._name = environ.get("RANKSCOPE_STACK_SIGNAL", "SIGUSR2")
        self._number: int | None = None
        self._file: IO[bytes] | None = None

    def install(self) -> str:
        """Register; returns the signal's name, or "none" where it may not be used."""
        number = getattr(signal, self._name, None) if self._name.startswith("SIG") else None
        if number is None or signal.getsignal(number) != signal.SIG_DFL:
            return "none"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "ab", buffering=0)
        faulthandler.register(number, file=self._file, all_threads=True, chain=False)
        self._number = number
        return self._name

    def remove(self) -> None:
        """Give the signal back."""
        if self._number is not None:
            faulthandler.unregister(self._number)
            self._number = None
        if self._file is not None:
            self._file.close()
            self._file = None
