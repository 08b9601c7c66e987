"""docs/probes.md tells what is read of a host: each metric once, with unit, kind and group, and each kind of event."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from host_tree import host, names, probes, read_group

from rankscope.metrics import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "probes.md"
FAMILIES = (
    "host.",
    "numa.",
    "edac.",
    "cgroup.",
    "process.",
    "disk.",
    "fs.",
    "nfs.",
    "lustre.",
    "net.",
    "tcp.",
    "ib.",
    "pcie.",
)
#: Kinds of events that the kernel log alone tells.
LOG_KINDS = {
    "xid", "sxid", "gpu-fallen-off", "gpu-init-failed", "nvlink-error", "pcie-error", "pcie-link", "memory-error",
    "machine-check", "cpu-throttled", "oom-kill", "hung-task", "cpu-lockup", "process-fault", "network-link",
    "storage-server", "disk-error",
}  # fmt: skip


def section() -> list[list[str]]:
    """Cells of every row of the tables on the host."""
    text = PAGE.read_text(encoding="utf-8").partition("\n## Host\n")[2]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def expand(pattern: str) -> list[str]:
    """Every name that a pattern with {alternatives} stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def one_of(cell: str, at: int, patterned: list[str]) -> str:
    """The word for one metric of a row: the only one, or the one in its place."""
    words = cell.split(", ")
    return words[at] if len(words) == len(patterned) else cell


def told() -> dict[str, tuple[str, str, str]]:
    """Metric -> (unit, kind, group) as the page has them."""
    found: dict[str, tuple[str, str, str]] = {}
    for cells in section():
        if len(cells) == 8 and cells[0].startswith("`"):
            patterned = expand(cells[0].strip("`"))
            for at, name in enumerate(patterned):
                assert name not in found, f"{name} stands there twice"
                found[name] = (one_of(cells[1], at, patterned), one_of(cells[2], at, patterned), cells[4])
    return found


def test_every_host_metric_stands_in_the_table_once() -> None:
    """With the unit and kind of the vocabulary."""
    known = {
        metric.name: (metric.unit, "counter" if metric.counter else "gauge")
        for metric in METRICS.values()
        if metric.name.startswith(FAMILIES)
    }
    assert {name: of[:2] for name, of in told().items()} == known


def test_the_table_names_the_group_that_reads_a_metric() -> None:
    """As the probes do over the hosts of the fixtures."""
    read: dict[str, str] = {}
    for name in names():
        with host(name) as root:
            for probe in probes(root):
                for group in probe.groups:
                    called = probe.name if group.name == probe.name else f"{probe.name} {group.name}"
                    read |= {reading.metric: called for reading in read_group(probe, group.name, 10**9).readings}
                probe.close()
    assert {name: of[2] for name, of in told().items()} == read


def test_every_probe_says_what_it_needs_and_every_event_is_listed() -> None:
    """A row of privileges for each probe of the host, and one for each kind of event of the kernel log."""
    first = [name for cells in section() for name in re.findall(r"`([^`]+)`", cells[0])]
    with host(names()[0]) as root:
        listed = probes(root)
        assert {probe.name for probe in listed} <= set(first)
        for probe in listed:
            probe.close()
    assert {cells[1].strip("`") for cells in section() if len(cells) == 3} >= LOG_KINDS
