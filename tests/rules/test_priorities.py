"""The matrix: scores, floors, reasons, and on which weights an order rests."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.errors import ConfigurationError
from rankscope.rules.priorities import Criterion, Incident, Matrix, load_matrix, parse_incident, prioritise

MATRIX = load_matrix()


def incident(name: str, **values: float) -> Incident:
    """An incident of which only `values` are known."""
    return Incident(name, "", "test", values)


def site(tmp_path: Path, text: str) -> Matrix:
    """The built-in matrix with a site's file over it."""
    path = tmp_path / "matrix.toml"
    path.write_text(text)
    return load_matrix(path)


def test_a_score_lies_on_lines_between_the_points() -> None:
    """Below the first and above the last point it stays; infinity is above the last."""
    found = Criterion("x", "x", 1, ((1, 0.2), (3, 0.6), (10, 1.0)))
    assert [found.score(value) for value in (0, 1, 2, 3, 6.5, 10, float("inf"))] == pytest.approx(
        [0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_more_of_anything_bad_never_comes_later() -> None:
    """For every criterion: the same incident with a worse value stands before the other."""
    for criterion in MATRIX.criteria:
        better, worse = sorted((criterion.points[0][0], criterion.points[-1][0]), key=criterion.score)
        order = prioritise(
            [incident("b", **{criterion.name: better}), incident("w", **{criterion.name: worse})], MATRIX
        )
        assert order.ranked[0].incident.name == "w", criterion.name


def test_a_floor_holds_whatever_the_sum() -> None:
    """Data about to be lost is P1 though nothing else weighs on it, and comes before a higher score."""
    order = prioritise(
        [incident("loss", data_loss=0.9, confidence=0.6), incident("large", gpu_hours_per_hour=512, customers=30)],
        MATRIX,
    )
    assert [(row.incident.name, row.priority) for row in order.ranked] == [("loss", "P1"), ("large", "P2")]
    assert order.ranked[0].score < order.ranked[1].score
    assert "floor" in order.ranked[0].reason


def test_what_is_unknown_is_said_and_bounds_the_score() -> None:
    """Nothing is invented for a value that is missing; what it could add is."""
    (row,) = prioritise([incident("a", customers=100)], MATRIX).ranked
    assert "regulatory" in row.unknown
    assert "customers" not in row.unknown
    assert row.score == pytest.approx(0.2 * 0.7)
    assert row.score_at_worst == pytest.approx(0.2 * 0.7 + 0.8)


def test_an_order_that_rests_on_a_weight_says_so() -> None:
    """Two that are nearly even change places when their weight moves by a fifth; two that are not do not."""
    close = prioritise([incident("a", gpu_hours_per_hour=64), incident("b", customers=50)], MATRIX)
    names = [row.incident.name for row in close.ranked]
    assert any(flip.what == f"{names[1]} comes before {names[0]}" for flip in close.flips)
    far = prioritise([incident("a", customers=1000, regulatory=0.9), incident("b", customers=0, fix_hours=200)], MATRIX)
    assert not [flip for flip in far.flips if "before" in flip.what]


def test_a_site_changes_weights_points_and_adds_criteria(tmp_path: Path) -> None:
    """What a site does not say stays as built in."""
    matrix = site(
        tmp_path,
        "[criterion.customers]\nweight = 0\n[criterion.press]\nweight = 50\npoints = [[0, 0], [1, 1]]\n"
        '[job."pretrain-*"]\ndeadline_hours = 10\n[class.gpu-off-bus]\nfix_hours = 6\n',
    )
    order = prioritise([incident("quiet", customers=1000), incident("loud", press=1)], matrix)
    assert order.ranked[0].incident.name == "loud"
    assert matrix.of_finding("hardware", "gpu-off-bus", "pretrain-7b") == {
        "fix_hours": 6.0,
        "spreading": 0.1,
        "data_loss": 0.0,
        "deadline_hours": 10.0,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[criterion.customers]\nweight = -1\n", "criterion.customers"),
        ("[criterion.customers]\npoints = [[1, 0], [0, 1]]\n", "values rising"),
        ("[criterion.customers]\npoints = [[0, 0], [1, 7]]\n", "scores from 0 to 1"),
        ("[criteria.customers]\nweight = 1\n", "did you mean 'criterion'"),
        ("[priority]\nP1 = 0.1\n", "P1 >= P2 >= P3"),
        ('[[floor]]\npriority = "P0"\n', "floor"),
        ('[[floor]]\npriority = "P1"\nat_least = { dataloss = 1 }\n', "did you mean 'data_loss'"),
        ("[class.gpu-off-bus]\nfix_hours = -3\n", "not negative"),
        ("criterion = [\n", "TOML"),
    ],
)
def test_a_matrix_that_cannot_be_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    """With the table that is wrong and, for a slip of the pen, the name that was meant."""
    with pytest.raises(ConfigurationError, match=said):
        site(tmp_path, text)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "name"),
        ({"name": "a", "custommers": 3}, "did you mean 'customers'"),
        ({"name": "a", "customers": "many"}, "must be a number"),
        ({"name": "a", "customers": -1}, "must be a number"),
        ({"name": "a", "customers": True}, "must be a number"),
        ([], "name"),
    ],
)
def test_an_incident_that_cannot_be_is_one_line(table: object, said: str) -> None:
    """A value that is no number and a field nobody knows."""
    with pytest.raises(ConfigurationError, match=said):
        parse_incident(table, MATRIX, "file")
