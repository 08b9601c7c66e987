"""Microbatches of pipeline stages: forward and backward of each, told from the schedule's waits for other stages.

The schedules of torch.distributed.pipelining call these methods of a stage; their waits are point-to-point operations,
which `collectives` sees and counts as the bubble.
"""

from __future__ import annotations

import importlib
import time
from functools import partial
from threading import get_ident
from typing import Any

from rankscope.records import Phase
from rankscope.torch_hooks.loop import TrainingLoop
from rankscope.torch_hooks.patches import Undo

#: Microbatches of one step that get a record of their own.
_MOST_RECORDS = 64


class PipelineWatch(Undo):
    """Says which phase a stage is in, and records each microbatch's forward and backward by name."""

    def __init__(self, loop: TrainingLoop) -> None:
        super().__init__()
        self._loop = loop

    def install(self) -> None:
        """Hook into the stages' methods."""
        stage_type = importlib.import_module("torch.distributed.pipelining.stage")._PipelineStageBase
        for name, phase in (
            ("forward_one_chunk", Phase.FORWARD),
            ("backward_one_chunk", Phase.BACKWARD),
            ("backward_weight_one_chunk", Phase.BACKWARD),
        ):
            self.replace(name, (stage_type,), partial(self._chunk, name, phase))

    def _chunk(self, name: str, phase: Phase, original: Any) -> Any:
        loop = self._loop
        clock, thread, entered = loop.clock, loop.thread, int(phase)
        label = name.removesuffix("_one_chunk").replace("_", "-")

        def chunk(stage: Any, index: int, *arguments: Any, **keywords: Any) -> Any:
            if get_ident() != thread:
                return original(stage, index, *arguments, **keywords)
            began = time.monotonic_ns()
            before = clock.phase
            loop.chunk_begin(entered)
            try:
                return original(stage, index, *arguments, **keywords)
            finally:
                number = clock.microbatches - 1 if phase is Phase.FORWARD else index
                loop.chunk_end(before, began, f"{label} {index}" if number < _MOST_RECORDS else "")

        return chunk
