"""A few steps with the hooks and a few without them, in turns: the part of hook_cost.py that changes places in between.

The hooks are attached once. Between turns, outside the time taken, what they replaced is put back, or ours again; so
neighbours differ in nothing else, and what the machine does meanwhile falls on all alike. Each state has an iterator of
its own, of a class of its own where it is plain: a class that is changed has its methods looked up anew.
"""

from __future__ import annotations

import importlib
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

#: What a step can be; the second plain one is the null.
STATES = ("hooks", "plain", "null")
#: A turn: steps that are left out, since hooks that did not run just before are colder than always-on ones, and steps
#: that count.
SETTLING, COUNTED = 2, 4
#: Turns of each state in a chunk, in random order.
TURNS = 5
#: Share left out at each end of the steps of a state: interrupts on one side, luck on the other.
TRIMMED = 0.1
#: Torch's own places on the path of every step (torch_hooks/patches.py), beside a data loader's `__next__`.
PLACES = (("torch.autograd", "_engine_run_backward"), ("torch.autograd.graph", "_engine_run_backward"))
OPTIMIZER_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


class Cost(NamedTuple):
    """Nanoseconds a step: of wall time, and of the training thread's CPU time."""

    wall: float
    cpu: float


class Turns:
    """The hooks' places while they are attached, and an iterator over a loader for each state."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        """To be made before the hooks are attached."""
        self._loader = loader
        self._places = [(importlib.import_module(module), name) for module, name in PLACES]
        self._before = [getattr(module, name) for module, name in self._places]
        optimizers = importlib.import_module("torch.optim.optimizer")
        self._registries = [getattr(optimizers, name) for name in OPTIMIZER_HOOKS]
        kind = type(iter(loader))
        own = {"__next__": kind.__next__}
        self._kinds = {"hooks": kind, "plain": type("Plain", (kind,), own), "null": type("Null", (kind,), own)}
        self._left = dict.fromkeys(STATES, 0)
        self._iterators: dict[str, Any] = {}
        self._state = "plain"

    @contextmanager
    def attached(self, hooks: AbstractContextManager[None]) -> Iterator[None]:
        """Attach for the time inside; ends the program where the hooks are not in their places."""
        with hooks:
            self._after = [getattr(module, name) for module, name in self._places]
            self._registered = [dict(registry) for registry in self._registries]
            moved = [ours is not theirs for ours, theirs in zip(self._after, self._before, strict=True)]
            moved += [self._kinds["hooks"].__next__ is not self._kinds["plain"].__next__, *map(bool, self._registered)]
            if not all(moved):
                raise SystemExit("the hooks are not where this benchmark looks for them: see PLACES")
            try:
                yield
            finally:
                self.put("hooks")

    def put(self, state: str) -> None:
        """The next turn is of this state."""
        self._state = state
        if self._left[state] < SETTLING + COUNTED:
            self._iterators[state] = iter(self._loader)
            self._iterators[state].__class__ = self._kinds[state]
            self._left[state] = len(self._loader)
        for (module, name), ours, theirs in zip(self._places, self._after, self._before, strict=True):
            setattr(module, name, ours if state == "hooks" else theirs)
        for registry, registered in zip(self._registries, self._registered, strict=True):
            registry.clear()
            registry.update(registered if state == "hooks" else {})

    def batches(self) -> Any:
        """The iterator of the state that was put last: one batch is to be taken from it."""
        self._left[self._state] -= 1
        return self._iterators[self._state]


def measure(step: Callable[[], Cost], put: Callable[[str], None], chunks: int) -> dict[str, Any]:
    """{"plain": ns, "hooks": (extra ns, low, high) as Cost of triples, "null": likewise}, intervals at 95 %."""
    chance = random.Random(1)
    found = [chunk_of_steps(step, put, chance) for _ in range(chunks)]
    told: dict[str, Any] = {"plain": statistics.fmean(cost.wall for chunk in found for cost in chunk["plain"])}
    for state in ("hooks", "null"):
        told[state] = Cost(*(_interval(found, state, field) for field in Cost._fields))
    return told


def chunk_of_steps(
    step: Callable[[], Cost], put: Callable[[str], None], chance: random.Random
) -> dict[str, list[Cost]]:
    """What the steps of a chunk took, by state, in the order that `chance` gives."""
    order = list(STATES) * TURNS
    chance.shuffle(order)
    chunk: dict[str, list[Cost]] = {state: [] for state in STATES}
    for state in order:
        put(state)
        chunk[state] += [step() for _ in range(SETTLING + COUNTED)][SETTLING:]
    return chunk


def _interval(found: list[dict[str, list[Cost]]], state: str, field: str) -> tuple[float, float, float]:
    """What `state` takes longer than plain, with its interval."""
    chunks = [{each: [getattr(cost, field) for cost in costs] for each, costs in chunk.items()} for chunk in found]
    first, *resampled = differences(chunks, state)
    resampled.sort()
    return first, resampled[25], resampled[974]


def differences(chunks: list[dict[str, list[float]]], state: str) -> list[float]:
    """What `state` takes longer than plain, and then the same of a thousand samples of chunks."""
    apart = []
    for chunk in chunks:
        # Chunks are laid on each other by their usual step: what the machine does meanwhile is no difference.
        usual = statistics.median(value for values in chunk.values() for value in values)
        apart.append([[value - usual for value in chunk[each]] for each in (state, "plain")])
    samples = [apart] + [random.choices(apart, k=len(apart)) for _ in range(1000)]
    return [_difference(sample) for sample in samples]


def _difference(chunks: list[list[list[float]]]) -> float:
    of, plain = (trimmed_mean([value for chunk in chunks for value in chunk[at]]) for at in (0, 1))
    return of - plain


def trimmed_mean(values: list[float]) -> float:
    """Mean without the smallest and the largest TRIMMED of the values."""
    cut = int(len(values) * TRIMMED)
    return statistics.fmean(sorted(values)[cut : len(values) - cut])
