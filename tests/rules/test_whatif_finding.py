"""What a finding says of the replay: prices that are what the job lost, in every kind of group, and the pattern."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from synthetic_job import Job

from rankscope.exporters.verdict_json import verdict_document
from rankscope.finding import Finding, Overhead, Pattern
from rankscope.rules import judge
from rankscope.rules.frame import Frame
from rankscope.rules.whatif_groups import groups_of
from rankscope.rules.whatif_price import Prices
from rankscope.rules.whatif_window import whatif_window
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario import Fault, Node, Scenario, Workload
from rankscope.window import Window

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/verdict.schema.json").read_text())
PLAIN = Workload(ranks=8, steps=240, step_ms=200.0, data_ms=16.0, host_ms=20.0)
PIPELINE = replace(PLAIN, kind="pipeline", ranks=16, tensor=2, stages=4, microbatches=6, step_ms=400.0)
EXPERTS = replace(PLAIN, ranks=16, experts=8)
SHARDED = replace(PLAIN, kind="fsdp", ranks=16)


def recorded(workload: Workload, *faults: Fault) -> Window:
    """A generated recording on hosts of 8 GPUs."""
    node = Node(gpus=8, hosts=-(-workload.ranks // 8))
    return generate(Scenario(name="job", seed=3, workload=workload, node=node, faults=faults))


def first(window: Window) -> Finding:
    """The first finding."""
    return judge(window, Overhead()).findings[0]


@pytest.mark.parametrize("workload", [PLAIN, PIPELINE, EXPERTS, SHARDED], ids=["data", "pipeline", "expert", "shard"])
def test_a_price_is_what_the_job_lost(workload: Workload) -> None:
    """One slow GPU among tensor-, pipeline-, expert- or data-parallel peers: the price is the difference to the same
    job without it, the rank's replay agrees, and M_W says that it explains it."""
    fault = Fault(class_slug="gpu-thermal-slowdown", gpu=5, severity=1.5, from_step=100, to_step=240)
    slow, well = recorded(workload, fault), recorded(workload)
    lost = float(np.mean((Frame(slow).job_ms - Frame(well).job_ms)[110:230]))
    told = first(slow)
    assert told.impact.ms_per_step == pytest.approx(lost, rel=0.12)
    assert told.whatif is not None
    assert next(iter(told.whatif.ranks)) == "5"
    assert told.whatif.ranks["5"] == pytest.approx(lost, rel=0.15)
    assert told.whatif.m_w == pytest.approx(1.0, abs=0.25)
    assert told.whatif.slowdown == pytest.approx(1 + lost / Frame(well).typical_ms, rel=0.06)


def test_groups_are_told_apart() -> None:
    """Copies of the model, stages, and microbatches as the waits of the pipeline give them; the exchange of one
    tensor-parallel group is priced apart from that of the gradients."""
    window = recorded(PIPELINE)
    groups = groups_of(Frame(window))
    assert [each.kind.name for each in groups.inner] == ["TENSOR"]
    assert groups.microbatches == pytest.approx(PIPELINE.microbatches, rel=0.05)
    assert len(set(groups.replica)) == 2
    assert list(groups.stage[:5]) == [0, 0, 0, 0, 1]  # type: ignore[index]
    found = whatif_window(window)
    assert found.replayed_ms == pytest.approx(found.recorded_ms, rel=0.01)
    assert any(name.startswith("tensor ") for name in found.by_group)
    assert "data groups" in found.by_group


def test_two_slow_ranks_of_one_group_hide_each_other() -> None:
    """Two tensor-parallel ranks, both slow: either alone gives back next to nothing, both give all."""
    slow = [Fault(class_slug="gpu-clocks-locked", gpu=gpu, severity=1.5, from_step=0, to_step=240) for gpu in (4, 5)]
    frame = Frame(recorded(replace(PIPELINE, stages=1, kind="ddp"), *slow))
    prices, mask = Prices(frame), frame.usable
    alone = prices.returned_ms(mask, (4,), layers_ms=100.0)
    both = prices.returned_ms(mask, (4, 5), layers_ms=100.0)
    assert both > 80.0
    assert alone < 0.1 * both


