"""What a Prometheus-compatible store calls our series, and back: the names that OTLP receivers make of metrics' names.

A receiver writes dots as underscores and, where it is told to, appends the unit, `ratio` (a gauge of unit 1) and
`total` (a counter). Receivers differ in which of these they append, so every spelling is known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from rankscope.exporters.otlp_metrics import DEVICE_NAMES, GPU_FAMILIES
from rankscope.gpu_device import link_of, process_on
from rankscope.metric import Metric
from rankscope.metrics import METRICS
from rankscope.metrics_rules import LABELS, pack

#: Units of the OpenTelemetry compatibility rules for Prometheus; others stand as they are.
_UNITS = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "m": "meters",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "Cel": "celsius",
    "Hz": "hertz",
    "%": "percent",
}
_UNFIT = re.compile(r"[^A-Za-z0-9]+")


def label_name(attribute: str) -> str:
    """The label that an attribute becomes."""
    return _UNFIT.sub("_", attribute)


def _unit(unit: str) -> str:
    """The unit as words; "" for 1 and for annotations like {lane}."""
    of, _, per = re.sub(r"\{[^}]*\}", "", unit).partition("/")
    words = [_UNITS.get(of, of)] if of not in ("", "1") else []
    if per:
        words += ["per", {"s": "second", "min": "minute", "h": "hour"}.get(per, per)]
    return _UNFIT.sub("_", "_".join(words))


def spellings(metric: Metric) -> tuple[str, ...]:
    """Every name that a receiver may have given a metric."""
    base = _UNFIT.sub("_", metric.otel).strip("_")
    unit = _unit(metric.unit)
    names = [base]
    if unit and not base.endswith(f"_{unit}"):
        names.append(f"{base}_{unit}")
    if metric.unit == "1" and not metric.counter:
        names.append(f"{base}_ratio")
    if metric.counter:
        names += [f"{name.removesuffix('_total')}_total" for name in names]
    return tuple(dict.fromkeys(names))


@cache
def _metrics() -> Mapping[str, Metric]:
    return {name: metric for metric in METRICS.values() for name in spellings(metric)}


def metric_of(name: str) -> Metric | None:
    """The metric of ours that a store's series shows, or None."""
    return _metrics().get(name)


def device_of(metric: Metric, labels: Mapping[str, str]) -> str | None:
    """The device of a reading as `otlp_metrics.series_attributes` spelled it; None where the labels name none."""
    family = metric.name.partition(".")[0]
    named = {key: labels.get(label_name(key), "") for key in ("hw.id", "rankscope.link", "process.pid")}
    if family in GPU_FAMILIES:
        if not named["hw.id"]:
            return None
        if named["rankscope.link"].isdecimal():
            return link_of(named["hw.id"], int(named["rankscope.link"]))
        if named["process.pid"].isdecimal():
            return process_on(named["hw.id"], int(named["process.pid"]))
        return named["hw.id"]
    if family == "process":
        rank = labels.get("rankscope_rank", "")
        return f"rank:{rank}" if rank else None
    if family in LABELS:
        return pack([labels.get(label_name(key)) for key in LABELS[family]])
    if family == "nfs":
        mount = labels.get("system_filesystem_mountpoint", "")
        return f"{labels.get('rankscope_nfs_operation', '')} {mount}"
    return labels.get(label_name(DEVICE_NAMES.get(family, "system.device")), "")
