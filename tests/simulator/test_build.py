"""Building the simulated library: cached by content, safe side by side, and one clear line when it cannot be done."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rankscope.errors import SimulatorError
from rankscope.simulator.build import LIBRARY, build, installed_header


def test_a_second_build_is_the_first_one(nvml_library: Path) -> None:
    """With the same sources and flags nothing is compiled again."""
    library = nvml_library / LIBRARY
    before = library.stat().st_mtime_ns
    assert build(nvml_library.parent, flags=("-Wall", "-Wextra", "-Werror")) == nvml_library
    assert library.stat().st_mtime_ns == before


def test_another_header_is_another_library(nvml_library: Path, tmp_path: Path) -> None:
    """The directory's name follows the header's content, so that an upgrade never meets a stale library."""
    header = tmp_path / "nvml.h"
    header.write_text(installed_header().read_text() + "\n/* of another release */\n")
    assert build(nvml_library.parent, header=header).name != nvml_library.name


def test_two_builders_at_once_agree(tmp_path: Path) -> None:
    """Processes that start together build into one directory and both find a whole library."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build(tmp_path, flags=("-O0",)), range(2))
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert [path.name for path in first.iterdir()] == [LIBRARY]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"compiler": "no-such-compiler"}, ("no C compiler 'no-such-compiler'", "install gcc")),
        ({"header": "/nowhere/nvml.h"}, ("cannot read the header", "/nowhere/nvml.h", "name an existing")),
        ({"compiler": "false"}, ("the compiler failed", "false against")),
    ],
)
def test_what_is_missing_is_said(arguments: dict[str, str], words: tuple[str, ...], tmp_path: Path) -> None:
    """No compiler, no header and a failing compiler each end in one line that says what, where and what to do."""
    with pytest.raises(SimulatorError) as raised:
        build(tmp_path, **arguments)
    line = str(raised.value)
    assert all(word in line for word in words)
    assert "\n" not in line


def test_no_header_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the header package and without a CUDA toolkit the error names the package to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SimulatorError, match=r"no nvml\.h.*rankscope\[simulator\]"):
        build(tmp_path)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A cache directory under a plain file gives one line, not a traceback of the file system."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SimulatorError, match="choose a writable cache directory"):
        build(tmp_path / "file" / "cache")
