"""Sketches as JSON: our own file (schema rankscope.sketch/1), and the exponential histograms in OTLP/JSON lines.

OTLP/JSON is what a collector's file exporter writes: one ExportMetricsServiceRequest a line, 64-bit integers as text.
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from rankscope.errors import ExportError
from rankscope.exporters.histogram import ExponentialHistogram

SCHEMA = "rankscope.sketch/1"
#: AggregationTemporality of the OTLP protocol.
_DELTA, _CUMULATIVE = 1, 2


def sketch_document(histogram: ExponentialHistogram, unit: str) -> dict[str, Any]:
    """A histogram as a JSON document; `unit` of its values, "" where nobody said."""
    first, counts = histogram.buckets()
    return {
        "schema": SCHEMA,
        "unit": unit,
        "scale": histogram.scale,
        "zero_count": histogram.zero_count,
        "first_bucket": first,
        "counts": counts,
        "sum": histogram.sum,
        "minimum": histogram.minimum if histogram.count else None,
        "maximum": histogram.maximum if histogram.count else None,
    }


def read_sketch(document: dict[str, Any], where: str) -> tuple[ExponentialHistogram, str]:
    """(histogram, unit) of a document that `sketch_document` made; raises ExportError where it is not whole."""
    try:
        first = int(document["first_bucket"])
        histogram = ExponentialHistogram.of_buckets(
            scale=int(document["scale"]),
            zero_count=int(document["zero_count"]),
            buckets={first + place: int(count) for place, count in enumerate(document["counts"])},
            total=float(document["sum"]),
            minimum=_or(document["minimum"], math.inf),
            maximum=_or(document["maximum"], -math.inf),
        )
        return histogram, str(document["unit"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"not a whole sketch ({error})", where=where, todo="write it again with --save") from error


class OtlpHistograms:
    """The exponential histograms of OTLP/JSON lines, by metric: (name, unit) -> their merger.

    Of a cumulative series the last point counts, so memory grows with the number of series and not of lines.
    """

    def __init__(self) -> None:
        self._series: dict[tuple[str, ...], ExponentialHistogram] = {}

    def add(self, document: dict[str, Any], where: str) -> None:
        """Take one request; raises ExportError where it is malformed."""
        try:
            for resource, metric, body, point in _points(document):
                histogram = _of_point(point)
                temporality = body.get("aggregationTemporality", _CUMULATIVE)
                delta = temporality in (_DELTA, "AGGREGATION_TEMPORALITY_DELTA")
                start = "" if delta else str(point.get("startTimeUnixNano", ""))
                attributes = json.dumps(point.get("attributes", []), sort_keys=True)
                key = (metric["name"], metric.get("unit", ""), resource, attributes, start)
                if delta and key in self._series:
                    histogram.merge(self._series[key])
                self._series[key] = histogram
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ExportError(f"not OTLP metrics ({type(error).__name__}: {error})", where=where) from error

    def merged(self) -> dict[tuple[str, str], ExponentialHistogram]:
        """Every metric's series in one histogram."""
        found: dict[tuple[str, str], ExponentialHistogram] = {}
        for (name, unit, *_), histogram in self._series.items():
            if (name, unit) in found:
                found[name, unit].merge(histogram)
            else:
                found[name, unit] = histogram
        return found


def _points(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    for resource in document["resourceMetrics"]:
        whose = json.dumps(resource.get("resource", {}), sort_keys=True)
        for scope in resource.get("scopeMetrics", []):
            for metric in scope.get("metrics", []):
                body = metric.get("exponentialHistogram", {})
                for point in body.get("dataPoints", []):
                    yield whose, metric, body, point


def _of_point(point: dict[str, Any]) -> ExponentialHistogram:
    positive, scale = point.get("positive", {}), int(point.get("scale", 0))
    if sum(map(int, point.get("negative", {}).get("bucketCounts", []))) or float(point.get("zeroThreshold", 0)):
        raise ValueError("values below zero, or a zero threshold above it, are not durations")
    first = int(positive.get("offset", 0))
    buckets = {first + place: int(count) for place, count in enumerate(positive.get("bucketCounts", []))}
    held = [index for index, count in buckets.items() if count]
    zeros = int(point.get("zeroCount", 0))
    # Smallest and largest value are optional in OTLP: then the edges of the outermost buckets bound them.
    low = 0.0 if zeros or not held else math.exp2(math.ldexp(min(held), -scale))
    high = math.exp2(math.ldexp(max(held) + 1, -scale)) if held else 0.0
    return ExponentialHistogram.of_buckets(
        scale=scale,
        zero_count=zeros,
        buckets=buckets,
        total=float(point.get("sum", 0.0)),
        minimum=float(point.get("min", low)),
        maximum=float(point.get("max", high)),
    )


def _or(value: Any, default: float) -> float:
    return default if value is None else float(value)
