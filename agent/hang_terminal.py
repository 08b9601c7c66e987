"""A comparison of flight-recorder dumps for a person at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rankscope.exporters.wording import visible
from rankscope.rules.flight import Frame, Operation
from rankscope.rules.flight_suspects import Comparison, Suspect
from rankscope.rules.flight_wait import Stuck
from rankscope.rules.flight_wording import operation_text, ranks_text

_SUSPECTS = 8
_OPERATIONS = 12
_FRAMES = 4
#: Directories of calls that say nothing of the job's own code.
_LIBRARIES = ("/torch/", "/site-packages/", "/dist-packages/", "/lib/python")


def print_comparison(comparison: Comparison, console: Console, *, show_all: bool = False) -> None:
    """Suspects with their reasons, mismatches with both sides, and who is missing in which collective."""
    console.print(Text(visible(comparison.summary), style="bold"))
    console.print(f"{len(comparison.ranks)} of {comparison.world_size} ranks left a dump.", style="dim")
    if comparison.suspects:
        console.print(_suspects(comparison.suspects))
    for mismatch in comparison.mismatches:
        past = "  (all ranks got past it)" if mismatch.passed else ""
        title = f"{mismatch.kind} mismatch in group {mismatch.group.name}, sequence {mismatch.sequence}{past}"
        console.print(Text(visible(f"\n{title}: {mismatch.text}"), style="yellow" if past else "red"))
        for ranks, operation in mismatch.sides[:4]:
            console.print(Text(visible(f"  {ranks_text(ranks)}: {_call(operation)}")))
            for line in stack_lines(operation.frames):
                console.print(Text(f"      {line}", style="dim"))
    shown = comparison.stuck if show_all else comparison.stuck[:_OPERATIONS]
    if shown:
        console.print(_operations(shown))
    if len(shown) < len(comparison.stuck):
        console.print(
            f"{len(comparison.stuck) - len(shown)} more operations do not end (--all shows them)", style="dim"
        )
    for note in comparison.notes:
        console.print(Text(visible(f"note: {note}"), style="dim"))


def _suspects(suspects: Sequence[Suspect]) -> Table:
    table = Table(title="suspects, the first most", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("rank", "why", "waiting for it", "last operation, and where it was called"):
        table.add_column(name, overflow="fold", justify="right" if name == "rank" else "left")
    for suspect in suspects[:_SUSPECTS]:
        last = "none is recorded"
        if suspect.last is not None:
            last = "\n".join([_call(suspect.last), *stack_lines(suspect.last.frames)])
        waiting = ranks_text(sorted(suspect.waiting)) if suspect.waiting else "nobody"
        why = "\n".join(dict.fromkeys(suspect.reasons))
        table.add_row(str(suspect.rank), *(escape(visible_lines(text)) for text in (why, waiting, last)))
    if len(suspects) > _SUSPECTS:
        table.caption = f"and {len(suspects) - _SUSPECTS} more"
    return table


def _operations(stuck: Sequence[Stuck]) -> Table:
    table = Table(title="\noperations that do not end", title_justify="left", show_edge=False, pad_edge=False)
    stacks = any(each.operation.frames for each in stuck)
    for name in ("operation", "waiting", "missing", *(["called at"] if stacks else [])):
        table.add_column(name, overflow="fold")
    for each in stuck:
        cells = (
            operation_text(each),
            ranks_text(each.waiting),
            _missing(each),
            *(["\n".join(stack_lines(each.operation.frames)) or "no stack in the dump"] if stacks else []),
        )
        table.add_row(*(escape(visible_lines(cell)) for cell in cells))
    if not stacks:
        table.caption = "no stacks in these dumps (TORCH_INCLUDE_STACK_TRACE)"
        table.caption_justify = "left"
    return table


def _missing(stuck: Stuck) -> str:
    told = []
    for ranks, what in (
        (stuck.absent, "has not come"),
        (stuck.held, "is still before it"),
        (stuck.past, "is past it"),
        (stuck.unseen, "left no dump"),
    ):
        if ranks:
            told.append(f"{ranks_text(ranks)} {what}" if len(ranks) == 1 else f"{ranks_text(ranks)}: {what}")
    return "\n".join(told) or "nobody: all members are in it"


def _call(operation: Operation) -> str:
    sizes = "" if operation.input_sizes is None else f" {list(map(list, operation.input_sizes))}"
    kinds = "" if not operation.input_dtypes else f" {'/'.join(dict.fromkeys(operation.input_dtypes))}"
    peer = "" if operation.peer is None else f" with rank {operation.peer}"
    return f"{operation.name}{peer} {operation.sequence}{sizes}{kinds}, {operation.state}"


def stack_lines(frames: Sequence[Frame]) -> list[str]:
    """A stack in short, innermost first: the job's own calls where there are any."""
    own = [frame for frame in frames if not any(part in frame.file for part in _LIBRARIES)]
    return [
        f"{'/'.join(PurePosixPath(frame.file).parts[-2:])}:{'?' if frame.line is None else frame.line} {frame.function}"
        for frame in (own or list(frames))[:_FRAMES]
    ]


def visible_lines(text: str) -> str:
    """Text whose only control characters are line ends."""
    return "\n".join(visible(line) for line in text.split("\n"))
