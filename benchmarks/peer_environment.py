"""Other people's packages for comparisons, each in a virtual environment of its own under a cache directory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path


def cache_directory() -> Path:
    """Where environments are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rankscope"


def peer_python(name: str, *requirements: str, cache: Path | None = None, dependencies: bool = True) -> Path:
    """The interpreter of an environment that holds `requirements` (pinned), made where there is none.

    Without `dependencies` it holds nothing else, to be used beside another environment.

    Raises `subprocess.CalledProcessError` where they cannot be installed; what was begun is then made anew next time.
    """
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:8]
    directory = (cache or cache_directory()) / f"{name}-{digest}"
    python = directory / "bin/python"
    if not (directory / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # pip's own resolver needs many minutes for some of these.
        subprocess.run([str(python), *quiet, "uv"], check=True)
        install = [str(directory / "bin/uv"), "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*install, *([] if dependencies else ["--no-deps"]), *requirements], check=True)
        (directory / ".complete").touch()
    return python
