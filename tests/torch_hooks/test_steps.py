"""Steps and phases of real training loops, as they come out of the ring."""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from rankscope.control import Command, send
from rankscope.records import MarkKind, MarkRecord, PhaseRecord, RingRecord, StepRecord
from rankscope.ring import RingReader
from rankscope.torch_hooks import Scope

Records = Callable[[], list[RingRecord]]
DELAY_NS = 30_000_000


class Rows(Dataset[torch.Tensor]):
    """A few rows; fetching one may take its time."""

    def __init__(self, count: int, delay_s: float = 0.0) -> None:
        self.count, self.delay_s = count, delay_s

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.delay_s)
        return torch.full((4,), float(index))


class Slow(torch.autograd.Function):
    """Passes through; backward takes its time."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        time.sleep(DELAY_NS / 1e9)
        return gradient


def steps_of(records: list[RingRecord]) -> list[StepRecord]:
    """The steps among the records, each checked to add up."""
    steps = [record for record in records if isinstance(record, StepRecord)]
    for step in steps:
        phases = (
            step.data_wait_ns + step.forward_ns + step.backward_ns + step.optimizer_ns
            + step.checkpoint_ns + step.evaluation_ns + step.other_ns
        )  # fmt: skip
        assert phases == step.end_ns - step.start_ns
    assert [step.step for step in steps] == list(range(len(steps)))
    return steps


def test_plain_loop(scope: Scope, records: Records) -> None:
    """A loop over a loader is found without a word: a step a batch, every phase timed."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Rows(8), batch_size=2):
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    steps = steps_of(records())
    assert [step.backward_count for step in steps] == [1, 1, 1, 1]
    for step in steps[1:]:
        assert min(step.data_wait_ns, step.forward_ns, step.backward_ns, step.optimizer_ns) > 0
        assert step.work == 8


@pytest.mark.parametrize("where", ["data", "forward", "backward", "optimizer", "checkpoint", "other"])
def test_delay_is_found_in_its_phase(scope: Scope, records: Records, where: str) -> None:
    """30 ms injected in one phase come back in that phase, and in no other."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if where == "optimizer":
        optimizer.register_step_pre_hook(lambda *_: time.sleep(DELAY_NS / 1e9))
    loader = DataLoader(Rows(6, DELAY_NS / 1e9 if where == "data" else 0.0), batch_size=1)
    for batch in loader:
        if where == "forward":
            time.sleep(DELAY_NS / 1e9)
        output = model(batch)
        loss = (Slow.apply(output) if where == "backward" else output).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if where == "checkpoint":
            torch.save({"w": 1}, _SlowFile())
        if where == "other":
            time.sleep(DELAY_NS / 1e9)
    steps = steps_of(records())[1:]
    names = {"data": "data_wait"}
    spent = {
        name: statistics.median(getattr(step, f"{name}_ns") for step in steps)
        for name in ("data_wait", "forward", "backward", "optimizer", "checkpoint", "other")
    }
    found = spent.pop(names.get(where, where))
    assert found >= DELAY_NS
    assert max(spent.values()) < DELAY_NS / 2


class _SlowFile:
    """A file whose first write takes its time."""

    def __init__(self) -> None:
        self.slow = True

    def write(self, data: bytes) -> int:
        if self.slow:
            self.slow = False
            time.sleep(DELAY_NS / 1e9)
        return len(data)

    def flush(self) -> None:
        return None


def test_gradient_accumulation_is_one_step(scope: Scope, records: Records) -> None:
    """Four backwards to one optimizer step are one step."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for index, batch in enumerate(DataLoader(Rows(16), batch_size=1)):
        model(batch).sum().backward()
        if index % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    assert [step.backward_count for step in steps_of(records())] == [4, 4, 4, 4]


def test_skipped_optimizer_step_is_a_step(scope: Scope, records: Records) -> None:
    """Where a gradient scaler skips the optimizer, the usual number of backwards still ends the step."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for index, batch in enumerate(DataLoader(Rows(10), batch_size=1)):
        model(batch).sum().backward()
        if index not in (4, 5):
            optimizer.step()
    assert [step.backward_count for step in steps_of(records())] == [1] * 10


def test_two_optimizers_are_one_step(scope: Scope, records: Records) -> None:
    """Two backwards and two optimizers, with and without a loader, are one step a cycle."""
    models = [torch.nn.Linear(4, 4) for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    for _ in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    steps = steps_of(records())
    assert [step.backward_count for step in steps] == [1, 2, 2, 2, 2]
    assert all(step.data_wait_ns == 0 for step in steps)


def test_evaluation_between_steps(scope: Scope, records: Records) -> None:
    """A validation loader between steps is evaluation, not data wait, and no step of its own."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    validation = DataLoader(Rows(3, 0.01), batch_size=1)
    for index, batch in enumerate(DataLoader(Rows(8), batch_size=1)):
        model(batch).sum().backward()
        optimizer.step()
        if index == 4:
            with torch.no_grad():
                for held_out in validation:
                    model(held_out)
    steps = steps_of(records())
    assert len(steps) == 8
    assert [step.step for step in steps if step.evaluation_ns > 20_000_000] == [4]
    assert sum(step.evaluation_ns for step in steps) == steps[4].evaluation_ns


