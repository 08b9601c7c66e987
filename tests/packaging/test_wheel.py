"""What is shipped: the wheel, the source distribution and pyproject.toml against the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path


def test_packages_list_is_the_tree(root: Path, rooms: tuple[str, ...]) -> None:
    """Each directory with an __init__.py is in `packages`, and nothing else is."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"rankscope", "rankscope.testing"}
    for room in rooms:
        for init in (root / room).rglob("__init__.py"):
            found.add(".".join(["rankscope", *init.parent.relative_to(root).parts]))
    assert set(settings["packages"]) == found
    assert len(settings["packages"]) == len(found)


def test_each_room_is_a_link_in_src(root: Path, rooms: tuple[str, ...]) -> None:
    """Type checkers find `rankscope.probes` and its like through committed relative links."""
    links = {path.name: os.readlink(path) for path in (root / "src/rankscope").iterdir() if path.is_symlink()}
    assert links == {room: f"../../{room}" for room in rooms}


def test_wheel_holds_every_file_of_the_rooms_and_no_other(wheel: Path, to_ship: set[str]) -> None:
    """Sources, C files, templates, tables and the start-up files arrive; builds add nothing."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    compiled = {name for name in names if name.startswith("rankscope/torch_hooks/_native.") and name.endswith(".so")}
    assert names - compiled == to_ship
    assert len(compiled) == (shutil.which("cc") is not None)


def test_wheel_without_a_compiler(tree: Path, tmp_path: Path) -> None:
    """Where nothing can be compiled a wheel is built all the same, without the extension."""
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    script = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    environ = {**os.environ, "CC": "/nonexistent/cc"}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=copy, env=environ, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rankscope/torch_hooks/boundaries.py" in names
    assert not [name for name in names if name.endswith(".so")]


def test_source_distribution_holds_the_tree(sdist: Path, tree: Path) -> None:
    """Dashboards, the chart, docs, examples and tests travel with the sources; dot files stay behind."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith(".")} - held == set()


def test_source_distribution_holds_each_room_once(sdist: Path, rooms: tuple[str, ...]) -> None:
    """The links in src are not followed into a second copy of every room."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in held if name.startswith(tuple(f"src/rankscope/{room}/" for room in rooms))]
