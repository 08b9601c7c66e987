"""Adapters for Megatron-Core and DeepSpeed against stand-ins with their methods: neither runs without a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankscope.records import RingRecord, StepRecord
from rankscope.ring import RingReader
from rankscope.torch_hooks.deepspeed import watch_engine
from rankscope.torch_hooks.megatron import watch_timers
from rankscope.torch_hooks.scope import Scope

PART_S = 0.004


@pytest.fixture
def steps(tmp_path: Path) -> Callable[[], list[StepRecord]]:
    """The steps written so far."""

    def read() -> list[StepRecord]:
        (ring,) = (tmp_path / "rings").glob("*.ring")
        found: list[RingRecord] = RingReader(ring).read().records
        return [record for record in found if isinstance(record, StepRecord)]

    return read


class Timer:
    """One of Megatron's timers, with its own rule: it may be started once only."""

    def __init__(self) -> None:
        self.started = False
        self.starts = 0

    def start(self, barrier: bool = False) -> None:
        assert not self.started, "timer has already been started"
        self.started = True
        self.starts += 1

    def stop(self, barrier: bool = False) -> None:
        assert self.started, "timer is not started"
        self.started = False

    def elapsed(self, reset: bool = True, barrier: bool = False) -> float:
        return 1.0


class Dummy:
    """What Megatron hands out above its log level."""

    def start(self, barrier: bool = False) -> None:
        return

    def stop(self, barrier: bool = False) -> None:
        return


class Timers:
    """Megatron's Timers at log level 0."""

    def __init__(self) -> None:
        self.made: dict[str, Timer] = {}

    def __call__(self, name: str, log_level: int | None = None) -> Any:
        if name in self.made:
            return self.made[name]
        if (2 if log_level is None else log_level) > 0:
            return Dummy()
        self.made[name] = Timer()
        return self.made[name]

    def log(self, names: list[str]) -> str:
        return ",".join(names)


def test_megatrons_timers_mark_the_phases(attached: Scope, steps: Callable[[], list[StepRecord]]) -> None:
    """Dummies too: each phase gets its time, the optimizer ends the step, and Megatron's timers work as before."""
    own = Timers()
    timers = watch_timers(own)
    for _ in range(3):
        timers("interval-time", log_level=0).start(barrier=True)
        for name in ("batch-generator", "forward-recv", "forward-compute", "backward-compute", "all-grads-sync"):
            timers(name, log_level=2).start()
            time.sleep(PART_S)
            timers(name).stop()
        timers("optimizer", log_level=0).start(barrier=False)
        time.sleep(PART_S)
        timers("optimizer").stop()
        timers("interval-time").stop()
    assert own.made["optimizer"].starts == own.made["interval-time"].starts == 3
    assert timers("optimizer").elapsed() == 1.0
    assert timers.log(["a", "b"]) == "a,b"
    assert watch_timers(None) is None
    found = steps()
    assert len(found) == 3
    for step in found[1:]:
        phases = step.phases_ns()
        for name in ("data_wait", "bubble", "forward", "backward", "collective_wait", "optimizer"):
            assert phases[name] >= PART_S * 1e9, (name, phases)
        assert sum(phases.values()) == step.end_ns - step.start_ns


class Engine:
    """DeepSpeed's engine: two microbatches a step."""

    def __init__(self) -> None:
        self.micro_steps = 0
        self.saved: list[str] = []

    def is_gradient_accumulation_boundary(self) -> bool:
        return (self.micro_steps + 1) % 2 == 0

    def step(self) -> None:
        time.sleep(PART_S)
        self.micro_steps += 1

    def save_checkpoint(self, directory: str, tag: str | None = None) -> bool:
        time.sleep(PART_S)
        self.saved.append(directory)
        return True


class Pipeline(Engine):
    """DeepSpeed's pipeline engine: one call is one step."""

    def train_batch(self) -> float:
        self.step()
        self.step()
        return 0.5


def test_an_engines_step_ends_at_the_boundary(attached: Scope, steps: Callable[[], list[StepRecord]]) -> None:
    """Every second call of step() is a training step; saving is a checkpoint, and its answer comes through."""
    engine = Engine()
    assert watch_engine(engine) is engine
    for _ in range(6):
        engine.step()
        if engine.micro_steps == 3:
            assert engine.save_checkpoint("dir", tag="t") is True
    assert engine.saved == ["dir"]
    found = steps()
    assert len(found) == 3
    assert all(step.optimizer_ns > 2 * PART_S * 1e9 for step in found)
    assert [step.checkpoint_ns > PART_S * 1e9 for step in found] == [False, True, False]


def test_a_pipeline_engines_call_is_a_step(attached: Scope, steps: Callable[[], list[StepRecord]]) -> None:
    """train_batch() is one step, whatever steps it takes inside."""
    engine = watch_engine(Pipeline())
    assert [engine.train_batch() for _ in range(3)] == [0.5] * 3
    assert len(steps()) == 3


def test_what_an_engine_raises_comes_through(attached: Scope) -> None:
    """An error of the engine's is the engine's."""

    class Failing(Engine):
        def step(self) -> None:
            raise RuntimeError("overflow")

    engine = watch_engine(Failing())
    with pytest.raises(RuntimeError, match="overflow"):
        engine.step()
