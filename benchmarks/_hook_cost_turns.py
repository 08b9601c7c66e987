"""Steps with the hooks and without them, in turns: the part of hook_cost.py that changes places between two steps.

The hooks are attached once. Between steps, outside the time taken, what they replaced is put back, or ours again; so
neighbours differ in nothing else, and what the machine does meanwhile falls on all alike.
"""

from __future__ import annotations

import importlib
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

#: What a step can be; the second plain one is the null.
STATES = ("hooks", "plain", "null")
#: Steps of each state in a chunk, in random order.
CHUNK = 20
#: Share left out at each end of the steps of a state: interrupts on one side, luck on the other.
TRIMMED = 0.1
#: Torch's own places on the path of every step (torch_hooks/patches.py).
PLACES = (
    ("torch.utils.data.dataloader", "_BaseDataLoaderIter", "__next__"),
    ("torch.autograd", "", "_engine_run_backward"),
    ("torch.autograd.graph", "", "_engine_run_backward"),
)
OPTIMIZER_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


class Cost(NamedTuple):
    """Nanoseconds a step: of wall time, and of the training thread's CPU time."""

    wall: float
    cpu: float


@contextmanager
def swapped(attached: AbstractContextManager[None]) -> Iterator[Callable[[bool], None]]:
    """Attach, and yield what puts the hooks into their places, or torch's own functions."""
    modules = [importlib.import_module(module) for module, _, _ in PLACES]
    owners = [getattr(module, kind) if kind else module for module, (_, kind, _) in zip(modules, PLACES, strict=True)]
    names = [name for _, _, name in PLACES]
    registries = [getattr(importlib.import_module("torch.optim.optimizer"), name) for name in OPTIMIZER_HOOKS]
    before = [getattr(owner, name) for owner, name in zip(owners, names, strict=True)]
    with attached:
        after = [getattr(owner, name) for owner, name in zip(owners, names, strict=True)]
        hooks = [dict(registry) for registry in registries]
        if any(ours is theirs for ours, theirs in zip(after, before, strict=True)) or not all(hooks):
            raise SystemExit("the hooks are not where this benchmark looks for them: see PLACES")

        def put(ours: bool) -> None:
            for owner, name, value in zip(owners, names, after if ours else before, strict=True):
                setattr(owner, name, value)
            for registry, registered in zip(registries, hooks, strict=True):
                registry.clear()
                registry.update(registered if ours else {})

        try:
            yield put
        finally:
            put(True)


def measure(step: Callable[[], Cost], put: Callable[[bool], None], chunks: int) -> dict[str, Any]:
    """{"plain": ns, "hooks": (extra ns, low, high) as Cost of triples, "null": likewise}, intervals at 95 %."""
    chance = random.Random(1)
    found = [chunk_of_steps(step, put, chance) for _ in range(chunks)]
    told: dict[str, Any] = {"plain": statistics.fmean(cost.wall for chunk in found for cost in chunk["plain"])}
    for state in ("hooks", "null"):
        told[state] = Cost(*(_interval(found, state, field) for field in Cost._fields))
    return told


def chunk_of_steps(
    step: Callable[[], Cost], put: Callable[[bool], None], chance: random.Random
) -> dict[str, list[Cost]]:
    """What the steps of a chunk took, by state, in the order that `chance` gives."""
    order = list(STATES) * CHUNK
    chance.shuffle(order)
    chunk: dict[str, list[Cost]] = {state: [] for state in STATES}
    for state in order:
        put(state == "hooks")
        chunk[state].append(step())
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
