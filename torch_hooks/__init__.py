"""What runs inside the training process: steps, phases, waits and stalls of one rank, written into its ring.

from rankscope.torch_hooks import attach

scope = attach()
for batch in scope.steps(loader):
    with scope.phase("augment"):
        ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankscope.torch_hooks.attachment import attach, detach
    from rankscope.torch_hooks.scope import Scope

__all__ = ["Scope", "attach", "detach"]


def __getattr__(name: str) -> Any:
    """Import at first use: every Python of a job imports this package, and few of them train."""
    if name == "Scope":
        from rankscope.torch_hooks.scope import Scope

        return Scope
    if name in ("attach", "detach"):
        from importlib import import_module

        return getattr(import_module("rankscope.torch_hooks.attachment"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
