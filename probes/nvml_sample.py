"""What one read of a GPU returned, and what it was refused: said once, asked again as its reason allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rankscope.probes.nvml_api import (
    DOWN,
    FUNCTION_NOT_FOUND,
    INVALID_ARGUMENT,
    NEVER,
    NO_PERMISSION,
    NOT_SUPPORTED,
    PASSING,
    VERSION_MISMATCH,
    Facts,
    NvmlFailure,
)
from rankscope.reading import Outcome

#: How long a metric refused for lack of permission is left alone, ns.
PERMISSION_RETRY_NS = 600 * 10**9
#: First and longest pause after a failure that may pass, ns.
FIRST_PAUSE_NS = 10**9
LONGEST_PAUSE_NS = 60 * 10**9
_NEVER_WORDS = {
    INVALID_ARGUMENT: "not known to this driver",
    NOT_SUPPORTED: "not supported by this device",
    FUNCTION_NOT_FOUND: "not in this driver",
    VERSION_MISMATCH: "not in this version",
}


@dataclass(slots=True)
class GpuSample:
    """One read of one group of one GPU. `down` is NVML's code where the GPU is lost or needs a reset."""

    values: dict[str, float] = field(default_factory=dict)
    #: (device, metric, value) of links, processes and MIG instances.
    parts: list[tuple[str, str, float]] = field(default_factory=list)
    #: Metric -> (CLOCK_MONOTONIC ns, value), what the driver sampled by itself.
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    #: For the next read of the sample buffers: wall time of the newest sample of each, us.
    seen: list[int] | None = None
    #: Sample buffers that had turned over before they were read.
    overruns: int = 0
    #: Device -> what is fixed of it: the GPU itself and its MIG instances.
    facts: dict[str, Facts] = field(default_factory=dict)
    #: (metric, outcome, reason), each told once.
    outcomes: list[tuple[str, Outcome, str]] = field(default_factory=list)
    down: int | None = None
    #: What the driver says its field values took, us.
    latency_us: int = 0


@dataclass(slots=True)
class _Pause:
    until_ns: float
    length_ns: int


class Refusals:
    """Metrics of one GPU that are not asked for at the moment, and what has been said of them."""

    def __init__(self) -> None:
        self._pauses: dict[str, _Pause] = {}
        self._said: set[tuple[str, Outcome]] = set()

    def paused(self, metric: str, now_ns: int) -> bool:
        """Whether a metric is left alone now."""
        if not self._pauses:
            return False
        pause = self._pauses.get(metric)
        return pause is not None and now_ns < pause.until_ns

    def taken(self, metric: str) -> None:
        """A metric was read: the next failure is a first one."""
        if self._pauses:
            self._pauses.pop(metric, None)

    def refused(self, sample: GpuSample, metric: str, code: int, text: str, now_ns: int) -> None:
        """Note one refusal by its code. Raises NvmlFailure where the whole GPU is down."""
        if code in DOWN:
            raise NvmlFailure(code, text)
        if is_never(code):
            self._pauses[metric] = _Pause(math.inf, 0)
            # The same words for every metric with this code, so that they are told together.
            self.say(sample, metric, Outcome.UNSUPPORTED, f"{_NEVER_WORDS[code]} (NVML code {code})")
        elif code == NO_PERMISSION:
            self._pauses[metric] = _Pause(now_ns + PERMISSION_RETRY_NS, PERMISSION_RETRY_NS)
            self.say(sample, metric, Outcome.NO_PERMISSION, text)
        elif code in PASSING:
            self.say(sample, metric, Outcome.NO_DATA, text)
        else:
            before = self._pauses.get(metric)
            length = FIRST_PAUSE_NS if before is None else min(2 * before.length_ns, LONGEST_PAUSE_NS)
            self._pauses[metric] = _Pause(now_ns + length, length)
            self.say(sample, metric, Outcome.FAILED, text)

    @staticmethod
    def raise_if_down(failure: NvmlFailure) -> None:
        """Pass on a failure that means the whole GPU."""
        if failure.code in DOWN:
            raise failure

    def say(self, sample: GpuSample, metric: str, outcome: Outcome, reason: str) -> None:
        """An outcome of a metric, the first time only."""
        if (metric, outcome) not in self._said:
            self._said.add((metric, outcome))
            sample.outcomes.append((metric, outcome, reason))


def is_never(code: int) -> bool:
    """Whether a code will not change. A field id that this driver does not know answers "invalid argument"."""
    return code in NEVER or code == INVALID_ARGUMENT
