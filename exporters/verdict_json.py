"""The verdict as the JSON document that other programs read (schema rankscope.verdict/1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from rankscope.clock import ClockAnchor
from rankscope.errors import ExportError
from rankscope.exporters.goodput import goodput_document
from rankscope.finding import VERDICT_SCHEMA, Verdict, finding_json

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def verdict_document(verdict: Verdict, anchors: Mapping[str, ClockAnchor]) -> dict[str, Any]:
    """The document of `docs/schemas/verdict.schema.json`; `json.dumps(..., allow_nan=False)` always takes it.

    `anchors` turns the monotonic begin of a finding into wall time: the anchor of the host it names, the first
    host's where it names none. Raises ExportError where there is a finding and no anchor at all.
    """
    document: dict[str, Any] = {
        "schema": VERDICT_SCHEMA,
        "job": verdict.job,
        "verdict": verdict.verdict,
        "summary": verdict.summary,
        "findings": [
            finding_json(finding, iso_time(anchor_of(finding.where.host, anchors).to_wall_ns(finding.since_ns)))
            for finding in verdict.findings
        ],
        "not_seen": verdict.not_seen,
        "would_settle": verdict.would_settle,
        "overhead": asdict(verdict.overhead),
    }
    if verdict.goodput is not None:
        document["goodput"] = goodput_document(verdict.goodput, anchor_of(None, anchors), iso_time)
    plain: dict[str, Any] = _plain(document)
    return plain


def anchor_of(host: str | None, anchors: Mapping[str, ClockAnchor]) -> ClockAnchor:
    """The clock anchor of a host, the first by name where the host is not known."""
    if not anchors:
        raise ExportError("no host's clock is known, so no time can be told", todo="read a recording that was closed")
    return anchors[host if host is not None and host in anchors else min(anchors)]


def iso_time(wall_ns: int) -> str:
    """ISO 8601 in UTC with microseconds."""
    moment = _EPOCH + timedelta(microseconds=wall_ns // 1_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """JSON's own types: tuples become lists, and a number that is none (NaN, infinity) becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    # A StrEnum is a string already, but only plain strings compare equal after a round trip in every reader.
    return str(value) if isinstance(value, str) else value