def test_few_and_all_rows_are_priced_alike() -> None:
    """Held against the latest of the others, or replayed whole: the same figure."""
    frame = Frame(
        recorded(PIPELINE, Fault(class_slug="gpu-clocks-locked", gpu=9, severity=1.3, from_step=80, to_step=240))
    )
    prices, mask = Prices(frame), frame.usable.copy()
    mask[:120] = False
    few = prices.returned_ms(mask, (9,), layers_ms=40.0)
    relief = np.zeros((16, int(mask.sum())))
    relief[9] = 40.0
    assert few > 10.0
    assert prices.returned_ms(mask, range(16), layers_ms=relief) == pytest.approx(few, rel=1e-6)


@pytest.mark.parametrize(
    ("workload", "fault", "pattern"),
    [
        (
            PLAIN,
            Fault(class_slug="gpu-thermal-slowdown", gpu=2, severity=1.3, from_step=90, to_step=240),
            Pattern.FIXED_RANK,
        ),
        (
            SHARDED,
            Fault(class_slug="cooling-plant", host=1, severity=1.4, from_step=90, to_step=240),
            Pattern.FIXED_RANK,
        ),
        (SHARDED, Fault(class_slug="network-congestion", severity=6, from_step=90, to_step=240), Pattern.TRANSFER),
        (PLAIN, Fault(class_slug="network-filesystem-slow", severity=40, from_step=90, to_step=240), Pattern.ALL_RANKS),
        (PIPELINE, Fault(class_slug="stage-imbalance", stage=2, severity=1.5, from_step=0, to_step=240), Pattern.STAGE),
        (PLAIN, Fault(class_slug="rank-hang", rank=3, severity=1, from_step=90, to_step=240), Pattern.STOPPED),
    ],
    ids=lambda value: value.class_slug if isinstance(value, Fault) else None,
)
def test_the_pattern_is_named(workload: Workload, fault: Fault, pattern: Pattern) -> None:
    """A to F, each on a fault that lies so; and the finding fits the schema with its figures."""
    window = recorded(workload, fault)
    verdict = judge(window, Overhead())
    told = verdict.findings[0]
    assert (told.class_slug, told.pattern) == (fault.class_slug, pattern)
    document = json.loads(json.dumps(verdict_document(verdict, window.anchors), allow_nan=False))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["findings"][0]["pattern"] == pattern


def test_load_that_wanders_is_another_pattern_than_load_that_stays() -> None:
    """Batches of all lengths, a different rank's longest each step: D. The same work always on one rank: A."""
    random = np.random.default_rng(4)
    wandering, staying = Job(ranks=8, steps=200), Job(ranks=8, steps=200)
    for job, heavy in ((wandering, random.integers(0, 8, 200)), (staying, np.full(200, 3))):
        factor = np.ones((8, 200))
        factor[heavy, np.arange(200)] = 1.6
        job.work = job.work * factor
        job.forward, job.backward = job.forward * factor, job.backward * factor
    told = first(wandering.window())
    assert (told.class_slug, told.pattern) == ("work-imbalance", Pattern.WANDERING)
    told = first(staying.window())
    assert (told.class_slug, told.pattern, told.where.rank) == ("work-imbalance", Pattern.FIXED_RANK, 3)


def test_counters_without_slowness_have_no_pattern_and_no_price() -> None:
    """The twin that only counts: watched, and nothing is replayed for it."""
    fault = Fault(class_slug="gpu-thermal-slowdown", gpu=2, severity=1.3, from_step=90, to_step=240, slowdown=False)
    findings = judge(recorded(PLAIN, fault), Overhead()).findings
    assert all(finding.pattern is None and finding.whatif is None for finding in findings)
