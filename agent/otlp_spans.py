"""Spans of OTLP: JSON as a collector's file exporter writes it, one request a line, and its protobuf format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rankscope.errors import RankscopeError
from rankscope.rules.whatif_spans import Span

#: First bytes of field 1 (resource_spans) of TracesData, and of a length before each message.
_FIELD, _LENGTH = b"\x0a", b"\x00"

_NO_NAME = "unknown"
_COPIES = ("service.instance.id", "k8s.pod.name", "host.name")


def is_otlp_json(document: Any) -> bool:
    """Whether this is a request of spans."""
    return isinstance(document, dict) and ("resourceSpans" in document or "resource_spans" in document)


def spans_of_json(documents: Iterable[Any]) -> list[Span]:
    """Spans of requests in OTLP's JSON mapping. Raises RankscopeError with what is wrong and in which request."""
    spans: dict[tuple[str, str], Span] = {}
    for number, document in enumerate(documents, 1):
        if not is_otlp_json(document):
            continue
        try:
            for span in _of_request(document):
                spans.setdefault((span.trace_id, span.span_id), span)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise RankscopeError(f"is not of OTLP's shape ({what})", where=f"request {number}") from None
    if not spans:
        raise RankscopeError("holds requests of spans, but no span")
    return list(spans.values())


def _of_request(document: Mapping[str, Any]) -> Iterator[Span]:
    for resource in _get(document, "resourceSpans", []):
        attributes = _get(_get(resource, "resource", {}), "attributes", [])
        known = {each.get("key"): str(_get(each.get("value") or {}, "stringValue", "")) for each in attributes}
        for scope in _get(resource, "scopeSpans", []):
            for span in _get(scope, "spans", []):
                yield _span(span, known.get("service.name") or _NO_NAME, _copy(known))


def _copy(known: Mapping[str, str]) -> str | None:
    """Which copy of a service: by the first of these that its resource names."""
    return next((known[name] for name in _COPIES if known.get(name)), None)


def _get(document: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field by its JSON name; some writers keep the names of the protocol."""
    if name in document:
        return document[name]
    return document.get("".join(f"_{c.lower()}" if c.isupper() else c for c in name), default)


def _span(span: Mapping[str, Any], service: str, instance: str | None) -> Span:
    trace, own = str(_get(span, "traceId", "")), str(_get(span, "spanId", ""))
    if not trace or not own:
        raise ValueError("no traceId or spanId")
    start, end = _get(span, "startTimeUnixNano", None), _get(span, "endTimeUnixNano", None)
    if start is None or end is None:
        raise ValueError(f"span {own}: no startTimeUnixNano or endTimeUnixNano")
    links = tuple((str(_get(link, "traceId", "")), str(_get(link, "spanId", ""))) for link in _get(span, "links", []))
    return Span(
        trace_id=trace,
        span_id=own,
        parent_id=str(_get(span, "parentSpanId", "")) or None,
        service=service,
        name=str(span.get("name", "")),
        start_ns=int(start),
        end_ns=max(int(start), int(end)),
        links=links,
        instance=instance,
    )


def is_otlp_protobuf(data: bytes) -> bool:
    """Whether this is TracesData, bare or each message behind its length."""
    if data[:1] not in (_FIELD, _LENGTH):
        return False
    return bool(_messages(data))


def spans_of_protobuf(data: bytes) -> list[Span]:
    """Spans of TracesData messages."""
    spans: dict[tuple[str, str], Span] = {}
    for message in _messages(data):
        for resource in message.resource_spans:
            known = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found = Span(
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex() or None,
                        service=known.get("service.name") or _NO_NAME,
                        name=span.name,
                        start_ns=span.start_time_unix_nano,
                        end_ns=max(span.start_time_unix_nano, span.end_time_unix_nano),
                        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                        instance=_copy(known),
                    )
                    spans.setdefault((found.trace_id, found.span_id), found)
    return list(spans.values())


def _messages(data: bytes) -> Sequence[Any]:
    """The messages, or none where the bytes are something else."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    parts = []
    place = 0
    if data[:1] == _FIELD:
        parts, place = [data], len(data)
    while place + 4 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        parts.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    if place != len(data):
        return []
    try:
        messages = [TracesData.FromString(part) for part in parts]
    except DecodeError:
        return []
    return messages if any(message.resource_spans for message in messages) else []
