"""Writes docs/classes.md from the evidence table: `python -m rankscope.rules.documentation [FILE]`."""

from __future__ import annotations

import sys
from pathlib import Path

from rankscope.rules.table import Alternative, FaultClass, Table, load

DEFAULT = Path("docs/classes.md")


def page(table: Table) -> str:
    """The page on every class: side, what speaks for and against it, what to do."""
    lines = [
        "# Classes",
        "",
        "Generated from `rules/classes.toml` by `python -m rankscope.rules.documentation`; do not edit.",
        "",
        "Every class has exactly one side. A finding names a class where its posterior probability is at least",
        f"{table.threshold:.0%}; below that the answer is `{table.unknown.slug}` (for a crash or hang, the likeliest",
        "class with its low confidence) and the verdict is `unknown`, with what would settle it. Numbers in the",
        "evidence columns are log-odds in nats: +5 is about 150 to 1. A family of evidence counts once; one that",
        "could not be seen adds nothing and is listed in `not_seen`.",
        "",
        "| class | side | place | what it is | runbook |",
        "|---|---|---|---|---|",
    ]
    for slug, of in table.classes.items():
        link = f"[page]({_relative(of.runbook)})"
        lines.append(f"| [`{slug}`](#{slug}) | {of.side} | {of.place} | {of.title} | {link} |")
    lines += ["", "## Families of evidence", "", "| family | looks at |", "|---|---|"]
    lines += [f"| `{family}` | {what} |" for family, what in table.families.items()]
    lines += ["", "## What a slowness must cost to be told", "", "| symptom | least share of the step |", "|---|---|"]
    lines += [f"| {symptom} | {share:.1%} |" for symptom, share in table.relevant.items()]
    for of in table.classes.values():
        lines += _section(of)
    lines += ["", "## Normal variation", "", "Raises no finding: what every healthy machine does.", ""]
    lines += _numbers(table.normal)
    return "\n".join(lines) + "\n"


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


def main() -> None:
    """Write the page to the file named, or to docs/classes.md."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    target.write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
