"""Loops of several ranks: who waited for whom, in which phase, and a rank that is 5 ms late inside backward."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.torch_hooks.loops import checked_steps

from rankscope.clock import ClockAnchor
from rankscope.finding import Basis, Overhead, Side
from rankscope.identity import RankIdentity
from rankscope.records import (
    CollectiveRecord,
    DeviceRecord,
    GroupKind,
    GroupRecord,
    MarkKind,
    MarkRecord,
    PhaseRecord,
    RingRecord,
    StepRecord,
    field_names,
)
from rankscope.ring import RingReader
from rankscope.rules import judge
from rankscope.window import Columns, RankWindow, Window

pytestmark = pytest.mark.alone
ROOT = Path(__file__).parents[2]
LOOPS = ("ddp_accumulating", "explicit_collective", "fsdp", "pipeline")
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Ran:
    """What one rank of one loop wrote, and what it knows of itself."""

    identity: RankIdentity
    records: list[RingRecord]
    known: list[int] | int

    def median(self, phase: str) -> float:
        """Median over the steady steps of a phase, ns."""
        return statistics.median(step.phases_ns()[phase] for step in checked_steps(self.records)[2:])


def run(directory: Path, ranks: int, loops: tuple[str, ...]) -> dict[str, list[Ran]]:
    """Run loops as one job; by loop, what each rank left."""
    environ = {**os.environ, "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/torch_hooks/job.py"), str(directory), *loops]
    job = [
        subprocess.Popen(command, env={**environ, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(ranks)
    ]
    for process in job:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    found: dict[str, list[Ran]] = {}
    for name in loops:
        rings = {}
        for path in (directory / name).glob("*.ring"):
            reader = RingReader(path)
            rings[reader.header.identity.rank] = (reader.header.identity, reader.read().records)
            reader.close()
        found[name] = [
            Ran(*rings[rank], json.loads((directory / f"{name}.{rank}.json").read_text())) for rank in range(ranks)
        ]
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ran]]:
    """Two ranks, every loop."""
    return run(tmp_path_factory.mktemp("two"), 2, LOOPS)


def once(late: Ran) -> float:
    """How long the late rank's delay really was."""
    assert isinstance(late.known, list)
    return statistics.median(late.known)


def groups(ran: Ran) -> list[GroupRecord]:
    """Records of process groups."""
    return [record for record in ran.records if isinstance(record, GroupRecord)]


@pytest.mark.parametrize("loop", LOOPS)
def test_phases_sum_and_nothing_broke(ran: dict[str, list[Ran]], loop: str) -> None:
    """Steps are whole, the hooks gave nothing up, and the rank said what a step is."""
    for rank in ran[loop]:
        steps = checked_steps(rank.records)
        assert len(steps) >= 6
        marks = [record for record in rank.records if isinstance(record, MarkRecord)]
        assert not [mark.text for mark in marks if mark.mark == MarkKind.DEGRADED]
        assert [mark for mark in marks if mark.mark == MarkKind.STEP_RULE]


def test_late_in_the_reduction_of_the_gradients(ran: dict[str, list[Ran]]) -> None:
    """Accumulation under DDP: one step of three backwards, the late rank's own time and the other's wait."""
    early, late = ran["ddp_accumulating"]
    assert {step.backward_count for step in checked_steps(early.records)} == {3}
    assert late.median("backward") >= once(late)
    assert late.median("backward") - early.median("backward") > 0.5 * once(late)
    assert early.median("collective_wait") - late.median("collective_wait") > 0.5 * once(late)


def test_late_to_a_collective_of_the_script(ran: dict[str, list[Ran]]) -> None:
    """A collective issued in Python: the other rank's wait is a phase, and belongs to its group."""
    early, late = ran["explicit_collective"]
    assert early.median("collective_wait") - late.median("collective_wait") > 0.5 * once(late)
    waits = [record.wait_ns or 0 for record in groups(early)[2:]]
    assert statistics.median(waits) == pytest.approx(early.median("collective_wait"), rel=0.1)
    last = groups(early)[-1]
    assert (last.group, last.members, last.size, last.contaminated) == ("default", "0-1", 2, 0)
    told = [record for record in groups(early) if record.last_sequence is not None]
    assert told
    assert all((record.first_sequence or 0) <= (record.last_sequence or 0) for record in told)


def test_late_under_fsdp(ran: dict[str, list[Ran]]) -> None:
    """FSDP waits inside forward and backward: its waits are seen, so that own time stays clean."""
    early, late = ran["fsdp"]
    assert late.median("forward") - early.median("forward") > 0.5 * once(late)
    assert early.median("collective_wait") - late.median("collective_wait") > 0.5 * once(late)
    shards = [record for record in groups(early) if record.group_kind == GroupKind.SHARD]
    assert shards
    assert all(record.contaminated == 0 for record in shards)


