"""A busy process that competes for one core: `python competitor.py CORE PARENT`. Dies with whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Keep the core busy until killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        return
    os.sched_setaffinity(0, {int(sys.argv[1])})
    while True:
        pass


if __name__ == "__main__":
    main()
