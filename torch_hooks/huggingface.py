"""A callback for the Hugging Face Trainer: `Trainer(callbacks=[RankscopeCallback()])`, and a tracker for Accelerate:
`Accelerator(log_with=RankscopeTracker())`.

The hooks see both loops without them. These add what only the library knows: loss, gradient norm, tokens, flops.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from accelerate.tracking import GeneralTracker
from transformers import TrainerCallback

from rankscope.torch_hooks.attachment import attach
from rankscope.torch_hooks.scope import Scope


class RankscopeCallback(TrainerCallback):
    """Attaches before training and takes what the Trainer logs.

    Tokens need `include_num_input_tokens_seen` in the Trainer's arguments. They and the flops are the Trainer's own
    counts over all ranks, since the last log; this rank's share of them is written.
    """

    def __init__(self) -> None:
        self._scope: Scope | None = None
        self._tokens = 0
        self._flops = 0.0
        self._checkpoint: AbstractContextManager[None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Attach; what the state holds already was seen in an earlier run."""
        self._scope = attach()
        self._tokens, self._flops = int(state.num_input_tokens_seen), float(state.total_flos)

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Where the Trainer is about to save and does not evaluate before, what follows is a checkpoint."""
        if control.should_save and not control.should_evaluate:
            self._begin_checkpoint()

    def on_evaluate(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """The evaluation before a checkpoint is over."""
        if control.should_save:
            self._begin_checkpoint()

    def on_save(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """The checkpoint, safetensors included, is written."""
        if self._checkpoint is not None:
            self._checkpoint.__exit__(None, None, None)
            self._checkpoint = None

    def _begin_checkpoint(self) -> None:
        if self._scope is not None and self._checkpoint is None:
            self._checkpoint = self._scope.phase("checkpoint")
            self._checkpoint.__enter__()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **keywords: Any) -> None:
        """Take the signals of the steps since the last log."""
        if self._scope is None or not logs or "loss" not in logs:
            return
        ranks = max(1, int(args.world_size))
        tokens, flops = int(state.num_input_tokens_seen), float(state.total_flos)
        self._scope.signal(
            loss=logs["loss"],
            gradient_norm=logs.get("grad_norm"),
            tokens=(tokens - self._tokens) // ranks or None,
            flops=int((flops - self._flops) / ranks) or None,
        )
        self._tokens, self._flops = tokens, flops


class RankscopeTracker(GeneralTracker):
    """Takes `accelerator.log({"loss": ..., "grad_norm": ..., "tokens": ...})`; other keys are left alone."""

    name = "rankscope"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self) -> None:
        super().__init__()
        self._scope = attach()

    @property
    def tracker(self) -> Scope:
        """The scope of this process."""
        return self._scope

    def store_init_configuration(self, values: Any) -> None:
        """A configuration is no signal."""

    def log(self, values: Any, step: int | None = None, **keywords: Any) -> None:
        """Take the signals among `values`."""
        loss = values.get("loss", values.get("train_loss"))
        tokens, samples = values.get("tokens"), values.get("samples")
        if loss is not None or tokens is not None or samples is not None:
            self._scope.signal(loss=loss, gradient_norm=values.get("grad_norm"), samples=samples, tokens=tokens)
