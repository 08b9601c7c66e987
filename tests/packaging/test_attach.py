"""The start-up files: attach when asked to, cost nothing when not, never keep Python from starting."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

SITE = f"lib/python{sysconfig.get_python_version()}/site-packages"
STARTED = ["-c", "print('training')"]


@pytest.fixture
def python(tmp_path: Path, wheel: Path) -> Path:
    """A fresh Python with the wheel unpacked into it, which for a pure wheel is installing it."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    zipfile.ZipFile(wheel).extractall(tmp_path / "venv" / SITE)
    return tmp_path / "venv/bin/python"


def _start_up(python: Path, text: str) -> None:
    (python.parents[1] / SITE / "rankscope/torch_hooks/startup.py").write_text(text)


def _run(python: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RANKSCOPE", "PYTHON"))}
    return subprocess.run([str(python), *arguments], env={**env, **extra}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("flags", [[], ["-E"], ["-I"]], ids=["plain", "-E", "-I"])
def test_attaches_once_when_asked(python: Path, flags: list[str]) -> None:
    """The start-up module is imported before the script, once, under the flags that ignore PYTHON*."""
    _start_up(python, "print('attached')\n")
    done = _run(python, *flags, *STARTED, RANKSCOPE_ATTACH="1")
    assert (done.stdout, done.stderr, done.returncode) == ("attached\ntraining\n", "", 0)


@pytest.mark.parametrize("extra", [{}, {"RANKSCOPE_ATTACH": ""}], ids=["unset", "empty"])
def test_imports_nothing_of_rankscope_when_not_asked(python: Path, extra: dict[str, str]) -> None:
    """A Python that is not watched does not even load the package."""
    _start_up(python, "print('attached')\n")
    script = "import sys; print([name for name in sys.modules if name.startswith('rankscope')])"
    done = _run(python, "-c", script, **extra)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("raise RuntimeError('no ring')", "RuntimeError: no ring"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def (", "SyntaxError"),
        ("import there_is_no_such_module", "ModuleNotFoundError"),
    ],
)
def test_a_broken_start_up_says_so_in_one_line_and_python_starts(python: Path, broken: str, named: str) -> None:
    """Whatever the start-up module raises, the script runs as if unwatched."""
    _start_up(python, broken)
    done = _run(python, *STARTED, RANKSCOPE_ATTACH="1")
    assert (done.stdout, done.returncode) == ("training\n", 0)
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr


def test_a_broken_start_up_with_standard_error_closed(python: Path) -> None:
    """Saying so may fail too, and Python still starts."""
    _start_up(python, "raise RuntimeError('no ring')")
    done = subprocess.run(
        ["sh", "-c", f"exec '{python}' -c 'print(1)' 2>&-"],
        env={**os.environ, "RANKSCOPE_ATTACH": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("1\n", 0)


def test_the_start_file_names_the_same_call(python: Path) -> None:
    """Python 3.15 and later resolve the line of the .start file (PEP 829) and call it."""
    _start_up(python, "print('attached')\n")
    (line,) = (python.parents[1] / SITE / "rankscope_attach.start").read_text().splitlines()
    script = f"import pkgutil; pkgutil.resolve_name({line!r})()"
    call_only = _run(python, "-S", "-c", f"import sys; sys.path.append({str(python.parents[1] / SITE)!r}); {script}")
    assert call_only.stdout == ""
    asked = f"import sys; sys.path.append({str(python.parents[1] / SITE)!r}); {script}"
    assert _run(python, "-S", "-c", asked, RANKSCOPE_ATTACH="1").stdout == "attached\n"


def test_this_environment_has_the_start_up_files() -> None:
    """The install that these tests run in, editable or not, put the files where Python looks."""
    here = Path(sysconfig.get_path("purelib"))
    assert (here / "rankscope_attach.pth").is_file()
    assert (here / "rankscope_attach.start").is_file()
    script = "import sys; print('rankscope_attach' in sys.modules)"
    assert _run(Path(sys.executable), "-c", script).stdout == "False\n"
    assert _run(Path(sys.executable), "-c", script, RANKSCOPE_ATTACH="1").stdout.endswith("True\n")
