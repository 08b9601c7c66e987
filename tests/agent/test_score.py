"""Scoring: hand-made verdicts against hand-made scenarios, and the figures over rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.agent.score import Row, score_run
from rankscope.agent.score_figures import summarise
from rankscope.agent.score_shares import calibration, calibration_error, wilson_upper
from rankscope.finding import Advice, Basis, Finding, Impact, Overhead, Side, Verdict, Where
from rankscope.reading import Severity
from rankscope.simulator.scenario import Scenario
from rankscope.simulator.scenario_file import load_scenario

SIDES = {
    "gpu-thermal-slowdown": Side.HARDWARE,
    "gpu-off-bus": Side.HARDWARE,
    "gpu-clocks-locked": Side.ENVIRONMENT,
    "slow-storage": Side.ENVIRONMENT,
    "input-bound": Side.CODE,
    "work-imbalance": Side.CODE,
    "rank-exception": Side.CODE,
    "slow-rank-unexplained": Side.UNKNOWN,
}
THERMAL = '[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = 2\nfrom_step = 40\n'


@pytest.fixture
def scenario(tmp_path: Path):
    """Makes a scenario from text."""

    def scenario(text: str) -> Scenario:
        path = tmp_path / "scenario.toml"
        path.write_text(text)
        return load_scenario(path)

    return scenario


def finding(slug: str, rank: int | None = None, confidence: float = 0.95, step: int | None = 45) -> Finding:
    """A finding with what scoring looks at."""
    return Finding(
        class_slug=slug,
        side=SIDES[slug],
        confidence=confidence,
        severity=Severity.CRITICAL if confidence > 0.3 else Severity.INFO,
        advice=Advice.WATCH,
        where=Where(host="node0", rank=rank),
        basis=Basis.DEVICE_COMPUTE,
        since_ns=0,
        detected_step=step,
        impact=Impact(),
        evidence=(),
        not_seen=(),
        action="",
        runbook="",
        summary="",
    )


def score(scenario: Scenario, *findings: Finding) -> Row:
    """The row of a verdict with these findings at a threshold of 0.8."""
    sure = [item for item in findings if item.side is Side.UNKNOWN or item.confidence >= 0.8]
    doubtful = [item for item in findings if item.severity is not Severity.INFO]
    verdict = str(sure[0].side) if sure else "unknown" if doubtful else "healthy"
    return score_run(scenario, Verdict({}, verdict, findings, (), Overhead(), ""), threshold=0.8, gpu_hours=0.5)


def test_the_right_class_on_the_right_gpu_is_right(scenario):
    """Class, rank and time agree: top-1, located, detected five steps after the fault began."""
    row = score(scenario(THERMAL), finding("gpu-thermal-slowdown", 2))
    assert row.right
    assert (row.matched_at, row.located, row.detect_steps, row.false_alarms) == (1, True, 5, 0)
    assert row.brier == pytest.approx((0.05**2,))


def test_the_right_class_on_another_gpu_is_neither_right_nor_located(scenario):
    """Hardware is indeed broken, so the side is right, but the wrong GPU would be drained."""
    row = score(scenario(THERMAL), finding("gpu-thermal-slowdown", 1))
    assert row.side_right
    assert not row.right
    assert (row.matched_at, row.located) == (None, False)


def test_a_finding_that_began_before_the_fault_does_not_match(scenario):
    """Times must overlap: what was there at step 3 is not the fault of step 40."""
    assert score(scenario(THERMAL), finding("gpu-thermal-slowdown", 2, step=3)).matched_at is None


def test_the_second_finding_counts_for_top3_only(scenario):
    """The right answer in second place is not the first thing a person reads."""
    rows = [score(scenario(THERMAL), finding("input-bound"), finding("gpu-thermal-slowdown", 2))]
    figures = summarise(rows)
    assert (figures["top1"], figures["top3"], figures["side_accuracy"]) == (0, 1, 0)


def test_a_twin_without_counters_is_unknown_at_its_place_and_never_hardware(scenario):
    """Slow with clean counters: located but unexplained is right, the hardware class is a false alarm."""
    twin = scenario(THERMAL + "counters = false\n")
    assert score(twin, finding("slow-rank-unexplained", 2)).right
    assert score(twin, finding("gpu-thermal-slowdown", 2, 0.5)).right
    assert not score(twin, finding("slow-rank-unexplained", 1)).right
    assert not score(twin).right
    accused = score(twin, finding("gpu-thermal-slowdown", 2))
    assert not accused.right
    assert accused.false_alarms == 1


def test_a_twin_without_slowdown_is_healthy_or_below_threshold(scenario):
    """Counters alone cost nothing: a finding below threshold is fine, one above is a false alarm."""
    twin = scenario(THERMAL + "slowdown = false\n")
    assert score(twin).right
    assert score(twin, finding("gpu-thermal-slowdown", 2, 0.2)).right
    assert score(twin, finding("gpu-thermal-slowdown", 2)).false_alarms == 1


def test_a_crash_without_counters_may_be_called_by_what_shows(scenario):
    """A rank that died of a device error on a GPU that looks well: its exception, or unknown, not hardware."""
    twin = scenario('[[fault]]\nclass = "gpu-off-bus"\ngpu = 3\ncounters = false\n')
    assert score(twin, finding("rank-exception", 3)).right
    assert score(twin, finding("slow-rank-unexplained", 3)).right
    assert not score(twin, finding("gpu-off-bus", 3)).right


def test_more_work_may_be_named_or_left_alone_but_no_gpu_accused(scenario):
    """The confounder is the job's own doing: silence and work-imbalance are right, hardware is not."""
    more = scenario('[[confounder]]\nkind = "more-work"\nrank = 3\n')
    assert score(more).right
    assert score(more, finding("work-imbalance", 3)).right
    assert not score(more, finding("gpu-thermal-slowdown", 3)).right


