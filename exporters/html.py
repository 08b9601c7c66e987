"""The verdict as one self-contained page: it asks for nothing from outside and says all but the timeline without a
script.

Names on the page come from hosts, jobs and exceptions, so they are hostile input: everything is escaped here or set
as text by the script, and the page's own security policy admits this one script and style sheet by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from string import Template
from typing import Any

import rankscope
from rankscope.exporters import html_parts as parts
from rankscope.exporters.lane import PHASES
from rankscope.exporters.rank_summary import summarise_ranks
from rankscope.exporters.stacks import stack_groups
from rankscope.exporters.timeline import choose_lanes, timeline
from rankscope.finding import Verdict
from rankscope.window import Window

_SCRIPTS = ("lanes.js", "page.js")
VERDICTS = frozenset({"hardware", "environment", "code", "healthy", "unknown"})


def html_page(verdict: Verdict, window: Window) -> str:
    """The page: below 3 MB whatever the size of the job. Raises ExportError where no host's clock is known."""
    summaries = summarise_ranks(verdict, window)
    data = timeline(verdict, window, summaries)
    data["phases"] = [[slug, name] for slug, name in PHASES.items()]
    shown = choose_lanes(summaries)
    style, script = asset("page.css"), "\n".join(asset(name) for name in _SCRIPTS)
    return Template(asset("page.html")).substitute(
        title=parts.text(f"{verdict.verdict}: {window.job}"),
        style=style,
        style_hash=content_hash(style),
        script=script,
        script_hash=content_hash(script),
        # A class name and a colour: never text from elsewhere.
        verdict=verdict.verdict if verdict.verdict in VERDICTS else "unknown",
        job=parts.job_line(window, data["begin_wall_ms"] * 1_000_000, data["span_us"] * 1_000),
        banner=parts.banner(verdict, window),
        findings=parts.findings(verdict, window),
        stacks=parts.stacks(stack_groups(verdict, window)),
        not_seen=parts.not_seen(verdict),
        ranks=parts.ranks(shown, len(summaries)),
        timeline_note=parts.timeline_note(shown, data),
        events=parts.events(data["events"], len(window.events)),
        goodput=parts.goodput_section(verdict),
        overhead=parts.overhead(verdict),
        progress=parts.progress(verdict),
        made=f"rankscope {rankscope.__version__}",
        data=embedded(data),
    )


@cache
def asset(name: str) -> str:
    """A file of the page, as shipped with the package."""
    return (resources.files("rankscope.exporters") / "report" / name).read_text(encoding="utf-8")


def content_hash(content: str) -> str:
    """The hash by which a security policy admits one inline script or style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    encoded = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
