"""Stacks of many ranks made short: equal ones grouped, the odd one out first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from rankscope.exporters.rank_summary import accused_ranks
from rankscope.exporters.wording import visible
from rankscope.finding import Verdict
from rankscope.window import Window

# The form in which Python's faulthandler writes a frame and the title of a thread.
_FRAME = re.compile(r'^\s*File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$')
_THREAD = re.compile(r"^(?P<current>Current thread|Thread) 0x[0-9a-fA-F]+")
#: Frames shown of one stack, innermost first: enough to reach from a blocking call to the job's own code.
FRAMES = 8


@dataclass(frozen=True, slots=True)
class StackGroup:
    """Ranks whose training threads stand at the same place."""

    ranks: tuple[int, ...]
    #: Innermost first: "tokens.py:41 fetch_vocabulary".
    frames: tuple[str, ...]
    #: Frames left out below the last one.
    omitted: int


def stack_groups(verdict: Verdict, window: Window) -> list[StackGroup]:
    """The last stacks of every rank, grouped; groups with an accused rank first, then the smallest."""
    last = {event.rank: event.text for event in window.events if event.kind == "rank-stacks" and event.rank is not None}
    accused = {rank for finding in verdict.findings for rank in accused_ranks(finding, window)}
    grouped: dict[tuple[str, ...], list[int]] = {}
    for rank, text in sorted(last.items()):
        grouped.setdefault(training_thread(text), []).append(rank)
    groups = [
        StackGroup(tuple(ranks), frames[:FRAMES], max(0, len(frames) - FRAMES)) for frames, ranks in grouped.items()
    ]
    return sorted(groups, key=lambda group: (accused.isdisjoint(group.ranks), len(group.ranks), group.ranks))


def training_thread(text: str) -> tuple[str, ...]:
    """Frames of the thread that took the signal ("Current thread"), else of the last thread there is.

    Python runs signal handlers in the main thread and faulthandler names the one it interrupted. Text in another
    form is returned line by line, so that two ranks with equal text still fall into one group.
    """
    threads: list[tuple[bool, list[str]]] = []
    for line in text.splitlines():
        title, frame = _THREAD.match(line), _FRAME.match(line)
        if title:
            threads.append((title["current"] == "Current thread", []))
        elif frame:
            if not threads:
                threads.append((False, []))
            threads[-1][1].append(_frame_text(frame))
    for current, frames in reversed(threads):
        if current and frames:
            return tuple(frames)
    with_frames = [frames for _, frames in threads if frames]
    return tuple(
        with_frames[-1] if with_frames else (visible(line.strip()) for line in text.splitlines() if line.strip())
    )


def ranks_text(ranks: tuple[int, ...], limit: int = 12) -> str:
    """Ranks in short: "rank 1", "ranks 0, 2-7"; cut after `limit` stretches."""
    stretches: list[list[int]] = []
    for rank in ranks:
        if stretches and rank == stretches[-1][1] + 1:
            stretches[-1][1] = rank
        else:
            stretches.append([rank, rank])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in stretches[:limit]]
    more = f" and {len(stretches) - limit} more stretches" if len(stretches) > limit else ""
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(texts)}{more}"


def _frame_text(frame: re.Match[str]) -> str:
    name = PurePosixPath(frame["file"])
    # The directory tells torch/__init__.py from the job's own.
    short = "/".join(name.parts[-2:]) if len(name.parts) > 1 else str(name)
    return visible(f"{short}:{frame['line']} {frame['function']}")
