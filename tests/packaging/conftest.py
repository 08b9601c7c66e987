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
def to_ship() -> set[str]:
    """Every file that an installed rankscope has to hold, by its path in site-packages."""
    wanted = {"rankscope_attach.pth", "rankscope_attach.py", "rankscope_attach.start"}
    wanted |= {f"rankscope/{path.name}" for path in (ROOT / "src/rankscope").iterdir() if path.is_file()}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md":
                wanted.add(f"rankscope/{room}/{path.relative_to(ROOT / room).as_posix()}")
    return wanted


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, built from a copy so that nothing of an earlier build gets in."""
    work = tmp_path_factory.mktemp("sources")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        source, target = ROOT / name, work / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return _build("build_sdist", work, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the source distribution, as an installer without the repository would."""
    work = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, work, filter="data")
    (top,) = work.iterdir()
    return _build("build_wheel", top, tmp_path_factory.mktemp("wheel"))


def _build(hook: str, work: Path, target: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(target)], cwd=work, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return target / done.stdout.splitlines()[-1]
