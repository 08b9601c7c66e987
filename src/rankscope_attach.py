"""What `rankscope_attach.pth` and `.start` call when Python starts: attach, if the environment asks for it.

It stands outside the package so that a Python that is not being watched imports nothing of Rankscope.
"""

from __future__ import annotations

import os

_asked = False


def attach() -> None:
    """Import `rankscope.torch_hooks.startup` if RANKSCOPE_ATTACH is set and not empty.

    Fails open: whatever goes wrong, one line goes to standard error and Python starts as if unwatched.
    Ctrl-C is the user's and passes. A second call does nothing: Python reads a virtual environment's
    start-up files twice.
    """
    global _asked  # noqa: PLW0603 - functools.cache would be an import in every Python from 3.15 on
    if _asked:
        return
    _asked = True
    if not os.environ.get("RANKSCOPE_ATTACH"):
        return
    try:
        __import__("rankscope.torch_hooks.startup")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _say(f"rankscope: not attached, the job goes on unwatched: {type(error).__name__}: {error}\n")


def _say(line: str) -> None:
    try:
        os.write(2, line.encode(errors="replace"))
    except OSError:  # standard error is closed: nobody is there to be told
        pass
