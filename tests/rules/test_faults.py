"""The frozen list of faults: complete, one side each, and refused where it contradicts itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rankscope.errors import ConfigurationError
from rankscope.rules import faults
from rankscope.rules.faults import FAULTS, NUMBERS, Seen, load
from rankscope.rules.table import load as load_table
from rankscope.simulator.scenario_classes import FAULT_CLASSES


def test_every_number_has_a_class_and_one_side() -> None:
    """All 53 are there, and what can be told has a side."""
    assert {fault.number for fault in FAULTS.values()} == set(NUMBERS)
    assert all(fault.side in ("hardware", "environment", "code") for fault in FAULTS.values() if fault.told)


def test_scenarios_and_list_name_the_same_sides() -> None:
    """What a scenario can inject is on the list or among the ends of a job, with the same side."""
    table = load_table().classes
    for slug, of in FAULT_CLASSES.items():
        assert of.side == (FAULTS[slug].side if slug in FAULTS else table[slug].side), slug
    assert {slug for slug, fault in FAULTS.items() if fault.told} <= set(FAULT_CLASSES)


def test_what_cannot_be_known_is_never_told() -> None:
    """Silent corruption and a loss spike have no evidence; normal variation raises nothing."""
    told = set(load_table().classes)
    assert not {slug for slug, fault in FAULTS.items() if fault.seen in (Seen.NOT_OBSERVABLE, Seen.NORMAL)} & told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("number = 7\n", "number = 6\n"), "number 7 is missing"),
        (lambda text: text.replace("number = 7\n", "number = 77\n"), "number 7 is missing"),
        (lambda text: text.replace('side = "hardware"', 'side = "gremlins"', 1), "unknown side"),
        (lambda text: text.replace('seen = "parsing"', 'seen = "guessed"', 1), "unknown seen"),
        (lambda text: text.replace('side = "hardware"', 'side = "unknown"', 1), "may have no side"),
        (lambda text: text.replace("number = 7\n", ""), "needs number"),
        (lambda text: text + "x = 1", "needs number"),
        (lambda text: "", "nothing else"),
        (lambda text: text + "[", "not TOML"),
    ],
)
def test_bad_list(tmp_path: Path, change: Callable[[str], str], says: str) -> None:
    """A list that contradicts itself is refused by one line."""
    bad = tmp_path / "faults.toml"
    bad.write_text(change(faults.PATH.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says) as caught:
        load(bad)
    assert "faults.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
