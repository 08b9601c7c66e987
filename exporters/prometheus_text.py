"""What an agent knows as Prometheus reads it: text format 0.0.4 and OpenMetrics 1.0.0, under the names OTLP leads to.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and https://prometheus.io/docs/specs/om/.
Neither text format has native histograms: durations have classic buckets at powers of two, which are bounds of the
exponential histogram too, so their counts are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rankscope.clock import ClockAnchor
from rankscope.exporters.export_levels import ExportFilter, Level
from rankscope.exporters.histogram import ExponentialHistogram
from rankscope.exporters.otlp_metrics import series_attributes
from rankscope.exporters.otlp_ranks import SUMS
from rankscope.exporters.otlp_steps import StepsEncoder
from rankscope.exporters.otlp_traces import SlowStep, SlowSteps
from rankscope.exporters.prometheus_names import label_name, spellings
from rankscope.identity import RankIdentity
from rankscope.metric import Metric
from rankscope.metrics import metric_named
from rankscope.reading import Reading
from rankscope.records import RingRecord

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: Bounds of classic buckets: 2**-10 s (1 ms) to 2**6 s, 17 and the one of all.
_EXPONENTS = range(-10, 7)
#: A series that was read once goes after this long; of others, after three times the time between its last readings.
_ONCE_NS = 900_000_000_000
_LEAST_NS = 60_000_000_000

_Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of a snapshot: `name` with the ending of a counter; samples by labels."""

    name: str
    kind: str
    help: str
    samples: Mapping[_Labels, float | ExponentialHistogram]
    #: Of histograms the last slow step of a series, which is a trace.
    exemplars: Mapping[_Labels, SlowStep] = field(default_factory=dict)


class JobSeries:
    """The last reading of every series of one job on this host, and its ranks' step times. For one thread."""

    def __init__(self, job: str, host: str, level: Level, *, traces: bool = False) -> None:
        """`traces`: slow steps are sent as traces, and histograms lead to them."""
        self._labels: _Labels = (("host_name", host), ("rankscope_job", job))
        self._filter = ExportFilter(level, 0)
        self._per_rank = level >= Level.RANK
        self._steps = StepsEncoder(ClockAnchor(0, 0), None, per_rank=self._per_rank)
        self._slow = SlowSteps(ClockAnchor(0, 0), None) if traces else None
        #: By rank, or of all of them (None) where they are merged.
        self._slow_steps: dict[int | None, SlowStep] = {}
        #: (metric, device) -> (value, time, when it goes).
        self._last: dict[tuple[str, str], tuple[float, int, int]] = {}

    def add(self, readings: Iterable[Reading]) -> None:
        """Take what was read."""
        for reading in self._filter.take(readings):
            key = (reading.metric, reading.device)
            before = self._last.get(key)
            lasts = _ONCE_NS if before is None else max(_LEAST_NS, 3 * (reading.time_ns - before[1]))
            self._last[key] = reading.value, reading.time_ns, reading.time_ns + lasts

    def add_records(self, identity: RankIdentity, records: Iterable[RingRecord]) -> None:
        """Count a rank's steps."""
        records = list(records)
        self._steps.add(identity, records)
        for slow in [] if self._slow is None else self._slow.add(identity, records):
            self._slow_steps[slow.rank if self._per_rank else None] = slow

    def snapshot(self, now_ns: int) -> list[Family]:
        """What holds now; nothing in it changes later."""
        self._last = {key: each for key, each in self._last.items() if each[2] >= now_ns}
        by_metric: dict[str, dict[_Labels, float | ExponentialHistogram]] = {}
        for (metric, device), (value, _, _) in self._last.items():
            by_metric.setdefault(metric, {})[self._with(series_attributes(metric, device))] = value
        found = [_family(metric_named(name), samples) for name, samples in by_metric.items()]
        of_steps: dict[tuple[str, str, str], dict[_Labels, float | ExponentialHistogram]] = {}
        exemplars: dict[_Labels, SlowStep] = {}
        for name, text, attributes, each in self._steps.snapshot():
            kind = "counter" if name in SUMS else "gauge" if isinstance(each, float) else "histogram"
            full = label_name(name) + {"counter": "_total", "gauge": "", "histogram": "_seconds"}[kind]
            labels = self._with(attributes)
            of_steps.setdefault((full, kind, text), {})[labels] = each
            rank = attributes.get("rankscope.rank")
            slow = self._slow_steps.get(rank if isinstance(rank, int) else None)
            if slow is not None and name == "rankscope.step.duration" and attributes.get("rankscope.clock") == "host":
                exemplars[labels] = slow
        return found + [
            Family(*key, samples, exemplars if key[0] == "rankscope_step_duration_seconds" else {})
            for key, samples in of_steps.items()
        ]

    def _with(self, attributes: Mapping[str, object]) -> _Labels:
        own = sorted((label_name(key), str(value)) for key, value in attributes.items() if value is not None)
        return (*self._labels, *own)


def _family(metric: Metric, samples: dict[_Labels, float | ExponentialHistogram]) -> Family:
    return Family(spellings(metric)[-1], "counter" if metric.counter else "gauge", metric.description, samples)


def exposition(families: Iterable[Family], *, open_metrics: bool) -> str:
    """The families as text; of families of one name the samples stand together, whatever job they are of."""
    together: dict[str, list[Family]] = {}
    for family in families:
        together.setdefault(family.name, []).append(family)
    lines: list[str] = []
    for name, same in sorted(together.items()):
        kind = same[0].kind
        said = name.removesuffix("_total") if open_metrics and kind == "counter" else name
        lines += [f"# HELP {said} {_escaped(same[0].help, quotes=open_metrics)}", f"# TYPE {said} {kind}"]
        seen: set[_Labels] = set()
        for family in same:
            for labels, each in family.samples.items():
                if labels in seen or family.kind != kind:
                    continue
                seen.add(labels)
                if isinstance(each, ExponentialHistogram):
                    lines += _buckets(name, labels, each, family.exemplars.get(labels) if open_metrics else None)
                else:
                    lines.append(f"{name}{_braces(labels)} {_number(each)}")
    if open_metrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _buckets(name: str, labels: _Labels, histogram: ExponentialHistogram, slow: SlowStep | None) -> Iterable[str]:
    first, counts = histogram.buckets()
    place, below = 0, histogram.zero_count
    told = "" if slow is None else _exemplar(slow)
    for exponent in _EXPONENTS:
        # Bucket i ends at 2**((i + 1) / 2**scale).
        while place < len(counts) and math.ldexp(first + place + 1, -histogram.scale) <= exponent:
            below += counts[place]
            place += 1
        bound = 2.0**exponent
        # An exemplar stands with the bucket that its value lies in, and with no other.
        here = told if slow is not None and slow.duration_ns * 1e-9 <= bound else ""
        told = "" if here else told
        yield f"{name}_bucket{_braces((*labels, ('le', _number(bound))))} {below}{here}"
    yield f"{name}_bucket{_braces((*labels, ('le', '+Inf')))} {histogram.count}{told}"
    yield f"{name}_sum{_braces(labels)} {_number(histogram.sum)}"
    yield f"{name}_count{_braces(labels)} {histogram.count}"


def _exemplar(slow: SlowStep) -> str:
    trace = _braces((("trace_id", slow.trace.hex()), ("span_id", slow.span.hex())))
    return f" # {trace} {_number(slow.duration_ns * 1e-9)}"


def _braces(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels) + "}"


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
