"""Builds the simulated NVML library against the official header, once, into a cache directory.

The result is `libnvidia-ml.so.1` in a directory of its own, named after a hash of the sources, the layout, the
header and the compiler's name: put that directory into LD_LIBRARY_PATH and NVML clients load it as they load the
real one. Functions of the header that are not simulated are there too and answer NOT_SUPPORTED.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import SimulatorError
from rankscope.simulator.layout import c_header

LIBRARY = "libnvidia-ml.so.1"
_SOURCES = Path(__file__).resolve().parent / "nvml"
_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-pthread", "-Wno-deprecated-declarations")
_DECLARED = re.compile(r"\bDECLDIR\s+(?:DEPRECATED\([\d.]+\)\s*)?(nvml\w+)\s*\(")


def build(
    cache_dir: str | os.PathLike[str],
    *,
    compiler: str | None = None,
    header: str | os.PathLike[str] | None = None,
    flags: Sequence[str] = (),
) -> Path:
    """Return the directory that holds the library, compiling it if it is not there yet.

    `compiler` is a command (default: $CC, else `cc`), `header` the nvml.h to use (default: the one of the
    installed nvidia-nvml-dev package, else of a CUDA toolkit). Safe to call from several processes at once.
    Raises `SimulatorError` when there is no compiler or no header, or the compiler fails.
    """
    command = compiler or os.environ.get("CC") or "cc"
    if shutil.which(command) is None:
        raise SimulatorError(
            f"no C compiler {command!r}",
            where="simulated NVML library",
            todo="install gcc or clang (for example: apt-get install gcc), or name one in CC",
        )
    include = Path(header) if header is not None else installed_header()
    text = _read_header(include)
    sources = sorted([*_SOURCES.glob("*.c"), *_SOURCES.glob("*.h")])
    generated = {"layout.h": c_header(), "unsupported.c": _unsupported(text, sources)}
    digest = hashlib.sha256()
    for part in (command, *_FLAGS, *flags, text, *generated.values(), *(s.read_text() for s in sources)):
        digest.update(part.encode() + b"\0")
    target = Path(cache_dir) / f"nvml-{digest.hexdigest()[:16]}"
    if (target / LIBRARY).exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".nvml-") as scratch:
            _compile(command, Path(scratch), generated, include, flags)
            target.mkdir(exist_ok=True)
            # A rename within one file system: a second builder replaces the file by an equal one.
            (Path(scratch) / LIBRARY).replace(target / LIBRARY)
    except OSError as error:
        raise SimulatorError(
            f"cannot write: {error.strerror}", where=str(target), todo="choose a writable cache directory"
        ) from error
    return target


def _compile(command: str, scratch: Path, generated: dict[str, str], header: Path, flags: Sequence[str]) -> None:
    for name, content in generated.items():
        (scratch / name).write_text(content)
    arguments = [
        command,
        *_FLAGS,
        *flags,
        f"-I{_SOURCES}",
        f"-I{scratch}",
        f"-I{header.parent}",
        f"-Wl,-soname,{LIBRARY}",
        "-o",
        str(scratch / LIBRARY),
        *(str(source) for source in sorted(_SOURCES.glob("*.c"))),
        str(scratch / "unsupported.c"),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise SimulatorError(
            f"the compiler failed: {lines[0] if lines else f'status {done.returncode}'}",
            where=f"{command} against {header}",
            todo="report it with the version of the compiler and of nvidia-nvml-dev",
        )


def installed_header() -> Path:
    """The official nvml.h of this environment. Raises `SimulatorError` if there is none."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec is not None else ():
        for found in sorted(Path(root).glob("*/include/nvml.h"), reverse=True):
            return found
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include" / "nvml.h"
    if toolkit.exists():
        return toolkit
    raise SimulatorError(
        "no nvml.h", where="simulated NVML library", todo="install the header: pip install 'rankscope[simulator]'"
    )


def _read_header(header: Path) -> str:
    try:
        return header.read_text(errors="replace")
    except OSError as error:
        raise SimulatorError(
            f"cannot read the header: {error.strerror}", where=str(header), todo="name an existing nvml.h"
        ) from error


def _unsupported(header: str, sources: Sequence[Path]) -> str:
    """C source of every declared function that no source file defines."""
    defined = set(re.findall(r"\bnvml\w+", "\n".join(s.read_text() for s in sources if s.suffix == ".c")))
    missing = sorted(set(_DECLARED.findall(header)) - defined)
    return "\n".join(
        [
            "/* Generated: functions of nvml.h that the simulator does not have. */",
            "extern int sim_unsupported(const char *name, void *first_argument);",
            *(f'int {name}(void *first) {{ return sim_unsupported("{name}", first); }}' for name in missing),
            "",
        ]
    )
