"""Write the files that are generated from the code, or with --check say which are not as it would write them.

A generator is a function without arguments that returns the whole text of its file, and is listed here.
"""

from __future__ import annotations

import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

GENERATED = {
    "docs/xids.md": "rankscope.rules.xids_page:xids_markdown",
    "docs/classes.md": "rankscope.rules.documentation:classes_markdown",
    # A package holds no docs/.
    "rules/runbooks.json": "rankscope.rules.runbooks:runbooks_json",
    "docs/scenarios.md": "rankscope.simulator.scenario_docs:scenarios_markdown",
    "docs/configuration.md": "rankscope.agent.config_docs:configuration_markdown",
    "docs/privileges.md": "rankscope.agent.privileges_docs:privileges_markdown",
    "docs/rates.md": "rankscope.agent.rates_docs:rates_markdown",
    "dashboards/grafana/agent.json": "dashboards.agent:AGENT.json",
    "dashboards/grafana/fleet.json": "dashboards.fleet:FLEET.json",
    "dashboards/grafana/hardware.json": "dashboards.hardware:HARDWARE.json",
    "dashboards/grafana/job.json": "dashboards.job:JOB_DASHBOARD.json",
    "dashboards/grafana/rank.json": "dashboards.rank:RANK.json",
    "dashboards/rules/alertmanager.json": "dashboards.alertmanager:configuration_json",
    "dashboards/rules/rankscope.rules.json": "dashboards.alerts:rules_json",
    "dashboards/rules/recording.prometheus.json": "dashboards.recording:prometheus_json",
    "dashboards/rules/recording.victoriametrics.json": "dashboards.recording:victoriametrics_json",
    "helm/rankscope/values.schema.json": "scripts.chart_schema:values_schema_json",
    # A chart reads only files of its own.
    "helm/rankscope/files/dashboards/agent.json": "dashboards.agent:AGENT.json",
    "helm/rankscope/files/dashboards/fleet.json": "dashboards.fleet:FLEET.json",
    "helm/rankscope/files/dashboards/hardware.json": "dashboards.hardware:HARDWARE.json",
    "helm/rankscope/files/dashboards/job.json": "dashboards.job:JOB_DASHBOARD.json",
    "helm/rankscope/files/dashboards/rank.json": "dashboards.rank:RANK.json",
    "helm/rankscope/files/rules/alerts.json": "dashboards.alerts:rules_json",
    "helm/rankscope/files/rules/recording.prometheus.json": "dashboards.recording:prometheus_json",
    "helm/rankscope/files/rules/recording.victoriametrics.json": "dashboards.recording:victoriametrics_json",
}


def text_of(generator: str) -> str:
    """What a generator, named as `module:function`, says its file holds."""
    module, _, function = generator.partition(":")
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # dashboards/ is not part of the package
    text: str = attrgetter(function)(import_module(module))()
    return text


def main(arguments: list[str]) -> int:
    """Write every file; with --check write none and give 1 when one is stale."""
    check = arguments == ["--check"]
    stale = 0
    for name, generator in GENERATED.items():
        path, text = ROOT / name, text_of(generator)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            stale += 1
            print(f"{name}: not what {generator} gives: run `make generate`")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"{name}: written")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
