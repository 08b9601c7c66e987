"""One scope a process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from rankscope.torch_hooks.scope import Scope

_attached: Scope | None = None


def attach(environ: Mapping[str, str] | None = None) -> Scope:
    """Watch this process's training; a second call returns the same scope.

    `environ` stands in for os.environ: RANKSCOPE_DIR, RANKSCOPE_JOB and RANKSCOPE_STACK_SIGNAL are read from it.
    """
    global _attached
    if _attached is None:
        _attached = Scope(os.environ if environ is None else environ, write_error=sys.stderr.write)
        _attached.install()
    return _attached


def detach() -> None:
    """Stop watching and restore torch."""
    global _attached
    if _attached is not None:
        _attached.detach()
        _attached = None


def _forked() -> None:
    if _attached is not None:
        _attached.forked()


os.register_at_fork(after_in_child=_forked)
