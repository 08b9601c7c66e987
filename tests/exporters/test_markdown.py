"""The hand-off page: everything the recording knows stands in it, and text from outside cannot become markup."""

from __future__ import annotations

import re

import pytest
import sample_window

from rankscope.exporters.markdown import hand_off_markdown
from rankscope.handoff import Choice, HandOff, Price, RuledOut

HAND_OFF = HandOff(
    ruled_out=[RuledOut("gc-pause", "Python's collector pauses", "code", "gc", "0.0 ms a step", -8.0, 0.001)],
    still_open=[("GPU clocks are set low", 0.2)],
    choices=[Choice("go on as it is", 0.0, 19.2, "what is lost"), Choice("restart", None, None, "not known")],
    prices=[Price("rank 2", 24.0, 0.2)],
    made_of={"commit": "abc", "arguments": "--lr | 3 <b>"},
)


def page(name: str, hand_off: HandOff = HAND_OFF) -> str:
    """The page of an example."""
    window, verdict = sample_window.EXAMPLES[name]()
    return hand_off_markdown(verdict, window, hand_off)


@pytest.mark.parametrize("name", sample_window.EXAMPLES)
def test_every_example_has_every_section_in_order(name: str) -> None:
    """Verdicts of every kind make a page with the same sections; tables have as many cells as their heads."""
    text = page(name)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Timeline",
        "Evidence",
        "Ruled out",
        "What can be done",
        "What would come back",
        "Open questions",
        "What ran",
        "Post-mortem",
    ]
    width = None
    for line in text.splitlines():
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert width in (None, cells), line
            width = cells
        else:
            width = None


def test_the_page_says_what_the_verdict_says() -> None:
    """Word, place, price, evidence, what was ruled out, what it costs and what is open."""
    text = page("thermal")
    for said in (
        "**HARDWARE.**",
        "24.1 ms a step (20 %)",
        "share of time in hardware thermal slowdown",
        "Python's collector pauses",
        "| go on as it is | 0 | 19.2 |",
        "| restart | ? | ? |",
        "GPU clocks are set low (20 %)",
        "| rank 2 | 24 ms | 20 % |",
        "Could not be seen: kernel log: permission denied",
        "Blameless",
    ):
        assert said in text, said


def test_the_timeline_is_in_order() -> None:
    """From the begin of the recording to its end."""
    times = re.findall(r"^\| `(.*?) UTC` \|", page("thermal"), re.MULTILINE)
    assert times == sorted(times)
    assert len(times) >= 4


def test_text_from_outside_is_only_text() -> None:
    """Names that would be markup, links, tags or a second row of a table stay what they are."""
    text = page("hostile", HandOff(made_of={"arguments": "a | b <script> [x](http://y) `z`\n# head"}))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"(?<!\\)\]\(http", text)
    assert not re.search(r"^# head", text, re.MULTILINE)


def test_a_healthy_job_has_nothing_to_hand_over_but_says_so() -> None:
    """No finding: no evidence, nothing ruled out, no choices."""
    text = page("healthy", HandOff())
    assert "Nothing was found." in text
    assert "What can be done" not in text
