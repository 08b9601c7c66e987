"""A wheel of the tree as it stands, built once, and the files that it has to hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("agent", "exporters", "probes", "rules", "simulator", "torch_hooks")
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the project."""
    return ROOT


@pytest.fixture(scope="session")
def rooms() -> tuple[str, ...]:
    """The directories at the top level that are import packages."""
    return ROOMS


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without what git ignores, so that nothing of an earlier build gets in."""
    copy = tmp_path_factory.mktemp("tree") / "rankscope"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, copy / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return copy


@pytest.fixture(scope="session")
def to_ship(tree: Path) -> set[str]:
    """Every file that an installed rankscope has to hold, by its path in site-packages."""
    wanted = {"rankscope_attach.pth", "rankscope_attach.py", "rankscope_attach.start"}
    wanted |= {f"rankscope/{path.name}" for path in (tree / "src/rankscope").iterdir() if path.is_file()}
    testing = tree / "src/rankscope/testing"
    wanted |= {f"rankscope/testing/{path.name}" for path in testing.iterdir() if path.is_file()}
    for room in ROOMS:
        for path in (tree / room).rglob("*"):
            if path.is_file() and path.suffix != ".md":
                wanted.add(f"rankscope/{room}/{path.relative_to(tree / room).as_posix()}")
    return wanted


@pytest.fixture(scope="session")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of a second copy: a build writes into the tree it builds from."""
    work = tmp_path_factory.mktemp("sdist") / "tree"
    shutil.copytree(tree, work, symlinks=True)
    return _build("build_sdist", work, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the source distribution, as an installer without the repository would."""
    work = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xf", str(sdist), "-C", str(work)], check=True)
    (top,) = work.iterdir()
    return _build("build_wheel", top, tmp_path_factory.mktemp("wheel"))


def _build(hook: str, work: Path, target: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(target)], cwd=work, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return target / done.stdout.splitlines()[-1]
