"""The attempts of a job that its launcher restarted: each one's own events, so that each is judged by itself."""

from __future__ import annotations

from dataclasses import replace

from rankscope.window import Attempt, Window

#: Of a job that restarts for ever, so many of its latest attempts are judged.
_JUDGED = 8


def by_attempt(window: Window) -> list[tuple[Attempt | None, Window]]:
    """The window once for every attempt, in order, with that attempt's events; the last one decides how the job ended.

    An attempt that another followed has failed, whatever its ranks said. Counters and steps are the whole window's.
    """
    attempts = sorted(window.attempts, key=lambda each: each.begin_ns)[-_JUDGED:]
    if len(attempts) < 2:
        return [(None, window)]
    found: list[tuple[Attempt | None, Window]] = []
    for place, attempt in enumerate(attempts):
        last = place == len(attempts) - 1
        begin = attempt.begin_ns if place else window.begin_ns
        end = window.end_ns + 1 if last else attempts[place + 1].begin_ns
        # The end of a rank is noticed a little late; it is known by its process whenever it comes.
        others = {process for other in attempts if other is not attempt for process in other.processes}
        events = [
            event
            for event in window.events
            if (process := (event.host, event.attributes.get("pid"))) in attempt.processes
            or (begin <= event.time_ns < end and process not in others)
        ]
        status = window.job_status if last else 1
        found.append((attempt, replace(window, events=events, job_status=status)))
    return found
