"""A callback for Lightning: `Trainer(callbacks=[RankscopeCallback()])`.

The hooks see Lightning's loop without it. It adds what only the trainer knows: when it validates, and the loss.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch.callbacks import Callback

from rankscope.torch_hooks.attachment import attach
from rankscope.torch_hooks.scope import Scope


class RankscopeCallback(Callback):
    """Attaches before training, names validation, and takes the loss of each batch."""

    def __init__(self) -> None:
        self._scope: Scope | None = None
        self._evaluation: AbstractContextManager[None] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Attach where the module is about to be trained."""
        if stage == "fit":
            self._scope = attach()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the loss that the training step returned."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self._scope is not None and loss is not None:
            self._scope.signal(loss=loss)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """What follows is evaluation, and not part of a step's own phases."""
        if self._scope is not None:
            self._evaluation = self._scope.phase("evaluation")
            self._evaluation.__enter__()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Training goes on."""
        if self._evaluation is not None:
            self._evaluation.__exit__(None, None, None)
            self._evaluation = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """A validation that raised is over, too."""
        self.on_validation_end(trainer, pl_module)
