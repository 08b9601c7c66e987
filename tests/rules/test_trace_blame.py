"""Who is late, told from whole traces and from no more than hooks in training would have seen of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from rankscope.agent.kineto import read_trace
from rankscope.rules import diagnose
from rankscope.rules.trace.analysis import analyse
from rankscope.rules.trace.blame import Reason, blame
from rankscope.rules.trace.compare import compare, verdict
from rankscope.rules.trace.exchange import RankExchange, exchange_of
from rankscope.rules.trace.seen import masked, seen_of
from rankscope.simulator.traces import TraceJob, TracePlan

REAL = Path(__file__).parents[2].parent / "shared/data/kineto"
BENCHMARK = Path(__file__).parents[2] / "benchmarks/masked_traces.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/masked_traces.py as a module: what it counts over many seeds, this file shows on one."""
    spec = importlib.util.spec_from_file_location("masked_traces", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARK.parent))
        spec.loader.exec_module(module)
    return module


def exchanges(plan: TracePlan, folder: Path) -> list[RankExchange]:
    """What is kept of the traces of a played job, read from files as any other."""
    found = []
    for rank, document in enumerate(TraceJob(plan).traces()):
        path = folder / f"rank{rank}.json"
        path.write_text(json.dumps(document))
        found.append(exchange_of(analyse(read_trace(path).trace)))
    return found


@pytest.mark.parametrize("synchronise", [True, False], ids=["synchronised", "running-ahead"])
@pytest.mark.parametrize("layout", ["ddp", "grid"])
@pytest.mark.parametrize(("slow", "reason"), [("device", Reason.DEVICE), ("host", Reason.HOST), ("link", Reason.LINK)])
def test_masked_traces_name_the_same_culprit(
    tmp_path: Path, slow: str, reason: Reason, layout: str, synchronise: bool
) -> None:
    """Step lengths, own times and waits by group name whom the whole trace names; only the reason needs the trace.

    Three seeds with another culprit each, clocks that disagree by up to half a second, hosts that wait for their device
    and hosts that run ahead. A slow link in a single group of all slows everybody alike: there nobody is named.
    """
    for seed in (1, 2, 3):
        plan = TracePlan(slow=slow, layout=layout, seed=seed, culprit=seed, synchronise=synchronise)
        seen = seen_of(exchanges(plan, tmp_path))
        whole, hooks = blame(seen), blame(masked(seen))
        culprit = None if slow == "link" and layout == "ddp" else plan.culprit
        assert (whole.rank, hooks.rank) == (culprit, culprit)
        assert whole.reason == (reason if culprit is not None else None)


@pytest.mark.parametrize("layout", ["ddp", "grid"])
def test_healthy_ranks_are_not_accused(tmp_path: Path, layout: str) -> None:
    """Ranks that differ by noise alone: nobody is late, whole or masked, over six seeds."""
    for seed in range(6):
        seen = seen_of(exchanges(TracePlan(layout=layout, seed=seed, synchronise=bool(seed % 2)), tmp_path))
        assert (blame(seen).reason, blame(masked(seen)).reason) == (None, None)


def test_the_price_is_what_was_injected(tmp_path: Path) -> None:
    """36 kernels a step that take 30 % longer cost what they take longer, less what hid behind communication."""
    plan = TracePlan(slow="device", steps=6)
    found = compare(exchanges(plan, tmp_path))
    injected_us = (3 * plan.layers + 1) * plan.kernel_us * (plan.factor - 1)
    assert found.blame is not None
    assert found.blame.ns_per_step / 1e3 == pytest.approx(injected_us, rel=0.1)
    assert verdict(found).startswith("rank 2 is late by 1.")
    assert "device-bound" in verdict(found)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    """One rank, the same rank twice, jobs of two sizes and steps apart."""
    first = exchanges(TracePlan(ranks=2), tmp_path)
    later = exchanges(TracePlan(ranks=4), tmp_path)
    assert "two ranks" in compare(first[:1]).notes[0]
    assert "same rank" in compare([first[0], first[0]]).notes[0]
    assert "different sizes" in compare([first[0], later[1]]).notes[0]
    assert verdict(compare(first[:1])) == ""
    partial = compare(later[:3])
    assert partial.seen is not None
    assert "3 of 4 ranks" in partial.notes[0]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real traces are not on this machine")
def test_real_ranks_masked_and_whole_agree() -> None:
    """Two of 128 ranks of a real job: one waits 33 ms for the other in an all-reduce, whose kernels take longer."""
    seen = seen_of([exchange_of(analyse(read_trace(REAL / f"sampled_rank-{rank}.json.gz").trace)) for rank in (0, 1)])
    whole, hooks = blame(seen), blame(masked(seen))
    assert (whole.rank, whole.reason, hooks.rank) == (1, Reason.DEVICE, 1)


@pytest.mark.parametrize("layout", ["ddp", "grid"])
@pytest.mark.parametrize("slow", ["device", "host", "link", None])
def test_the_rules_over_the_masked_trace_name_the_same_rank(
    tmp_path: Path, benchmark: ModuleType, slow: str | None, layout: str
) -> None:
    """The product's own rules, given the masked trace as a recording, accuse whom the whole trace accuses."""
    plan = TracePlan(slow=slow, steps=40, layers=6, seed=7, culprit=1, layout=layout, host_delay_us=3_000)
    seen = seen_of(exchanges(plan, tmp_path))
    findings = diagnose(benchmark.as_recorded(masked(seen)))
    told = slow is not None and (slow, layout) != ("link", "ddp")
    assert blame(seen).rank == (1 if told else None)
    assert {finding.where.rank for finding in findings} == ({1} if told else set())
