"""Reads one GPU group by group: values in the units of the metrics, and what is not to be had, said once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from rankscope.probes.nvml_api import (
    DOWN,
    INVALID_ARGUMENT,
    NEVER,
    NO_PERMISSION,
    PASSING,
    Gpu,
    NvmlFailure,
)
from rankscope.probes.nvml_fields import ECC_CURRENT, FieldBatch, FieldSource, FieldValue, field_batches, sum_of
from rankscope.reading import Outcome

#: How long a metric refused for lack of permission is left alone, ns.
PERMISSION_RETRY_NS = 600 * 10**9
#: First and longest pause after a failure that may pass, ns.
FIRST_PAUSE_NS = 10**9
LONGEST_PAUSE_NS = 60 * 10**9

# Utilization is a per cent and clocks fit 16 bits; the all-ones sentinel of a 32-bit field is no value.
_SENTINEL = (1 << 32) - 1


@dataclass(slots=True)
class GpuSample:
    """One read of one group of one GPU. `down` is NVML's code where the GPU is lost or needs a reset."""

    values: dict[str, float] = field(default_factory=dict)
    #: (metric, outcome, reason), each told once.
    outcomes: list[tuple[str, Outcome, str]] = field(default_factory=list)
    down: int | None = None
    #: What the driver says its field values took, us.
    latency_us: int = 0


@dataclass(slots=True)
class _Pause:
    until_ns: float
    length_ns: int


_Call = tuple[tuple[str, ...], Callable[[Gpu], tuple[float, ...]]]

_CALLS: dict[str, tuple[_Call, ...]] = {
    "fast": (
        (
            ("gpu.utilization_ratio", "gpu.memory_utilization_ratio"),
            lambda gpu: tuple(_ratio(percent) for percent in gpu.utilization()),
        ),
        (("gpu.sm_clock_mhz",), lambda gpu: (gpu.clock_mhz(1),)),
        (("gpu.memory_clock_mhz",), lambda gpu: (gpu.clock_mhz(2),)),
        (("gpu.clock_event_reasons",), lambda gpu: (gpu.clock_event_reasons(),)),
    ),
    "slow": (
        (("gpu.temperature_celsius",), lambda gpu: (gpu.temperature(),)),
        (("gpu.memory_used_bytes", "gpu.memory_total_bytes"), lambda gpu: gpu.memory()),
    ),
    "health": (
        (("gpu.sm_clock_max_mhz",), lambda gpu: (gpu.max_clock_mhz(1),)),
        (("gpu.slowdown_temperature_celsius",), lambda gpu: (gpu.slowdown_temperature(),)),
    ),
}
GROUPS = ("fast", "counters", "slow", "health")


