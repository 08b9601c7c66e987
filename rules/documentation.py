"""docs/classes.md, generated from the evidence table and the list of faults."""

from __future__ import annotations

from rankscope.rules.faults import FAULTS, Fault
from rankscope.rules.table import Alternative, FaultClass, Table, load


def page(table: Table) -> str:
    """The page on every class: side, what speaks for and against it, what to do."""
    lines = [
        "# Classes",
        "",
        "Generated from `rules/classes.toml` and `rules/faults.toml` by `make generate`; do not edit.",
        "",
        "Every class has exactly one side. A finding names a class where its posterior probability is at least",
        f"{table.threshold:.0%}; below that the answer is `{table.unknown.slug}` (for a crash or hang, the likeliest",
        "class with its low confidence) and the verdict is `unknown`, with what would settle it. Numbers in the",
        "evidence columns are log-odds in nats: +5 is about 150 to 1. A family of evidence counts once; one that",
        "could not be seen adds nothing and is listed in `not_seen`.",
        "",
        "A site puts its own numbers in their places with a TOML file of the same form that holds only what differs",
        "(`rules.classes_file` in the configuration, `rankscope report --classes FILE`):",
        "",
        "```toml",
        "threshold = 0.9",
        "[class.noisy-neighbour.priors]",
        "one-rank-slow = 0.2",
        "[class.noisy-neighbour.evidence]",
        "foreign = [7.0, -5.0]",
        "```",
        "",
        "Sides and places are fixed, and an unknown key is refused.",
        "",
        "| class | side | place | what it is | runbook |",
        "|---|---|---|---|---|",
    ]
    for slug, of in table.classes.items():
        link = f"[page]({_relative(of.runbook)})"
        lines.append(f"| [`{slug}`](#{slug}) | {of.side} | {of.place} | {of.title} | {link} |")
    lines += _frozen(table)
    lines += ["", "## Families of evidence", "", "| family | looks at |", "|---|---|"]
    lines += [f"| `{family}` | {what} |" for family, what in table.families.items()]
    lines += ["", "## What a slowness must cost to be told", "", "| symptom | least share of the step |", "|---|---|"]
    lines += [f"| {symptom} | {share:.1%} |" for symptom, share in table.relevant.items()]
    for of in table.classes.values():
        lines += _section(of)
    lines += ["", "## Normal variation", "", "Raises no finding: what every healthy machine does.", ""]
    lines += _numbers(table.normal)
    return "\n".join(lines) + "\n"


def _frozen(table: Table) -> list[str]:
    lines = [
        "",
        "## The list of faults",
        "",
        "Every class of fault and slowdown this project knows, with its one side. *observable*: it shows in how ranks,",
        "phases and counters move together. *parsing*: one log line or counter says it outright, and a right verdict",
        "only proves that it was read. *not-observable*: cannot be known by watching. *normal*: no fault.",
        "",
        "| number | class | side | seen | what | told |",
        "|---|---|---|---|---|---|",
    ]
    for fault in sorted(FAULTS.values(), key=lambda each: each.number):
        told = "yes" if fault.slug in table.classes else "not yet" if fault.told else "never"
        lines.append(_row(fault, told))
    return lines


def _row(fault: Fault, told: str) -> str:
    return f"| {fault.number} | `{fault.slug}` | {fault.side} | {fault.seen} | {fault.what} | {told} |"


def _section(of: FaultClass) -> list[str]:
    lines = ["", f"## {of.slug}", "", f"{of.title}. Side: **{of.side}**.", ""]
    lines += _numbers(of)
    lines += ["", f"Action: {of.action}", "", f"What settles it: {of.settles}", ""]
    lines += [f"Sources: {'; '.join(of.sources)}."]
    return lines


def _numbers(of: Alternative) -> list[str]:
    priors = ", ".join(f"{symptom} {prior:g}" for symptom, prior in of.priors.items())
    lines = [f"Prior weight by symptom: {priors}."]
    if of.evidence:
        lines += ["", "| family | there | looked for, not there |", "|---|---|---|"]
        lines += [f"| `{name}` | {odds.present:+g} | {odds.absent:+g} |" for name, odds in of.evidence.items()]
    return lines


def _relative(runbook: str) -> str:
    return runbook.removeprefix("docs/")


def classes_markdown() -> str:
    """The text of docs/classes.md."""
    return page(load())
