"""Everything that one rank's trace says, as figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankscope.rules.trace.breakdown import (
    Breakdown,
    Copies,
    Named,
    TensorCores,
    breakdown,
    by_name,
    copies,
    hta_breakdown,
    tensor_cores,
)
from rankscope.rules.trace.events import Trace
from rankscope.rules.trace.idle import KERNEL_WAIT_NS, Idle, device_gaps, idle_of, stream_idle
from rankscope.rules.trace.launches import Launches, launches
from rankscope.rules.trace.operators import Operator, operators
from rankscope.rules.trace.scope import Scope, scope_of
from rankscope.rules.trace.stalls import Stall, stalls


@dataclass(frozen=True)
class Analysis:
    """One rank's trace, analysed."""

    scope: Scope
    threshold_ns: int
    breakdown: Breakdown
    streams: tuple[Idle, ...]
    devices: tuple[Idle, ...]
    kernels: tuple[Named, ...]
    copies: tuple[Copies, ...]
    tensor_cores: TensorCores
    launches: Launches
    stalls: tuple[Stall, ...]
    #: Only of a trace without device events: then the host is all there is to look at.
    operators: tuple[Operator, ...]
    #: The two that Holistic Trace Analysis would give, by its own rounding and names.
    hta_streams: tuple[Idle, ...]
    hta_breakdown: Breakdown

    @property
    def trace(self) -> Trace:
        """What was analysed."""
        return self.scope.trace

    @property
    def step_ns(self) -> float | None:
        """Median length of a profiled step on the host, the last one included; None without steps."""
        took = [end - start for _, start, end in self.trace.steps]
        return float(np.median(took)) if took else None


def analyse(trace: Trace, *, threshold_ns: int = KERNEL_WAIT_NS, all_steps: bool = False) -> Analysis:
    """Analyse one rank's trace; of a trace without device events the figures are zeros and empty lists."""
    scope = scope_of(trace, all_steps=all_steps)
    gaps = device_gaps(scope, threshold_ns)
    return Analysis(
        scope=scope,
        threshold_ns=threshold_ns,
        breakdown=breakdown(scope),
        streams=tuple(stream_idle(scope, threshold_ns)),
        devices=tuple(idle_of(each) for each in gaps),
        kernels=tuple(by_name(scope)),
        copies=tuple(copies(scope)),
        tensor_cores=tensor_cores(scope),
        launches=launches(scope),
        stalls=tuple(stalls(scope, gaps)),
        operators=() if len(trace.device) else tuple(operators(trace)),
        hta_streams=tuple(stream_idle(scope, threshold_ns, whole_us=True)),
        hta_breakdown=hta_breakdown(scope),
    )
