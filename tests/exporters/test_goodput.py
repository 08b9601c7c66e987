"""Goodput on every surface: JSON by its schema, terminal and page in the same words, hostile text included."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import sample_window
from rich.console import Console

from rankscope.exporters.goodput import duration
from rankscope.exporters.html import html_page
from rankscope.exporters.rank_summary import RankSummary, table_rows
from rankscope.exporters.terminal import print_verdict
from rankscope.exporters.verdict_json import verdict_document
from rankscope.finding import AttemptSummary, Goodput, Verdict
from rankscope.reading import Event
from rankscope.window import Window

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/verdict.schema.json").read_text())
HOSTILE = "rank 2 ended with <script>alert(1)</script> \x1b[31mValueError[/red]"


def sample(rollback: float | None = 12.5) -> tuple[Verdict, Window]:
    """A verdict with two attempts."""
    window, verdict = sample_window.thermal()
    attempts = (
        AttemptSummary(0, window.begin_ns, 200.0, 4, 120, rollback, 2, HOSTILE),
        AttemptSummary(1, window.begin_ns + 10**9, 90.0, 4, 60, 0.0, None, "still running or ended well"),
    )
    found = Goodput(300.0, 200.0, 20.0, 7.5, 30.0, 0.0, rollback, 20.0, 10.0, attempts)
    return replace(verdict, goodput=found), window


def test_json() -> None:
    """The verdict's schema takes it, null for what is not known included."""
    for rollback in (12.5, None):
        verdict, window = sample(rollback)
        document = json.loads(json.dumps(verdict_document(verdict, window.anchors), allow_nan=False))
        jsonschema.validate(document, SCHEMA)
        assert document["goodput"]["rollback_seconds"] == rollback
        assert document["goodput"]["attempts"][0]["root_rank"] == 2
    without = verdict_document(replace(verdict, goodput=None), window.anchors)
    assert "goodput" not in without
    jsonschema.validate(without, SCHEMA)


def test_terminal() -> None:
    """One line says the share, another where the rest went, one more each attempt; no escape of theirs gets through."""
    verdict, window = sample()
    console = Console(file=io.StringIO(), width=200)
    print_verdict(verdict, window, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Goodput: 67 % of 5 min 00 s went into steps that count, over 2 attempts" in shown
    assert "between attempts 6.7 %" in shown
    assert "attempt 0: 120 steps on 4 ranks in 3 min 20 s, 12.5 s of work lost" in shown
    assert "\x1b" not in shown


def test_upper_bound() -> None:
    """Where no checkpoint was seen the share is an upper bound, and says so."""
    verdict, window = sample(None)
    console = Console(file=io.StringIO(), width=200)
    print_verdict(verdict, window, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Goodput: at most 67 %" in shown
    assert "not known" in shown


def test_page() -> None:
    """The page has a table of it, and what ranks said stays text."""
    verdict, window = sample()
    page = html_page(verdict, window)
    assert "<h2>Goodput</h2>" in page
    assert "steps lost after the last checkpoint" in page
    assert "<script>alert(1)" not in page


def test_durations() -> None:
    """Seconds, minutes and hours, rounded once."""
    assert [duration(each) for each in (0.04, 119.94, 120, 3599.6, 7199.4, 7200, 90_061)] == [
        "0.0 s",
        "119.9 s",
        "2 min 00 s",
        "60 min 00 s",
        "119 min 59 s",
        "2 h 00 min",
        "25 h 01 min",
    ]


def test_states_of_an_earlier_attempt() -> None:
    """How a rank's process of an earlier attempt ended is not told as the end of the one that is shown."""
    verdict, window = sample()
    pid = window.ranks[3].identity.pid
    for number, shown in ((pid, True), (pid + 100_000, False)):
        event = Event("rank-exited", window.begin_ns, "rank 3 was ended by SIGKILL", rank=3, attributes={"pid": number})
        console = Console(file=io.StringIO(), width=200)
        print_verdict(verdict, replace(window, events=[event]), console)
        assert ("SIGKILL" in console.file.getvalue()) == shown  # type: ignore[attr-defined]


def test_the_accused_is_shown_among_thousands() -> None:
    """Where every rank of a large job has something to say, the accused one is in the table all the same."""
    ranks = [
        RankSummary(rank, "a", "-", 9, 8, 1.0, 1.0, 0.0, 0.0, on_device=False, accused=(), state="a peer is gone")
        for rank in range(64)
    ]
    ranks[50] = replace(ranks[50], accused=("rank-exception",))
    assert 50 in [rank.rank for rank in table_rows(ranks, 16)]
