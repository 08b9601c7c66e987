"""Events and findings as OTLP log records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rankscope.clock import ClockAnchor
from rankscope.exporters.otlp_common import Attributes, EncodedBatch, device_attributes, key_values, scope
from rankscope.exporters.outbox import Signal
from rankscope.finding import Evidence, Finding
from rankscope.reading import Event, Severity

if TYPE_CHECKING:
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

#: Longest body in characters; stacks of many threads are longer, and stand in full in the recording.
MAX_BODY = 32_000


def logs_batch(resource: Resource, records: list[LogRecord]) -> EncodedBatch:
    """Log records of one resource as a serialised request."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest()
    request.resource_logs.add(resource=resource).scope_logs.add(scope=scope(), log_records=records)
    return EncodedBatch(Signal.LOGS, request.SerializeToString(), len(records))


def event_records(events: Iterable[Event], anchor: ClockAnchor) -> list[LogRecord]:
    """Events, each at the time it happened; event_name is `rankscope.` and the kind."""
    records: list[LogRecord] = []
    for event in events:
        prefix = f"rankscope.{event.kind.replace('-', '_')}."
        details = {prefix + key: value for key, value in event.attributes.items()}
        attributes = {"rankscope.rank": event.rank, **device_attributes(event.device), **details}
        time_ns = anchor.to_wall_ns(event.time_ns)
        records.append(_record(f"rankscope.{event.kind}", time_ns, event.severity, event.text, attributes))
    return records


def finding_records(findings: Iterable[Finding], anchor: ClockAnchor, now_ns: int) -> list[LogRecord]:
    """Findings, at the time they were made; `rankscope.since_unix_nano` says since when the fault was seen."""
    time_ns = anchor.to_wall_ns(now_ns)
    return [
        _record("rankscope.finding", time_ns, finding.severity, finding.summary, _finding_attributes(finding, anchor))
        for finding in findings
    ]


def _finding_attributes(finding: Finding, anchor: ClockAnchor) -> Attributes:
    where, impact = finding.where, finding.impact
    gpu = device_attributes(where.gpu_uuid or "")
    return {
        "rankscope.class": finding.class_slug,
        "rankscope.side": str(finding.side),
        "rankscope.confidence": finding.confidence,
        "rankscope.advice": str(finding.advice),
        "rankscope.basis": str(finding.basis),
        # The host the fault is on, which another host's agent may have found.
        "rankscope.host": where.host,
        "rankscope.rank": where.rank,
        "rankscope.local_rank": where.local_rank,
        **gpu,
        "rankscope.link": where.link,
        "system.device": where.device,
        "rankscope.phase": where.phase,
        "rankscope.since_unix_nano": anchor.to_wall_ns(finding.since_ns),
        "rankscope.until_unix_nano": None if finding.until_ns is None else anchor.to_wall_ns(finding.until_ns),
        "rankscope.detected_step": finding.detected_step,
        "rankscope.impact.ms_per_step": impact.ms_per_step,
        "rankscope.impact.fraction_of_step": impact.fraction_of_step,
        "rankscope.impact.gpu_hours_per_day": impact.gpu_hours_per_day,
        "rankscope.evidence": [_evidence_line(piece) for piece in finding.evidence],
        "rankscope.not_seen": list(finding.not_seen),
        "rankscope.action": finding.action,
        "rankscope.runbook": finding.runbook,
    }


def _evidence_line(piece: Evidence) -> str:
    line = f"{piece.family}: {piece.what}"
    if piece.value is not None:
        line += f" = {piece.value}"
    if piece.peers is not None:
        line += f" (peers {piece.peers})"
    return f"{line}, log odds {piece.log_odds:+.2f}"


def _record(name: str, time_ns: int, severity: Severity, text: str, attributes: Attributes) -> LogRecord:
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

    if len(text) > MAX_BODY:
        attributes = {**attributes, "rankscope.body_characters_left_out": len(text) - MAX_BODY}
    record = LogRecord(
        event_name=name,
        time_unix_nano=time_ns,
        observed_time_unix_nano=time_ns,
        severity_number=_severity_number(severity),
        severity_text=str(severity),
        attributes=key_values(attributes),
    )
    record.body.string_value = text[:MAX_BODY]
    return record


def _severity_number(severity: Severity) -> SeverityNumber.ValueType:
    """By the data model's example mapping of syslog, in which critical is ERROR2."""
    from opentelemetry.proto.logs.v1 import logs_pb2

    return {
        Severity.INFO: logs_pb2.SEVERITY_NUMBER_INFO,
        Severity.WARNING: logs_pb2.SEVERITY_NUMBER_WARN,
        Severity.CRITICAL: logs_pb2.SEVERITY_NUMBER_ERROR2,
    }[severity]