def test_several_epochs(scope: Scope, records: Records) -> None:
    """A new iterator over the same data goes on as training."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Rows(4), batch_size=1)
    for _ in range(3):
        for batch in loader:
            model(batch).sum().backward()
            optimizer.step()
    steps = steps_of(records())
    assert len(steps) == 12
    assert all(step.evaluation_ns == 0 for step in steps)


def test_by_hand(scope: Scope, records: Records) -> None:
    """`scope.steps` makes each item a step, and `scope.phase` names what is inside."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(5):
            time.sleep(0.005)
            yield torch.ones(2, 4)

    for batch in scope.steps(batches()):
        with scope.phase("augment"):
            time.sleep(0.002)
        with scope.phase("checkpoint"):
            time.sleep(0.003)
        model(batch).sum().backward()
        optimizer.step()
    written = records()
    steps = steps_of(written)
    assert len(steps) == 5
    assert all(step.data_wait_ns >= 5_000_000 and step.checkpoint_ns >= 3_000_000 for step in steps)
    named = [record for record in written if isinstance(record, PhaseRecord)]
    assert [record.step for record in named] == [0, 1, 2, 3, 4]
    assert all(record.name == "augment" and record.end_ns - record.start_ns >= 2_000_000 for record in named)


def test_gc_is_timed(scope: Scope, records: Records) -> None:
    """A collection inside a step is counted and timed there."""
    import gc

    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()
    gc.disable()
    try:
        for index, batch in enumerate(DataLoader(Rows(6), batch_size=1)):
            model(batch).sum().backward()
            if index == 3:
                gc.collect()
            optimizer.step()
    finally:
        gc.enable()
    steps = steps_of(records())
    assert [step.step for step in steps if step.gc_count] == [3]
    assert (steps[3].gc_ns or 0) > 0


def test_nested_backward_counts_once(scope: Scope, records: Records) -> None:
    """Reentrant checkpointing runs a backward inside backward: one backward, phases still add up."""
    from torch.utils.checkpoint import checkpoint

    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Rows(5), batch_size=1):
        output = checkpoint(model, batch.requires_grad_(), use_reentrant=True)
        output.sum().backward()
        optimizer.step()
    assert [step.backward_count for step in steps_of(records())] == [1, 1, 1, 1, 1]


def test_compiled_model_is_not_broken(scope: Scope, records: Records) -> None:
    """A fully compiled graph (fullgraph: any break of ours would raise) trains on with the hooks attached."""
    model = torch.nn.Linear(4, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Rows(5), batch_size=1):
        compiled(batch).sum().backward()
        optimizer.step()
    steps = steps_of(records())
    assert len(steps) == 5
    assert not [r for r in records() if isinstance(r, MarkRecord) and r.mark == MarkKind.DEGRADED]


def test_detach_restores_torch(scope: Scope) -> None:
    """After detach torch's functions, the exception hook and the collector's callbacks are the ones before."""
    import gc

    from torch.utils.data import dataloader

    scope.process_group_ready()
    scope.detach()
    assert not hasattr(dataloader._BaseDataLoaderIter.__next__, "_rankscope_original")
    assert not hasattr(torch.autograd._engine_run_backward, "_rankscope_original")
    assert not hasattr(torch.save, "_rankscope_original")
    hooks = importlib.import_module("torch.optim.optimizer")
    assert not hooks._global_optimizer_pre_hooks
    assert not hooks._global_optimizer_post_hooks
    assert "rankscope" not in getattr(sys.excepthook, "__module__", "")
    assert not [callback for callback in gc.callbacks if "rankscope" in getattr(callback, "__module__", "")]


def train(seed: int) -> list[float]:
    """A short training; its losses."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for batch in DataLoader(Rows(20), batch_size=4, shuffle=True):
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_training_is_bit_identical(tmp_path: Any) -> None:
    """Losses with and without the scope are equal to the last bit."""
    plain = train(3)
    scope = Scope({"RANKSCOPE_DIR": str(tmp_path)}, write_error=print)
    scope.install()
    try:
        watched = train(3)
    finally:
        scope.detach()
    assert watched == plain


def test_an_error_of_ours_never_reaches_training(
    scope: Scope, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a hook fails inside, training goes on, the ring says so, and nothing is watched any more."""
    from rankscope.torch_hooks.step_clock import StepClock

    calls = 0

    def failing(self: StepClock) -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(StepClock, "look", failing)
    assert len(train(1)) == 5
    assert calls == 1
    degraded = [r for r in records() if isinstance(r, MarkRecord) and r.mark == MarkKind.DEGRADED]
    assert [mark.text for mark in degraded] == ["stopped watching: ZeroDivisionError: ours"]


def test_no_room_for_the_ring_is_one_line(tmp_path: Any) -> None:
    """Where the ring cannot be made, training runs unwatched and stderr says so once."""
    file = tmp_path / "file"
    file.touch()
    lines: list[str] = []
    scope = Scope({"RANKSCOPE_DIR": str(file / "rings")}, write_error=lines.append)
    scope.install()
    try:
        assert len(train(1)) == 5
    finally:
        scope.detach()
    assert len(lines) == 1
    assert "RANKSCOPE_DIR" in lines[0]


def test_the_agent_may_end_the_watching(scope: Scope, tmp_path: Any) -> None:
    """Soon after the order the hooks are gone, the ring says so, and training goes on."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for index, batch in enumerate(DataLoader(Rows(30, 0.02), batch_size=1)):
        if index == 3:
            (ring,) = (tmp_path / "rings").glob("*.ring")
            send(ring, Command.DETACH)
        model(batch).sum().backward()
        optimizer.step()
    records = RingReader(ring).read().records
    assert 4 <= len(steps_of(records)) < 20
    marks = [record.mark for record in records if isinstance(record, MarkRecord)]
    assert marks == [MarkKind.ATTACHED, MarkKind.STEP_RULE, MarkKind.DETACHED]
    assert not hasattr(torch.save, "_rankscope_original")
