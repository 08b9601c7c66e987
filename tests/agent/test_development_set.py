"""The development set: every class that can be told, its twins and the innocent oddities, each judged once."""

from __future__ import annotations

import pytest

from rankscope.agent.score import Row, score_run
from rankscope.agent.score_figures import summarise
from rankscope.agent.score_truth import truth_of
from rankscope.agent.scoreboard import scenarios_in
from rankscope.finding import Overhead
from rankscope.rules import CLASSES, THRESHOLD, judge
from rankscope.rules.faults import FAULTS
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario import Scenario
from rankscope.simulator.scenario_file import SCENARIOS

DEVELOPMENT, TEST = (scenarios_in(SCENARIOS / name) for name in ("development", "test"))


def row_of(scenario: Scenario) -> Row:
    """One run, scored."""
    return score_run(scenario, judge(generate(scenario), Overhead()), threshold=THRESHOLD)


def test_every_run_of_the_development_set_is_right():
    """Thresholds were set on these: each is told at its place, each innocent one left alone, no hardware accused."""
    rows = [row_of(scenario) for scenario in DEVELOPMENT]
    assert not [f"{row.scenario}: {row.verdict} {row.found}" for row in rows if not row.right]
    assert summarise(rows)["hardware_false_accusation_rate"] == 0


def test_what_real_jobs_show_generated_recordings_show_too():
    """The scenarios that run as real jobs have the same answers when generated."""
    rows = [row_of(scenario) for scenario in scenarios_in(SCENARIOS)]
    assert not [f"{row.scenario}: {row.verdict} {row.found}" for row in rows if not row.right]


def test_both_sets_have_every_class_and_are_apart():
    """Each class that can be told is injected in both sets; no scenario is in both; a good part of each is innocent."""
    for scenarios in (DEVELOPMENT, TEST):
        injected = {fault.class_slug for scenario in scenarios for fault in scenario.faults}
        assert {slug for slug, fault in FAULTS.items() if fault.told} <= injected
        assert injected <= set(CLASSES)
        innocent = [each for each in scenarios if not any(told.injected for told in truth_of(each).expected)]
        twins = [each for each in scenarios if any(not (f.counters and f.slowdown) for f in each.faults)]
        assert len(scenarios) >= 60
        assert len({*(each.name for each in innocent), *(each.name for each in twins)}) >= 0.3 * len(scenarios)
    workloads = [{each.workload for each in scenarios} for scenarios in (DEVELOPMENT, TEST)]
    assert not workloads[0] & workloads[1]


@pytest.mark.verify
def test_the_bars_hold_on_the_test_set():
    """Ten seeds of the test set: sides, classes, places, calibration, and no false accusation of hardware."""
    from dataclasses import replace

    rows = [row_of(replace(scenario, seed=seed)) for scenario in TEST for seed in range(1, 11)]
    figures = summarise(rows)["by_seen"]["observable"]
    assert figures["side_accuracy"] >= 0.97
    assert figures["class_macro_f1"] >= 0.92
    assert figures["localisation"] >= 0.95
    assert figures["brier"] <= 0.05
    assert figures["hardware_false_accusation_rate"] <= 0.005
