"""The scoreboard as a page: figures first, then every scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankscope.agent.score_figures import ANSWERS
from rankscope.errors import ScenarioError

_FIGURES = {
    "runs": "runs",
    "right": "right class at the right place (or rightly silent), no hardware accused without reason",
    "side_accuracy": "verdict on the right side",
    "side_accuracy_lower_95": "its lower bound (Wilson, 95 %)",
    "class_macro_f1": "F1 over classes, each counting the same",
    "top1": "an injected fault is the first finding",
    "top1_lower_95": "its lower bound",
    "top3": "an injected fault is among the first three",
    "top3_lower_95": "its lower bound",
    "localisation": "the finding names the right rank, GPU, host or stage",
    "localisation_lower_95": "its lower bound",
    "hardware_false_accusation_rate": "runs without a hardware fault in which hardware was accused",
    "hardware_false_accusation_upper_95": "its upper bound (Wilson, 95 %)",
    "clean_runs": "runs with nothing injected",
    "clean_false_accusation_rate": "of those, hardware accused",
    "clean_false_accusation_upper_95": "its upper bound (Wilson, 95 %)",
    "clean_right": "of those, rightly silent",
    "false_alarms_per_gpu_hour": "hardware accusations without a hardware fault, a GPU-hour",
    "detect_steps_median": "steps from the fault to its detection, median",
    "detect_steps_p95": "the same, 95th percentile",
    "detect_seconds_median": "seconds from the fault to its detection, median",
    "detect_seconds_p95": "the same, 95th percentile",
    "brier": "Brier score of the confidences",
    "calibration_error": "mean distance of a confidence from how often such a one was right",
    "abstention": "runs with a fault that can be told, and was not",
    "action_right": "advice right: what to do, and whether to act",
    "action_right_lower_95": "its lower bound",
    "gpu_hours": "GPU-hours judged",
}
_VIEWS = {
    "side_accuracy": "right side",
    "class_macro_f1": "macro-F1",
    "localisation": "place",
    "hardware_false_accusation_rate": "hardware wrongly accused",
    "abstention": "not told",
    "brier": "Brier",
    "calibration_error": "calibration error",
}


def markdown(figures: Mapping[str, Any], command: str) -> str:
    """One mode's part of the page."""
    real = figures["mode"] == "real"
    how = "real jobs on simulated GPUs" if real else "generated recordings"
    lines = [f"Scored on {how} by `{command}`.", "", "| figure | all | diagnosis | parsing |", "|---|---|---|---|"]
    parts = [figures, figures["by_seen"]["observable"], figures["by_seen"]["parsing"]]
    for name, text in _FIGURES.items():
        lines.append(f"| {text} | {' | '.join(number(part[name]) for part in parts)} |")
    lines += _calibration("Confidence against how often it was right", figures["calibration"])
    lines += _calibration("The same over all runs seen with less (below)", figures.get("views_calibration", ()))
    answers = ("runs", "right", "right_lower_95", *ANSWERS)
    lines += _table("side of the fault", answers, figures["by_side"])
    lines += _table("twins", ("runs", "changed", "changed_lower_95", "right"), figures["by_twin"])
    lines += _baselines(figures["baselines"], figures)
    if figures.get("views"):
        lines += _views(figures["views"])
    columns = ("faults", "top1", "localisation", "detect_steps_median", "detect_steps_p95")
    lines += _table("computing slower by a factor of", columns, figures["by_factor"])
    columns = ("faults", "top1", "top3", "localisation", "localisation_lower_95")
    lines += _table("basis of the place", columns, figures["by_basis"])
    lines += _table(
        "class", ("seen", "faults", "f1", "top1", "localisation", "detect_steps_median"), figures["by_class"]
    )
    lines += _runs(figures["rows"])
    return "\n".join(lines) + "\n"


def _calibration(what: str, bins: Sequence[Mapping[str, Any]]) -> list[str]:
    if not bins:
        return []
    lines = ["", f"{what}:", "", "| findings | said | right | 95 % | within |", "|---|---|---|---|---|"]
    for held in bins:
        interval = f"{number(held['right_lower_95'])} to {number(held['right_upper_95'])}"
        within = "yes" if held["within"] else "no"
        cells = (held["findings"], number(held["confidence"]), number(held["right"]), interval, within)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _baselines(answers: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    lines = ["", "Against simple rules on the same runs (hardware accused in runs with nothing injected):", ""]
    lines += ["| rule | right side | right rank | hardware wrongly accused |", "|---|---|---|---|"]
    own = (figures["side_accuracy"], figures["localisation"], figures["clean_false_accusation_rate"])
    lines.append(f"| Rankscope | {' | '.join(map(number, own))} |")
    for name, held in answers.items():
        told = (held["side_accuracy"], held["localisation"], held["hardware_false_accusation_rate"])
        lines.append(f"| {name} | {' | '.join(map(number, told))} |")
    return lines


def _views(views: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "The same runs (seed 1) seen with less: each source taken away, and what each way of running sees:",
        "",
    ]
    lines += [f"| seen | {' | '.join(_VIEWS.values())} |", "|---" * (len(_VIEWS) + 1) + "|"]
    for name, held in views.items():
        lines.append(f"| {name} | {' | '.join(number(held[key]) for key in _VIEWS)} |")
    return lines


def _table(what: str, columns: Sequence[str], parts: Mapping[str, Any]) -> list[str]:
    if not parts:
        return []
    names = [column.replace("_lower_95", " at least (95 %)").replace("_", " ") for column in columns]
    lines = ["", f"| {what} | {' | '.join(names)} |", "|---" * (len(columns) + 1) + "|"]
    for name, held in parts.items():
        lines.append(f"| {name} | {' | '.join(number(held[column]) for column in columns)} |")
    return lines


def _runs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every scenario, its seeds together."""
    lines = ["", "| scenario | injected | expected | right | wrong answers |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(row["scenario"] for row in rows):
        held = [row for row in rows if row["scenario"] == name]
        wrong = dict.fromkeys(
            f"{row['verdict']}" + (f" ({row['found']})" if row["found"] else "") for row in held if not row["right"]
        )
        injected = ", ".join(fault["injected"] for fault in held[0]["faults"]) or "-"
        right = sum(row["right"] for row in held)
        lines.append(f"| {name} | {injected} | {held[0]['expected']} | {right} of {len(held)} | {'; '.join(wrong)} |")
    return lines


def number(value: Any) -> str:
    """A figure in a cell."""
    if value is None:
        return "-"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def with_section(page: Path, name: str, text: str) -> str:
    """The page with one section written anew between its marks, or added; the rest stays. Raises ScenarioError."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    try:
        before = page.read_text(encoding="utf-8") if page.exists() else "# Scoreboard\n"
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError("cannot be read", where=str(page), todo="name another page") from error
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin in before and end in before.partition(begin)[2]:
        head, _, rest = before.partition(begin)
        return f"{head}{section}{rest.partition(end)[2]}"
    return f"{before.rstrip()}\n\n{section}\n"