class GpuReader:
    """Reads one GPU. A metric the device does not offer is dropped for it alone, and that is said once."""

    def __init__(self, gpu: Gpu, driver: tuple[int, int]) -> None:
        self.gpu = gpu
        self._sources = {group: field_batches(group, driver) for group in GROUPS}
        self._batches: dict[tuple[str, int], FieldBatch] = {}
        self._pauses: dict[str, _Pause] = {}
        self._said: set[tuple[str, Outcome]] = set()

    def read(self, group: str, now_ns: int) -> GpuSample:
        """Read one group; never raises for what NVML answers."""
        sample = GpuSample()
        try:
            for metrics, call in _CALLS.get(group, ()):
                if not self._paused(metrics[0], now_ns):
                    self._read_call(sample, metrics, call, now_ns)
            for number in range(len(self._sources[group])):
                self._read_batch(sample, group, number, now_ns)
        except NvmlFailure as failure:
            sample.down = failure.code
        return sample

    def _read_call(
        self,
        sample: GpuSample,
        metrics: tuple[str, ...],
        call: Callable[[Gpu], tuple[float, ...]],
        now_ns: int,
    ) -> None:
        try:
            values = call(self.gpu)
        except NvmlFailure as failure:
            for metric in metrics:
                self._refused(sample, metric, failure.code, str(failure), now_ns)
            return
        for metric, value in zip(metrics, values, strict=True):
            if value != _SENTINEL and not math.isnan(value):
                sample.values[metric] = value
                self._pauses.pop(metric, None)

    def _read_batch(self, sample: GpuSample, group: str, number: int, now_ns: int) -> None:
        sources = [s for s in self._sources[group][number] if not self._paused(s.metric, now_ns)]
        if not sources:
            return
        wanted = [(s.field_id, scope) for s in sources for scope in s.scopes]
        if any(s.needs_ecc for s in sources):
            wanted.append((ECC_CURRENT, 0))
        batch = self._batches.get((group, number))
        if batch is None or batch.wanted != tuple(wanted):
            batch = self._batches[group, number] = FieldBatch(wanted)
        try:
            self.gpu.read_fields(batch)
        except NvmlFailure as failure:
            for source in sources:
                self._refused(sample, source.metric, failure.code, str(failure), now_ns)
            return
        answers = dict(zip(wanted, batch.answers(), strict=True))
        sample.latency_us += batch.latency_us
        ecc = answers.get((ECC_CURRENT, 0))
        for source in sources:
            only = answers[source.field_id, source.scopes[0]]
            if only.value is not None and len(source.scopes) == 1 and not source.needs_ecc:
                sample.values[source.metric] = only.value * source.scale
                self._pauses.pop(source.metric, None)
            else:
                self._take(sample, group, number, source, answers, ecc, now_ns)

    def _take(
        self,
        sample: GpuSample,
        group: str,
        number: int,
        source: FieldSource,
        answers: dict[tuple[int, int], FieldValue],
        ecc: FieldValue | None,
        now_ns: int,
    ) -> None:
        own = {scope: answers[source.field_id, scope] for scope in source.scopes}
        if source.needs_ecc and (ecc is None or ecc.value != 1 or not any(a.timestamp_us for a in own.values())):
            if ecc is not None and ecc.value == 0:
                self._say(sample, source.metric, Outcome.UNSUPPORTED, "ECC is off")
            else:
                self._answer_failed(sample, source, own, now_ns)
            return
        offered = tuple(scope for scope, answer in own.items() if answer.returned == 0)
        if not offered and source.otherwise and all(_is_never(a.returned) for a in own.values()):
            self._replace(group, number, source, source.otherwise)
            return
        if offered and len(offered) < len(own) and all(_is_never(a.returned) for a in own.values() if a.returned):
            # Links that this device has not got; from now on every one asked for must answer.
            self._replace(group, number, source, FieldSource(source.metric, source.field_id, source.scale, offered))
            own = {scope: own[scope] for scope in offered}
        total = sum_of(list(own.values()))
        if total is None:
            self._answer_failed(sample, source, own, now_ns)
            return
        sample.values[source.metric] = total * source.scale
        self._pauses.pop(source.metric, None)

    def _replace(self, group: str, number: int, old: FieldSource, new: FieldSource) -> None:
        sources = self._sources[group][number]
        sources[sources.index(old)] = new

    def _answer_failed(self, sample: GpuSample, source: FieldSource, own: dict[int, FieldValue], now_ns: int) -> None:
        code = next((answer.returned for answer in own.values() if answer.returned), 0)
        if code:
            text = f"field {source.field_id} answered code {code}"
            self._refused(sample, source.metric, code, text, now_ns)

    def _paused(self, metric: str, now_ns: int) -> bool:
        pause = self._pauses.get(metric)
        return pause is not None and now_ns < pause.until_ns

    def _refused(self, sample: GpuSample, metric: str, code: int, text: str, now_ns: int) -> None:
        """Note one refusal by its code; raises NvmlFailure where the whole GPU is down."""
        if code in DOWN:
            raise NvmlFailure(code, text)
        if _is_never(code):
            self._pauses[metric] = _Pause(math.inf, 0)
            self._say(sample, metric, Outcome.UNSUPPORTED, text)
        elif code == NO_PERMISSION:
            self._pauses[metric] = _Pause(now_ns + PERMISSION_RETRY_NS, PERMISSION_RETRY_NS)
            self._say(sample, metric, Outcome.NO_PERMISSION, text)
        elif code in PASSING:
            self._say(sample, metric, Outcome.NO_DATA, text)
        else:
            before = self._pauses.get(metric)
            length = FIRST_PAUSE_NS if before is None else min(2 * before.length_ns, LONGEST_PAUSE_NS)
            self._pauses[metric] = _Pause(now_ns + length, length)
            self._say(sample, metric, Outcome.FAILED, text)

    def _say(self, sample: GpuSample, metric: str, outcome: Outcome, reason: str) -> None:
        if (metric, outcome) not in self._said:
            self._said.add((metric, outcome))
            sample.outcomes.append((metric, outcome, reason))


def _is_never(code: int) -> bool:
    # A field id this driver does not know answers "invalid argument".
    return code in NEVER or code == INVALID_ARGUMENT


def _ratio(percent: int) -> float:
    return percent / 100 if 0 <= percent <= 100 else math.nan
