"""Operations on process groups and waits for them, in Python and in C: the same counts and times."""

from __future__ import annotations

import tempfile
import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.torch_hooks.both_paths import PHASES, compiled, new_ring, ticking

from rankscope.records import Phase
from rankscope.torch_hooks import reference

WORKS: list[Any] = [object(), object(), None]
OPERATIONS = st.one_of(
    # Gate, process group, work that comes back, the other rank; a work of 3 is an operation that fails.
    st.tuples(st.just("operation"), st.tuples(*(st.integers(0, size) for size in (2, 2, 3, 1)))),
    # Gate, work; the last waits for nothing that is known, or fails.
    st.tuples(st.just("wait"), st.tuples(st.integers(0, 1), st.integers(0, 3))),
    st.tuples(st.just("watch"), st.sampled_from([0, 1, None])),
    st.tuples(st.just("phase"), PHASES),
    st.tuples(st.just("meets"), st.booleans()),
    st.tuples(st.just("timeline"), st.booleans()),
    # An operation that is waited for, twice.
    st.tuples(st.just("usual"), st.integers(0, 2)),
    # More operations than works are remembered.
    st.tuples(st.just("many"), st.integers(0, 1)),
)


def play_collectives(module: Any, calls: list[tuple[str, Any]], steps: list[int]) -> list[Any]:
    """What every call returned or left behind."""
    seen: list[Any] = []
    states = [module.GroupState(name, kind, 2, b"0-1") for kind, name in enumerate((b"a", b"b", b"c"))]
    groups: list[Any] = [object(), object(), object()]
    works = {id(work): at for at, work in enumerate(WORKS)}
    can = {"meet": True}

    class Collectives(module.HotCollectives):  # type: ignore[misc]
        def meet(self, group: Any, name: str) -> Any:
            seen.append(("meet", groups.index(group), name))
            if not can["meet"]:
                raise ValueError("unknown")
            self.states[id(group)] = state = states[groups.index(group)]
            return state

        def sent(self, state: Any, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return state, name, arguments

        def record(self, known: tuple[Any, ...], began_ns: int, waited_ns: int) -> None:
            seen.append((states.index(known[0]), *known[1:], began_ns, waited_ns))

    class Timeline:
        def wait_begins(self, phase: int, host_ns: int) -> None:
            seen.append((phase, host_ns))

        def wait_ends(self, state: Any, host_ns: int) -> None:
            seen.append((states.index(state), host_ns))

        def mark(self, *_arguments: Any) -> None:
            pass

    def original(*arguments: Any, **keywords: Any) -> Any:
        seen.append((len(arguments), keywords))
        if keywords["work"] == 3:
            raise OSError("link down")
        return WORKS[keywords["work"]]

    def stop(error: Exception) -> None:
        seen.append(repr(error))
        collectives.default = None

    with tempfile.TemporaryDirectory() as directory:
        clock = module.Boundaries(new_ring(directory), ticking(steps))
        collectives = Collectives(clock, threading.get_ident(), stop)
        collectives.default = collectives.latest = states[0]
        gates = [
            module.operation_gate(original, collectives, "allreduce", False, False),
            module.operation_gate(original, collectives, "_allgather_base", True, False),
            module.operation_gate(original, collectives, "send", False, True),
        ]
        waits = [module.wait_gate(original, collectives, of_work) for of_work in (True, False)]
        for name, value in calls:
            if name == "operation":
                gate, group, work, peer = value
                try:
                    seen.append(WORKS.index(gates[gate](groups[group], ["tensors"], peer, work=work)))
                except OSError as error:
                    seen.append(str(error))
            elif name == "wait":
                try:
                    waits[value[0]](WORKS[min(value[1], 2)], work=value[1])
                except OSError as error:
                    seen.append(str(error))
            elif name == "watch":
                collectives.default = None if value is None else states[value]
            elif name == "phase":
                clock.switch(value)
            elif name == "meets":
                can["meet"] = value
            elif name == "timeline":
                clock.timeline = Timeline() if value else None
            elif name == "usual":
                work = gates[value](groups[value], ["tensors"], 1, work=0)
                for _ in range(2):
                    waits[0](work, work=0)
            else:
                collectives.works.update(dict.fromkeys(range(600 * value), states[0]))
            of = {works[work]: known for work, known in collectives.works.items() if work in works}
            seen += [len(collectives.works), clock.issued, clock.phase]
            seen += [(at, states.index(known[0] if isinstance(known, tuple) else known)) for at, known in of.items()]
            seen += [(state.count, state.kind, state.wait_ns) for state in states]
            seen += [clock.spent_ns(Phase.COLLECTIVE_WAIT), clock.spent_ns(Phase.BUBBLE), clock.end_wait_ns()]
            seen.append(None if collectives.latest is None else states.index(collectives.latest))
    return seen


@settings(deadline=None)
@given(st.lists(OPERATIONS, max_size=25), st.lists(st.integers(1, 10**7), min_size=1, max_size=5))
def test_same_waits_for_the_same_operations(calls: list[tuple[str, Any]], steps: list[int]) -> None:
    """Operations of all kinds, waits for them in any order, and what fails: both count and time the same."""
    assert play_collectives(compiled(), calls, steps) == play_collectives(reference, calls, steps)
