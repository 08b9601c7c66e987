"""docs/probes.md tells what the probes read: every metric once, with its unit, kind and group."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from rankscope.metrics import METRICS
from rankscope.probes.nvml import NvmlProbe
from rankscope.probes.nvml_calls import CALLS
from rankscope.probes.nvml_fields import field_batches
from rankscope.probes.nvml_gpm import GPM_METRICS
from rankscope.probes.nvml_links import FEC_FIELDS, LINK_FIELDS
from rankscope.probes.nvml_reader import GROUPS
from rankscope.probes.nvml_rings import RINGS

PAGE = Path(__file__).parents[2] / "docs" / "probes.md"
FAMILIES = ("gpu.", "gpu_process.", "nvlink.")


def expand(pattern: str) -> list[str]:
    """Every name that a pattern with {alternatives} stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def rows() -> list[tuple[str, str, str, str]]:
    """(metric, unit, kind, group) of the GPU's table; one unit for all of a row, or one a metric."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 9 and cells[1].startswith("`"):
            names = expand(cells[1].strip("`"))
            units = cells[2].split(", ")
            units = units if len(units) == len(names) else units * len(names)
            found += [(name, unit, cells[3], cells[5]) for name, unit in zip(names, units, strict=True)]
    return [row for row in found if row[0].startswith(FAMILIES)]


def groups_in_the_code() -> dict[str, str]:
    """Metric -> group, where a table says so."""
    found = {metric: group for group, calls in CALLS.items() for metrics, _ in calls for metric in metrics}
    found |= {s.metric: group for group in GROUPS for batch in field_batches(group, (595, 45)) for s in batch}
    found |= {field.metric: "links" for field in LINK_FIELDS} | {field.metric: "rare" for field in FEC_FIELDS}
    return found | {metric: "gpm" for metric, _ in GPM_METRICS.values()} | {metric: "samples" for _, metric, _ in RINGS}


def test_every_gpu_metric_stands_in_the_table_once() -> None:
    """With the unit and kind of the vocabulary."""
    assert sorted(row[:3] for row in rows()) == sorted(
        (metric.name, metric.unit, "counter" if metric.counter else "gauge")
        for metric in METRICS.values()
        if metric.name.startswith(FAMILIES)
    )


def test_the_table_names_the_group_that_reads_a_metric() -> None:
    """As the probe's own tables have it."""
    told = {metric: group for metric, _, _, group in rows()}
    coded = groups_in_the_code()
    assert {metric: told[metric] for metric in coded} == coded
    # "events" is listened to and not read.
    assert set(told.values()) <= set(GROUPS) == {group.name for group in NvmlProbe.groups} - {"events"}
