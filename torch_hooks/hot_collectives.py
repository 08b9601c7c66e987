"""What process groups' operations, and the waits for them, tell in passing: the reference of `native/collectives.c`."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from rankscope.records import GroupKind, Phase

if TYPE_CHECKING:
    from rankscope.torch_hooks.boundaries import Boundaries
    from rankscope.torch_hooks.group_state import GroupState

_COLLECTIVE_WAIT, _BUBBLE, _SHARD = int(Phase.COLLECTIVE_WAIT), int(Phase.BUBBLE), int(GroupKind.SHARD)
#: Works not waited for yet whose group is remembered.
MOST_WORKS = 512


class _Wait(NamedTuple):
    """A wait under way."""

    began_ns: int
    phase: int
    #: The work's group where it was seen, or what is remembered of an operation with one other rank.
    known: Any


class HotCollectives:
    """Counts operations by group and times the training thread's waits. An error of ours goes to `give_up` alone."""

    def __init__(self, clock: Boundaries, thread: int, give_up: Callable[[Exception], None]) -> None:
        """`thread` is the training thread's identifier."""
        self.clock = clock
        self.thread = thread
        self.give_up = give_up
        #: The whole job's group, in which DDP reduces gradients out of our sight; None while nothing is watched.
        self.default: GroupState | None = None
        #: The group of the latest operation issued: whom a stream that is made to wait waits for.
        self.latest: GroupState | None = None
        #: By identity of the process group.
        self.states: dict[int, GroupState] = {}
        #: By identity of the work: its group, or what `sent` made of it.
        self.works: dict[int, Any] = {}

    def issued(self, group: Any, work: Any, name: str, arguments: tuple[Any, ...], shards: bool, to_peer: bool) -> None:
        """An operation `name` on a group has given back a work; `arguments` are its own. `shards`: only sharded
        training does it; `to_peer`: with one other rank."""
        if self.default is None or get_ident() != self.thread:
            return
        try:
            state = self.states.get(id(group)) or self.meet(group, name)
            state.count += 1
            if shards:
                state.kind = _SHARD
            self.clock.issued += 1
            self.latest = state
            if len(self.works) >= MOST_WORKS:
                self.works.clear()
            self.works[id(work)] = self.sent(state, name, arguments) if to_peer else state
        except Exception as error:
            self.give_up(error)

    def begin_wait(self, work: Any) -> _Wait | None:
        """The thread begins to wait, for this work if it is not None; returns what `end_wait` wants."""
        if self.default is None or get_ident() != self.thread:
            return None
        try:
            known = None if work is None else self.works.pop(id(work), None)
            phase = _BUBBLE if isinstance(known, tuple) else _COLLECTIVE_WAIT
            began_ns = self.clock.wait_begins(phase)
            if self.clock.timeline is not None:
                self.clock.timeline.wait_begins(phase, began_ns)
            return _Wait(began_ns, phase, known)
        except Exception as error:
            self.give_up(error)
            return None

    def end_wait(self, wait: _Wait | None) -> None:
        """The wait is over."""
        if wait is None or self.default is None:
            return
        try:
            began_ns, phase, known = wait
            waited_ns = self.clock.wait_ends(began_ns, phase)
            state = known[0] if isinstance(known, tuple) else known or self.default
            state.wait_ns += waited_ns
            if self.clock.timeline is not None:
                self.clock.timeline.wait_ends(state, began_ns + waited_ns)
            if isinstance(known, tuple):
                self.record(known, began_ns, waited_ns)
        except Exception as error:
            self.give_up(error)

    # What is decided seldom: collectives.py.

    def meet(self, group: Any, name: str) -> GroupState:
        """A group that is used for the first time, by operation `name`: its state, also put into `states`."""
        raise NotImplementedError

    def sent(self, state: GroupState, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """What to remember of an operation with one other rank: a tuple, its group's state first."""
        raise NotImplementedError

    def record(self, known: tuple[Any, ...], began_ns: int, waited_ns: int) -> None:
        """An operation with one other rank was waited for."""
        raise NotImplementedError


def operation_gate(original: Any, collectives: HotCollectives, name: str, shards: bool, to_peer: bool) -> Any:
    """In the place of a process group's method that issues an operation."""

    def operation(group: Any, *arguments: Any, **keywords: Any) -> Any:
        work = original(group, *arguments, **keywords)
        if work is not None:
            collectives.issued(group, work, name, arguments, shards, to_peer)
        return work

    return operation


def wait_gate(original: Any, collectives: HotCollectives, of_work: bool) -> Any:
    """In the place of what blocks until other ranks have done their part; `of_work`: its first argument is the work."""

    def waiting(*arguments: Any, **keywords: Any) -> Any:
        wait = collectives.begin_wait(arguments[0] if of_work and arguments else None)
        try:
            return original(*arguments, **keywords)
        finally:
            collectives.end_wait(wait)

    return waiting
