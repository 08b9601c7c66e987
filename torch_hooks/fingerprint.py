"""What this rank runs, written once beside its ring when it attaches: code, packages, libraries, environment.

Only files that Python has just read anyway are looked at (the script, the directories of its packages); nothing here
touches a device or starts a process, and whatever fails leaves its field out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankscope.fingerprint import allowed_environment, commit_of, safe_arguments

SUFFIX = ".facts"
#: What a reader takes at most; packages are left out of what would be longer.
MAX_BYTES = 64 * 1024
_SCRIPT_BYTES = 1 << 20
_PACKAGES = 2_000


def write_fingerprint(ring: Path, environ: Mapping[str, str]) -> None:
    """Leave the facts beside `ring`. Raises nothing: a run without them is only harder to compare."""
    try:
        facts = fingerprint(environ)
        data = json.dumps(facts).encode()
        if len(data) > MAX_BYTES:
            facts["packages"] = {}
            data = json.dumps(facts).encode()
        path = ring.with_name(ring.name + SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            os.write(descriptor, data[:MAX_BYTES])
        finally:
            os.close(descriptor)
    except Exception:
        return


def fingerprint(environ: Mapping[str, str]) -> dict[str, Any]:
    """The facts of this process, by name; a fact that cannot be told is None."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else None
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "script": None if script is None else str(script),
        "script_sha256": _told(lambda: None if script is None else _digest(script)),
        "commit": _told(lambda: None if script is None else commit_of(script)),
        "arguments": safe_arguments(sys.argv[1:]),
        "packages": _told(_packages) or {},
        "environment": allowed_environment(environ),
        "os": _told(lambda: platform.freedesktop_os_release().get("PRETTY_NAME")),
        "cores": _told(lambda: _ranges(sorted(os.sched_getaffinity(0)))),
        **_torch(),
    }


def _told(tell: Callable[[], Any]) -> Any:
    try:
        return tell()
    except Exception:
        return None


def _digest(script: Path) -> str:
    with script.open("rb") as file:
        return hashlib.sha256(file.read(_SCRIPT_BYTES)).hexdigest()


def _packages() -> dict[str, str]:
    """Installed packages by the names of their directories: no file is opened."""
    found: dict[str, str] = {}
    for place in sys.path:
        if not place.endswith(("site-packages", "dist-packages")):
            continue
        with os.scandir(place) as entries:
            for entry in entries:
                name, _, version = entry.name.removesuffix(".dist-info").partition("-")
                if entry.name.endswith(".dist-info") and version and len(found) < _PACKAGES:
                    found.setdefault(name.lower().replace("_", "-"), version)
    return dict(sorted(found.items()))


def _torch() -> dict[str, Any]:
    """Versions of torch and of the libraries that it brings, as far as it tells without a device."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "torch": _told(lambda: torch.__version__),
        "cuda": _told(lambda: torch.version.cuda),
        "hip": _told(lambda: torch.version.hip),
        "nccl": _told(lambda: ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None),
    }


def _ranges(numbers: list[int]) -> str:
    """ "0-3,8" for 0, 1, 2, 3, 8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
