"""Pieces of the page that need no script: banner, findings, stacks, ranks, events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rankscope.exporters import goodput, wording
from rankscope.exporters.rank_summary import RankSummary, table_rows
from rankscope.exporters.stacks import StackGroup, ranks_text
from rankscope.exporters.verdict_json import anchor_of
from rankscope.finding import Evidence, Finding, Verdict
from rankscope.window import Window

#: Findings on a page; the rest are in the JSON.
FINDINGS = 30
#: Events in the table.
EVENT_ROWS = 100
#: Attempts of the job with a line each.
_ATTEMPTS = 20
#: Ranks in the table before it is unfolded.
RANK_ROWS = 12


def text(value: object) -> str:
    """Foreign text for any place in the page: one line, printable, escaped."""
    return escape(wording.visible(str(value)), quote=True)


def job_line(window: Window, begin_wall_ns: int, span_ns: int) -> str:
    """What was watched: job, size, time."""
    hosts = sorted({seen.identity.host for seen in window.ranks.values()})
    place = f"host {text(hosts[0])}" if len(hosts) == 1 else f"{len(hosts)} hosts"
    steps = max((len(seen.steps) for seen in window.ranks.values()), default=0)
    facts = [
        f"job <bdi>{text(window.job)}</bdi>",
        f"{window.world_size} {'rank' if window.world_size == 1 else 'ranks'} on <bdi>{place}</bdi>",
        f"{steps:,} steps in {wording.duration(span_ns)}",
        f"from {wording.wall_time(begin_wall_ns)}",
    ]
    if window.job_status is not None:
        facts.append(status_text(window.job_status))
    return "</span><span>".join(facts)


def status_text(status: int) -> str:
    """How a job ended, from its exit status as a shell tells it."""
    return f"ended by signal {status - 128}" if status > 128 else f"ended with status {status}"


def banner(verdict: Verdict, window: Window) -> str:
    """The verdict in one sentence, its numbers, and what to do."""
    word, sentence = wording.headline(verdict)
    blocks = [f"<h1><b>{escape(word)}:</b> <bdi>{escape(sentence)}</bdi></h1>"]
    first, sure = wording.leading(verdict), wording.deciding(verdict)
    if first is not None:
        blocks.append(_statistics(first, window))
    if sure is not None and sure.action:
        blocks.append(f'<p class="do"><b>Do:</b> <bdi>{text(sure.action)}</bdi></p>')
    if verdict.would_settle:
        blocks.append("<h3>What would settle it</h3>")
        blocks.append(f'<ul class="settle">{_items(verdict.would_settle)}</ul>')
    return f'<div class="banner">{"".join(blocks)}</div>'


def _statistics(finding: Finding, window: Window) -> str:
    wall = anchor_of(finding.where.host, window.anchors).to_wall_ns(finding.since_ns)
    day, clock = wording.wall_time(wall).split(" ", 1)
    impact = finding.impact
    pairs = []
    if impact.ms_per_step is not None:
        share = "" if impact.fraction_of_step is None else f"{wording.percent(impact.fraction_of_step)} of the step"
        pairs.append(("Costs a step", wording.milliseconds(impact.ms_per_step), share))
    if impact.gpu_hours_per_day is not None:
        pairs.append(("GPU-hours lost a day", wording.number(impact.gpu_hours_per_day, 3), ""))
    if finding.detected_step is not None:
        pairs.append(("Seen from step", str(finding.detected_step), ""))
    pairs.append(("Since", clock, day))
    pairs.append(("Confidence", wording.percent(finding.confidence), f"advice: {finding.advice}"))
    cells = (
        f"<div><dt>{name}</dt><dd>{text(value)}{f'<small>{text(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in pairs
    )
    return f'<dl class="stats">{"".join(cells)}</dl>'


def findings(verdict: Verdict, window: Window) -> str:
    """Every finding; the one that leads stands open, the others unfold."""
    leading, decides = wording.leading(verdict), wording.deciding(verdict)
    heaviest = max((abs(piece.log_odds) for found in verdict.findings for piece in found.evidence), default=1.0) or 1.0
    blocks = [
        _finding(found, window, heaviest, leads=found is leading, decides=found is decides)
        for found in verdict.findings[:FINDINGS]
    ]
    rest = len(verdict.findings) - FINDINGS
    if rest > 0:
        blocks.append(f'<p class="note box">{rest} more findings are in the JSON of this verdict.</p>')
    return "".join(blocks)


def _finding(finding: Finding, window: Window, heaviest: float, *, leads: bool, decides: bool) -> str:
    chips = [f'<span class="chip side">{text(finding.side)}</span>']
    plain = [finding.severity, f"{wording.percent(finding.confidence)} sure", f"advice: {finding.advice}"]
    if not leads:
        plain += wording.impact_texts(finding.impact)
    chips += [f'<span class="chip">{text(chip)}</span>' for chip in plain]
    title = f'<span class="title"><h2>{text(wording.class_title(finding))}</h2>{"".join(chips)}</span>'
    summary = "" if decides else f"<p><bdi>{text(finding.summary)}</bdi></p>"
    evidence = (
        _evidence(finding.evidence, heaviest) if finding.evidence else '<p class="note">No evidence is listed.</p>'
    )
    runbook = f'<p class="runbook"><b>Runbook:</b> {_link(finding.runbook)}</p>' if finding.runbook else ""
    left, right = (
        f'<div class="scroll">{evidence}{runbook}</div>',
        _facts(finding, window, leads=leads, decides=decides),
    )
    body = f'{summary}<div class="columns">{left}{right}</div>'
    if leads:
        return f'<article class="finding side-{finding.side.value}">{title}{body}</article>'
    return f'<details class="finding side-{finding.side.value}"><summary>{title}</summary>{body}</details>'


def _facts(finding: Finding, window: Window, *, leads: bool, decides: bool) -> str:
    rows = "".join(
        f"<dt>{name}</dt><dd><bdi>{escape(value)}</bdi></dd>"
        for name, value in wording.place(finding.where, window.gpus)
    )
    blocks = [f"<div><h3>Where</h3><dl>{rows}</dl></div>"] if rows else []
    if not leads:
        wall = anchor_of(finding.where.host, window.anchors).to_wall_ns(finding.since_ns)
        blocks.append(f"<div><h3>Since</h3>{wording.wall_time(wall)}</div>")
    basis = f"{finding.basis}: {wording.BASIS_MEANING[finding.basis]}"
    blocks.append(f"<div><h3>Rests on</h3>{text(basis)}</div>")
    if finding.not_seen:
        blocks.append(f'<div><h3>Not seen</h3><ul class="plain unseen">{_items(finding.not_seen)}</ul></div>')
    if finding.action and not decides:
        blocks.append(f"<div><h3>If so</h3><bdi>{text(finding.action)}</bdi></div>")
    return f'<div class="facts">{"".join(blocks)}</div>'


def _link(target: str) -> str:
    """A link where it is one to the web; else a command or a path, for no other scheme may be clicked."""
    if target.startswith("https://"):
        return f'<a href="{text(target)}" rel="noopener noreferrer">{text(target)}</a>'
    return f"<code>{text(wording.runbook_text(target))}</code>"


def _evidence(evidence: Sequence[Evidence], heaviest: float) -> str:
    rows = []
    before = None
    for piece in evidence:
        # A family is one event and counts once: its name stands once.
        again = piece.family == before
        family = "" if again else text(piece.family)
        before = piece.family
        value, peers = wording.evidence_values(piece)
        rows.append(
            f'<tr><td class="family">{family}</td><td class="what"><bdi>{text(piece.what)}</bdi></td>'
            f"{_value(value, piece.value)}"
            f"{'<td class=number></td>' if peers is None else _value(peers, piece.peers)}"
            f'<td class="weight">{_weight(piece.log_odds, heaviest, again=again)}</td></tr>'
        )
    head = "<th>Family<th>Evidence<th class=number>Value<th class=number>Peers<th>Weight"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _value(told: str, value: float | str | None) -> str:
    kind = "number text" if isinstance(value, str) else "number"
    return f'<td class="{kind}"><bdi>{escape(told)}</bdi></td>'


def _weight(log_odds: float, heaviest: float, *, again: bool) -> str:
    if not log_odds:
        return f'<span class="quiet">{"counted above" if again else "-"}</span>'
    width = min(60.0, 60 * abs(log_odds) / heaviest)
    kind = "side" if log_odds > 0 else "minus"
    return (
        '<svg width="60" height="10" aria-hidden="true"><rect class="track" width="60" height="10" rx="2"/>'
        f'<rect class="{kind}" width="{width:.1f}" height="10" rx="2"/></svg>{log_odds:+.1f}'
    )


def stacks(groups: Sequence[StackGroup]) -> str:
    """Where the training threads stand, the odd one out first."""
    blocks = []
    for index, group in enumerate(groups[:20]):
        odd = index == 0 and len(groups) > 1
        more = f'<li class="quiet">{group.omitted} more</li>' if group.omitted else ""
        frames = "".join(f"<li>{escape(frame)}</li>" for frame in group.frames)
        who = f"{ranks_text(group.ranks)}{', apart from the others' if odd else ''}"
        blocks.append(f'<div class="stack{" odd" if odd else ""}"><b>{who}</b><ol>{frames}{more}</ol></div>')
    return f'<section class="card"><h2>Stacks of the training threads</h2>{"".join(blocks)}</section>' if blocks else ""


def not_seen(verdict: Verdict) -> str:
    """What this verdict could not look at."""
    if not verdict.not_seen:
        return ""
    lines = f'<ul class="plain unseen">{_items(verdict.not_seen)}</ul>'
    return f'<div class="unseen-line"><b>Not seen in this run</b>{lines}</div>'


def ranks(shown: Sequence[RankSummary], total: int) -> str:
    """The table of ranks, with the parts of a step as a bar; a long one unfolds."""
    if not shown:
        return ""
    basis = "own compute and waits on the device's clock" if any(rank.on_device for rank in shown) else "host times"
    left = f" {total - len(shown)} of {total} ranks are left out." if total > len(shown) else ""
    few = table_rows(shown, RANK_ROWS)
    everything = (
        ""
        if len(few) == len(shown)
        else (f'<details class="more"><summary>All {len(shown)} ranks</summary>{_rank_table(shown)}</details>')
    )
    return (
        f'<section class="card"><h2>Ranks</h2><p class="note">Medians a step in ms while the first finding lasts '
        f"(else of the whole run); {basis}.{left}</p>{_rank_table(few)}{everything}</section>"
    )


def _rank_table(shown: Sequence[RankSummary]) -> str:
    longest = max(rank.step_ms or 0.0 for rank in shown) or 1.0
    several = len({rank.host for rank in shown}) > 1
    head = "<th>Rank<th class=number>Last step<th class=number>Step<th class=number>Own compute<th class=number>Wait"
    head += "<th class=number>Data wait<th class=mix>Mix of a step<th>GPU" + ("<th>Host" if several else "") + "<th>"
    rows = "".join(_rank_row(rank, longest, several=several) for rank in shown)
    table = f'<table class="ranks"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _rank_row(rank: RankSummary, longest: float, *, several: bool) -> str:
    cells = "".join(
        f'<td class="number">{"-" if value is None else f"{value:,.1f}"}</td>'
        for value in (rank.step_ms, rank.own_ms, rank.wait_ms, rank.data_ms)
    )
    flag = f'<span class="flag">{text(", ".join(rank.accused))}</span> {text(rank.state)}'
    host = f"<td><bdi>{escape(rank.host)}</bdi></td>" if several else ""
    last = "-" if rank.last_step is None else str(rank.last_step)
    return (
        f'<tr{" class=accused" if rank.accused else ""}><td>{rank.rank}</td><td class="number">{last}</td>{cells}'
        f'<td class="mix">{_mix(rank, longest)}</td><td class="gpu">{escape(rank.gpu)}</td>{host}<td>{flag}</td></tr>'
    )


def _mix(rank: RankSummary, longest: float) -> str:
    """Own compute, data wait, the rest and the wait for others, as parts of the longest step."""
    told = [("own", rank.own_ms or 0.0), ("data", rank.data_ms or 0.0), ("wait", rank.wait_ms or 0.0)]
    rest = max(0.0, (rank.step_ms or 0.0) - sum(value for _, value in told))
    rects = ['<rect class="track" width="100" height="14"/>']
    begin = 0.0
    for kind, value in (told[0], told[1], ("rest", rest), told[2]):
        width = min(100 * value / longest, 100 - begin)
        rects.append(f'<rect class="{kind}" x="{begin:.2f}" width="{width:.2f}" height="14"/>')
        begin += width
    drawn = "".join(rects)
    return f'<svg viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'


def timeline_note(shown: Sequence[RankSummary], data: Mapping[str, Any]) -> str:
    """What a reader must know to read the lanes."""
    if not shown:
        return "No rank was seen, so there is nothing to draw."
    notes = ["Height is time a step, on one scale for all ranks. Zoomed in, a step shows its phases side by side."]
    if any(rank.on_device for rank in shown):
        notes.append("Phases are timed on the device and placed at the host's steps, in the usual order.")
    else:
        notes.append("Phases are host times, in the usual order.")
    reduced, left_out = data["reduced"], data["left_out"]
    if reduced > 1:
        notes.append(f"To keep this page small, a bar is the mean of up to {reduced} steps (range in the tooltip).")
    if left_out:
        notes.append(f"{left_out} ranks without a finding are left out.")
    cut = [(data["from_us"], "before the first full step"), (data["span_us"] - data["to_us"], "after the last step")]
    told = [f"{wording.duration(us * 1_000)} {when}" for us, when in cut if us > (data["to_us"] - data["from_us"]) / 20]
    if told:
        notes.append(f"Not drawn: {' and '.join(told)}.")
    return " ".join(notes)


def events(marks: Sequence[dict[str, Any]], total: int) -> str:
    """What happened, as a table that opens."""
    if not marks:
        return ""
    grave = sorted(marks, key=lambda mark: {"critical": 0, "warning": 1}.get(mark["severity"], 2))[:EVENT_ROWS]
    rows = "".join(
        f'<tr><td class="number">{mark["t"] / 1e6:,.1f} s</td><td class="severity-{text(mark["severity"])}">'
        f"{text(mark['kind'])}</td><td>{'' if mark['rank'] is None else int(mark['rank'])}</td>"
        f"<td><bdi>{text(mark['text'])}</bdi></td></tr>"
        for mark in sorted(grave, key=lambda mark: mark["t"])
    )
    note = f" ({len(grave)} of {total}, the gravest)" if total > len(grave) else ""
    head = "<th class=number>Time<th>Event<th>Rank<th>Text"
    return (
        f'<details class="finding"><summary><span class="title"><h2>Events</h2><span class="note">{total}{note}</span>'
        f'</span></summary><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</details>"
    )


def progress(verdict: Verdict) -> str:
    """How training itself got on; nothing where the loop said nothing."""
    told = wording.progress_texts(verdict)
    return f"<p><b>Training:</b> <bdi>{text('; '.join(told))}</bdi>.</p>" if told else ""


def overhead(verdict: Verdict) -> str:
    """What the watching cost."""
    return text(", ".join(wording.overhead_texts(verdict)))


def goodput_section(verdict: Verdict) -> str:
    """Where the wall time went, and how each attempt ended."""
    found = verdict.goodput
    if found is None:
        return ""
    rows = ""
    for part in goodput.parts(found):
        took = "" if part.seconds is None else text(goodput.duration(part.seconds))
        rows += f"<tr><td>{text(part.name)}<td class=number>{took}<td class=number>{text(part.share)}"
    attempts = ""
    if len(found.attempts) > 1:
        attempts = f"<ul>{_items(goodput.attempt_text(attempt) for attempt in found.attempts[:_ATTEMPTS])}</ul>"
    head = "<th>Time<th class=number>Duration<th class=number>Share"
    return (
        f'<section class="card"><h2>Goodput</h2><p>{text(goodput.headline(found))}.</p><div class="scroll">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{attempts}</section>"
    )


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li><bdi>{text(line)}</bdi></li>" for line in lines)
