"""An incident handed over as one Markdown page: what happened, why, what it is not, what can be done, what is open.

What the recording knows is filled in; what only people know stands as a question. The page asks for conditions and
decisions, not for names.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from rankscope.exporters import wording
from rankscope.exporters.verdict_json import anchor_of
from rankscope.finding import Finding, Verdict
from rankscope.handoff import Choice, HandOff, Price
from rankscope.reading import Event, Severity
from rankscope.window import Window

#: Events in the timeline; the most severe stay.
EVENTS = 40
#: Rows of evidence of one finding, findings with evidence, classes ruled out.
_EVIDENCE, _FINDINGS, _RULED_OUT = 12, 5, 20
_SPECIAL = re.compile(r"([\\`*_{}\[\]|~#])")
#: Events that every run has many of.
_USUAL = frozenset({"rank-attached", "agent-started", "agent-stopped", "burst", "gpu-described", "readings-thinned"})


def hand_off_markdown(verdict: Verdict, window: Window, hand_off: HandOff) -> str:
    """The page. Text from outside is escaped: it cannot become markup."""
    sections = [
        _head(verdict, window),
        _timeline(verdict, window),
        _findings(verdict),
        _ruled_out(hand_off, verdict),
        _choices(hand_off.choices),
        _prices(hand_off.prices),
        _open(verdict, hand_off),
        _made_of(hand_off),
        _post_mortem(verdict),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _safe(text: str) -> str:
    """Foreign text as plain text of one line."""
    return _SPECIAL.sub(r"\\\1", html.escape(wording.visible(text), quote=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _head(verdict: Verdict, window: Window) -> str:
    word, sentence = wording.headline(verdict)
    lines = [f"# Incident: job {_safe(window.job)}", f"**{_safe(word)}.** {_safe(sentence)}"]
    first = wording.leading(verdict)
    hosts = sorted(window.anchors)
    facts = [
        ("job", f"{_safe(window.job)}, {window.world_size} ranks on {_safe(', '.join(hosts[:8]))}"),
        ("recorded", f"{_wall(window, None, window.begin_ns)} to {_wall(window, None, window.end_ns)}"),
        ("state", _state(window)),
    ]
    if first is not None:
        facts += [
            ("since", _wall(window, first.where.host, first.since_ns)),
            ("cost", _safe(", ".join(wording.impact_texts(first.impact)) or "not known")),
            ("confidence", f"{wording.percent(first.confidence)}, basis {_safe(first.basis)}"),
            ("advice", _safe(first.advice)),
        ]
    return "\n\n".join([*lines, _table(("", ""), facts)])


def _state(window: Window) -> str:
    status = window.job_status
    if status is None:
        return "not seen to end"
    if status > 128:
        return f"ended by signal {status - 128}"
    return "ended well" if status == 0 else f"ended with status {status}"


def _wall(window: Window, host: str | None, time_ns: int) -> str:
    return wording.wall_time(anchor_of(host, window.anchors).to_wall_ns(time_ns))


def _timeline(verdict: Verdict, window: Window) -> str:
    rows: list[tuple[int, str]] = [(window.begin_ns, "recording begins")]
    for finding in verdict.findings:
        title = wording.class_title(finding)
        seen = "" if finding.detected_step is None else f"; seen at step {finding.detected_step}"
        rows.append((finding.since_ns, f"**{_safe(title)}** begins: {_safe(finding.summary)}{seen}"))
        if finding.until_ns is not None:
            rows.append((finding.until_ns, f"**{_safe(title)}** is over"))
    told, left_out = _told_events(window.events)
    rows += [(event.time_ns, _event(event)) for event in told]
    rows.append((window.end_ns, f"recording ends; the job {_state(window)}"))
    rows.sort(key=lambda row: row[0])
    lines = [(f"`{_wall(window, None, time_ns)}`", text) for time_ns, text in rows]
    text = f"## Timeline\n\n{_table(('UTC', 'what'), lines)}"
    return f"{text}\n\n{left_out} further events are in the recording." if left_out else text


def _told_events(events: Sequence[Event]) -> tuple[list[Event], int]:
    """The events that a reader needs, in order, and how many were left out."""
    order = {Severity.CRITICAL: 0, Severity.WARNING: 1, Severity.INFO: 2}
    wanted = [
        event for event in events if event.kind not in _USUAL and event.kind not in ("rank-stacks", "rank-flight")
    ]
    chosen = sorted(wanted, key=lambda event: (order[event.severity], event.time_ns))[:EVENTS]
    return sorted(chosen, key=lambda event: event.time_ns), len(wanted) - len(chosen)


def _event(event: Event) -> str:
    mark = "" if event.severity is Severity.INFO else f" ({event.severity})"
    where = "" if not event.host else f" on {_safe(event.host)}"
    return f"{_safe(event.kind)}{mark}{where}: {_safe((wording.event_text(event).splitlines() or [''])[0])}"


def _findings(verdict: Verdict) -> str:
    if not verdict.findings:
        return "## Evidence\n\nNothing was found."
    parts = ["## Evidence", *(_finding(finding) for finding in verdict.findings[:_FINDINGS])]
    rest = verdict.findings[_FINDINGS:]
    if rest:
        parts.append("\n".join(f"- {_safe(wording.class_title(one))}: {_safe(one.summary)}" for one in rest))
    return "\n\n".join(parts)


def _finding(finding: Finding) -> str:
    title = f"### {_safe(wording.class_title(finding))} ({_safe(finding.side)}, {wording.percent(finding.confidence)})"
    place = ", ".join(f"{name} {_safe(value)}" for name, value in wording.place(finding.where))
    lines = [title, _safe(finding.summary)]
    if place:
        lines.append(f"Where: {place}.")
    rows = [
        (
            _safe(piece.family),
            _safe(piece.what),
            *(_safe(told or "") for told in wording.evidence_values(piece)),
            f"{piece.log_odds:+.1f}" if piece.log_odds else "",
        )
        for piece in finding.evidence[:_EVIDENCE]
    ]
    if rows:
        lines.append(_table(("family", "evidence", "value", "peers", "weight"), rows))
    if finding.not_seen:
        lines.append("Not seen: " + "; ".join(_safe(text) for text in finding.not_seen) + ".")
    return "\n\n".join(lines)


def _ruled_out(hand_off: HandOff, verdict: Verdict) -> str:
    if not hand_off.ruled_out:
        text = "nothing was found to be explained" if not verdict.findings else "no class could be excluded for sure"
        return f"## Ruled out\n\nNothing: {text}."
    rows = [
        (_safe(gone.title), gone.side, _safe(gone.why), f"{gone.log_odds:+.1f}")
        for gone in hand_off.ruled_out[:_RULED_OUT]
    ]
    text = f"## Ruled out\n\n{_table(('what', 'side', 'because', 'weight'), rows)}"
    rest = len(hand_off.ruled_out) - len(rows)
    return f"{text}\n\n{rest} more." if rest > 0 else text


def _choices(choices: Sequence[Choice]) -> str:
    if not choices:
        return ""
    rows = [
        (
            _safe(choice.what),
            _hours(choice.cost_once_gpu_hours),
            _hours(choice.cost_per_day_gpu_hours),
            _safe(choice.remark),
        )
        for choice in choices
    ]
    head = ("choice", "GPU-hours once", "GPU-hours a day", "what that rests on")
    return f"## What can be done\n\n{_table(head, rows)}"


def _prices(prices: Sequence[Price]) -> str:
    if not prices:
        return ""
    rows = [
        (_safe(price.what), wording.milliseconds(price.ms_per_step), wording.percent(price.share_of_step))
        for price in prices
    ]
    head = ("if it were like its peers", "comes back a step", "of the step")
    note = (
        "Over all judged steps of the recording, also those before it began, and against the mean of all. "
        "They do not add up: a slow rank is in its phase and its host too."
    )
    return f"## What would come back\n\n{_table(head, rows)}\n\n{note}"


def _hours(value: float | None) -> str:
    return "?" if value is None else wording.number(value, 3)


def _open(verdict: Verdict, hand_off: HandOff) -> str:
    lines = [f"- {_safe(text)}" for text in verdict.would_settle]
    lines += [
        f"- Not told and not ruled out: {_safe(title)} ({wording.percent(share)})"
        for title, share in hand_off.still_open
    ]
    lines += [f"- Could not be seen: {_safe(text)}" for text in verdict.not_seen]
    lines.append(
        "- What changed before it began: a deployment, a driver, data, a neighbour? (`rankscope compare GOOD BAD`)"
    )
    return "## Open questions\n\n" + "\n".join(lines)


def _made_of(hand_off: HandOff) -> str:
    if not hand_off.made_of:
        return ""
    rows = [(_safe(name), _safe(value)) for name, value in hand_off.made_of.items()]
    return f"## What ran\n\n{_table(('', ''), rows)}"


def _post_mortem(verdict: Verdict) -> str:
    first = wording.leading(verdict)
    impact = ", ".join(wording.impact_texts(first.impact)) if first is not None else ""
    detected = "(time from the begin to the first person who knew)"
    if first is not None and first.detected_step is not None:
        detected = f"seen in the recording at step {first.detected_step}; {detected}"
    cause = "(unknown)" if first is None else _safe(wording.class_title(first))
    return f"""## Post-mortem

Blameless: describe conditions and decisions with what was known at the time, and no names of people.

- **Summary:** {_safe(verdict.summary)}
- **Impact:** {_safe(impact) or "(what was lost, for whom)"}; (who was affected, and how they knew)
- **Detection:** {detected}
- **Response:** (what was tried, in order, and what each told)
- **Cause:** {cause}; (what made it possible, and what made it worse)
- **What helped:** ( )
- **Where we were lucky:** ( )
- **Why it was not seen or stopped earlier:** ( )

| action | prevents, detects or mitigates | owner (role) | until |
|---|---|---|---|
| ( ) | ( ) | ( ) | ( ) |"""
