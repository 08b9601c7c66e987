"""Generated recordings on disk give the verdict of the window they were made from."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from rankscope.agent.cli import main

TWO_HOSTS = """
name = "two-hosts"
[workload]
ranks = 8
steps = 160
step_ms = 150
[node]
gpus = 4
hosts = 2
[[fault]]
class = "gpu-thermal-slowdown"
gpu = 5
severity = 1.3
from_step = 70
"""


def test_recordings_of_two_hosts_are_judged_as_one_job(tmp_path: Path) -> None:
    """One file a host; `report` over both names the GPU."""
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(TWO_HOSTS, encoding="utf-8")
    made = CliRunner().invoke(main, ["generate", str(scenario), "--output", str(tmp_path / "out"), "--json"])
    assert made.exit_code == 0, made.output
    assert [Path(path).name for path in json.loads(made.stdout)["recordings"]] == ["node000.db", "node001.db"]
    told = CliRunner().invoke(main, ["report", str(tmp_path / "out"), "--json"])
    assert told.exit_code == 0, told.output
    (finding,) = json.loads(told.stdout)["findings"]
    assert (finding["class"], finding["where"]["rank"], finding["where"]["host"]) == (
        "gpu-thermal-slowdown",
        5,
        "node001",
    )
    again = CliRunner().invoke(main, ["generate", str(scenario), "--output", str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "is there already; name a new directory" in again.stderr
