"""What a step is: boundaries and phases inferred from the loader, backward and the optimizer, or said by the user.

With a loader, a step ends where the next training batch is asked for after an optimizer step (so gradient
accumulation and several optimizers are one step). Without one, where the first optimizer of the cycle has stepped.
Steps in which no optimizer ran (a gradient scaler met infinities, the update is part of backward, or written by hand)
are recognised by their backwards. The rule in use is written into the ring as a mark.

The methods that the choke points call are the hot path: one call deep, and each keeps its own errors from training.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any

from rankscope.records import MISSING, MarkKind, Phase, PhaseRecord, StepFlag
from rankscope.torch_hooks.loader import LoaderWatch
from rankscope.torch_hooks.step_clock import StepClock

_DATA_WAIT, _FORWARD, _BACKWARD = int(Phase.DATA_WAIT), int(Phase.FORWARD), int(Phase.BACKWARD)
_COLLECTIVE_WAIT, _OPTIMIZER, _OTHER = int(Phase.COLLECTIVE_WAIT), int(Phase.OPTIMIZER), int(Phase.OTHER)
_EVALUATION, _CHECKPOINT = int(Phase.EVALUATION), int(Phase.CHECKPOINT)

#: What a step is, as it is told to people.
BY_LOADER = "from asking for a batch to asking for the first one after an optimizer step"
BY_OPTIMIZER = "from one step of the first optimizer to its next"
BY_BACKWARD = "from asking for a batch to asking for the next: no optimizer was seen"
BY_UPDATE_IN_BACKWARD = "by the end of backward, in which the optimizers step"
BY_USER = "as the training script says"


class TrainingLoop:
    """Turns the choke points' calls into phases and steps of a `StepClock`."""

    def __init__(
        self,
        clock: StepClock,
        give_up: Callable[[Exception], None],
        *,
        grad_enabled: Callable[[], bool],
        optimizer_made: Callable[[], bool],
    ) -> None:
        """`give_up` is told of an error of ours; the others tell whether autograd records now, and whether there is an
        optimizer that may yet step."""
        self.clock = clock
        self.thread = clock.thread
        self.explicit = False
        self.rule = ""
        #: Whether somebody waits at the end of backward, so that own time has an end of its own.
        self.stamps = False
        self.loader = LoaderWatch(clock)
        self._give_up = give_up
        self._grad_enabled = grad_enabled
        self._optimizer_made = optimizer_made
        self._training_sources: set[int] = set()
        #: Batches asked of each source since the last backward, and the source asked last.
        self._asked: dict[int, int] = {}
        self._last_asked = 0
        self._loader_seen = False
        self._stepped = False
        self._updated_in_backward = False
        self._usual_backwards = 0
        self._optimizer_seen = False
        self._optimizer_depth = 0
        self._closure = False
        self._checkpoint_depth = 0
        self._resume = _OTHER
        self._leader: weakref.ref[Any] | None = None

    # ---- what the choke points call: the hot path ----------------------------------------------------------------

    def data_begin(self, iterator: Any) -> None:
        """A loader's iterator is asked for a batch."""
        if self.explicit or get_ident() != self.thread:
            return
        try:
            clock = self.clock
            source = id(getattr(iterator, "_dataset", iterator))
            self._asked[source] = self._asked.get(source, 0) + 1
            self._last_asked = source
            sources = self._training_sources
            if (sources and source not in sources) or not self._grad_enabled():
                # Another dataset than the one trained on, or one that is asked where nothing is to be learnt.
                if clock.phase != _EVALUATION:
                    clock.switch(_EVALUATION)
                return
            self._loader_seen = True
            if self._stepped or self._ended_without_optimizer():
                self._end_step(_DATA_WAIT)
            else:
                clock.switch(_DATA_WAIT)
            self.loader.asked(iterator)
        except Exception as error:
            self._give_up(error)

    def data_end(self, batch: Any) -> None:
        """The batch is there, or (None) the iterator is at its end."""
        if self.explicit or get_ident() != self.thread or self.clock.phase == _EVALUATION:
            return
        try:
            work = batch
            while type(work) in (list, tuple) and work:
                work = work[0]
            try:
                self.clock.work = work.numel()
            except AttributeError:
                found = work_in(work)
                self.clock.work = MISSING if found is None else found
            self.clock.switch(_OTHER if batch is None else _FORWARD)
            if self.clock.sampled:
                self.clock.watch_copies()
        except Exception as error:
            self._give_up(error)

    def backward_begin(self) -> bool:
        """Backward begins; nested ones (reentrant checkpointing) only count. Whether to say when its own work ends."""
        if get_ident() != self.thread:
            return False
        try:
            clock = self.clock
            clock.depth = depth = clock.depth + 1
            if depth > 1:
                return False
            if not self._optimizer_depth or self._closure:
                # A closure that is called again belongs to the same backward.
                clock.backward_count += 1
                self._closure = False
            asked = self._asked
            if asked:
                if self._last_asked not in self._training_sources:
                    # Loaders that are asked in turn are trained on together; one asked oftener was evaluated on.
                    turns = asked[self._last_asked]
                    self._training_sources = {source for source, count in asked.items() if count == turns}
                asked.clear()
            if clock.phase == _OTHER and clock.backward_count:
                # What led from one backward to the next without asking for data: the forward of a batch fetched before.
                clock.phase = _FORWARD
            clock.switch(_BACKWARD)
            if clock.sampled:
                clock.unwatch_copies()
            return self.stamps
        except Exception as error:
            self._give_up(error)
            return False

    def backward_own_end(self) -> None:
        """This rank's own backward work is done; what follows waits for other ranks.

        The engine may call from a thread of its own, while the training thread waits in backward.
        """
        try:
            if self.clock.phase == _BACKWARD:
                self.clock.switch(_COLLECTIVE_WAIT)
        except Exception as error:
            self._give_up(error)

    def backward_end(self) -> None:
        """Backward has returned."""
        if get_ident() != self.thread:
            return
        try:
            clock = self.clock
            clock.depth = depth = clock.depth - 1
            if depth:
                return
            if self._optimizer_depth:
                clock.switch(_OPTIMIZER)
            elif self._updated_in_backward:
                self._updated_in_backward = False
                self._after_update(_FORWARD, BY_UPDATE_IN_BACKWARD)
            else:
                clock.switch(_OTHER if self._loader_seen or self.explicit else _FORWARD)
        except Exception as error:
            self._give_up(error)

    def optimizer_begin(self, closure: bool) -> None:
        """An optimizer's step begins; a closure runs forward and backward inside it (LBFGS, Lightning)."""
        if get_ident() != self.thread:
            return
        try:
            if self.clock.depth:
                # Optimizers that step inside backward belong to backward.
                self._updated_in_backward = True
                return
            self._optimizer_depth = depth = self._optimizer_depth + 1
            if depth == 1:
                self._closure = closure
                self.clock.switch(_FORWARD if closure else _OPTIMIZER)
        except Exception as error:
            self._give_up(error)

    def optimizer_end(self, optimizer: Any) -> None:
        """An optimizer's step is over."""
        if get_ident() != self.thread:
            return
        try:
            if self.clock.depth or not self._optimizer_depth:
                return
            self._optimizer_depth = depth = self._optimizer_depth - 1
            if depth:
                return
            self._optimizer_seen = True
            if self._loader_seen or self.explicit:
                self._stepped = True
                self.clock.switch(_OTHER)
            else:
                self._optimizer_stepped(optimizer)
        except Exception as error:
            self._give_up(error)

    # ---- what is called seldom -----------------------------------------------------------------------------------

    def loaders_were_asked(self, batches: dict[int, int]) -> None:
        """The step that is under way as the watching begins has its batch from a loader: the last of these."""
        self._loader_seen = True
        self._asked |= batches
        *_, self._last_asked = batches

    def scaler_end(self, optimizer: Any) -> None:
        """A gradient scaler's step is over, whether or not it let the optimizer step."""
        if self._loader_seen or self.explicit:
            if not self._stepped:
                self.clock.flag(StepFlag.SKIPPED)
                self._stepped = True
        elif self.clock.backward_count:
            # The optimizer did not step, or the step would have ended there.
            self.clock.flag(StepFlag.SKIPPED)
            self._optimizer_stepped(optimizer)

    def checkpoint_begin(self) -> None:
        """A checkpoint is being written."""
        self._checkpoint_depth += 1
        if self._checkpoint_depth == 1:
            self._resume = self.clock.phase
            self.clock.switch(_CHECKPOINT)

    def checkpoint_end(self) -> None:
        """The checkpoint is written; the phase it interrupted goes on."""
        self._checkpoint_depth -= 1
        if self._checkpoint_depth == 0:
            self.clock.switch(self._resume)

    def end_step_here(self) -> None:
        """The user says that a step ends here."""
        self.explicit = True
        self._say_rule(BY_USER)
        self._end_step(_OTHER)

    def begin_explicit_step(self) -> None:
        """The user's own loop asks for a batch: the step before ends here."""
        if self.explicit:
            self._end_step(_DATA_WAIT)
        else:
            self.explicit = True
            self._say_rule(BY_USER)
            self.clock.switch(_DATA_WAIT)

    def explicit_batch(self, batch: Any) -> None:
        """The user's own loop has its batch."""
        work = work_in(batch)
        self.clock.work = MISSING if work is None else work
        self.clock.switch(_FORWARD)

    def end_explicit_loop(self) -> None:
        """The user's own loop is over; what comes next is inferred again."""
        if not self.explicit:
            return
        if self.clock.phase == _DATA_WAIT:
            self.clock.switch(_OTHER)  # the loader was at its end: no batch, no step
        else:
            self._end_step(_OTHER)
        self.explicit = False

    def switch(self, phase: int) -> None:
        """The user, or a pipeline's schedule, says which phase begins."""
        self.clock.switch(phase)

    def record_phase(self, began_ns: int, name: str) -> None:
        """A phase of the user's own name is over."""
        clock = self.clock
        clock.ring.append_record(PhaseRecord(clock.step, began_ns, time.monotonic_ns(), name))

    def chunk_begin(self, phase: int) -> None:
        """A pipeline stage begins a microbatch's forward or backward."""
        try:
            if phase == _FORWARD:
                self.clock.microbatches += 1
            self.clock.switch(phase)
        except Exception as error:
            self._give_up(error)

    def chunk_end(self, before: int, began_ns: int, name: str) -> None:
        """The microbatch is done; `name`, if any, is what its record is called."""
        try:
            self.clock.switch(_OTHER if before in (_FORWARD, _BACKWARD) else before)
            if name:
                self.record_phase(began_ns, name)
        except Exception as error:
            self._give_up(error)

    # ---- rules ---------------------------------------------------------------------------------------------------

    def _ended_without_optimizer(self) -> bool:
        """Whether the backwards since the last step make one, though no optimizer stepped."""
        count = self.clock.backward_count
        if not count:
            return False
        if self._optimizer_seen:
            if 0 < self._usual_backwards <= count:
                self.clock.flag(StepFlag.SKIPPED)
                return True
            return False
        return not self._optimizer_made()

    def _after_update(self, next_phase: int, rule: str) -> None:
        self._optimizer_seen = True
        if self._loader_seen or self.explicit:
            self._stepped = True
            self.clock.switch(_OTHER)
        else:
            self._say_rule(rule)
            self._end_step(next_phase)

    def _optimizer_stepped(self, optimizer: Any) -> None:
        """Without a loader the first optimizer of a cycle ends the step."""
        leader = None if self._leader is None else self._leader()
        if leader is None:
            self._leader = weakref.ref(optimizer)
        if leader is None or leader is optimizer:
            if self.rule != BY_OPTIMIZER:
                self._say_rule(BY_OPTIMIZER)
            self._end_step(_FORWARD)
        else:
            self.clock.switch(_FORWARD)

    def _say_rule(self, rule: str) -> None:
        if rule != self.rule:
            self.rule = rule
            self.clock.mark(MarkKind.STEP_RULE, rule)

    def _end_step(self, next_phase: int) -> None:
        clock = self.clock
        if self.explicit:
            clock.flag(StepFlag.EXPLICIT)
        elif next_phase == _DATA_WAIT:
            if self.rule is not BY_LOADER and self.rule is not BY_BACKWARD:
                self._say_rule(BY_LOADER if self._optimizer_seen else BY_BACKWARD)
            elif self._stepped and self.rule is BY_BACKWARD:
                self._say_rule(BY_LOADER)
        if self._stepped and clock.backward_count:
            self._usual_backwards = clock.backward_count
        self._stepped = False
        clock.end_step(next_phase)


def optimizer_made(optimizer_type: Any) -> bool:
    """Whether an optimizer was ever made in this process: torch wraps the `step` of a class at its first instance."""
    classes = [optimizer_type]
    while classes:
        kind = classes.pop()
        if getattr(vars(kind).get("step"), "hooked", False):
            return True
        classes += kind.__subclasses__()
    return False


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
