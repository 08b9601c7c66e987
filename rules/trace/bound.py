"""What bounds one rank, in a word and a sentence."""

from __future__ import annotations

from enum import StrEnum

from rankscope.rules.trace.analysis import Analysis
from rankscope.rules.trace.idle import Cause

#: A device that idles less than this share is busy for every practical end.
_BUSY = 0.10
#: Communication that nothing hides counts as the bound from this share of the time on.
_EXPOSED = 0.25
_MOST = 0.5
#: More of the launched events than this being short makes the launches themselves the likely reason.
_MANY_SHORT = 0.5


class Bound(StrEnum):
    """What a rank's device spends its time on, or waits for."""

    HOST = "host"
    DEVICE = "device"
    COMMUNICATION = "communication"
    #: Idle with work launched: it waits for another stream, an event, or something the trace does not show.
    DEPENDENCIES = "dependencies"
    #: Nothing ran on a device.
    UNKNOWN = "unknown"


def bound_of(analysis: Analysis) -> Bound:
    """What bounds the rank of an analysis."""
    whole = analysis.breakdown
    if not whole.span_ns:
        return Bound.UNKNOWN
    exposed = whole.communication_ns - whole.overlapped_ns
    if whole.idle_ns >= _BUSY * whole.span_ns and whole.idle_ns >= exposed:
        # Of several devices of one trace the causes add up.
        causes = [sum(idle.by_cause_ns[cause] for idle in analysis.devices) for cause in Cause]
        waits = causes[Cause.HOST_WAIT] + causes[Cause.KERNEL_WAIT]
        return Bound.HOST if waits >= _MOST * sum(causes) else Bound.DEPENDENCIES
    return Bound.COMMUNICATION if exposed >= _EXPOSED * whole.span_ns else Bound.DEVICE


def sentence(analysis: Analysis) -> str:
    """The bound of a rank in one sentence, with the figures it rests on."""
    whole, bound = analysis.breakdown, bound_of(analysis)
    if bound == Bound.UNKNOWN:
        return "no event of a device is in the trace: the profiler ran without a GPU, or without its activities"
    idle = whole.idle_ns / whole.span_ns
    if bound == Bound.HOST:
        waited = sum(each.by_cause_ns[Cause.HOST_WAIT] for each in analysis.devices)
        share = waited / max(1, sum(each.total_ns for each in analysis.devices))
        text = f"host-bound: the device idles {idle:.0%} of the time, {share:.0%} of that because nothing was launched"
        short = analysis.launches.short
        return text + (f"; {short:.0%} of what is launched runs under 10 us" if short and short > _MANY_SHORT else "")
    if bound == Bound.DEPENDENCIES:
        return (
            f"the device idles {idle:.0%} of the time with work launched: it waits for other streams or events, or "
            "for something the trace does not show"
        )
    if bound == Bound.COMMUNICATION:
        exposed = (whole.communication_ns - whole.overlapped_ns) / whole.span_ns
        return f"bound by communication: {exposed:.0%} of the time it runs and nothing computes"
    computes = whole.compute_ns / whole.span_ns
    return f"device-bound: the device is busy {1 - idle:.0%} of the time and computes {computes:.0%}"
