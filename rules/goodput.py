"""Goodput: productive step time over wall time, over all attempts of a job, and where the rest went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankscope.finding import AttemptSummary, Goodput
from rankscope.rules.failure import OWN, Failure
from rankscope.rules.first_failure import FirstFailure, first_failure
from rankscope.window import Attempt, Window

#: Steps at the begin of an attempt in which loaders fill, allocators grow and code is compiled.
WARM_UP_STEPS = 10
_SECOND_NS = 1e9


@dataclass(frozen=True, slots=True)
class _Spent:
    """One attempt's time from its first step to its last, in seconds."""

    productive: float = 0.0
    warm_up: float = 0.0
    checkpoint: float = 0.0
    evaluation: float = 0.0
    #: Part of the productive time after the last checkpoint; None where there was none.
    uncovered: float | None = None


def goodput(window: Window) -> Goodput | None:
    """Where the wall time of the window went, or None where no rank finished a step.

    Every attempt is followed by its rank with the most steps: ranks of a job move together. Work is lost where an
    attempt fails after its last checkpoint, as far as checkpoints were seen.
    """
    attempts = sorted(window.attempts, key=lambda each: each.begin_ns)
    if not any(len(each.steps) for each in attempts):
        return None
    first = min(window.begin_ns, attempts[0].begin_ns)
    last = max([window.end_ns, *(each.end_ns for each in attempts)])
    spent = [_spent(each) for each in attempts]
    failures = [
        _failure(window, each, following) for each, following in zip(attempts, [*attempts[1:], None], strict=True)
    ]
    lost = [each.uncovered if failed else 0.0 for each, (failed, _) in zip(spent, failures, strict=True)]
    start = requeue = stalled = 0.0
    end = float(first)
    for place, attempt in enumerate(attempts):
        # Ranks of the next attempt may attach while the last of the one before is being ended.
        begin = max(float(attempt.begin_ns), end)
        if place:
            requeue += begin - end
        else:
            start += begin - end
        following = attempts[place + 1].begin_ns if place + 1 < len(attempts) else last
        until = max(begin, min(float(attempt.end_ns if place + 1 < len(attempts) else last), float(following)))
        if len(attempt.steps):
            stepped = float(attempt.steps.columns["start_ns"][0])
            ended = float(attempt.steps.columns["end_ns"][-1])
            start += max(0.0, stepped - begin)
            until = max(until, ended)
            stalled += until - ended
        else:
            stalled += until - begin
        end = until
    known = [each for each in lost if each is not None]
    rollback = sum(known) if len(known) == len(lost) else None
    return Goodput(
        wall_seconds=(max(float(last), end) - first) / _SECOND_NS,
        productive_seconds=sum(each.productive for each in spent) - sum(known),
        start_seconds=start / _SECOND_NS,
        warm_up_seconds=sum(each.warm_up for each in spent),
        checkpoint_seconds=sum(each.checkpoint for each in spent),
        evaluation_seconds=sum(each.evaluation for each in spent),
        rollback_seconds=rollback,
        requeue_seconds=requeue / _SECOND_NS,
        stalled_seconds=stalled / _SECOND_NS,
        attempts=tuple(
            AttemptSummary(
                number=each.number,
                begin_ns=each.begin_ns,
                seconds=(each.end_ns - each.begin_ns) / _SECOND_NS,
                ranks=each.ranks,
                steps=len(each.steps),
                lost_seconds=gone,
                root_rank=root.rank if root is not None else None,
                ended=_ended(window, each, failed, root),
            )
            for each, gone, (failed, root) in zip(attempts, lost, failures, strict=True)
        ),
    )


def _spent(attempt: Attempt) -> _Spent:
    if not len(attempt.steps):
        return _Spent()
    start, end, checkpoint, evaluation = (
        np.nan_to_num(np.asarray(attempt.steps.columns[name], dtype=float)) / _SECOND_NS
        for name in ("start_ns", "end_ns", "checkpoint_ns", "evaluation_ns")
    )
    # From one step's begin to the next one's: where records were thinned, the steps between belong to it.
    whole = np.append(np.diff(start), end[-1] - start[-1])
    work = np.maximum(0.0, whole - checkpoint - evaluation)
    usual = float(np.median(work[WARM_UP_STEPS:] if len(work) > 2 * WARM_UP_STEPS else work))
    excess = np.zeros(len(work))
    steps = np.asarray(attempt.steps.columns["step"], dtype=float)
    # The first steps of the attempt, not of what is left of a thinned or cut record.
    early = (steps < steps[0] + WARM_UP_STEPS) & (steps < WARM_UP_STEPS + 1)
    excess[early] = np.maximum(0.0, work[early] - usual)
    productive = work - excess
    saved = np.flatnonzero(checkpoint > 0)
    # A checkpoint of a step holds the work up to it.
    uncovered = float(productive[saved[-1] + 1 :].sum()) if len(saved) else None
    return _Spent(
        float(productive.sum()), float(excess.sum()), float(checkpoint.sum()), float(evaluation.sum()), uncovered
    )


def _failure(window: Window, attempt: Attempt, following: Attempt | None) -> tuple[bool, FirstFailure | None]:
    """Whether an attempt failed, and its first failing rank."""
    found = first_failure(_failures(window, attempt), attempt.ranks)
    if following is None:
        return window.job_status not in (0, None), found if window.job_status else None
    if following.number == attempt.number:
        # No restart but another launch by the same command, which a launch that ended well may have before it.
        return found is not None, found
    # Another attempt followed: whatever the ranks said, this one did not get to its end.
    return True, found


def _failures(window: Window, attempt: Attempt) -> Sequence[Failure]:
    failures = []
    for event in window.events:
        if event.rank is None or (event.host, event.attributes.get("pid")) not in attempt.processes:
            continue
        if event.kind == "rank-exception":
            failures.append(Failure(event.rank, event.time_ns, event.text, host=event.host))
        elif event.kind == "rank-exited" and (
            event.attributes.get("clean") not in (1, True) or event.attributes.get("status")
        ):
            signal, status = (event.attributes.get(name) for name in ("signal", "status"))
            failures.append(
                Failure(
                    event.rank,
                    event.time_ns,
                    signal=signal if isinstance(signal, int) else None,
                    status=status if isinstance(status, int) else None,
                    host=event.host,
                )
            )
    return failures


def _ended(window: Window, attempt: Attempt, failed: bool, root: FirstFailure | None) -> str:
    # A signal to the job that came while this attempt ran, and not after its ranks had failed by themselves.
    signalled = [
        event.text
        for event in window.events
        if event.kind == "job-signalled" and attempt.begin_ns <= event.time_ns <= attempt.end_ns
    ]
    if signalled and (root is None or root.kind not in OWN):
        return f"stopped: {signalled[0]}"[:300]
    if not failed:
        return "still running or ended well"
    if root is None:
        return "ended, and no rank said why"
    words = root.failure.text if root.failure is not None and root.failure.text else root.why
    return words[:300]
