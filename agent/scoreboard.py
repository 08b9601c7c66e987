"""`rankscope score`: runs or generates scenarios, and scores their verdicts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankscope.agent.demo import run_scenario
from rankscope.agent.score import Row, counts, score_run
from rankscope.agent.score_baselines import baselines
from rankscope.agent.score_figures import figures, summarise
from rankscope.agent.score_shares import calibration, calibration_error
from rankscope.agent.score_truth import Expected, truth_of
from rankscope.agent.score_views import PROFILES, SOURCES, seconds_between, until
from rankscope.errors import RankscopeError, ScenarioError
from rankscope.finding import Overhead
from rankscope.rules import THRESHOLD, judge
from rankscope.simulator.scenario import Scenario
from rankscope.simulator.scenario_file import load_scenario
from rankscope.window import Window

#: Steps after a fault's begin at which a generated run is judged as if it ended there, to see when it is first told.
_LOOKS = (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 50, 65, 80, 100, 150, 200, 300)
#: What the views of one window are compared by.
_COMPARED = (
    "side_accuracy",
    "class_macro_f1",
    "localisation",
    "hardware_false_accusation_rate",
    "abstention",
    "brier",
    "calibration_error",
)

_VIEWS = {**SOURCES, **PROFILES}

Say = Callable[[str], None]


def scenarios_in(path: Path) -> list[Scenario]:
    """The scenario that a file holds, or all those in a directory (below it, where none lies in it directly)."""
    files = sorted(path.glob("*.toml")) or sorted(path.rglob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise ScenarioError("no scenario there", where=str(path), todo="name a directory with .toml files")
    return [load_scenario(file) for file in files]


def run_and_score(scenario: Scenario, seed: int, *, say: Say = lambda _line: None) -> Row:
    """One run of a scenario with a seed as a real job, scored. Raises RankscopeError where there is no verdict."""
    with tempfile.TemporaryDirectory(prefix="rankscope-score-", ignore_cleanup_errors=True) as directory:
        done = run_scenario(replace(scenario, seed=seed), Path(directory), say=say)
    if done.interrupted:
        raise KeyboardInterrupt
    verdict, window = done.result.verdict, done.result.window
    if verdict is None or window is None:
        raise RankscopeError("the run gave no verdict", where=scenario.name)
    row = score_run(done.scenario, verdict, threshold=THRESHOLD, gpu_hours=done.gpu_hours)
    faults = tuple(
        replace(fault, detect_seconds=seconds_between(window, each.from_step, each.from_step + fault.detect_steps))
        if fault.detect_steps is not None
        else fault
        for fault, each in zip(row.faults, _told(done.scenario), strict=True)
    )
    return replace(row, faults=faults, baselines=baselines(window, truth_of(done.scenario)))


def _told(scenario: Scenario) -> list[Expected]:
    return [each for each in truth_of(scenario).expected if each.injected]


def score_real(scenarios: Sequence[Scenario], seeds: int, *, say: Say) -> dict[str, Any]:
    """Run every scenario that can be a real job with seeds 1 to N, one run after the other, and sum up."""
    able = [scenario for scenario in scenarios if scenario.why_not_real is None]
    if not able:
        first = scenarios[0]
        raise ScenarioError(str(first.why_not_real), where=first.name, todo="use --mode generated")
    for scenario in scenarios:
        if scenario.why_not_real is not None:
            say(f"left out: {scenario.name}: {scenario.why_not_real}")
    rows: list[Row] = []
    for scenario in able:
        for seed in range(1, seeds + 1):
            row = run_and_score(scenario, seed, say=say)
            rows.append(row)
            say(_line(row))
    skipped = [scenario.name for scenario in scenarios if scenario.why_not_real is not None]
    return {"mode": "real", "skipped": skipped} | summarise(rows)


def generate_and_score(scenario: Scenario, seed: int, *, views: bool = True) -> tuple[Row, dict[str, Row]]:
    """One generated run, scored as it is and, by name, as each view of it."""
    from rankscope.simulator.generate import generate

    scenario = replace(scenario, seed=seed)
    window = generate(scenario)
    hours = (window.end_ns - window.begin_ns) / 3.6e12 * scenario.workload.ranks

    def scored(of: Window, *, looks: bool) -> Row:
        verdict = judge(of, Overhead())
        measured = (lambda each: _first_told(of, each)) if looks else None
        return score_run(scenario, verdict, threshold=THRESHOLD, gpu_hours=hours, measured=measured)

    row = replace(scored(window, looks=True), baselines=baselines(window, truth_of(scenario)))
    if not views:
        return row, {}
    return row, {name: scored(view.of(window), looks=False) for name, view in _VIEWS.items()}


def _first_told(window: Window, each: Expected) -> tuple[int | None, float | None]:
    """Steps and seconds from a fault's begin to the first look at which its finding is sure; None where it never is."""
    last = int(max(of.steps.columns["step"][-1] for of in window.ranks.values() if len(of.steps)))
    for look in _LOOKS:
        step = each.from_step + look
        if step > last:
            break
        found = judge(until(window, step), Overhead()).findings
        if any(each.matches(finding) and counts(finding, THRESHOLD) for finding in found):
            return look, seconds_between(window, each.from_step, step)
    return None, None


def score_generated(
    scenarios: Sequence[Scenario], seeds: int, *, say: Say, views: bool = True, clean_seeds: int = 0
) -> dict[str, Any]:
    """Generate every scenario with seeds 1 to N, and sum up, views of the first seed included.

    Those in which nothing is injected come with `clean_seeds`, if that is more: rare accusations take many trials.
    """
    rows: list[Row] = []
    seen: dict[str, list[Row]] = {name: [] for name in _VIEWS}
    for scenario in scenarios:
        trials = seeds if scenario.faults else max(seeds, clean_seeds)
        for seed in range(1, trials + 1):
            row, others = generate_and_score(scenario, seed, views=views and seed == 1)
            rows.append(row)
            for name, other in others.items():
                seen[name].append(other)
            if not row.right:
                say(_line(row))
    full = figures([row for row in rows if row.seed == 1])
    # Less seen is less sure: together these confidences lie at every height.
    pooled = [each for held in seen.values() for row in held for each in row.told]
    compared = {"everything": full} | {name: figures(held) for name, held in seen.items() if held}
    return {
        "mode": "generated",
        "views_calibration": calibration(pooled),
        "views_calibration_error": calibration_error(pooled),
        "views": {name: {key: held[key] for key in _COMPARED} for name, held in compared.items()},
    } | summarise(rows)


def _line(row: Row) -> str:
    told = row.verdict + (f", {row.found}" if row.found else "")
    wanted = "" if row.right else f"; injected: {', '.join(fault.injected for fault in row.faults) or 'nothing'}"
    return f"{'right' if row.right else 'WRONG'}  {row.scenario} (seed {row.seed}): {told}{wanted}"
