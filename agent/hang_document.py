"""A comparison of flight-recorder dumps as JSON (docs/schemas/hang.schema.json)."""

from __future__ import annotations

from typing import Any

from rankscope.rules.flight import Operation
from rankscope.rules.flight_order import Mismatch
from rankscope.rules.flight_suspects import Comparison, Suspect
from rankscope.rules.flight_wait import Stuck

HANG_SCHEMA = "rankscope.hang/1"


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison; its `suspects` come most suspicious first."""
    return {
        "schema": HANG_SCHEMA,
        "summary": comparison.summary,
        "world_size": comparison.world_size,
        "ranks": list(comparison.ranks),
        "missing": list(comparison.missing),
        "suspects": [_suspect(each) for each in comparison.suspects],
        "mismatches": [_mismatch(each) for each in comparison.mismatches],
        "operations": [_stuck(each) for each in comparison.stuck],
        "notes": list(comparison.notes),
    }


def _suspect(suspect: Suspect) -> dict[str, Any]:
    return {
        "rank": suspect.rank,
        "score": round(suspect.score, 4),
        "kinds": list(suspect.kinds),
        "reasons": list(suspect.reasons),
        "waiting": sorted(suspect.waiting),
        "last_operation": None if suspect.last is None else _operation(suspect.last),
    }


def _mismatch(mismatch: Mismatch) -> dict[str, Any]:
    return {
        "kind": mismatch.kind,
        "group": {"name": mismatch.group.name, "ranks": list(mismatch.group.ranks)},
        "sequence": mismatch.sequence,
        "ranks": list(mismatch.ranks),
        "text": mismatch.text,
        "passed": mismatch.passed,
        "sides": [{"ranks": list(ranks), "operation": _operation(each)} for ranks, each in mismatch.sides],
    }


def _stuck(stuck: Stuck) -> dict[str, Any]:
    return {
        "group": {"name": stuck.group.name, "description": stuck.description, "ranks": list(stuck.group.ranks)},
        "operation": _operation(stuck.operation),
        "waiting": sorted(stuck.waiting),
        "absent": sorted(stuck.absent),
        "held": sorted(stuck.held),
        "past": sorted(stuck.past),
        "unseen": sorted(stuck.unseen),
    }


def _operation(operation: Operation) -> dict[str, Any]:
    return {
        "rank": operation.rank,
        "group": operation.group.name,
        "name": operation.name,
        "sequence": operation.sequence,
        "point_to_point": operation.point_to_point,
        "peer": operation.peer,
        "state": operation.state,
        "input_sizes": _lists(operation.input_sizes),
        "output_sizes": _lists(operation.output_sizes),
        "input_dtypes": None if operation.input_dtypes is None else list(operation.input_dtypes),
        "output_dtypes": None if operation.output_dtypes is None else list(operation.output_dtypes),
        "created_ns": operation.created_ns,
        "stack": [{"function": each.function, "file": each.file, "line": each.line} for each in operation.frames],
    }


def _lists(sizes: tuple[tuple[int, ...], ...] | None) -> list[list[int]] | None:
    return None if sizes is None else [list(dimensions) for dimensions in sizes]
