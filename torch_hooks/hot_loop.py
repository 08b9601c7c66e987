"""What the choke points call in every step: the reference of `native/hot_loop.c`.

One call deep; each keeps its own errors from training. What is decided seldom is in loop.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from rankscope.records import Phase, StepFlag

if TYPE_CHECKING:
    from rankscope.torch_hooks.boundaries import Boundaries

_DATA_WAIT, _FORWARD, _BACKWARD = int(Phase.DATA_WAIT), int(Phase.FORWARD), int(Phase.BACKWARD)
_COLLECTIVE_WAIT, _OPTIMIZER, _OTHER = int(Phase.COLLECTIVE_WAIT), int(Phase.OPTIMIZER), int(Phase.OTHER)
_EVALUATION = int(Phase.EVALUATION)
_SKIPPED, _EXPLICIT = int(StepFlag.SKIPPED), int(StepFlag.EXPLICIT)


class HotLoop:
    """Turns the choke points' calls into phases and steps of `clock`."""

    def __init__(
        self,
        clock: Boundaries,
        thread: int,
        give_up: Callable[[Exception], None],
        grad_enabled: Callable[[], bool],
        optimizer_made: Callable[[], bool],
    ) -> None:
        """`thread` is the training thread's identifier; `give_up` is told of an error of ours; the others tell whether
        autograd records now, and whether there is an optimizer that may yet step."""
        self.clock = clock
        self.thread = thread
        self.give_up = give_up
        self._grad_enabled = grad_enabled
        self._optimizer_made = optimizer_made
        #: The user says where steps begin and end.
        self.explicit = False
        #: Whether somebody waits at the end of backward, so that own time has an end of its own.
        self.stamps = False
        #: The rule by which steps end was said, and holds as long as they end by the loader.
        self.rule_settled = False
        #: Datasets that are trained on, by identity.
        self.training_sources: set[int] = set()
        #: Batches asked of each source since the last backward, and the source asked last.
        self.asked: dict[int, int] = {}
        self.last_asked = 0
        self.loader_seen = False
        #: An optimizer has stepped in the step under way.
        self.stepped = False
        self.updated_in_backward = False
        #: Backwards of a step in which an optimizer stepped.
        self.usual_backwards = 0
        self.optimizer_seen = False
        self.optimizer_depth = 0
        self.closure = False
        #: The loader's iterator that needs no look at each batch.
        self.quiet_iterator: weakref.ref[Any] | None = None

    def data_begin(self, iterator: Any) -> None:
        """A loader's iterator is asked for a batch."""
        if self.explicit or get_ident() != self.thread:
            return
        try:
            clock = self.clock
            source = id(getattr(iterator, "_dataset", iterator))
            self.asked[source] = self.asked.get(source, 0) + 1
            self.last_asked = source
            sources = self.training_sources
            if (sources and source not in sources) or not self._grad_enabled():
                # Another dataset than the one trained on, or one that is asked where nothing is to be learnt.
                if clock.phase != _EVALUATION:
                    clock.switch(_EVALUATION)
                return
            self.loader_seen = True
            if self.stepped or self._ended_without_optimizer():
                self.end_step(_DATA_WAIT)
            else:
                clock.switch(_DATA_WAIT)
            if self.quiet_iterator is None or self.quiet_iterator() is not iterator:
                self.look_into_loader(iterator)
        except Exception as error:
            self.give_up(error)

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
                self.clock.work = self.work_of(work)
            self.clock.switch(_OTHER if batch is None else _FORWARD)
            if self.clock.sampled:
                self.watch_copies()
        except Exception as error:
            self.give_up(error)

    def backward_begin(self) -> bool:
        """Backward begins; nested ones (reentrant checkpointing) only count. Whether to say when its own work ends."""
        if get_ident() != self.thread:
            return False
        try:
            clock = self.clock
            clock.depth += 1
            if clock.depth > 1:
                return False
            if not self.optimizer_depth or self.closure:
                # A closure that is called again belongs to the same backward.
                clock.backward_count += 1
                self.closure = False
            if self.asked:
                if self.last_asked not in self.training_sources:
                    # Loaders that are asked in turn are trained on together; one asked oftener was evaluated on.
                    turns = self.asked[self.last_asked]
                    self.training_sources = {source for source, count in self.asked.items() if count == turns}
                self.asked.clear()
            if clock.phase == _OTHER and clock.backward_count:
                # What led from one backward to the next without asking for data: the forward of a batch fetched before.
                clock.phase = _FORWARD
            clock.switch(_BACKWARD)
            if clock.sampled:
                self.unwatch_copies()
            return self.stamps
        except Exception as error:
            self.give_up(error)
            return False

    def backward_own_end(self) -> None:
        """This rank's own backward work is done; what follows waits for other ranks.

        The engine may call from a thread of its own, while the training thread waits in backward.
        """
        try:
            if self.clock.phase == _BACKWARD:
                self.clock.switch(_COLLECTIVE_WAIT)
        except Exception as error:
            self.give_up(error)

    def backward_end(self) -> None:
        """Backward has returned."""
        if get_ident() != self.thread:
            return
        try:
            clock = self.clock
            clock.depth -= 1
            if clock.depth:
                return
            if self.optimizer_depth:
                clock.switch(_OPTIMIZER)
            elif self.updated_in_backward:
                self.updated_in_backward = False
                self.updated()
            else:
                clock.switch(_OTHER if self.loader_seen or self.explicit else _FORWARD)
        except Exception as error:
            self.give_up(error)

    def optimizer_begin(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """An optimizer's step begins: itself comes first in `arguments`; a closure after it runs forward and backward
        inside (LBFGS, Lightning)."""
        if get_ident() != self.thread:
            return
        try:
            if self.clock.depth:
                # Optimizers that step inside backward belong to backward.
                self.updated_in_backward = True
                return
            self.optimizer_depth += 1
            if self.optimizer_depth == 1:
                closure = arguments[1] if len(arguments) > 1 else keywords.get("closure")
                self.closure = closure is not None
                self.clock.switch(_FORWARD if self.closure else _OPTIMIZER)
        except Exception as error:
            self.give_up(error)

    def optimizer_end(self, optimizer: Any) -> None:
        """An optimizer's step is over."""
        if get_ident() != self.thread:
            return
        try:
            if self.clock.depth or not self.optimizer_depth:
                return
            self.optimizer_depth -= 1
            if self.optimizer_depth:
                return
            self.optimizer_seen = True
            if self.loader_seen or self.explicit:
                self.stepped = True
                self.clock.switch(_OTHER)
            else:
                self.optimizer_stepped(optimizer)
        except Exception as error:
            self.give_up(error)

    def end_step(self, next_phase: int) -> None:
        """The step ends here; the next one begins in `next_phase`."""
        clock = self.clock
        if self.explicit:
            clock.flags |= _EXPLICIT
        elif next_phase == _DATA_WAIT and not self.rule_settled:
            self.settle_rule()
        if self.stepped and clock.backward_count:
            self.usual_backwards = clock.backward_count
        self.stepped = False
        clock.end_step(next_phase)

    def _ended_without_optimizer(self) -> bool:
        """Whether the backwards since the last step make one, though no optimizer stepped."""
        count = self.clock.backward_count
        if not count:
            return False
        if self.optimizer_seen:
            if 0 < self.usual_backwards <= count:
                self.clock.flags |= _SKIPPED
                return True
            return False
        return not self._optimizer_made()

    # What is decided seldom: loop.py.

    def settle_rule(self) -> None:
        """A step ends by the loader, which was not said yet."""
        raise NotImplementedError

    def look_into_loader(self, iterator: Any) -> None:
        """An iterator that may have to say why it lets training wait."""
        raise NotImplementedError

    def work_of(self, batch: Any) -> int:
        """The work in a batch that is no tensor, or MISSING."""
        raise NotImplementedError

    def updated(self) -> None:
        """Backward is over, in which optimizers stepped."""
        raise NotImplementedError

    def optimizer_stepped(self, optimizer: Any) -> None:
        """An optimizer stepped in a loop without a loader."""
        raise NotImplementedError

    def watch_copies(self) -> None:
        """A batch is there, in a step that is looked at closely."""
        raise NotImplementedError

    def unwatch_copies(self) -> None:
        """Backward begins, in a step that is looked at closely."""
        raise NotImplementedError
