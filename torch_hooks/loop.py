"""What a step is: boundaries and phases inferred from the loader, backward and the optimizer, or said by the user.

With a loader, a step ends where the next training batch is asked for after an optimizer step (so gradient
accumulation and several optimizers are one step). Without one, where the first optimizer of the cycle has stepped.
Steps in which no optimizer ran (a gradient scaler met infinities, the update is part of backward, or written by hand)
are recognised by their backwards. The rule in use is written into the ring as a mark.

What the choke points call in every step is in hot_loop.py; here is what is decided seldom.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

from rankscope.records import MISSING, MarkKind, Phase, PhaseRecord, StepFlag
from rankscope.torch_hooks.hot import HotLoop
from rankscope.torch_hooks.loader import LoaderWatch
from rankscope.torch_hooks.step_clock import StepClock

_DATA_WAIT, _FORWARD, _BACKWARD = int(Phase.DATA_WAIT), int(Phase.FORWARD), int(Phase.BACKWARD)
_OTHER, _CHECKPOINT = int(Phase.OTHER), int(Phase.CHECKPOINT)

#: What a step is, as it is told to people.
BY_LOADER = "from asking for a batch to asking for the first one after an optimizer step"
BY_OPTIMIZER = "from one step of the first optimizer to its next"
BY_BACKWARD = "from asking for a batch to asking for the next: no optimizer was seen"
BY_UPDATE_IN_BACKWARD = "by the end of backward, in which the optimizers step"
BY_USER = "as the training script says"


class TrainingLoop(HotLoop):
    """Turns the choke points' calls into phases and steps of a `StepClock`."""

    clock: StepClock

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
        super().__init__(clock, clock.thread, give_up, grad_enabled, optimizer_made)
        self.rule = ""
        self.loader = LoaderWatch(clock)
        self._checkpoint_depth = 0
        self._resume = _OTHER
        self._leader: weakref.ref[Any] | None = None

    def loaders_were_asked(self, batches: dict[int, int]) -> None:
        """The step that is under way as the watching begins has its batch from a loader: the last of these."""
        self.loader_seen = True
        self.asked |= batches
        *_, self.last_asked = batches

    def scaler_end(self, optimizer: Any) -> None:
        """A gradient scaler's step is over, whether or not it let the optimizer step."""
        if self.loader_seen or self.explicit:
            if not self.stepped:
                self.clock.flag(StepFlag.SKIPPED)
                self.stepped = True
        elif self.clock.backward_count:
            # The optimizer did not step, or the step would have ended there.
            self.clock.flag(StepFlag.SKIPPED)
            self.optimizer_stepped(optimizer)

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
        self.end_step(_OTHER)

    def begin_explicit_step(self) -> None:
        """The user's own loop asks for a batch: the step before ends here."""
        if self.explicit:
            self.end_step(_DATA_WAIT)
        else:
            self.explicit = True
            self._say_rule(BY_USER)
            self.clock.switch(_DATA_WAIT)

    def explicit_batch(self, batch: Any) -> None:
        """The user's own loop has its batch."""
        self.clock.work = self.work_of(batch)
        self.clock.switch(_FORWARD)

    def end_explicit_loop(self) -> None:
        """The user's own loop is over; what comes next is inferred again."""
        if not self.explicit:
            return
        if self.clock.phase == _DATA_WAIT:
            self.clock.switch(_OTHER)  # the loader was at its end: no batch, no step
        else:
            self.end_step(_OTHER)
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
            self.give_up(error)

    def chunk_end(self, before: int, began_ns: int, name: str) -> None:
        """The microbatch is done; `name`, if any, is what its record is called."""
        try:
            self.clock.switch(_OTHER if before in (_FORWARD, _BACKWARD) else before)
            if name:
                self.record_phase(began_ns, name)
        except Exception as error:
            self.give_up(error)

    def settle_rule(self) -> None:
        """A step ends by the loader: say so where another rule was in use."""
        if self.rule not in (BY_LOADER, BY_BACKWARD):
            self._say_rule(BY_LOADER if self.optimizer_seen else BY_BACKWARD)
        elif self.stepped and self.rule == BY_BACKWARD:
            self._say_rule(BY_LOADER)

    def look_into_loader(self, iterator: Any) -> None:
        """See what the loader has ready, if this is one that can tell."""
        if not self.loader.asked(iterator):
            self.quiet_iterator = weakref.ref(iterator)

    def work_of(self, batch: Any) -> int:
        """Elements of the first tensor somewhere in a batch, or MISSING."""
        found = work_in(batch)
        return MISSING if found is None else found

    def watch_copies(self) -> None:
        """A batch is there, in a step that is looked at closely."""
        self.clock.watch_copies()

    def unwatch_copies(self) -> None:
        """Backward begins, in a step that is looked at closely."""
        self.clock.unwatch_copies()

    def updated(self) -> None:
        """Backward is over, in which optimizers stepped."""
        self.optimizer_seen = True
        if self.loader_seen or self.explicit:
            self.stepped = True
            self.clock.switch(_OTHER)
        else:
            self._say_rule(BY_UPDATE_IN_BACKWARD)
            self.end_step(_FORWARD)

    def optimizer_stepped(self, optimizer: Any) -> None:
        """Without a loader the first optimizer of a cycle ends the step."""
        leader = None if self._leader is None else self._leader()
        if leader is None:
            self._leader = weakref.ref(optimizer)
        if leader is None or leader is optimizer:
            if self.rule != BY_OPTIMIZER:
                self._say_rule(BY_OPTIMIZER)
            self.end_step(_FORWARD)
        else:
            self.clock.switch(_FORWARD)

    def _say_rule(self, rule: str) -> None:
        if rule != self.rule:
            self.rule = rule
            self.rule_settled = rule == BY_LOADER
            self.clock.mark(MarkKind.STEP_RULE, rule)


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
