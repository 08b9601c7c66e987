"""The import contract of a room refuses what its list does not name."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import grimp
import pytest


@pytest.fixture
def contract(root: Path) -> ModuleType:
    """scripts/room_contract.py, which only import-linter imports otherwise."""
    spec = importlib.util.spec_from_file_location("room_contract", root / "scripts/room_contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("importer", "imported", "kept"),
    [
        ("rankscope.probes.disk", "json", True),
        ("rankscope.probes.disk", "rankscope.probes.text", True),
        ("rankscope.probes.disk", "rankscope.clock", True),
        ("rankscope.probes.disk", "rankscope", True),
        ("rankscope.probes.disk", "psutil._common", True),
        ("rankscope.probes.disk", "numpy", False),
        ("rankscope.probes.disk", "rankscope.rules.window", False),
        ("rankscope.probes", "rankscope.rules", False),
        ("rankscope.rules.window", "numpy", True),
    ],
)
def test_only_what_is_listed_is_allowed(contract: ModuleType, importer: str, imported: str, kept: bool) -> None:
    """The standard library, the room itself and its list pass; other rooms and libraries do not."""
    graph = grimp.ImportGraph()
    for module in (importer, imported):
        graph.add_module(module)
    graph.add_import(importer=importer, imported=imported, line_number=3, line_contents=f"import {imported}")
    options = {"room": "probes", "rooms": ["vocabulary"], "libraries": ["psutil"]}
    check = contract.MayImport("probes", {}, options).check(graph, verbose=False)
    assert check.kept is kept


def test_the_vocabulary_is_the_root_package_without_its_rooms(contract: ModuleType) -> None:
    """A room imported by the vocabulary is refused, whatever its name in the vocabulary is."""
    graph = grimp.ImportGraph()
    for module in ("rankscope.clock", "rankscope.probes"):
        graph.add_module(module)
    graph.add_import(
        importer="rankscope.clock",
        imported="rankscope.probes",
        line_number=1,
        line_contents="from rankscope import probes",
    )
    check = contract.MayImport("vocabulary", {}, {"room": "vocabulary"}).check(graph, verbose=False)
    assert list(contract._lines(check.metadata["refused"])) == ["rankscope.clock:1: from rankscope import probes"]


def test_every_room_has_a_contract(root: Path, rooms: tuple[str, ...]) -> None:
    """pyproject.toml lists one contract for each room and one for the vocabulary."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert sorted(entry["room"] for entry in settings["contracts"]) == sorted([*rooms, "testing", "vocabulary"])
