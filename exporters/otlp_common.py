"""What every OTLP message of ours shares: attributes, the resource, and the batch that goes into the outbox.

The protobuf messages are imported when the first batch is encoded: they cost 5 MB that an agent without an endpoint
need not pay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankscope import __version__
from rankscope.exporters.outbox import Signal

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

Scalar = str | bool | int | float
#: Attributes as plain values; None stands for "does not apply" and is left out.
Attributes = Mapping[str, Scalar | Sequence[str] | None]


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """One serialised export request. `points` counts data points or log records."""

    signal: Signal
    payload: bytes
    points: int


def joined(batches: Iterable[EncodedBatch], most_points: int) -> list[EncodedBatch]:
    """The same in fewer requests, of at most so many points unless one alone has more.

    Requests are messages of one repeated field, so that one behind the other is one request.
    """
    together: list[EncodedBatch] = []
    for batch in batches:
        last = together[-1] if together else None
        if last is not None and last.signal is batch.signal and last.points + batch.points <= most_points:
            together[-1] = EncodedBatch(last.signal, last.payload + batch.payload, last.points + batch.points)
        else:
            together.append(batch)
    return together


def key_values(attributes: Attributes) -> list[KeyValue]:
    """Attributes as OTLP carries them, in the order given."""
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

    encoded: list[KeyValue] = []
    for key, value in attributes.items():
        if value is None:
            continue
        # bool before int: it is one.
        if isinstance(value, bool):
            any_value = AnyValue(bool_value=value)
        elif isinstance(value, int):
            any_value = AnyValue(int_value=value)
        elif isinstance(value, float):
            any_value = AnyValue(double_value=value)
        elif isinstance(value, str):
            any_value = AnyValue(string_value=value)
        else:
            any_value = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=text) for text in value]))
        encoded.append(KeyValue(key=key, value=any_value))
    return encoded


def resource(job: str, host: str, extra: Iterable[tuple[str, str]] = ()) -> Resource:
    """Who speaks: one job on one host.

    service.instance.id is told apart by job and host because Prometheus keeps of a resource only that (as `instance`)
    and the service's name (as `job`). Nothing here changes when an agent restarts or is upgraded, so that series go on:
    the version stands in the scope.
    """
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

    attributes: dict[str, str] = {
        "service.name": "rankscope",
        "service.instance.id": f"{host}/{job}",
        "host.name": host,
        "rankscope.job": job,
    }
    return Resource(attributes=key_values(attributes | dict(extra)))


def scope() -> InstrumentationScope:
    """What made the data."""
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope

    return InstrumentationScope(name="rankscope", version=__version__)


def device_attributes(device: str) -> dict[str, Scalar]:
    """A device of an event: a GPU by its UUID, else what the system calls it."""
    if not device:
        return {}
    if device.startswith(("GPU-", "MIG-")):
        return {"hw.id": device, "hw.type": "gpu"}
    return {"system.device": device}
