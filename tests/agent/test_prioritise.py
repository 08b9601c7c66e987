"""`rankscope prioritise`: findings and imported incidents together, every format, the schema, the worked example."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import sample_window
from click.testing import CliRunner, Result

from rankscope.agent.cli import main
from rankscope.agent.incidents import runs_in
from rankscope.agent.recording import Recording
from rankscope.exporters.verdict_json import verdict_document
from rankscope.reading import Event, Severity

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/three-incidents.toml"
VALIDATOR = jsonschema.Draft202012Validator(json.loads((ROOT / "docs/schemas/priorities.schema.json").read_text()))


def call(*words: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, ["prioritise", *map(str, words)], catch_exceptions=False)


def ranked(*words: str | Path) -> list[dict]:
    """Rows of the JSON, which fits the schema."""
    result = call("--json", *words)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    VALIDATOR.validate(found)
    rows: list[dict] = found["ranked"]
    return rows


@pytest.fixture
def verdict() -> dict:
    """A verdict with a hot GPU in it."""
    window, found = sample_window.thermal()
    document: dict = json.loads(json.dumps(verdict_document(found, window.anchors)))
    return document


def written(path: Path, document: object) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(document))
    return path


def test_the_worked_example_is_what_the_command_prints() -> None:
    """docs/priorities.md shows the output of the command beside it, to the letter."""
    page = (ROOT / "docs/priorities.md").read_text()
    command, _, shown = page.partition("```\n$ rankscope prioritise ")[2].partition("```")[0].partition("\n")
    words = [str(ROOT / word) if "/" in word else word for word in shlex.split(command)]
    assert call(*words).stdout.strip() == shown.strip()


def test_findings_stand_among_imported_incidents(verdict: dict, tmp_path: Path) -> None:
    """A finding brings its GPU-hours, ranks, confidence, and what its class and job are worth."""
    matrix = tmp_path / "site.toml"
    matrix.write_text(f'[job."{verdict["job"]["name"]}"]\ncustomers = 1000\ndeadline_hours = 2\nregulatory = 1\n')
    rows = ranked(written(tmp_path / "v.json", verdict), "--incidents", EXAMPLE, "--matrix", matrix)
    assert len(rows) >= 4
    first = rows[0]
    assert first["name"].startswith("gpu-thermal-slowdown in ")
    assert first["values"]["gpu_hours_per_hour"] == pytest.approx(19.2 / 24)
    assert first["values"]["customers"] == 1000
    assert first["priority"] == "P1"


def test_one_gpu_that_hurts_two_jobs_is_one_incident(verdict: dict, tmp_path: Path) -> None:
    """Losses add up, and both jobs are named; another GPU stays an incident of its own."""
    other, elsewhere = copy.deepcopy(verdict), copy.deepcopy(verdict)
    other["job"]["name"] = "second"
    elsewhere["findings"][0]["where"]["gpu_uuid"] = "GPU-else"
    files = [
        written(tmp_path / f"{name}.json", each) for name, each in (("a", verdict), ("b", other), ("c", elsewhere))
    ]
    hot = [row for row in ranked(*files) if row["name"].startswith("gpu-thermal-slowdown")]
    assert sorted(row["values"]["jobs"] for row in hot) == [1, 2]
    both = max(hot, key=lambda row: row["values"]["jobs"])
    assert both["values"]["gpu_hours_per_hour"] == pytest.approx(2 * 19.2 / 24)
    assert "second" in both["what"]


def test_incidents_come_from_toml_json_and_csv(tmp_path: Path) -> None:
    """The same incident from each; an empty cell of a CSV is unknown, not zero."""
    (tmp_path / "a.csv").write_text("name, customers, customer_weight, regulatory\nqueue,4,2,\n")
    (tmp_path / "a.json").write_text('{"incidents": [{"name": "queue", "customers": 4, "customer_weight": 2}]}')
    (tmp_path / "a.toml").write_text('[[incident]]\nname = "queue"\ncustomers = 4\ncustomer_weight = 2\n')
    for path in sorted(tmp_path.iterdir()):
        (row,) = ranked("--incidents", path)
        assert row["values"] == {"customers": 8}
        assert "regulatory" in row["unknown"]


def test_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """The same file twice: the second carries a number."""
    path = written(tmp_path / "a.json", [{"name": "queue"}, {"name": "queue"}])
    assert sorted(row["name"] for row in ranked("--incidents", path)) == ["queue", "queue [2]"]


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        ("--incidents", "name,custommers\nx,1\n", "did you mean 'customers'"),
        ("--incidents", "a,b\n1,2\n", "no column 'name'"),
        ("--incidents", "[]", "no incidents"),
        ("--incidents", "{not json", "no JSON"),
        ("--incidents", "\x00\xff", "no column"),
        ("", '{"schema": "rankscope.whatif/1"}', "is no rankscope.verdict/1"),
        ("", '{"schema": "rankscope.verdict/1", "findings": [{}]}', "no whole verdict"),
        ("--matrix", "[criterion]\nx = 1\n", "criterion.x"),
    ],
)
def test_what_cannot_be_ranked_is_one_line(tmp_path: Path, option: str, content: str, said: str) -> None:
    """Status 2, one line that names the file."""
    path = tmp_path / "given"
    path.write_text(content)
    result = call(*([option] if option else []), path, *(["--incidents", EXAMPLE] if option == "--matrix" else []))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert said in line
    assert str(path) in line


def test_a_directory_of_jobs_is_every_job_in_it(tmp_path: Path) -> None:
    """The directory that `run` writes to holds one a job: each is judged by itself; one without any says so."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        made = Recording.create(tmp_path / name / "node.db", job=name, host="node")
        made.add_events([Event("rank-exited", 5, "rank 0 ended", Severity.CRITICAL, rank=0)])
        made.close()
    assert {run.name for run in runs_in(tmp_path)} == {"first", "second"}
    assert runs_in(tmp_path / "first") == [tmp_path / "first"]
    assert call(tmp_path).exit_code == 0
    (tmp_path / "none").mkdir()
    empty = call(tmp_path / "none")
    assert empty.exit_code == 2
    assert "no recording" in empty.stderr


def test_nothing_to_rank_says_what_to_give() -> None:
    """No source at all."""
    result = call()
    assert result.exit_code == 2
    assert "--incidents" in result.stderr
