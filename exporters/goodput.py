"""Goodput in words, as JSON, and as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rankscope.clock import ClockAnchor
from rankscope.exporters.wording import percent, visible
from rankscope.finding import AttemptSummary, Goodput

#: Parts of the wall time, with the words a person reads.
PARTS = {
    "productive_seconds": "productive steps",
    "start_seconds": "starting",
    "warm_up_seconds": "warming up",
    "checkpoint_seconds": "checkpoints",
    "evaluation_seconds": "evaluation",
    "rollback_seconds": "steps lost after the last checkpoint",
    "requeue_seconds": "between attempts",
    "stalled_seconds": "after the last step",
}


@dataclass(frozen=True, slots=True)
class PartOfTime:
    """One part of the wall time; seconds is None where it is not known."""

    name: str
    seconds: float | None
    share: str


def parts(goodput: Goodput) -> list[PartOfTime]:
    """Parts that took any time, or of which nothing is known, the productive one first."""
    found = []
    for key, name in PARTS.items():
        seconds: float | None = getattr(goodput, key)
        if seconds is None or seconds > 0 or key == "productive_seconds":
            known = seconds is not None and goodput.wall_seconds > 0
            found.append(
                PartOfTime(name, seconds, percent((seconds or 0.0) / goodput.wall_seconds) if known else "not known")
            )
    return found


def headline(goodput: Goodput) -> str:
    """Goodput in one line."""
    if goodput.ratio is None:
        return "not known"
    bound = "at most " if goodput.rollback_seconds is None else ""
    text = f"{bound}{percent(goodput.ratio)} of {duration(goodput.wall_seconds)} went into steps that count"
    if len(goodput.attempts) > 1:
        text += f", over {len(goodput.attempts)} attempts"
    return text


def attempt_text(attempt: AttemptSummary) -> str:
    """One attempt in one line."""
    lost = "" if not attempt.lost_seconds else f", {duration(attempt.lost_seconds)} of work lost"
    if attempt.lost_seconds is None:
        lost = ", lost work not known (no checkpoint was seen)"
    steps = f"{attempt.steps} steps on {attempt.ranks} ranks in {duration(attempt.seconds)}{lost}"
    return visible(f"attempt {attempt.number}: {steps}; {attempt.ended}")


def duration(seconds: float) -> str:
    """ "12.3 s", "4 min 05 s", "3 h 07 min"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds + 0.5) // 60
    if minutes < 120:
        return f"{minutes} min {int(seconds + 0.5) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def goodput_document(goodput: Goodput, anchor: ClockAnchor, iso_time: Callable[[int], str]) -> Mapping[str, Any]:
    """The `goodput` of the verdict's JSON."""
    return {
        "ratio": goodput.ratio,
        "wall_seconds": goodput.wall_seconds,
        **{key: getattr(goodput, key) for key in PARTS},
        "attempts": [
            {
                "attempt": each.number,
                "begin": iso_time(anchor.to_wall_ns(each.begin_ns)),
                "seconds": each.seconds,
                "ranks": each.ranks,
                "steps": each.steps,
                "lost_seconds": each.lost_seconds,
                "root_rank": each.root_rank,
                "ended": each.ended,
            }
            for each in goodput.attempts
        ],
    }
