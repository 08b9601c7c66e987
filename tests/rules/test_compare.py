"""Two runs side by side: changes that are more than noise, and facts that differ."""

from __future__ import annotations

import pytest
from synthetic_job import Job

from rankscope.rules.compare import PhaseChange, compare_facts, compare_phases


def changes(good: Job, bad: Job) -> dict[str, PhaseChange]:
    """Phases of two jobs."""
    return {change.phase: change for change in compare_phases(good.window(), bad.window())}


def test_two_runs_of_one_job_show_no_change() -> None:
    """Noise, slow wandering and late steps of twelve pairs of alike runs, some ten phases each: one false alarm at
    most."""
    told = [
        (seed, phase)
        for seed in range(12)
        for phase, change in changes(Job(seed=2 * seed, spread=0), Job(seed=2 * seed + 1, spread=0)).items()
        if change.changed
    ]
    assert len(told) <= 1


def test_a_phase_that_takes_longer_is_told_with_its_interval() -> None:
    """All ranks 10 % slower in their work: step and phases changed, on no rank in particular, the truth inside."""
    found = changes(Job(seed=1, spread=0), Job(seed=2, spread=0).slow_gpu(None, 1.1))
    for phase, truth in (("forward", 1.5), ("backward", 2.9), ("step", 4.8)):
        change = found[phase]
        assert change.changed
        assert change.rank is None
        assert change.low_ms is not None
        assert change.high_ms is not None
        assert change.low_ms < truth * 1.25
        assert change.high_ms > truth * 0.75
        assert change.low_ms > 0
    assert not found["data_wait"].changed


def test_a_change_on_one_rank_names_it() -> None:
    """Rank 2 alone works longer; the others wait for it."""
    found = changes(Job(seed=1, spread=0), Job(seed=2, spread=0).slow_gpu(2, 1.3))
    assert (found["backward"].changed, found["backward"].rank) == (True, 2)
    assert found["step"].changed
    assert found["collective_wait"].changed


def test_what_happens_seldom_is_compared_by_its_mean() -> None:
    """A checkpoint every 20 steps that takes twice as long has a median of nothing, and is told all the same."""
    runs = []
    for seed, length in ((1, 100.0), (2, 300.0)):
        job = Job(seed=seed, device=False)
        job.checkpoint[:, 19::20] = length
        runs.append(job)
    change = changes(*runs)["checkpoint"]
    assert change.changed
    assert change.delta_ms == pytest.approx(10.0, rel=0.2)


def test_too_few_steps_have_no_interval_and_no_change() -> None:
    """Of ten steps nothing is claimed."""
    found = changes(Job(steps=10), Job(steps=10).slow_gpu(None, 2.0))
    assert found["step"].low_ms is None
    assert not found["step"].changed


def facts(**values: str) -> dict[str, dict[str, str]]:
    """Each fact alike on two ranks."""
    return {name: {"rank 0": value, "rank 1": value} for name, value in values.items()}


def test_facts_that_differ_stand_by_what_they_can_move() -> None:
    """What changed, appeared and vanished; what can move a changed phase comes first."""
    topics = {"torch": "packages", "NCCL_ALGO": "nccl", "bios": "firmware", "same": "code"}
    good, bad = facts(torch="2.12", same="x", bios="1"), facts(torch="2.13", same="x", NCCL_ALGO="Ring")
    found = compare_facts(good, bad, ["collective_wait"], topics)
    assert [(drift.name, drift.good, drift.bad, drift.may_explain) for drift in found] == [
        ("bios", "1", None, ("collective_wait",)),
        ("NCCL_ALGO", None, "Ring", ("collective_wait",)),
        ("torch", "2.12", "2.13", ()),
    ]


def test_the_odd_one_inside_the_bad_run_is_named() -> None:
    """One rank with another variable than its peers is a cause even where most agree with the good run."""
    good = facts(OMP="8")
    bad = {"OMP": {"rank 0": "8", "rank 1": "8", "rank 2": "1"}}
    (drift,) = compare_facts(good, bad, ["forward"], {"OMP": "environment"})
    assert (drift.good, drift.bad, drift.where, drift.may_explain) == ("8", "1", ("rank 2",), ("forward",))


def test_another_allocation_is_one_line() -> None:
    """Hundreds of ranks on other hosts are told together."""
    names = [f"rank {rank} host" for rank in range(300)]
    good = {name: {name[:-5]: "a"} for name in names}
    bad = {name: {name[:-5]: "b"} for name in names}
    (drift,) = compare_facts(good, bad, [], dict.fromkeys(names, "placement"))
    assert (drift.name, drift.good, drift.bad, len(drift.where)) == ("host of 300 ranks", "a", "b", 300)
