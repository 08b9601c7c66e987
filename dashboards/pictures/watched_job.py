"""One job of the pictures: a scenario run as a real job whose agent exports to a store, until it is interrupted.

`watched_job.py SCENARIO DIRECTORY STORE`; its host is `$RANKSCOPE_HOST`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from msgspec.structs import replace

from rankscope.agent.config import ExportSettings, Settings
from rankscope.agent.demo import run_scenario
from rankscope.simulator.scenario_file import load_scenario

#: A picture of minutes shows what an hour does at the agent's own pace of 15 s.
EXPORT_SECONDS = 2.0


def main(scenario: str, directory: str, store: str) -> None:
    """Run it; what it says goes to standard output."""

    def adapt(settings: Settings) -> Settings:
        export = ExportSettings(
            endpoint=f"{store}/opentelemetry", period_seconds=EXPORT_SECONDS, interval_seconds=EXPORT_SECONDS
        )
        return replace(settings, export=export)

    told = load_scenario(Path(scenario))
    run_scenario(told, Path(directory), say=print, adapt=adapt, job=told.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
