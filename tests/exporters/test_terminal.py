"""The verdict on the terminal, at the widths people have."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import sample_window
from rich.console import Console

from rankscope.exporters.terminal import RANK_ROWS, print_verdict
from rankscope.finding import Advice, Side
from rankscope.reading import Severity


def shown(example: tuple, width: int = 80, *, terminal: bool = False) -> str:
    """What is printed for an example."""
    out = io.StringIO()
    window, verdict = example
    console = Console(file=out, width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    print_verdict(verdict, window, console)
    return out.getvalue()


def flat(text: str) -> str:
    """Printed text without frames and line breaks, so that sentences can be looked for."""
    return " ".join("".join(character if character not in "┃│╭╮╰╯━┏┓┗┛─" else " " for character in text).split())


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", sample_window.EXAMPLES)
def test_nothing_is_wider_than_the_terminal(name: str, width: int) -> None:
    """Every example fits a terminal of 80 and of 120 columns."""
    assert max(len(line) for line in shown(sample_window.EXAMPLES[name](), width).splitlines()) <= width


def test_the_verdict_comes_first_with_cost_and_action() -> None:
    """The first lines hold side, place, cost, confidence and what to do, before any table."""
    text = flat(shown(sample_window.thermal()))
    head = text[: text.index("GPU thermal slowdown")]
    assert head.startswith("job llama-8b-ft HARDWARE: GPU 2 (rank 2, host node-a")
    for part in ("24.1 ms a step (20 %)", "19.2 GPU-hours a day", "confidence 97 %", "step 103", "Do: Drain node-a"):
        assert part in head


def test_evidence_tells_value_peers_weight_and_what_was_not_seen() -> None:
    """Each piece of evidence stands beside its peers; what could not be seen is named."""
    text = flat(shown(sample_window.thermal(), 120))
    assert "own compute per step is above its peers (ms) 110.4 88.1 +3.9" in text
    assert "SM clock at equal work (MHz) 1,410 1,972" in text
    assert "Not seen: memory temperature: not offered by this GPU" in text
    assert "Not seen: kernel log: permission denied" in text
    assert "Cost of watching: agent 0.41 % of one core, 61.3 MB of memory, hooks 10.9 us a step" in text


def test_the_culprit_is_marked_among_the_ranks() -> None:
    """The row of the accused rank is marked, with its own compute above and its wait below the others'."""
    rows = [
        line.split()
        for line in shown(sample_window.thermal()).splitlines()
        if "GPU-3f2a" in line and "Where" not in line
    ]
    marked = [row for row in rows if row[0] == ">>"]
    assert [row[1] for row in marked] == ["2"]
    assert float(marked[0][4]) == pytest.approx(110, abs=1)
    assert float(marked[0][5]) == pytest.approx(4, abs=0.5)
    others = [row for row in rows if row[0] in "013"]
    assert len(others) == 3
    assert all(float(row[4]) > 20 for row in others)


def test_a_hang_shows_the_odd_stack_first() -> None:
    """Equal stacks are one group; the rank that stands elsewhere comes first, innermost frame first."""
    text = shown(sample_window.hang())
    odd, rest = text.index("rank 1  <- stands apart"), text.index("ranks 0, 2-3")
    assert odd < text.index("llama/tokens.py:41 fetch_vocabulary") < rest
    assert text.index("autograd/graph.py:841 _engine_run_backward") > rest
    assert text.count("_engine_run_backward") <= 2


def test_unknown_says_what_would_settle_it() -> None:
    """Without a cause, the next step is what would tell."""
    assert "Would settle it: Swap the GPUs of ranks 0 and 1" in flat(shown(sample_window.unknown()))


def test_a_doubtful_finding_gives_no_order() -> None:
    """Below the threshold the finding's action stands as a condition, not as what to do."""
    window, verdict = sample_window.thermal()
    text = flat(shown((window, replace(verdict, verdict="unknown"))))
    assert "Do:" not in text
    assert "If so: Drain node-a" in text


def test_healthy_with_something_to_watch_accuses_nobody() -> None:
    """A finding that is information only marks no rank and gives no order."""
    window, verdict = sample_window.thermal()
    watch = replace(verdict.findings[0], severity=Severity.INFO, advice=Advice.WATCH, side=Side.HARDWARE)
    text = shown((window, replace(verdict, verdict="healthy", summary="Healthy: all is well.", findings=(watch,))))
    assert flat(text).startswith("job llama-8b-ft HEALTHY: All is well.")
    assert ">>" not in text
    assert "Do:" not in text


def test_no_colour_where_nobody_looks() -> None:
    """Into a file or a pipe go no escape sequences; onto a terminal they do."""
    assert "\x1b" not in shown(sample_window.thermal())
    assert "\x1b[" in shown(sample_window.thermal(), terminal=True)


def test_foreign_names_cannot_move_the_cursor() -> None:
    """Escape sequences and marks that turn the writing round are shown, not obeyed; markup is text."""
    text = shown(sample_window.hostile(), 120)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\u202e" in text
    assert "\\x1b[31m" in flat(text)


def test_a_large_job_shows_the_accused_and_says_what_is_left_out() -> None:
    """Of many ranks the accused is always shown, and the number of those left out is said."""
    text = shown(sample_window.large(40, 30), 120)
    assert f"{40 - RANK_ROWS} more ranks are not shown." in text
    assert ">>     17" in text
