"""The outcome of an experiment, as JSON and for a person."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from rankscope.agent.switchback import Design
from rankscope.rules.switchback import LEAST_BLOCKS, Decision, Effect, Interval, Stretch


class Ran(Protocol):
    """An experiment that is over."""

    stretches: list[Stretch]
    found: Effect | None
    error: str


def switchback_document(
    ran: Ran | None, knob: str, design: Design, run_seconds: Sequence[float] | None = None
) -> dict[str, Any]:
    """The outcome as JSON (docs/schemas/experiment.schema.json).

    `run_seconds` is what each run took, where the job was run anew for every window.
    """
    document: dict[str, Any] = {
        "schema": "rankscope.experiment/1",
        "knob": knob,
        "windows": len(ran.stretches) if ran is not None else 0,
        "decision": str(Decision.UNDECIDED),
        "error": ran.error if ran is not None else "the job was not watched",
        "margin": design.margin,
        "runs": None,
        "effect": None,
    }
    if run_seconds is not None:
        each = statistics.median(run_seconds) if run_seconds else None
        document["runs"] = {"count": len(run_seconds), "median_seconds": each}
    found = ran.found if ran is not None else None
    if found is not None:
        document["decision"] = str(found.decision)
        document["effect"] = {key: value for key, value in asdict(found).items() if key != "decision"}
        document["effect"]["fraction"] = asdict(found.fraction)
    return document


def told_switchback(document: dict[str, Any]) -> str:
    """The outcome for a person."""
    effect = document["effect"]
    if effect is None:
        why = document["error"] or f"{document['windows']} windows, and it takes {2 * LEAST_BLOCKS}"
        return f"no effect can be told: {why}"
    anew = document["runs"] is not None
    knob = document["knob"] if anew else f"the {document['knob']}"
    cost, share = _interval(effect["mean_ms"], "ms a step"), _percent(effect["fraction"])
    lines = [
        f"{document['decision']}: {knob} costs {cost}",
        f"  {share} of {effect['off_ms']:.4g} ms, from {effect['blocks']} blocks",
        f"  median {_interval(effect['p50_ms'], 'ms')}; 99th percentile {_interval(effect['p99_ms'], 'ms')}",
    ]
    if document["error"]:
        lines.append(f"  it ended early: {document['error']}")
    carried = effect["carry_over_ms"]
    if carried is not None and (carried["low"] > 0 or carried["high"] < 0):
        adjusted = _interval(effect["adjusted_ms"], "ms")
        todo = "it is in what the runs share: caches, files, heat" if anew else "raise --settle-steps"
        lines.append(f"  it outlasts its window by {_interval(carried, 'ms')}: without that {adjusted}; {todo}")
    return "\n".join(lines)


def told_loop(document: dict[str, Any]) -> str:
    """The outcome for a person."""
    cause, effect = document["cause"], document["effect"]
    windows = f"{document['open_windows']} open windows and {document['cut_windows']} cut ones"
    back = f"gain {_interval(document['returned'])} after {document['return_delay']} samples"
    lines = [
        f"{document['verdict']}: {document['samples']} samples, {windows}",
        f"  {effect} -> {cause}: {back}, p = {document['p_value']:.3g}",
    ]
    if document["forward"] is not None:
        lines += [
            f"  {cause} -> {effect}: gain {_interval(document['forward'])} after {document['forward_delay']} samples",
            f"  once around: {_interval(document['gain'])} (1 and more grows without end)",
        ]
    lines.append(f"  correlation {document['correlation']:.2f}, which says nothing by itself")
    return "\n".join(lines)


def _interval(interval: dict[str, float], unit: str = "") -> str:
    found = Interval(**interval)
    return f"{found.value:+.3g} ({found.low:+.3g} to {found.high:+.3g}){f' {unit}' if unit else ''}"


def _percent(interval: dict[str, float]) -> str:
    return "{value:+.2%} ({low:+.2%} to {high:+.2%})".format(**interval)