def test_pipeline_has_microbatches_and_a_bubble(ran: dict[str, list[Ran]]) -> None:
    """The first stage waits for the slow second one: a bubble, told by microbatch and by operation."""
    first, second = ran["pipeline"]
    steps = checked_steps(first.records)
    assert {step.microbatches for step in steps[1:]} == {4}
    assert first.median("bubble") >= 2 * once(second)
    assert second.median("bubble") < 0.5 * first.median("bubble")
    assert second.median("forward") >= 3.6 * once(second)
    names = {record.name for record in first.records if isinstance(record, PhaseRecord)}
    assert {f"{part} {index}" for part in ("forward", "backward") for index in range(4)} <= names
    operations = [record for record in first.records if isinstance(record, CollectiveRecord)]
    assert {record.operation for record in operations} >= {"send", "recv"}
    assert {record.peer for record in operations} == {1}


@pytest.fixture(scope="module")
def late_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ran]]:
    """Four ranks of DDP, one 5 ms late inside backward: on the host, and on an asynchronous device."""
    loops = tuple(f"{where}{seed}" for seed in SEEDS for where in ("host", "async"))
    return run(tmp_path_factory.mktemp("four"), 4, loops)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("where", ["host", "async"])
def test_five_late_milliseconds_are_named(late_ranks: dict[str, list[Ran]], where: str, seed: int) -> None:
    """From 20 steps: the late rank has the longest own time and the smallest wait, by about what it was late."""
    ranks = late_ranks[f"{where}{seed}"]
    culprit = ranks[0].known
    own, wait = [], []
    for rank in ranks:
        records = [r for r in groups(rank) if r.group == "default" and r.on_device == (where == "async")]
        steady = [record for record in records if 3 <= record.step < 23]
        assert len(steady) >= 18
        own.append(statistics.median(record.own_ns or 0 for record in steady))
        wait.append(statistics.median(record.wait_ns or 0 for record in steady))
    assert own.index(max(own)) == culprit
    assert wait.index(min(wait)) == culprit
    assert max(own) - statistics.median_low(own) > 2_500_000


@pytest.mark.parametrize("seed", SEEDS)
# On the host's clock a loaded machine makes every rank slow now and then: more than the difference it looks for.
@pytest.mark.parametrize("where", [pytest.param("host", marks=pytest.mark.verify), "async"])
def test_the_verdict_names_the_late_rank(late_ranks: dict[str, list[Ran]], where: str, seed: int) -> None:
    """The rules over the rings of 20 steps and no more: that rank and no other, its phase, and no hardware accused."""
    ranks = late_ranks[f"{where}{seed}"]
    verdict = judge(window_of(ranks), Overhead())
    assert verdict.findings, verdict.summary
    assert {finding.where.rank for finding in verdict.findings} == {ranks[0].known}
    first = verdict.findings[0]
    assert first.where.phase == "backward"
    assert first.side is not Side.HARDWARE
    assert first.basis is (Basis.DEVICE_COMPUTE if where == "async" else Basis.HOST)


def window_of(ranks: list[Ran]) -> Window:
    """What their rings hold, and nothing else, up to the 20th step after the warm-up."""

    def columns(records: list[Any], kind: type[Any]) -> Columns:
        names = [name for name in field_names(kind) if name not in ("group", "members")]
        kept = [record for record in records if isinstance(record, kind) and record.step < 23]
        return Columns(
            {
                name: array("d", [math.nan if (value := getattr(each, name)) is None else value for each in kept])
                for name in names
            }
        )

    windows = {
        ran.identity.rank: RankWindow(
            ran.identity,
            columns(ran.records, StepRecord),
            columns(ran.records, DeviceRecord),
            {"default": columns([r for r in groups(ran) if r.group == "default"], GroupRecord)},
        )
        for ran in ranks
    }
    begin = min(int(of.steps.columns["start_ns"][0]) for of in windows.values())
    end = max(int(of.steps.columns["end_ns"][-1]) for of in windows.values())
    anchors = {ran.identity.host: ClockAnchor(0, 0) for ran in ranks}
    return Window("late", windows, {}, (), anchors, begin, end, len(windows))


def test_the_device_says_its_phases(late_ranks: dict[str, list[Ran]]) -> None:
    """On the device's clock the phases sum to the step within 2 %, and it says how far it ran behind the host."""
    for rank in late_ranks["async1"]:
        found = [record for record in rank.records if isinstance(record, DeviceRecord)]
        assert len(found) >= 15
        for record in found:
            parts = (
                record.data_wait_ns, record.forward_ns, record.backward_own_ns, record.backward_wait_ns,
                record.inner_wait_ns, record.bubble_ns, record.optimizer_ns, record.other_ns,
            )  # fmt: skip
            assert sum(part or 0 for part in parts) == pytest.approx(record.step_ns, rel=0.02)
            assert record.contaminated == 0
            assert record.lead_backward_ns is not None
        assert [record for record in rank.records if isinstance(record, StepRecord)]
