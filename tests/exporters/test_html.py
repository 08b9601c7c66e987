"""The page in a real browser: what it draws, that it asks for nothing, and what hostile names cannot do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sample_window
from browser import Browser, Page, chromium
from components import need

from rankscope.exporters.html import asset, content_hash, html_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests here."""
    with chromium(need("chromium")) as started:
        yield started


def opened(browser: Browser, folder: Path, example: tuple, *, dark: bool = False) -> Page:
    """An example's page, loaded and drawn."""
    window, verdict = example
    path = folder / "report.html"
    path.write_text(html_page(verdict, window), encoding="utf-8")
    page = browser.open(path.as_uri(), dark=dark)
    page.wait("document.documentElement.dataset.ready")
    return page


#: Number of pixels of a lane's canvas that are not transparent, and how many colours they have.
COLOURS = """(rank => {
  const canvas = document.querySelector(`.lane[data-rank="${rank}"] canvas`);
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return new Set(pixels.filter(pixel => pixel >>> 24 === 255)).size;
})"""


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += f" {data}"


def test_every_rank_has_a_lane_that_was_drawn(browser: Browser, tmp_path: Path) -> None:
    """All 300 steps of all four ranks are on canvases that hold several colours, and nothing complained."""
    page = opened(browser, tmp_path, sample_window.thermal())
    drawn = page.evaluate(
        "[...document.querySelectorAll('.lane')].map(lane => [lane.dataset.rank, lane.dataset.drawn])"
    )
    assert drawn == [["0", "300"], ["1", "300"], ["2", "300"], ["3", "300"]]
    for rank in range(4):
        assert page.evaluate(f"{COLOURS}({rank})") >= 5
    assert page.evaluate("[...document.querySelectorAll('.lane.accused')].map(lane => lane.dataset.rank)") == ["2"]
    assert page.complaints == []


@pytest.mark.parametrize("name", sample_window.EXAMPLES)
def test_nothing_is_requested_and_nothing_fails(browser: Browser, tmp_path: Path, name: str) -> None:
    """The page loads its own file and nothing else, in the light and the dark, without an error."""
    page = opened(browser, tmp_path, sample_window.EXAMPLES[name](), dark=name == "unknown")
    own = (tmp_path / "report.html").as_uri()
    assert [url for url in page.requests if url != own and not url.startswith("data:")] == []
    assert page.complaints == []


def test_the_policy_refuses_scripts_and_requests(browser: Browser, tmp_path: Path) -> None:
    """A script that got into the page would not run, and code on the page could not call out."""
    page = opened(browser, tmp_path, sample_window.healthy())
    page.evaluate(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.intruder = 1';"
        "document.body.append(script); })()"
    )
    assert page.evaluate("window.intruder === undefined")
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in line for line in page.complaints)
    assert not any(url.startswith("http") for url in page.requests)


def test_hostile_names_are_text(browser: Browser, tmp_path: Path) -> None:
    """Markup, quotes, line breaks and direction marks in names are shown as written; none of it acts."""
    page = opened(browser, tmp_path, sample_window.hostile())
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert page.evaluate("document.querySelectorAll('a:not(.skip)').length") == 0
    text = page.evaluate("document.body.innerText")
    assert "x</script><script>alert(1)</script>\"'&\\n\\u202egnp.exe\\x1b[31m" in text
    source = (tmp_path / "report.html").read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\u200e\u200f\u202a-\u202e\u2066-\u2069]", source)
    assert "<script>alert" not in source
    assert page.complaints == []


def test_the_tooltip_tells_the_step_under_the_pointer(browser: Browser, tmp_path: Path) -> None:
    """Over the culprit's late steps it tells rank, step, own time, clock and the names of the clock's reasons."""
    page = opened(browser, tmp_path, sample_window.thermal())
    left, top, width = middle_of_lane(page, 2)
    page.mouse("mouseMoved", left + width * 0.9, top)
    text = page.wait("!document.getElementById('tooltip').hidden && document.getElementById('tooltip').innerText")
    assert re.search(r"rank 2, step 27\d", text)
    assert re.search(r"backward, own\s+7\d\.\d ms", text)
    assert re.search(r"SM clock\s+14\d\d MHz|SM clock\s+1395 MHz", text)
    assert "software thermal slowdown + hardware thermal slowdown" in text


