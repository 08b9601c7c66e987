"""The analysis of traces as JSON (docs/schemas/trace.schema.json). Times are microseconds; missing is null."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankscope.agent.kineto import ReadTrace
from rankscope.rules.trace.analysis import Analysis
from rankscope.rules.trace.bound import bound_of, sentence
from rankscope.rules.trace.breakdown import Breakdown
from rankscope.rules.trace.compare import Comparison
from rankscope.rules.trace.events import NS_PER_US
from rankscope.rules.trace.idle import Cause, Idle
from rankscope.rules.trace.names import Type
from rankscope.rules.trace.seen import TOGETHER, FloatArray, Group, Seen

SCHEMA = "rankscope.trace/1"


def rank_document(read: ReadTrace, analysis: Analysis, top: int) -> dict[str, Any]:
    """Everything about one rank; lists of names hold the `top` largest."""
    trace, whole, cores, launched = analysis.trace, analysis.breakdown, analysis.tensor_cores, analysis.launches
    kernel_ns = sum(each.total_ns for each in analysis.kernels)
    return {
        "file": str(read.path),
        "rank": trace.rank,
        "rank_from": read.rank_from or None,
        "world_size": trace.world_size,
        "events": read.events,
        "skipped_events": read.skipped,
        "text_bytes": read.text_bytes,
        "notes": read.notes,
        "bound": str(bound_of(analysis)),
        "summary": sentence(analysis),
        "scope": {
            "device_events": len(analysis.scope.rows),
            "left_out": len(trace.device) - len(analysis.scope.rows),
            "rule": analysis.scope.rule or None,
        },
        "steps": [{"number": number, "us": _us(end - start)} for number, start, end in trace.steps],
        "step_us": _us(analysis.step_ns),
        "temporal": _breakdown(whole),
        "idle": {
            "kernel_wait_threshold_us": _us(analysis.threshold_ns),
            "streams": [_idle(each) for each in analysis.streams],
            "devices": [_idle(each) for each in analysis.devices],
        },
        "kernel_types": [
            {
                "type": kind.name.lower(),
                "us": _us(total),
                "fraction": _ratio(total, kernel_ns),
                "count": sum(each.count for each in analysis.kernels if each.type == kind),
            }
            for kind in (Type.COMPUTATION, Type.COMMUNICATION, Type.MEMORY)
            for total in [sum(each.total_ns for each in analysis.kernels if each.type == kind)]
        ],
        "kernels": [
            {
                "name": each.name,
                "type": each.type.name.lower(),
                "count": each.count,
                "us": _us(each.total_ns),
                "fraction": _ratio(each.total_ns, kernel_ns),
                "longest_us": _us(each.longest_ns),
                "tensor_cores": each.tensor_cores,
            }
            for each in analysis.kernels[:top]
        ],
        "tensor_cores": {
            "told_by": "kernel names",
            "us": _us(cores.tensor_ns),
            "fraction_of_matrix_kernels": _ratio(cores.tensor_ns, cores.matrix_ns),
            "fraction_of_computation": _ratio(cores.tensor_ns, cores.compute_ns),
        },
        "copies": [
            {
                "name": each.name,
                "source": each.source,
                "target": each.target,
                "pageable": each.pageable,
                "count": each.count,
                "us": _us(each.total_ns),
                "bytes": each.bytes,
            }
            for each in analysis.copies[:top]
        ],
        "launches": {
            "count": launched.count,
            "calls": [{"name": name, "count": count, "us": _us(took)} for name, count, took in launched.calls[:top]],
            "without_call": launched.without_call,
            "before_call": launched.before_call,
            "delay_median_us": _us(launched.delay_median_ns),
            "delay_p95_us": _us(launched.delay_p95_ns),
            "delay_max_us": _us(launched.delay_max_ns),
            "fraction_under_10_us": _rounded(launched.short),
            "queues": [
                {
                    "device": each.device,
                    "stream": each.stream,
                    "mean": round(each.mean, 3),
                    "most": each.most,
                    "fraction_empty": round(each.empty, 6),
                    "fraction_full": round(each.full, 6),
                }
                for each in launched.queues
            ],
        },
        "stalls": [
            {
                "kernel": each.kernel,
                "cause": each.cause.name.lower(),
                "us": _us(each.total_ns),
                "count": each.count,
                "longest_us": _us(each.longest_ns),
                "fraction_of_time": _ratio(each.total_ns, whole.span_ns),
                "operator": each.operator,
                "outer_operator": each.outer,
                "source": each.source,
                "host_doing": each.host_doing,
            }
            for each in analysis.stalls[:top]
        ],
        "operators": [
            {
                "name": each.name,
                "count": each.count,
                "own_us": _us(each.own_ns),
                "longest_us": _us(each.longest_ns),
            }
            for each in analysis.operators[:top]
        ],
        "as_hta": {
            "temporal": _breakdown(analysis.hta_breakdown),
            "streams": [_idle(each) for each in analysis.hta_streams],
        },
    }


def comparison_document(compared: Comparison, top: int) -> dict[str, Any]:
    """Ranks side by side: own time and waits a step, and each group's collectives."""
    seen, found = compared.seen, compared.blame
    if seen is None or found is None:
        return {
            "late_rank": None,
            "reason": None,
            "notes": list(compared.notes),
            "steps": [],
            "ranks": [],
            "groups": [],
        }
    return {
        "late_rank": found.rank,
        "reason": None if found.reason is None else str(found.reason),
        "us_per_step": _us(found.ns_per_step),
        "fraction_of_step": _rounded(found.fraction),
        "slow_groups": list(found.slow_groups),
        "basis": "device-collective",
        "notes": list(compared.notes),
        "steps": list(seen.steps),
        "ranks": [_compared(seen, row) for row in range(len(seen.ranks))],
        "groups": [_group(seen, group, top) for group in seen.groups],
    }


