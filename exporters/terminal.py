"""The verdict on the terminal: the sentence first, then why, then the ranks, then what watching cost."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rankscope.exporters import goodput, wording
from rankscope.exporters.rank_summary import RankSummary, summarise_ranks, table_rows
from rankscope.exporters.stacks import StackGroup, ranks_text, stack_groups
from rankscope.exporters.verdict_json import anchor_of
from rankscope.finding import Finding, Goodput, Verdict
from rankscope.window import Window

_COLOURS = {"hardware": "red", "environment": "yellow", "code": "magenta", "healthy": "green", "unknown": "cyan"}
#: Ranks shown in the table; the accused are always among them.
RANK_ROWS = 16
#: Findings shown in full; the rest get a line each.
FULL_FINDINGS = 3
#: Ranks that stopped, with a line each.
STATES = 6
#: Things of a list that stand in one line; more get a line each.
IN_A_LINE = 2
#: Attempts with a line each.
ATTEMPTS = 6


def print_verdict(verdict: Verdict, window: Window, console: Console) -> None:
    """Print the verdict. Names from outside are printed as plain text: no markup, no escape sequence of theirs."""
    console.print(_banner(verdict, window))
    for index, finding in enumerate(verdict.findings):
        if index < FULL_FINDINGS:
            console.print(_finding(finding, window, decides=finding is wording.deciding(verdict)))
        else:
            console.print(_one_line(finding))
    groups = stack_groups(verdict, window)
    if groups:
        console.print(_stacks(groups, console.width))
    if window.ranks:
        console.print(_ranks(summarise_ranks(verdict, window), console.width))
    if training := wording.progress_texts(verdict):
        console.print(_list("Training", tuple(training), "cyan"))
    if verdict.not_seen:
        console.print(_list("Not seen", verdict.not_seen, "yellow"))
    if verdict.goodput is not None:
        console.print(_goodput(verdict.goodput))
    console.print(_line("Cost of watching", ", ".join(wording.overhead_texts(verdict))))


def _banner(verdict: Verdict, window: Window) -> RenderableType:
    colour = _COLOURS.get(verdict.verdict, "cyan")
    word, sentence = wording.headline(verdict)
    parts: list[RenderableType] = [Text.assemble((f"{word}: ", f"bold {colour}"), (sentence, "bold"))]
    first, sure = wording.leading(verdict), wording.deciding(verdict)
    if first is not None:
        wall = anchor_of(first.where.host, window.anchors).to_wall_ns(first.since_ns)
        seen = "" if first.detected_step is None else f", seen at step {first.detected_step}"
        facts = [
            *wording.impact_texts(first.impact),
            f"since {wording.wall_time(wall)}{seen}",
            f"confidence {wording.percent(first.confidence)}, basis {first.basis}",
            f"advice: {first.advice}",
        ]
        parts.append(Text(" | ".join(facts), style=colour))
    if sure is not None and sure.action:
        parts.append(_line("Do", wording.visible(sure.action)))
    parts.extend(_line("Would settle it", wording.visible(text)) for text in verdict.would_settle)
    if window.job_status:
        status = window.job_status
        ended = f"signal {status - 128}" if status > 128 else f"status {status}"
        parts.append(Text(f"The job ended with {ended}.", style="dim"))
    return Panel(Group(*parts), box=box.HEAVY, border_style=colour, title=Text(f" job {wording.visible(window.job)} "))


def _finding(finding: Finding, window: Window, *, decides: bool) -> RenderableType:
    colour = _COLOURS[finding.side]
    title = Text.assemble(
        (wording.class_title(finding), f"bold {colour}"),
        f"  {finding.side}, {finding.severity}, {wording.percent(finding.confidence)}",
    )
    parts: list[RenderableType] = [title]
    if not decides:
        parts.append(Text(wording.visible(finding.summary)))
        cost = wording.impact_texts(finding.impact)
        if cost:
            parts.append(_line("Cost", ", ".join(cost)))
    where = ", ".join(f"{name} {value}" for name, value in wording.place(finding.where, window.gpus))
    if where:
        parts.append(_line("Where", where))
    parts.append(_line("Basis", f"{finding.basis} ({wording.BASIS_MEANING[finding.basis]})"))
    if finding.evidence:
        parts.append(_evidence(finding))
    if finding.not_seen:
        parts.append(_list("Not seen", finding.not_seen, "yellow"))
    if finding.action and not decides:
        parts.append(_line("If so", wording.visible(finding.action)))
    parts.append(_line("Runbook", wording.runbook_text(finding.runbook)))
    return Group(*parts, Text())


def _one_line(finding: Finding) -> Text:
    text = f"{finding.side}, {wording.percent(finding.confidence)}: {wording.visible(finding.summary)}"
    return Text.assemble((wording.class_title(finding), f"bold {_COLOURS[finding.side]}"), f"  {text}")


def _evidence(finding: Finding) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("family", no_wrap=True, max_width=14)
    table.add_column("evidence", ratio=1)
    table.add_column("value", justify="right", max_width=26)
    table.add_column("peers", justify="right", max_width=26)
    table.add_column("weight", justify="right", no_wrap=True)
    family = None
    for piece in finding.evidence:
        name = wording.visible(piece.family)
        value, peers = wording.evidence_values(piece)
        table.add_row(
            # A family is one event and counts once: its name stands once.
            Text("" if name == family else name, style="bold"),
            Text(wording.visible(piece.what)),
            Text(value),
            Text("-" if peers is None else peers),
            Text(f"{piece.log_odds:+.1f}" if piece.log_odds else "", style="bold"),
        )
        family = name
    return table


def _stacks(groups: list[StackGroup], width: int) -> RenderableType:
    parts: list[RenderableType] = [Text("Stacks of the training threads", style="bold")]
    for group in groups:
        odd = len(groups) > 1 and group is groups[0]
        parts.append(
            Text(f"{ranks_text(group.ranks)}{'  <- stands apart' if odd else ''}", style="bold red" if odd else "bold")
        )
        parts.extend(Text(f"  {frame}"[:width]) for frame in group.frames)
        if group.omitted:
            parts.append(Text(f"  ... {group.omitted} more", style="dim"))
    return Group(*parts, Text())


def _ranks(ranks: list[RankSummary], width: int) -> RenderableType:
    shown = table_rows(ranks, RANK_ROWS)
    several_hosts = len({rank.host for rank in ranks}) > 1
    on_device = any(rank.on_device for rank in ranks)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", title_justify="left", title_style="bold")
    table.title = f"Ranks, median ms a step ({'device' if on_device else 'host'} times for own, wait, data)"
    table.add_column("", no_wrap=True)
    for name in ("rank", "last step", "step", "own", "wait", "data"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("GPU", no_wrap=True)
    if several_hosts and width >= 100:
        table.add_column("host", no_wrap=True, max_width=24)
    for rank in shown:
        cells = [
            ">>" if rank.accused else "",
            str(rank.rank),
            "-" if rank.last_step is None else str(rank.last_step),
            *(_cell(value) for value in (rank.step_ms, rank.own_ms, rank.wait_ms, rank.data_ms)),
            rank.gpu,
        ]
        if several_hosts and width >= 100:
            cells.append(rank.host)
        table.add_row(*(Text(cell) for cell in cells), style="bold red" if rank.accused else "")
    parts: list[RenderableType] = [table]
    if len(shown) < len(ranks):
        parts.append(Text(f"{len(ranks) - len(shown)} more ranks are not shown.", style="dim"))
    stopped = sorted((rank for rank in ranks if rank.state), key=lambda rank: not rank.accused)
    parts.extend(Text(rank.state) for rank in stopped[:STATES])
    if len(stopped) > STATES:
        parts.append(Text(f"{len(stopped) - STATES} more ranks stopped too.", style="dim"))
    return Group(*parts)


def _goodput(found: Goodput) -> RenderableType:
    lines: list[RenderableType] = [_line("Goodput", goodput.headline(found))]
    rest = [f"{part.name} {part.share}" for part in goodput.parts(found)[1:]]
    if rest:
        lines.append(Text(f"  the rest: {', '.join(rest)}", style="dim"))
    if len(found.attempts) > 1:
        lines.extend(Text(f"  {goodput.attempt_text(attempt)}") for attempt in found.attempts[:ATTEMPTS])
        if len(found.attempts) > ATTEMPTS:
            lines.append(Text(f"  {len(found.attempts) - ATTEMPTS} more attempts", style="dim"))
    return Group(*lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _line(name: str, text: str) -> Text:
    return Text.assemble((f"{name}: ", "bold"), text)


def _list(name: str, lines: tuple[str, ...], colour: str) -> Text:
    shown = [wording.visible(line) for line in lines]
    # Many in one paragraph are read by nobody.
    told = "; ".join(shown) if len(shown) <= IN_A_LINE else "".join(f"\n  - {line}" for line in shown)
    return Text.assemble((f"{name}:", f"bold {colour}"), told if told[:1] == "\n" else f" {told}")
