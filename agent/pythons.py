"""Which Pythons a job used, to say why no rank of it was seen."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rankscope.agent.processes import PROC, descendants

#: One look goes through every process of the host.
_PERIOD_SECONDS = 2.0


class JobPythons:
    """Looks at the job's processes now and then, until a rank is seen."""

    def __init__(self, job: int, proc: Path = PROC) -> None:
        self._job = job
        self._proc = proc
        self._due = 0.0
        self._seen: set[str] = set()

    def look(self) -> None:
        """Note the interpreters that run now; seldom more than once in two seconds."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _PERIOD_SECONDS
        for pid in (self._job, *descendants(self._job, self._proc)):
            if (python := interpreter(pid, self._proc)) is not None:
                self._seen.add(python)

    def advice(self) -> str:
        """One line on why no rank was seen, and what to do."""
        nothing = "no rank of the job was seen"
        foreign = sorted(python for python in self._seen if not _ours(python))
        if foreign:
            install = f"install it there: {foreign[0]} -m pip install rankscope"
            return f"{nothing}; the job ran {', '.join(foreign)}, not the Python rankscope is installed in; {install}"
        if self._seen:
            return (
                f"{nothing}: it ended before a process group or an optimizer step, or its Python runs without site "
                "(-S); call rankscope.torch_hooks.attach() in the script"
            )
        return f"{nothing}, nor a Python process; name the command that starts the training"


def interpreter(pid: int, proc: Path = PROC) -> str | None:
    """Path of the Python that a process runs, as it was called (a virtual environment's own), or None for no Python."""
    try:
        executable = (proc / str(pid) / "exe").readlink()
        called = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return None
    if not executable.name.startswith("python"):
        return None
    # A virtual environment's python is a link: what was called says more than what it points to.
    return called if Path(called).is_absolute() and Path(called).exists() else str(executable)


def _ours(python: str) -> bool:
    return Path(python).parent == Path(sys.executable).parent
