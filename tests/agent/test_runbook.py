"""`rankscope runbook`: the pages as an installation has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rankscope.agent.cli import main
from rankscope.errors import ConfigurationError
from rankscope.rules import CLASSES
from rankscope.rules.runbooks import runbook


def told(*words: str) -> tuple[int, str]:
    """(status, what was printed)."""
    done = CliRunner().invoke(main, ["runbook", *words])
    return done.exit_code, done.output


@pytest.mark.parametrize("slug", sorted(CLASSES))
def test_every_class_has_its_page(slug: str) -> None:
    """By its name, and by the path that findings carry."""
    page = (Path(__file__).parents[2] / CLASSES[slug].runbook).read_text(encoding="utf-8")
    assert runbook(slug) == page


def test_a_page_and_the_list_are_shown() -> None:
    """The page of a class; every class with its title; both as JSON."""
    assert told("gpu-off-bus")[1].startswith("# gpu-off-bus\n")
    assert told("docs/runbooks/gpu-off-bus.md")[1] == told("gpu-off-bus")[1]
    assert json.loads(told("gpu-off-bus", "--json")[1])["text"] == told("gpu-off-bus")[1]
    assert len(told()[1].splitlines()) == len(CLASSES)
    assert set(json.loads(told("--json")[1])) == set(CLASSES)


def test_what_there_is_no_page_of_is_a_line(tmp_path: Path) -> None:
    """Status 2 with what is near; a file that is missing or damaged too."""
    status, out = told("gpu-offbus")
    assert status == 2
    assert 'no runbook "gpu-offbus"; did you mean gpu-off-bus' in out
    assert "`rankscope runbook` lists them" in told("\u202e..")[1]
    (tmp_path / "x.json").write_text("{")
    for path in (tmp_path / "x.json", tmp_path / "none.json"):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            runbook("gpu-off-bus", path)
