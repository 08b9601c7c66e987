"""What the `.pth` file in site-packages runs when RANKSCOPE_ATTACH is set: waits for torch, then attaches.

Runs in every Python of the job (launcher, ranks, loader workers), so it imports next to nothing and fails open.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AttachingLoader:
    """Loads torch with its own loader, then attaches."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        attach_quietly()


class TorchTrigger:
    """A finder that recognises the first import of torch and steps aside."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find is not None else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _AttachingLoader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


def attach_quietly() -> None:
    """Attach; an error of ours is one line on stderr and training goes on."""
    try:
        from rankscope.torch_hooks.attachment import attach

        attach()
    except Exception as error:
        sys.stderr.write(f"rankscope: not watching this process: {type(error).__name__}: {error}\n")


if "torch" in sys.modules:
    attach_quietly()
else:
    sys.meta_path.insert(0, TorchTrigger())
