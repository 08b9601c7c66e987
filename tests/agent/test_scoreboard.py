"""Generated scoring from files to figures: what is right counts, what is missing is said, less seen is worse told."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from rankscope.agent.cli import main
from rankscope.agent.score_views import PROFILES, SOURCES, until
from rankscope.agent.scoreboard import generate_and_score
from rankscope.agent.scoreboard_page import with_section
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario_file import load_scenario

ROOT = Path(__file__).parents[2]
THERMAL = '[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = 2\nseverity = 1.25\nfrom_step = 60\n'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two scenarios: one GPU too hot, and one job that is well."""
    (tmp_path / "hot.toml").write_text(f'name = "hot"\n{THERMAL}', encoding="utf-8")
    (tmp_path / "well.toml").write_text('name = "well"\n[[confounder]]\nkind = "old-xid"\ngpu = 1\n', encoding="utf-8")
    return tmp_path


def test_score_as_json_and_as_a_page(directory: Path, tmp_path: Path):
    """Both runs are right; the page holds the command that made it, and baselines are fooled by the old Xid."""
    page = tmp_path / "page.md"
    done = CliRunner().invoke(main, ["score", str(directory), "--json", "--markdown", str(page)])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    jsonschema.validate(figures, json.loads((ROOT / "docs/schemas/score.schema.json").read_text()))
    assert (figures["runs"], figures["right"], figures["mode"]) == (2, 2, "generated")
    assert figures["baselines"]["Xids alone"]["side_accuracy"] == 0
    assert "--mode generated --seeds 1" in page.read_text(encoding="utf-8")


def test_what_cannot_run_as_a_real_job_is_refused_in_one_line(tmp_path: Path):
    """A directory of pipelines alone has nothing for real mode."""
    file = tmp_path / "stages.toml"
    file.write_text('[workload]\nkind = "pipeline"\nstages = 2\n', encoding="utf-8")
    done = CliRunner().invoke(main, ["score", str(file), "--mode", "real"])
    assert done.exit_code == 2
    assert "a pipeline job can only be generated; use --mode generated" in done.stderr


def test_time_to_detect_is_measured_by_judging_earlier_windows(directory: Path):
    """A quarter slower is told within ten steps of its begin, from a window that ended there."""
    row, _ = generate_and_score(load_scenario(directory / "hot.toml"), 1, views=False)
    assert row.detect_steps is not None
    assert row.detect_steps <= 10
    assert row.faults[0].detect_seconds == pytest.approx(row.detect_steps * 0.055, rel=0.5)


def test_a_window_until_a_step_holds_nothing_later(directory: Path):
    """Records, readings and events after the step are gone, and the job has not ended."""
    window = until(generate(load_scenario(directory / "hot.toml")), 70)
    assert max(window.ranks[0].steps.columns["step"]) == 70
    assert max(window.ranks[0].device.columns["step"]) == 68
    assert all(series.times_ns[-1] <= window.end_ns for series in window.series.values() if len(series.times_ns))
    assert window.job_status is None


def test_without_nvml_heat_cannot_be_told(directory: Path):
    """Each source and profile is a row of its own; without NVML a slow GPU is located and unexplained."""
    row, views = generate_and_score(load_scenario(directory / "hot.toml"), 1)
    assert set(views) == {*SOURCES, *PROFILES}
    assert row.verdict == "hardware"
    assert views["no NVML"].verdict == "unknown"
    assert views["no NVML"].located
    assert views["no device clock"].verdict in ("unknown", "healthy")


def test_one_section_of_a_page_is_written_anew(tmp_path: Path):
    """What stands before and after it stays."""
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nwords\n", encoding="utf-8")
    for text in ("first", "second"):
        page.write_text(with_section(page, "real scenarios", text), encoding="utf-8")
    page.write_text(page.read_text(encoding="utf-8") + "\nlast words\n", encoding="utf-8")
    text = with_section(page, "real scenarios", "third")
    assert "words" in text
    assert "last words" in text
    assert "third" in text
    assert "first" not in text
    assert "second" not in text
