"""`report --markdown`: gathers what an incident's page needs beside the verdict."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankscope.agent.fingerprint import Fingerprints, described_gpus, load_fingerprints
from rankscope.finding import Verdict
from rankscope.handoff import HandOff, Price
from rankscope.window import Window

#: Facts of ranks and of hosts on the page, in this order.
_RANK_FACTS = ("commit", "script", "arguments", "python", "torch", "cuda", "nccl", "os")
_HOST_FACTS = ("kernel", "gpu_driver", "cpu")
#: What is said of GPUs, and under which name.
_GPU_FACTS = (("GPU", "name"), ("driver", "driver"), ("VBIOS", "vbios"))
#: Least share of the step that is priced, and rows at most.
_WORTH, _PRICES = 0.01, 8
_PHASES = {
    "forward-compute": "forward, every rank at the mean",
    "backward-compute": "backward, every rank at the mean",
    "grads-reduce-scatter": "the collective's transfer at its median",
    "data-wait": "waiting for data, every rank at the mean",
}


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
        prices=_prices(window),
        made_of=_made_of(load_fingerprints(paths), window),
    )


def _prices(window: Window) -> list[Price]:
    """What is worth more than a hundredth of the step; nothing where the run is too short to replay."""
    from rankscope.rules.whatif_operations import OperationsError
    from rankscope.rules.whatif_window import whatif_window

    try:
        found = whatif_window(window)
    except OperationsError:
        return []
    rows = [(f"rank {worker.dp_rank}", worker.ms_per_step or 0.0) for worker in found.slowest]
    rows += [(f"host {host}", ms) for host, ms in found.by_place.items()]
    rows += [(_PHASES.get(name, name.replace("-", " ")), ms) for name, ms in found.optype_ms.items()]
    dear = sorted((row for row in rows if row[1] >= _WORTH * found.actual_ms), key=lambda row: -row[1])
    return [Price(what, ms, ms / found.actual_ms) for what, ms in dear[:_PRICES]]


def markdown_page(paths: Sequence[Path], verdict: Verdict, window: Window) -> str:
    """The page of `report --markdown`."""
    from rankscope.exporters.markdown import hand_off_markdown

    return hand_off_markdown(verdict, window, hand_off(paths, verdict, window))


def _made_of(found: Fingerprints, window: Window) -> dict[str, str]:
    """Facts that all share as they are; of others, how many kinds there are."""
    lines: dict[str, str] = {}
    gpus = [facts for _, facts in described_gpus(window)]
    names: list[tuple[str, str, Collection[Mapping[str, Any]]]] = [
        *((name, name, found.ranks.values()) for name in _RANK_FACTS),
        *((name, name, found.hosts.values()) for name in _HOST_FACTS),
        *((said, name, gpus) for said, name in _GPU_FACTS),
    ]
    for said, name, known in names:
        values = sorted({_spelled(facts[name]) for facts in known if facts.get(name) not in (None, [], "")})
        if values:
            lines[said] = values[0] if len(values) == 1 else f"{len(values)} kinds: {', '.join(values[:3])}"
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
