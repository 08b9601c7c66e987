"""What a step is: boundaries and phases inferred from the loader, backward and the optimizer, or said by the user.

With a loader, a step ends where the next training batch is asked for after an optimizer step (so gradient
accumulation and several optimizers are one step). Without one, where the first optimizer of the cycle has stepped.
A skipped optimizer step (a gradient scaler that met infinities) is recognised by the usual number of backwards.
"""

from __future__ import annotations

import time
import weakref
from typing import Any

from rankscope.records import Phase, PhaseRecord
from rankscope.torch_hooks.step_clock import StepClock

#: Share of a step spent waiting for data above which the loader's ready batches are counted (7 us a count).
_SUSPICIOUS_DATA_WAIT = 0.02


class TrainingLoop:
    """Turns the choke points' calls into phases and steps of a `StepClock`."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.explicit = False
        self._training_source: int | None = None
        self._asked_source: int | None = None
        self._loader_seen = False
        self._stepped = False
        self._usual_backwards = 0
        self._optimizer_depth = 0
        self._checkpoint_depth = 0
        self._resume = int(Phase.OTHER)
        self._leader: weakref.ref[Any] | None = None

    def data_begin(self, iterator: Any) -> None:
        """A loader's iterator is asked for a batch."""
        if self.explicit:
            return
        clock = self.clock
        source = id(getattr(iterator, "_dataset", iterator))
        self._asked_source = source
        if self._training_source is not None and source != self._training_source:
            clock.switch(Phase.EVALUATION)
            return
        self._loader_seen = True
        skipped = 0 < self._usual_backwards <= clock.backward_count
        if self._stepped or skipped:
            self._end_step(Phase.DATA_WAIT)
        else:
            clock.switch(Phase.DATA_WAIT)
        clock.loader_workers = getattr(iterator, "_num_workers", None)
        suspicious = clock.last_data_wait_ns > _SUSPICIOUS_DATA_WAIT * clock.last_step_ns
        clock.loader_ready = ready_batches(iterator) if suspicious and clock.loader_workers else None

    def data_end(self, batch: Any) -> None:
        """The batch is there, or (None) the iterator is at its end."""
        if self.explicit or self.clock.phase == Phase.EVALUATION:
            return
        self.clock.work = work_in(batch)
        self.clock.switch(Phase.OTHER if batch is None else Phase.FORWARD)

    def backward_begin(self) -> None:
        """Backward begins; nested ones (reentrant checkpointing, LBFGS) only count."""
        clock = self.clock
        clock.depth += 1
        if clock.depth == 1 and not self._optimizer_depth:
            clock.backward_count += 1
            if self._asked_source is not None:
                self._training_source = self._asked_source
            clock.switch(Phase.BACKWARD)

    def backward_own_end(self) -> None:
        """This rank's own backward work is done; what follows waits for other ranks."""
        if self.clock.phase == Phase.BACKWARD:
            self.clock.switch(Phase.COLLECTIVE_WAIT)

    def backward_end(self) -> None:
        """Backward has returned."""
        clock = self.clock
        clock.depth -= 1
        if clock.depth == 0 and not self._optimizer_depth:
            clock.switch(Phase.FORWARD if not self._loader_seen and not self.explicit else Phase.OTHER)

    def optimizer_begin(self, _optimizer: Any) -> None:
        """An optimizer's step begins. Optimizers that step inside backward belong to backward."""
        if self.clock.depth:
            return
        self._optimizer_depth += 1
        if self._optimizer_depth == 1:
            self.clock.switch(Phase.OPTIMIZER)

    def optimizer_end(self, optimizer: Any) -> None:
        """An optimizer's step is over."""
        if self.clock.depth or not self._optimizer_depth:
            return
        self._optimizer_depth -= 1
        if self._optimizer_depth:
            return
        if self._loader_seen or self.explicit:
            self._stepped = True
            self.clock.switch(Phase.OTHER)
            return
        leader = None if self._leader is None else self._leader()
        if leader is None:
            self._leader = weakref.ref(optimizer)
        if leader is None or leader is optimizer:
            self._end_step(Phase.FORWARD)
        else:
            self.clock.switch(Phase.FORWARD)

    def checkpoint_begin(self) -> None:
        """A checkpoint is being written."""
        self._checkpoint_depth += 1
        if self._checkpoint_depth == 1:
            self._resume = self.clock.phase
            self.clock.switch(Phase.CHECKPOINT)

    def checkpoint_end(self) -> None:
        """The checkpoint is written; the phase it interrupted goes on."""
        self._checkpoint_depth -= 1
        if self._checkpoint_depth == 0:
            self.clock.switch(self._resume)

    def begin_explicit_step(self) -> None:
        """The user's own loop asks for a batch: the step before ends here."""
        if self.explicit:
            self._end_step(Phase.DATA_WAIT)
        else:
            self.explicit = True
            self.clock.switch(Phase.DATA_WAIT)

    def explicit_batch(self, batch: Any) -> None:
        """The user's own loop has its batch."""
        self.clock.work = work_in(batch)
        self.clock.switch(Phase.FORWARD)

    def switch(self, phase: int) -> None:
        """The user says which phase begins."""
        self.clock.switch(phase)

    def record_phase(self, began_ns: int, name: str) -> None:
        """A phase of the user's own name is over."""
        clock = self.clock
        clock.ring.append_record(PhaseRecord(clock.step, began_ns, time.monotonic_ns(), name))

    def end_explicit_loop(self) -> None:
        """The user's own loop is over; what comes next is inferred again."""
        if not self.explicit:
            return
        self.explicit = False
        if self.clock.phase == Phase.DATA_WAIT:
            self.clock.switch(Phase.OTHER)  # the loader was at its end: no batch, no step
        else:
            self._end_step(Phase.OTHER)

    def _end_step(self, next_phase: int) -> None:
        if self.clock.backward_count:
            self._usual_backwards = max(self._usual_backwards, self.clock.backward_count)
        self._stepped = False
        self.clock.end_step(next_phase)


def ready_batches(iterator: Any) -> int | None:
    """Batches the workers have ready, from the loader's own bookkeeping; None where it has changed."""
    try:
        fetched = sum(1 for task in iterator._task_info.values() if len(task) == 2)
        return fetched + int(iterator._data_queue.qsize())
    except (AttributeError, NotImplementedError, TypeError):
        return None


def work_in(batch: Any) -> int | None:
    """Elements of the batch's first tensor: samples times length, the work in a step as far as a batch shows it."""
    for _ in range(4):
        if hasattr(batch, "numel"):
            return int(batch.numel())
        if isinstance(batch, dict):
            batch = next(iter(batch.values()), None)
        elif isinstance(batch, (list, tuple)) and batch:
            batch = batch[0]
        else:
            return None
    return None
