"""`report --markdown`: gathers what an incident's page needs beside the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankscope.agent.fingerprint import Fingerprints, load_fingerprints
from rankscope.finding import Verdict
from rankscope.handoff import HandOff
from rankscope.window import Window

#: Facts of ranks and of hosts on the page, in this order.
_RANK_FACTS = ("commit", "script", "arguments", "python", "torch", "cuda", "nccl", "os")
_HOST_FACTS = ("kernel", "driver", "gpu_driver", "cpu")


def hand_off(paths: Sequence[Path], verdict: Verdict, window: Window) -> HandOff:
    """What was ruled out, what can be done, and what the run was made of. Raises RecordingError."""
    from rankscope.rules.mitigation import choices
    from rankscope.rules.ruled_out import ruled_out

    gone, still_open = ruled_out(window)
    told = {finding.class_slug for finding in verdict.findings}
    return HandOff(
        ruled_out=[each for each in gone if each.class_slug not in told],
        still_open=still_open,
        choices=choices(verdict, window),
        made_of=_made_of(load_fingerprints(paths)),
    )


def markdown_page(paths: Sequence[Path], verdict: Verdict, window: Window) -> str:
    """The page of `report --markdown`."""
    from rankscope.exporters.markdown import hand_off_markdown

    return hand_off_markdown(verdict, window, hand_off(paths, verdict, window))


def _made_of(found: Fingerprints) -> dict[str, str]:
    """Facts that all share as they are; of others, how many kinds there are."""
    lines: dict[str, str] = {}
    for names, known in ((_RANK_FACTS, found.ranks.values()), (_HOST_FACTS, found.hosts.values())):
        for name in names:
            values = sorted({_spelled(facts[name]) for facts in known if facts.get(name) not in (None, [], "")})
            if values:
                lines[name] = values[0] if len(values) == 1 else f"{len(values)} kinds: {', '.join(values[:3])}"
    environment = sorted({pair for facts in found.ranks.values() for pair in _pairs(facts.get("environment"))})
    if environment:
        lines["environment"] = ", ".join(f"{name}={value}" for name, value in environment[:20])
    return lines


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pairs(known: Any) -> list[tuple[str, str]]:
    return (
        [(str(name), json.dumps(value).strip('"')) for name, value in known.items()] if isinstance(known, dict) else []
    )
