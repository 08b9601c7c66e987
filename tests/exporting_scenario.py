"""Runs a scenario whose agent exports to an OTLP receiver every second: `exporting_scenario.py TOML DIRECTORY URL`."""

from __future__ import annotations

import sys
from pathlib import Path

from msgspec.structs import replace

from rankscope.agent.config import ExportSettings, Settings
from rankscope.agent.demo import run_scenario
from rankscope.simulator.scenario_file import load_scenario


def main(scenario: str, directory: str, url: str) -> None:
    """Run it to its end; the verdict is printed."""

    def adapt(settings: Settings) -> Settings:
        # A finding is told while a job of seconds still runs.
        rules = replace(settings.rules, period_seconds=1.0, cpu_ratio=0.2)
        budget = replace(settings.budget, cpu_ratio=0.3)
        return replace(settings, export=ExportSettings(endpoint=url, period_seconds=1.0), rules=rules, budget=budget)

    done = run_scenario(load_scenario(Path(scenario)), Path(directory), say=print, adapt=adapt)
    verdict = done.result.verdict
    print("verdict:", verdict and [(each.class_slug, each.where.rank) for each in verdict.findings])


if __name__ == "__main__":
    main(*sys.argv[1:])
