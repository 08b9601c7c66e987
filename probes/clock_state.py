"""How well the kernel says its wall clock is disciplined: adjtimex(2), which every user may ask."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

#: linux/timex.h: the clock is not synchronised.
_UNSYNCHRONISED = 0x0040
#: adjtimex(2) returns this where the clock is not synchronised.
_TIME_ERROR = 5


@dataclass(frozen=True, slots=True)
class ClockState:
    """What the kernel believes of its wall clock."""

    synchronised: bool
    #: Largest and likely distance from true time, ns; they grow until the next correction.
    max_error_ns: int
    estimated_error_ns: int


class _Timex(ctypes.Structure):
    """struct timex of linux/timex.h as libc has it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", ctypes.c_long * 2),
        ("tick", ctypes.c_long),
        ("rest", ctypes.c_long * 16),
    )


def clock_state() -> ClockState | None:
    """Ask now; None where the system call is refused (a sandbox) or absent."""
    try:
        asked = _Timex(modes=0)
        result = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(asked))
    except (OSError, AttributeError):
        return None
    if result < 0:
        return None
    synchronised = result != _TIME_ERROR and not asked.status & _UNSYNCHRONISED
    # Both errors are microseconds whatever the status says of other fields.
    return ClockState(synchronised, int(asked.maxerror) * 1000, int(asked.esterror) * 1000)
