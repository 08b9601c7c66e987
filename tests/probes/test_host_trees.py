"""Hosts as trees of /proc and /sys, read whole by the real probes and compared in full."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from host_tree import HOSTS, RANKS, blocks, described, host, names, probes

from rankscope.errors import ProbeError
from rankscope.metrics import METRICS
from rankscope.probes.registry import FollowsRanks
from rankscope.reading import EVENT_KINDS

#: Families of metrics that a host's probes give.
FAMILIES = ("host", "numa", "edac", "cgroup", "process", "disk", "fs", "nfs", "lustre", "net", "ib", "pcie")
#: Files that are replaced by nonsense in one go, and how often that is tried.
SPOILT, TRIALS = 12, 25


@pytest.mark.parametrize("name", names())
def test_a_host_is_told_whole(name: str) -> None:
    """Every reading, event and outcome of every probe, with its unit, and what is different a while later."""
    with host(name) as root:
        told = described(root)
    expected = (HOSTS / f"{name}.expected").read_text()
    assert told.splitlines() == expected.splitlines(), "python tests/host_tree.py writes it anew"


def test_the_hosts_show_every_metric() -> None:
    """No metric of the vocabulary is without a host that has it, and none is told that the vocabulary does not know."""
    lines = [line for name in names() for line in (HOSTS / f"{name}.expected").read_text().splitlines()]
    told = {line.partition(": ")[2].partition("{")[0] for line in lines if "} " in line}
    assert {name for name in METRICS if name.partition(".")[0] in FAMILIES} <= told
    assert {name for name in told if "." in name and name.partition(".")[0] in FAMILIES} <= set(METRICS)


def noise(draw: random.Random, text: str) -> str:
    """Text that is not what it should be: cut, doubled, with other numbers, or none of it."""
    match draw.randrange(6):
        case 0:
            return text[: draw.randrange(len(text) + 1)]
        case 1:
            return "".join(
                draw.choice(["-1", "nan", "9" * 30, "\x00", "\u0663", "inf", "x", " ", ":"]) for _ in range(40)
            )
        case 2:
            return text.replace(" ", "  ").replace("0", "-7")
        case 3:
            return "\n".join(draw.sample(lines, len(lines))) if (lines := text.splitlines()) else "\xff"
        case 4:
            return "".join(draw.choice("0123456789") if c.isdigit() and draw.random() < 0.5 else c for c in text)
        case _:
            return ""


@pytest.mark.parametrize("name", names())
def test_nonsense_in_any_file_costs_nothing_but_its_readings(name: str) -> None:
    """Whatever some files hold, no probe raises but typed errors, and no reading is negative, infinite or no number."""
    draw = random.Random(f"spoilt {name}")
    with host(name) as root:
        texts = {path: text for path, target, _, text in blocks((HOSTS / f"{name}.tree").read_text()) if target is None}
        spoilable = [path for path in texts if path.startswith(("proc/", "sys/", "kmsg"))]
        for trial in range(TRIALS):
            # All of them at last.
            spoilt = draw.sample(spoilable, SPOILT) if trial < TRIALS - 1 else spoilable
            for path in spoilt:
                spoil(root / path, noise(draw, texts[path]))
            read_everything(root, 10**9)
            for path in spoilt:
                spoil(root / path, texts[path])


def spoil(path: Path, text: str) -> None:
    """Write a file whoever may read it."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    path.chmod(mode & 0o777)


def read_everything(root: Path, now_ns: int) -> None:
    """Every group of every probe twice, and what they say checked."""
    for probe in probes(root):
        for group in [*probe.groups, *probe.groups]:
            if isinstance(probe, FollowsRanks):
                probe.set_ranks(RANKS)
            try:
                result = probe.read(group.name, now_ns)
            except ProbeError:
                continue
            for reading in result.readings:
                assert reading.metric in METRICS
                assert math.isfinite(reading.value), reading
                assert reading.value >= 0, reading
            assert {event.kind for event in result.events} <= set(EVENT_KINDS)
        probe.close()
