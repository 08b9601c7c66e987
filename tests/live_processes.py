"""Processes of a test that may end at any moment, also while they are looked at."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rankscope.agent.processes import descendants, process_stat


def command_of(pid: int) -> str:
    """What a process was started as, words apart by spaces; "" where it has ended."""
    try:
        stat, line = process_stat(pid), Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return "" if stat is None or stat.state == "Z" else line.replace(b"\0", b" ").decode(errors="replace")


def kill(pid: int) -> None:
    """End a process that may have ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_below(pid: int) -> None:
    """End what a process started, and what that started."""
    for each in descendants(pid):
        kill(each)
