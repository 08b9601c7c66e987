"""The verdict's JSON against its published schema."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import sample_window

from rankscope.errors import ExportError
from rankscope.exporters.verdict_json import verdict_document
from rankscope.finding import Overhead, Verdict

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/verdict.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def document(name: str) -> dict:
    """An example's document after a round trip through text."""
    window, verdict = sample_window.EXAMPLES[name]()
    return json.loads(json.dumps(verdict_document(verdict, window.anchors), allow_nan=False))


def test_schema_is_itself_valid() -> None:
    """The published file is a schema of the draft it names."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", sample_window.EXAMPLES)
def test_every_example_fits_the_schema(name: str) -> None:
    """Verdicts of every kind, hostile names among them, fit the schema."""
    VALIDATOR.validate(document(name))


def test_the_contract_holds_key_by_key() -> None:
    """Keys and values of a finding stand where the contract says, with `since` as UTC wall time."""
    found = document("thermal")
    assert found["schema"] == "rankscope.verdict/1"
    assert found["verdict"] == "hardware"
    first = found["findings"][0]
    assert first["class"] == "gpu-thermal-slowdown"
    assert first["where"] == {
        "host": "node-a",
        "rank": 2,
        "local_rank": 2,
        "gpu_uuid": sample_window.gpu_uuid(2),
        "link": None,
        "device": None,
        "phase": None,
    }
    # Wall time of the anchor and the monotonic time that had passed until the finding began.
    window, verdict = sample_window.thermal()
    passed_us = (verdict.findings[0].since_ns - window.begin_ns) // 1_000
    assert first["since"] == f"2026-09-21T14:13:{20 + passed_us // 1_000_000}.{passed_us % 1_000_000:06d}Z"
    assert first["impact"] == {"ms_per_step": 24.1, "fraction_of_step": 0.2, "gpu_hours_per_day": 19.2}
    assert set(first["evidence"][0]) == {"family", "what", "value", "peers", "log_odds"}


def test_a_number_that_is_none_becomes_null() -> None:
    """NaN and infinity have no place in JSON: they are told as null, not as a broken document."""
    window, verdict = sample_window.thermal()
    first = verdict.findings[0]
    evidence = (replace(first.evidence[0], value=float("nan"), peers=float("inf")),)
    verdict = replace(verdict, findings=(replace(first, evidence=evidence),))
    piece = json.loads(json.dumps(verdict_document(verdict, window.anchors), allow_nan=False))["findings"][0]
    assert piece["evidence"][0]["value"] is None
    assert piece["evidence"][0]["peers"] is None


def _mutations() -> dict[str, object]:
    def drop(found: dict) -> None:
        del found["findings"][0]["where"]["link"]

    def invent(found: dict) -> None:
        found["findings"][0]["severities"] = "high"

    def other_side(found: dict) -> None:
        found["findings"][0]["side"] = "network"

    def too_sure(found: dict) -> None:
        found["findings"][0]["confidence"] = 97

    def no_ground(found: dict) -> None:
        found["findings"] = []

    return {mutation.__name__: mutation for mutation in (drop, invent, other_side, too_sure, no_ground)}


@pytest.mark.parametrize("name", _mutations())
def test_the_schema_is_strict(name: str) -> None:
    """A missing null, an invented key, an unknown side, a percentage or a blame without a finding is refused."""
    found = copy.deepcopy(document("thermal"))
    _mutations()[name](found)
    assert not VALIDATOR.is_valid(found)


def test_a_finding_without_any_clock_is_an_error() -> None:
    """Without any host's clock no wall time is invented."""
    _, verdict = sample_window.thermal()
    with pytest.raises(ExportError, match="clock"):
        verdict_document(verdict, {})


def test_a_verdict_without_findings_needs_no_clock() -> None:
    """A job that never attached still gets its document."""
    verdict = Verdict({"name": "j", "world_size": 0}, "unknown", (), ("no rings",), Overhead(), "Nothing was seen.")
    VALIDATOR.validate(verdict_document(verdict, {}) | {})
