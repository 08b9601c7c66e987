"""Wakes a loop from another thread."""

from __future__ import annotations

import contextlib
import os
import threading


class Bell:
    """A descriptor that is readable once somebody has rung. A bell that is closed may still be rung, to no effect."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        """Make the descriptor readable. From any thread."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self.descriptor, 1)

    def heard(self) -> None:
        """Make it silent again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)
