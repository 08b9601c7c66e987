"""The kernel's own word on its wall clock."""

from __future__ import annotations

import time

from rankscope.probes.clock_state import _Timex, clock_state


def test_the_kernel_answers_within_its_own_limits() -> None:
    """Errors are within the 16 s at which the kernel caps them (linux/timex.h: NTP_PHASE_LIMIT)."""
    state = clock_state()
    if state is None:
        # A sandbox may refuse the call: then nothing is claimed.
        return
    assert 0 <= state.estimated_error_ns <= 16_000_000_000
    assert 0 <= state.max_error_ns <= 16_000_000_000


def test_the_structure_is_the_kernels() -> None:
    """The time that comes with the answer is the time: a field in a wrong place would be some other number."""
    import ctypes

    asked = _Timex(modes=0)
    if ctypes.CDLL(None).adjtimex(ctypes.byref(asked)) < 0:
        return
    assert abs(asked.time[0] - time.time()) < 60
    assert 9_000 <= asked.tick <= 11_000
