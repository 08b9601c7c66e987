"""Writes docs/xids.md from the catalogue."""

from __future__ import annotations

from collections.abc import Mapping

from rankscope.rules.gpu_trouble import CLASSED
from rankscope.rules.xids import CATALOGUE, Catalogue, Xid


def xids_markdown(catalogue: Catalogue = CATALOGUE) -> str:
    """The page on every Xid."""
    lines = [
        "# Xids",
        "",
        "Generated from `rules/xids.toml` by `make generate`; do not edit.",
        "",
        f"Source: {catalogue.source} ({catalogue.revision}), in this project's words. An Xid is a likelihood, not a",
        "label: `means` is what has happened, the weights are where it can come from. The weights are a judgement from",
        "the conditions NVIDIA gives and from published causes of interruptions, not counts. A derivative Xid follows",
        "another and is never the root where that other precedes it.",
        "",
        "`finding` is the class that the Xid is evidence for. Where there is none, NVIDIA's words leave open whose",
        "fault it is, or say nothing: the finding of the rank that died then tells the Xid with its meaning, where it",
        "can come from and NVIDIA's action, and accuses nobody for it.",
        "",
        "| Xid | mnemonic | meaning | means | can come from | action | to find out why | finding | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(catalogue.xids[number]) for number in sorted(catalogue.xids)]
    lines += _table("What `means` says", "means", catalogue.meanings)
    lines += _table("Causes", "cause", catalogue.causes)
    lines += _table("NVIDIA's actions", "bucket", catalogue.buckets)
    lines += ["", "## Retired", "", "GPUs from Ampere on do not report these.", "", "| Xid | mnemonic |", "|---|---|"]
    lines += [f"| {number} | `{catalogue.retired[number]}` |" for number in sorted(catalogue.retired)]
    return "\n".join(lines) + "\n"


def _row(xid: Xid) -> str:
    causes = ", ".join(f"{cause} {weight:g}" for cause, weight in xid.causes.items())
    classes = [f"[{slug}](runbooks/{slug}.md)" for slug, numbers in CLASSED.items() if xid.number in numbers]
    cells = [
        str(xid.number),
        f"`{xid.mnemonic}`",
        xid.name,
        ", ".join(sorted(xid.means)),
        causes,
        f"`{xid.action}`" if xid.action else xid.advice or "",
        f"`{xid.investigate}`" if xid.investigate else "",
        ", ".join(classes),
        "derivative" if xid.derivative else "",
    ]
    return f"| {' | '.join(cells)} |"


def _table(title: str, column: str, texts: Mapping[str, str]) -> list[str]:
    rows = [f"| `{name}` | {text} |" for name, text in texts.items()]
    return ["", f"## {title}", "", f"| {column} | |", "|---|---|", *rows]
