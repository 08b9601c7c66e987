"""What the tests of training loops share: small data, delays that say how long they really were, and their steps."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import Dataset

from rankscope.records import RingRecord, StepRecord


class Rows(Dataset[torch.Tensor]):
    """A few rows; fetching one may take its time."""

    def __init__(self, count: int, delay_s: float = 0.0) -> None:
        self.count, self.delay_s = count, delay_s

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.delay_s:
            time.sleep(self.delay_s)
        return torch.full((4,), float(index))


class Delay:
    """Sleeps, and remembers how long it took: a busy machine sleeps longer than it was told to."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.seconds = seconds
        self.taken_ns: list[int] = []

    def __call__(self, *_arguments: Any) -> None:
        began = time.monotonic_ns()
        time.sleep(self.seconds)
        self.taken_ns.append(time.monotonic_ns() - began)


class Delayed(torch.autograd.Function):
    """Passes through; backward calls its delay."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, delay: Delay) -> torch.Tensor:
        ctx.delay = delay
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.delay()
        return gradient, None


def checked_steps(records: list[RingRecord]) -> list[StepRecord]:
    """The steps among the records: numbered without a hole, end to begin, each the exact sum of its phases."""
    steps = [record for record in records if isinstance(record, StepRecord)]
    for step in steps:
        phases = step.phases_ns()
        assert sum(phases.values()) == step.end_ns - step.start_ns, step
        assert min(phases.values()) >= 0, phases
    assert [step.step for step in steps] == list(range(len(steps)))
    assert all(first.end_ns == second.start_ns for first, second in pairwise(steps))
    return steps
