"""What a metric is: its name, unit, kind and meaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """Name, unit and meaning of one series; `counter` where only differences mean something."""

    name: str
    unit: str
    counter: bool
    #: Name at the OTLP edge: OpenTelemetry semantic conventions where one exists.
    otel: str
    description: str
    #: Kept in the recording alone: too many values for a central store.
    recorded_only: bool = False


def gauge(name: str, unit: str, otel: str, description: str) -> Metric:
    """A metric whose values mean something by themselves."""
    return Metric(name, unit, False, otel, description)


def counter(name: str, unit: str, otel: str, description: str) -> Metric:
    """A metric of which only differences mean something."""
    return Metric(name, unit, True, otel, description)


def sampled(name: str, unit: str, otel: str, description: str) -> Metric:
    """A gauge with several values a second, which the recording keeps and nothing exports."""
    return Metric(name, unit, False, otel, description, recorded_only=True)