def test_zoom_by_wheel_drag_and_keys(browser: Browser, tmp_path: Path) -> None:
    """Ctrl and wheel, a drag and keys narrow the view; a double click and 0 show the whole run again."""
    page = opened(browser, tmp_path, sample_window.thermal())
    whole = page.evaluate("document.documentElement.dataset.view")
    left, top, width = middle_of_lane(page, 1)

    def span() -> int:
        first, last = page.evaluate("document.documentElement.dataset.view").split("-")
        return int(last) - int(first)

    full = span()
    page.mouse("mouseWheel", left + width / 2, top, deltaX=0, deltaY=-200, modifiers=2)
    page.wait(f"document.documentElement.dataset.view !== '{whole}'")
    assert span() < full / 2
    page.evaluate("document.getElementById('reset').click()")
    page.wait(f"document.documentElement.dataset.view === '{whole}'")
    page.mouse("mousePressed", left + width * 0.25, top, button="left", clickCount=1)
    page.mouse("mouseMoved", left + width * 0.5, top, button="left")
    page.mouse("mouseReleased", left + width * 0.5, top, button="left", clickCount=1)
    page.wait(f"document.documentElement.dataset.view !== '{whole}'")
    assert span() == pytest.approx(full / 4, rel=0.02)
    assert int(page.evaluate("document.querySelector('.lane[data-rank=\"0\"]').dataset.drawn")) < 150
    page.evaluate("document.querySelector('.lane[data-rank=\"1\"] canvas').focus()")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="0")
    page.wait(f"document.documentElement.dataset.view === '{whole}'")


def test_findings_read_without_a_script() -> None:
    """The document itself tells verdict, evidence, basis, what was not seen, action, runbook and ranks, in order."""
    window, verdict = sample_window.thermal()
    text = " ".join(Elements(html_page(verdict, window)).text.split())
    parts = (
        "HARDWARE: GPU 2 (rank 2, host node-a",
        "24.1 ms",
        "Confidence 97 %",
        "Do: Drain node-a",
        "share of time in hardware thermal slowdown 0.93 0",
        "device-compute",
        "memory temperature: not offered by this GPU",
        "Checkpoint stall",
        "Not seen in this run kernel log: permission denied",
        "Ranks",
        "Timeline",
        "Cost of watching: agent 0.41 % of one core",
    )
    places = [text.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)
    assert "rankscope runbook gpu-thermal-slowdown" in text


def test_a_hang_shows_the_odd_stack_before_the_others() -> None:
    """The stack of the rank that stands apart precedes the group of the rest."""
    window, verdict = sample_window.hang()
    text = Elements(html_page(verdict, window)).text
    assert -1 < text.find("rank 1, apart from the others") < text.find("fetch_vocabulary", text.find("Stacks of"))
    assert text.find("fetch_vocabulary", text.find("Stacks of")) < text.find("ranks 0, 2-3")


def test_an_unknown_verdict_says_what_would_settle_it() -> None:
    """Without a cause the page tells the next question."""
    window, verdict = sample_window.unknown()
    text = Elements(html_page(verdict, window)).text
    assert "What would settle it" in text
    assert "does the slowness follow the GPU or the rank?" in text


def test_the_document_refers_to_nothing() -> None:
    """No element names a resource, and the policy admits exactly the page's own script and style sheet."""
    window, verdict = sample_window.thermal()
    tags = Elements(html_page(verdict, window)).tags
    refers = [
        (tag, name, value)
        for tag, attributes in tags
        for name, value in attributes.items()
        if name in ("src", "href", "data", "action", "srcset", "style") and not str(value).startswith(("#", "data:"))
    ]
    assert refers == []
    policy = next(attributes["content"] for tag, attributes in tags if attributes.get("http-equiv"))
    script = content_hash("\n".join(asset(name) for name in ("lanes.js", "page.js")))
    assert f"script-src '{script}'" in str(policy)
    assert str(policy).startswith("default-src 'none'")
    assert "unsafe" not in str(policy)


def _luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(theme: int) -> None:
    """Text and side colours stand at 4.5 to 1 or more against page and card (WCAG AA), light and dark."""
    block = re.findall(r":root[^{]*\{([^}]*)\}", asset("page.css"))[theme]
    colours = dict(re.findall(r"--([a-z_]+): (#[0-9a-f]{6})", block))
    for ground in ("page", "card"):
        for name in ("ink", "quiet", "hardware", "environment", "code", "healthy", "unknown", "warning", "focus"):
            light, dark = sorted((_luminance(colours[ground]), _luminance(colours[name])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, name)


def middle_of_lane(page: Page, rank: int) -> tuple[float, float, float]:
    """Left edge, a height within the steps and the width of a rank's canvas, scrolled into view."""
    lane = f"document.querySelector('.lane[data-rank=\"{rank}\"] canvas')"
    page.evaluate(f"{lane}.scrollIntoView({{block: 'center'}})")
    left, top, width = page.evaluate(
        f"(() => {{ const b = {lane}.getBoundingClientRect(); return [b.left, b.top, b.width]; }})()"
    )
    return left, top + 20, width
