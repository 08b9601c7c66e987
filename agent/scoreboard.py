"""`rankscope score`: runs scenarios, scores their verdicts, and writes the scoreboard."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankscope.agent.demo import run_scenario
from rankscope.agent.score import Row, score_run, summarise
from rankscope.errors import RankscopeError, ScenarioError
from rankscope.rules import THRESHOLD
from rankscope.simulator.scenario import Scenario, load_scenario

_FIGURES = {
    "runs": "runs",
    "right": "right class at the right place (or rightly silent), no hardware accused without reason",
    "side_accuracy": "verdict on the right side",
    "class_macro_f1": "F1 over classes, each counting the same",
    "top1": "the injected fault is the first finding",
    "top3": "the injected fault is among the first three",
    "localisation": "the first finding names the right place",
    "hardware_false_accusation_rate": "runs without a hardware fault in which hardware was accused",
    "hardware_false_accusation_upper_95": "its upper bound (Wilson, 95 %)",
    "false_alarms_per_gpu_hour": "hardware accusations without a hardware fault, a GPU-hour",
    "detect_steps_median": "steps from the fault to its detection, median",
    "detect_steps_p95": "the same, 95th percentile",
    "brier": "Brier score of the confidences",
    "abstention": "faults that can be told and were not",
    "gpu_hours": "GPU-hours judged",
}


def scenarios_in(path: Path) -> list[Scenario]:
    """The scenario that a file holds, or all those in a directory. Raises ScenarioError."""
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise ScenarioError("no scenario there", where=str(path), todo="name a directory with .toml files")
    return [load_scenario(file) for file in files]


def run_and_score(scenario: Scenario, seed: int, *, say: Callable[[str], None] = lambda _line: None) -> Row:
    """One run of a scenario with a seed, scored. Raises RankscopeError where there is no verdict."""
    with tempfile.TemporaryDirectory(prefix="rankscope-score-", ignore_cleanup_errors=True) as directory:
        done = run_scenario(replace(scenario, seed=seed), Path(directory), say=say)
    if done.interrupted:
        raise KeyboardInterrupt
    if done.result.verdict is None:
        raise RankscopeError("the run gave no verdict", where=scenario.name)
    return score_run(done.scenario, done.result.verdict, threshold=THRESHOLD, gpu_hours=done.gpu_hours)


def score_scenarios(scenarios: Sequence[Scenario], seeds: int, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Run every scenario with seeds 1 to N, one run after the other, and sum up."""
    rows: list[Row] = []
    for scenario in scenarios:
        for seed in range(1, seeds + 1):
            row = run_and_score(scenario, seed, say=say)
            rows.append(row)
            say(f"{'right' if row.right else 'WRONG'}  {scenario.name} (seed {seed}): {_told(row)}")
    return summarise(rows)


def markdown(figures: Mapping[str, Any]) -> str:
    """The scoreboard as a page: figures, then every run."""
    lines = [
        "# Scoreboard",
        "",
        "Written by `rankscope score simulator/scenarios --seeds 3 --markdown docs/scoreboard.md`: every scenario",
        "that comes with Rankscope, run as a real 4-rank job on simulated GPUs, and its verdict compared with what",
        "was injected. No GPU has confirmed these figures yet. Rules and scenarios were developed side by side, so",
        "this says that what was foreseen is told apart, not how often an unforeseen fault would be.",
        "",
        "More than one answer is right where the evidence cannot decide, and `expected` is the strictest: batches that",
        "come late from calm storage may be called input-bound, a rank that died of a device error on a GPU without a",
        "trace by its exception, and a rank with more work by that work. The F1 makes no such allowance.",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {text} | {_number(figures[name])} |" for name, text in _FIGURES.items()),
        "",
        "| scenario | seed | injected | expected | verdict | first finding | right |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        names = ("scenario", "seed", "injected", "expected", "verdict", "found")
        cells = [row[name] or "-" for name in names]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} | {'yes' if row['right'] else '**no**'} |")
    return "\n".join(lines) + "\n"


def _told(row: Row) -> str:
    return f"{row.verdict}" + (f", {row.found}" if row.found else "")


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