def test_abstention_is_a_miss_in_recall_and_neutral_in_precision(scenario):
    """One found, one abstained: recall 1/2, precision 1, so F1 is 2/3; another class is not touched by it."""
    rows = [
        score(scenario(THERMAL), finding("gpu-thermal-slowdown", 2)),
        score(scenario(THERMAL), finding("slow-rank-unexplained", 2)),
        score(scenario('[[fault]]\nclass = "slow-storage"\n'), finding("slow-storage")),
    ]
    figures = summarise(rows)
    assert figures["class_macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert figures["abstention"] == pytest.approx(1 / 3)


def test_a_wrong_class_costs_precision_of_what_it_claims(scenario):
    """Input-bound claimed where storage was slow: that class misses, and input-bound gets a false positive."""
    rows = [
        score(scenario('[[fault]]\nclass = "slow-storage"\n'), finding("input-bound")),
        score(scenario('[[fault]]\nclass = "input-bound"\n'), finding("input-bound")),
    ]
    assert summarise(rows)["class_macro_f1"] == pytest.approx((0 + 2 / 3) / 2)


def test_false_hardware_accusations_are_counted_per_run_and_per_gpu_hour(scenario):
    """One alarm in two runs without a hardware fault over half a GPU-hour each; the third run does not count."""
    rows = [
        score(scenario(""), finding("gpu-thermal-slowdown", 1)),
        score(scenario("")),
        score(scenario(THERMAL), finding("gpu-thermal-slowdown", 2)),
    ]
    figures = summarise(rows)
    assert figures["hardware_false_accusation_rate"] == 0.5
    assert figures["hardware_false_accusation_upper_95"] == pytest.approx(wilson_upper(1, 2))
    assert figures["false_alarms_per_gpu_hour"] == pytest.approx(1 / 1.5)
    assert figures["runs"] == len(figures["rows"]) == 3


def test_wilson_upper_bound_agrees_with_published_values():
    """0 of 10 and 5 of 10 at 95 %: 0.2775 and 0.7634 (Newcombe's method 3)."""
    assert wilson_upper(0, 10) == pytest.approx(0.2775, abs=1e-4)
    assert wilson_upper(5, 10) == pytest.approx(0.7634, abs=1e-4)


def test_twins_are_counted_apart_and_must_change_the_answer(scenario):
    """A silent twin called by its fault's own class has not changed the answer; one called unknown has."""
    silent = scenario(f"{THERMAL}counters = false\n")
    rows = [
        score(silent, finding("slow-rank-unexplained", 2)),
        score(silent, finding("gpu-thermal-slowdown", 2)),
        score(scenario(f"{THERMAL}slowdown = false\n")),
        score(scenario(THERMAL), finding("gpu-thermal-slowdown", 2)),
    ]
    twins = summarise(rows)["by_twin"]
    assert twins["without counters"]["runs"] == 2
    assert twins["without counters"]["changed"] == twins["without counters"]["right"] == 0.5
    assert twins["without slowness"]["changed"] == 1
    assert twins["without slowness"]["changed_lower_95"] == pytest.approx(1 - wilson_upper(0, 1))


def test_answers_are_counted_by_side(scenario):
    """Of two hardware faults one is called code: half right, and what was said instead."""
    rows = [
        score(scenario(THERMAL), finding("gpu-thermal-slowdown", 2)),
        score(scenario(THERMAL), finding("input-bound", None)),
    ]
    sides = summarise(rows)["by_side"]
    assert list(sides) == ["hardware"]
    assert (sides["hardware"]["right"], sides["hardware"]["code"], sides["hardware"]["unknown"]) == (0.5, 1, 0)


def test_a_confidence_that_is_off_by_more_than_chance_is_marked():
    """Nine in ten said and nine in ten right lies within; a half right does not; few findings explain much."""
    told = [(0.92, number > 0) for number in range(10)] + [(0.97, number % 2 == 0) for number in range(20)]
    bins = calibration([*told, (0.6, False)])
    assert [each["within"] for each in bins] == [True, True, False]
    assert calibration_error(told) == pytest.approx((10 * 0.02 + 20 * 0.47) / 30)
    assert calibration_error([]) is None


def test_no_runs_give_no_figures_rather_than_zero():
    """Missing is not zero: every share of nothing is None."""
    figures = summarise([])
    assert figures["runs"] == 0
    assert figures["top1"] is figures["brier"] is figures["hardware_false_accusation_rate"] is None
