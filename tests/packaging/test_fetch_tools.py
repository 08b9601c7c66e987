"""Where scripts/fetch_tools.py takes Debian packages from: the sources of the system, read and not written down."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DEBIAN = 'PRETTY_NAME="Debian"\nID=debian\nVERSION_CODENAME=bookworm\n'
DEB822 = """Types: deb
# a comment
URIs: http://security.invalid/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/archive.gpg
"""
ONE_LINE = """# deb http://old.invalid/debian bookworm main
deb http://security.invalid/debian-security bookworm-security main
deb [arch=amd64 signed-by=/usr/share/keyrings/archive.gpg] http://mirror.invalid/debian bookworm main
"""
FOUND = ("http://mirror.invalid/debian", "/usr/share/keyrings/archive.gpg", "bookworm")


@pytest.fixture
def tools(root: Path) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("fetch_tools", root / "scripts/fetch_tools.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _etc(folder: Path, release: str, **sources: str) -> Path:
    (folder / "apt/sources.list.d").mkdir(parents=True)
    (folder / "os-release").write_text(release)
    for name, text in sources.items():
        (folder / "apt/sources.list.d" / name.replace("_", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("sources", [{"debian_sources": DEB822}, {"debian_list": ONE_LINE}], ids=["deb822", "list"])
def test_the_main_archive_is_told_from_the_others(tools: ModuleType, tmp_path: Path, sources: dict[str, str]) -> None:
    """Both forms of sources give the archive that carries this release, with its keyring."""
    assert tools.system_source(_etc(tmp_path, DEBIAN, **sources)) == FOUND


@pytest.mark.parametrize(
    ("release", "said"),
    [("ID=fedora\n", "this is not Debian"), (DEBIAN, "no apt source of this system lists bookworm")],
)
def test_a_system_without_such_an_archive_is_said(tools: ModuleType, tmp_path: Path, release: str, said: str) -> None:
    """Elsewhere the component is named as not to be had, with the reason."""
    with pytest.raises(tools.Unavailable, match=said):
        tools.system_source(_etc(tmp_path, release))


def test_an_unknown_name_is_refused_with_those_there_are(tools: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt component is a usage error."""
    assert tools.main(["victoria"]) == 2
    assert "victoria-metrics" in capsys.readouterr().out
