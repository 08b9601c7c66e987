"""Own times that hold waits for other ranks: they accuse no hardware; timed collectives clear them up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from masked import hidden, timed

from rankscope.finding import Basis, Overhead, Side, Verdict
from rankscope.rules import judge
from rankscope.rules.frame import Frame
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario import Fault, Node, Scenario, Workload
from rankscope.window import Columns, Window


def job(*faults: Fault, seed: int = 1, kind: str = "fsdp", ranks: int = 8) -> Window:
    """A generated job with faults from step 80 on."""
    workload = Workload(kind=kind, ranks=ranks, steps=200, step_ms=100.0)
    return generate(
        Scenario(name="masked", seed=seed, workload=workload, node=Node(gpus=8), faults=faults, confounders=())
    )


def thermal(seed: int = 1, **more: object) -> Window:
    """Rank 2's GPU is slow for heat, counters and all."""
    fault = Fault(class_slug="gpu-thermal-slowdown", severity=1.3, gpu=2, from_step=80, to_step=200)
    return job(replace(fault, **more), seed=seed)


def verdict(window: Window) -> Verdict:
    """The answer."""
    return judge(window, Overhead())


def test_the_plain_recording_names_the_gpu() -> None:
    """What the hooks see of sharded layers is enough: the case that the others are masked from."""
    first = verdict(thermal()).findings[0]
    assert (first.class_slug, first.where.rank, first.basis) == ("gpu-thermal-slowdown", 2, Basis.DEVICE_COMPUTE)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hidden_waits_never_accuse_hardware(seed: int) -> None:
    """With every wait inside own times all ranks look alike: the job is slower, and no GPU is blamed for it."""
    found = verdict(hidden(thermal(seed)))
    assert found.verdict != "hardware"
    assert all(finding.side is not Side.HARDWARE or finding.impact.ms_per_step == 0 for finding in found.findings)
    slow = [finding for finding in found.findings if finding.impact.ms_per_step]
    assert slow
    assert slow[0].where.rank is None
    assert not any("not slower for it" in finding.summary for finding in found.findings)
    assert all(any("inside own times" in line for line in finding.not_seen) for finding in slow)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_waiting_rank_is_not_blamed_for_the_one_it_waits_for(seed: int) -> None:
    """Of two ranks one computes longer because it waits, unseen, and its GPU's counters speak by chance: no verdict."""
    window = thermal(seed)
    # Whoever waits shows it on one rank only: rank 5, whose GPU is hot, waits 20 ms inside backward.
    for rank, of in window.ranks.items():
        columns = {name: np.array(values) for name, values in of.device.columns.items()}
        late = (columns["step"] >= 80) * 20e6
        columns["backward_own_ns"] = columns["backward_own_ns"] + late * (rank == 2)
        columns["contaminated"] = np.ones(len(late))
        of.device = Columns({name: _packed(values) for name, values in columns.items()})
    found = verdict(window)
    assert found.verdict != "hardware"
    assert all(finding.side is not Side.HARDWARE for finding in found.findings if finding.impact.ms_per_step)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_timed_collectives_name_what_hidden_waits_hid(seed: int) -> None:
    """The same recording with each collective timed on the device: the late rank is named again, on that basis."""
    window = timed(thermal(seed))
    masked = hidden(window)
    frame = Frame(masked)
    assert frame.contaminated.all()
    assert frame.cleaned
    first = verdict(masked).findings[0]
    assert (first.class_slug, first.where.rank) == ("gpu-thermal-slowdown", 2)
    assert first.basis is Basis.DEVICE_COLLECTIVE
    assert not any("inside own times" in line for line in first.not_seen)
    plain = verdict(window).findings[0]
    assert plain.basis is Basis.DEVICE_COLLECTIVE
    assert first.impact.ms_per_step == pytest.approx(plain.impact.ms_per_step, rel=0.1)
    assert any("timed on the device" in piece.what for piece in first.evidence)


def test_timed_transfers_tell_a_slow_network() -> None:
    """Nobody is late and the shortest kernels grow: the transfers themselves, from the library's times alone."""
    fault = Fault(class_slug="network-congestion", severity=4.0, from_step=80, to_step=200)
    window = hidden(timed(job(fault)))
    frame = Frame(window)
    assert frame.timed is not None
    transfer = frame.timed.transfer_ms[0]
    assert np.nanmedian(transfer[90:190]) > 2 * np.nanmedian(transfer[10:70])
    found = verdict(window)
    assert found.findings
    assert found.findings[0].where.rank is None
    assert found.verdict != "hardware"


def test_ranks_that_were_not_seen_leave_nobody_judged() -> None:
    """A collective without one of its members says nothing: the missing one may be the late one."""
    window = timed(thermal())
    del window.ranks[2]
    assert Frame(window).timed is None


def _packed(values: np.ndarray) -> object:
    from array import array

    return array("d", values)