def _compared(seen: Seen, row: int) -> dict[str, Any]:
    parts = {"compute": seen.compute_ns, "copies": seen.memory_ns, "host_wait": seen.host_wait_ns}
    return {
        "rank": seen.ranks[row],
        "step_us": _middle(seen.step_ns[row]),
        "own_us": _middle(seen.own_ns[row]),
        **{f"{name}_us": None if values is None else _middle(values[row]) for name, values in parts.items()},
        "waits_us": {
            group.name: _middle(group.took_ns[row] - group.least_ns)
            for group in seen.groups
            if seen.ranks[row] in group.members
        },
    }


def _group(seen: Seen, group: Group, top: int) -> dict[str, Any]:
    transfer = _middle(group.least_ns)
    rows = [seen.ranks.index(rank) for rank in group.members]
    told = np.isfinite(group.took_ns[rows]).all(axis=0)
    took = group.took_ns[rows][:, told]
    # Members that come together have no last one.
    last = np.where(np.ptp(took, axis=0) > TOGETHER * took.max(axis=0), np.argmin(took, axis=0), -1)
    return {
        "name": group.name,
        "ranks": list(group.members),
        "collectives_per_step": group.count,
        "bytes_per_step": group.bytes,
        "transfer_us": transfer,
        "gigabytes_per_second": round(group.bytes / transfer / 1e3, 3) if group.bytes and transfer else None,
        "last_fraction": {
            str(rank): _ratio(int((last == index).sum()), len(last)) for index, rank in enumerate(group.members)
        },
        "collectives": [
            {
                "number": each.number,
                "name": each.name,
                "bytes": each.bytes,
                "transfer_us": _us(each.transfer_ns),
                "waited_us": _us(each.waited_ns),
                "last_rank": each.last_rank,
            }
            for each in sorted(group.places, key=lambda each: -each.waited_ns)[:top]
        ],
    }


def _middle(values: FloatArray) -> float | None:
    there = values[np.isfinite(values)]
    return _us(float(np.median(there))) if len(there) else None


def _breakdown(whole: Breakdown) -> dict[str, Any]:
    return {
        "span_us": _us(whole.span_ns),
        "idle_us": _us(whole.idle_ns),
        "compute_us": _us(whole.compute_ns),
        "non_compute_us": _us(whole.non_compute_ns),
        "communication_us": _us(whole.communication_ns),
        "memory_us": _us(whole.memory_ns),
        "overlapped_us": _us(whole.overlapped_ns),
        "idle_fraction": _ratio(whole.idle_ns, whole.span_ns),
        "compute_fraction": _ratio(whole.compute_ns, whole.span_ns),
        "non_compute_fraction": _ratio(whole.non_compute_ns, whole.span_ns),
        "overlap_fraction": _rounded(whole.overlap),
    }


def _idle(idle: Idle) -> dict[str, Any]:
    return {
        "device": idle.device,
        "stream": idle.stream,
        "host_wait_us": _us(idle.by_cause_ns[Cause.HOST_WAIT]),
        "kernel_wait_us": _us(idle.by_cause_ns[Cause.KERNEL_WAIT]),
        "other_us": _us(idle.by_cause_ns[Cause.OTHER]),
        "total_us": _us(idle.total_ns),
        "gaps": idle.gaps,
    }


def _us(value: float | None) -> float | None:
    return None if value is None else round(value / NS_PER_US, 3)


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
