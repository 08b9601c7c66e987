"""Every kind of loop is cut into the right steps, whose phases add up, without a word in the script."""

from __future__ import annotations

import gc
import importlib
import pickle
import statistics
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.torch_hooks.loops import Delay, Delayed, Rows, checked_steps
from torch.utils.data import DataLoader

from rankscope.records import MarkKind, MarkRecord, RingRecord, StepFlag, StepRecord
from rankscope.ring import RingReader
from rankscope.torch_hooks import Scope

Records = Callable[[], list[RingRecord]]


def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer."""
    model = torch.nn.Linear(4, 4)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def rules(records: list[RingRecord]) -> list[str]:
    """What the rank said a step is, in order."""
    return [r.text for r in records if isinstance(r, MarkRecord) and r.mark == MarkKind.STEP_RULE]


def counts(steps: list[StepRecord]) -> list[int | None]:
    """Backward passes of each step."""
    return [step.backward_count for step in steps]


def test_scaler_that_skips_from_the_first_step_on(scope: Scope, records: Records) -> None:
    """Steps that a gradient scaler skips, the first two among them, are steps and say that they were skipped."""
    model, optimizer = made()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for index, batch in enumerate(DataLoader(Rows(8), batch_size=1)):
        loss = model(batch).sum() * (float("inf") if index in (0, 1, 5) else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    steps = checked_steps(records())
    assert counts(steps) == [1] * 8
    skipped = [step.step for step in steps if (step.flags or 0) & StepFlag.SKIPPED]
    assert skipped == [0, 1, 5]


def test_scaler_without_a_loader(scope: Scope, records: Records) -> None:
    """The same in a loop that makes its own batches."""
    model, optimizer = made()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for index in range(6):
        loss = model(torch.ones(2, 4)).sum() * (float("inf") if index in (0, 3) else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert counts(checked_steps(records())) == [1] * 6


def test_lbfgs(scope: Scope, records: Records) -> None:
    """An optimizer that evaluates its model several times a step has one step a batch."""
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    for batch in DataLoader(Rows(6), batch_size=2):

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    steps = checked_steps(records())
    assert len(steps) == 3
    assert all(step.optimizer_ns > 0 and step.backward_ns > 0 for step in steps[1:])


@pytest.mark.parametrize("with_loader", [True, False])
def test_optimizers_that_step_in_backward(scope: Scope, records: Records, with_loader: bool) -> None:
    """Where each parameter is updated as its gradient is there, the end of backward ends the step."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def update(parameter: Any) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    for batch in DataLoader(Rows(6), batch_size=1) if with_loader else torch.ones(6, 1, 4):
        model(batch).sum().backward()
    assert counts(checked_steps(records())) == [1] * 6


def test_update_by_hand(scope: Scope, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any optimizer a batch is a step, and the rank says so."""
    from rankscope.torch_hooks import watching

    monkeypatch.setattr(watching, "optimizer_made", lambda _type: False)
    weight = torch.ones(4, requires_grad=True)
    for batch in DataLoader(Rows(6), batch_size=1):
        (batch * weight).sum().backward()
        with torch.no_grad():
            weight -= 0.1 * weight.grad  # type: ignore[operator]
            weight.grad = None
    assert counts(checked_steps(records())) == [1] * 6
    assert rules(records()) == ["from asking for a batch to asking for the next: no optimizer was seen"]


def test_long_gradient_accumulation_from_the_start(scope: Scope, records: Records) -> None:
    """Many batches before the first optimizer step are one step: an optimizer is there, it just has not stepped."""
    model, optimizer = made()
    for index, batch in enumerate(DataLoader(Rows(60), batch_size=1)):
        model(batch).sum().backward()
        if index % 20 == 19:
            optimizer.step()
    assert counts(checked_steps(records())) == [20, 20, 20]


def test_two_loaders_in_turn(scope: Scope, records: Records) -> None:
    """Batches of two loaders that are trained on together are data, not evaluation."""
    model, optimizer = made()
    for one, two in zip(DataLoader(Rows(6), batch_size=1), DataLoader(Rows(6), batch_size=1), strict=True):
        model(one + two).sum().backward()
        optimizer.step()
    steps = checked_steps(records())
    assert counts(steps) == [1] * 6
    assert all(step.evaluation_ns == 0 for step in steps)


def test_evaluation_on_the_training_data(scope: Scope, records: Records) -> None:
    """Batches that are asked for where nothing is to be learnt are evaluation, whatever they come from."""
    model, optimizer = made()
    loader = DataLoader(Rows(4, 0.002), batch_size=1)
    for _ in range(2):
        for batch in loader:
            model(batch).sum().backward()
            optimizer.step()
        with torch.no_grad():
            for batch in loader:
                model(batch)
    steps = checked_steps(records())
    assert counts(steps)[:8] == [1] * 8
    # The loader's end is met in the step after the epoch's last; the second evaluation is in a step that did not end.
    assert [step.step for step in steps if step.evaluation_ns > 4_000_000] == [4]


def test_a_new_dataset_each_epoch(scope: Scope, records: Records) -> None:
    """Data that is made anew goes on as training from its first backward on."""
    model, optimizer = made()
    for _ in range(3):
        for batch in DataLoader(Rows(4), batch_size=1):
            model(batch).sum().backward()
            optimizer.step()
    assert counts(checked_steps(records())) == [1] * 12


def test_checkpointed_activations(scope: Scope, records: Records) -> None:
    """What is computed again in backward is backward."""
    from torch.utils.checkpoint import checkpoint

    model, optimizer = made()
    delay = Delay()

    def slow(batch: torch.Tensor) -> torch.Tensor:
        delay()
        return model(batch)  # type: ignore[no-any-return]

    for batch in DataLoader(Rows(5), batch_size=1):
        checkpoint(slow, batch.requires_grad_(), use_reentrant=False).sum().backward()
        optimizer.step()
    for step in checked_steps(records())[1:]:
        first, again = delay.taken_ns[2 * step.step : 2 * step.step + 2]
        assert step.forward_ns >= first
        assert step.backward_ns >= again


def test_the_user_says_what_a_step_is(scope: Scope, records: Records) -> None:
    """One line overrides the rules from there on."""
    model, optimizer = made()
    for index, batch in enumerate(DataLoader(Rows(8), batch_size=1)):
        model(batch).sum().backward()
        optimizer.step()
        if index % 2:
            scope.step()
    steps = checked_steps(records())
    assert counts(steps) == [1, 1, 2, 2, 2]
    assert [bool((step.flags or 0) & StepFlag.EXPLICIT) for step in steps] == [False, True, True, True, True]
    assert rules(records())[-1] == "as the training script says"


def test_reading_and_collating_are_told_apart(scope: Scope, records: Records) -> None:
    """In a loader without workers the wait for data splits into reading samples and collating them."""
    model, optimizer = made()
    collating = Delay(0.01)

    def collate(rows: list[torch.Tensor]) -> torch.Tensor:
        collating()
        return torch.stack(rows)

    reading_s = 0.02
    for batch in DataLoader(Rows(12, reading_s / 2), batch_size=2, collate_fn=collate):
        model(batch).sum().backward()
        optimizer.step()
    steps = checked_steps(records())[1:]
    waits = [step for step in steps if step.fetch_ns is not None and step.collate_ns is not None]
    assert len(waits) == len(steps)
    beyond = []
    for step, taken in zip(waits, collating.taken_ns[1:], strict=False):
        assert (step.fetch_ns or 0) >= reading_s * 1e9
        assert (step.collate_ns or 0) >= taken
        beyond.append(step.data_wait_ns - taken - (step.fetch_ns or 0))
    assert 0 <= statistics.median_low(beyond) < 0.1 * reading_s * 1e9


def test_a_recompilation_says_which_guard_failed(scope: Scope, records: Records) -> None:
    """A shape that changes compiles again: the step says so, and a mark names the guard."""
    torch._dynamo.reset()
    model, optimizer = made()
    compiled = torch.compile(model, backend="eager", dynamic=False)
    for index in range(12):
        compiled(torch.ones(3 if index == 8 else 2, 4)).sum().backward()
        optimizer.step()
        Delay(0.011)()
    written = records()
    steps = checked_steps(written)
    assert [step.step for step in steps if step.recompiles] == [8]
    assert (steps[8].flags or 0) & StepFlag.WARM_UP
    assert not (steps[10].flags or 0) & StepFlag.WARM_UP
    said = [r.text for r in written if isinstance(r, MarkRecord) and r.mark == MarkKind.RECOMPILE]
    assert len(said) == 1
    assert "size mismatch" in said[0]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoint_is_a_checkpoint(scope: Scope, records: Records, tmp_path: Path) -> None:
    """torch.distributed.checkpoint.save counts as torch.save does, imported whenever and however."""
    model, optimizer = made()
    from torch.distributed.checkpoint import save

    for index, batch in enumerate(DataLoader(Rows(8), batch_size=1)):
        model(batch).sum().backward()
        optimizer.step()
        Delay(0.011)()
        if index == 5:
            save({"model": model.state_dict()}, checkpoint_id=tmp_path / "saved", no_dist=True)
    assert [step.step for step in checked_steps(records()) if step.checkpoint_ns > 0] == [5]


@pytest.mark.parametrize("where", ["dataset", "collate", "forward", "backward", "optimizer", "checkpoint"])
def test_an_injected_delay_comes_back_in_its_phase(scope: Scope, records: Records, where: str) -> None:
    """A delay is found in its phase, within 10 % of what it really took; other phases have none of it."""
    model, optimizer = made()
    delay = Delay(0.04)

    class Data(Rows):
        def __getitem__(self, index: int) -> torch.Tensor:
            if where == "dataset":
                delay()
            return super().__getitem__(index)

    def collate(rows: list[torch.Tensor]) -> torch.Tensor:
        if where == "collate":
            delay()
        return torch.stack(rows)

    if where == "optimizer":
        optimizer.register_step_pre_hook(delay)
    for batch in DataLoader(Data(7), batch_size=1, collate_fn=collate):
        if where == "forward":
            delay()
        output = model(batch)
        (Delayed.apply(output, delay) if where == "backward" else output).sum().backward()
        optimizer.step()
        if where == "checkpoint":
            torch.save({"w": 1}, _Slow(delay))
    steps = checked_steps(records())[1:]
    phase = {"dataset": "data_wait", "collate": "data_wait"}.get(where, where)
    delays = delay.taken_ns[1 : len(steps) + 1]
    assert all(step.phases_ns()[phase] >= taken for step, taken in zip(steps, delays, strict=True))
    # What a busy machine adds is nobody's delay: half of the steps may have been disturbed.
    beyond = [step.phases_ns()[phase] - taken for step, taken in zip(steps, delays, strict=True)]
    others = [step.end_ns - step.start_ns - step.phases_ns()[phase] for step in steps]
    assert statistics.median_low(beyond) < 0.1 * min(delays)
    assert statistics.median_low(others) < 0.1 * min(delays)


class _Slow:
    """A file whose first write takes its time."""

    def __init__(self, delay: Delay) -> None:
        self._delay: Delay | None = delay

    def write(self, data: bytes) -> int:
        if self._delay is not None:
            self._delay()
            self._delay = None
        return len(data)

    def flush(self) -> None:
        return None


def test_no_tensor_is_kept_alive(scope: Scope) -> None:
    """Batch, loss and gradient are gone as soon as the loop lets them go, without a collection, and no hook is left."""
    model, optimizer = made()
    gc.collect()
    gc.disable()
    try:
        for batch in DataLoader(Rows(4), batch_size=1):
            output = model(batch)
            loss = output.sum()
            loss.backward()
            optimizer.step()
            assert not loss._backward_hooks
            kept = [weakref.ref(each) for each in (batch, output, loss)]
            del batch, output, loss
            assert [ref() for ref in kept[1:]] == [None, None]
        del kept[1:]
        assert kept[0]() is None
    finally:
        gc.enable()


def test_interrupts_and_errors_of_the_script_pass(scope: Scope, records: Records) -> None:
    """Ctrl-C in the dataset, in backward and in the optimizer reaches the script as it was, and training goes on."""
    model, optimizer = made()
    where = ""

    class Data(Rows):
        def __getitem__(self, index: int) -> torch.Tensor:
            if where == "data":
                raise KeyboardInterrupt("data")
            return super().__getitem__(index)

    def stop(*_arguments: Any) -> None:
        if where == "optimizer":
            raise KeyboardInterrupt("optimizer")

    class Raising(Delay):
        def __call__(self, *_arguments: Any) -> None:
            if where == "backward":
                raise KeyboardInterrupt("backward")

    optimizer.register_step_pre_hook(stop)
    loader = DataLoader(Data(100), batch_size=1)

    def train(place: str) -> None:
        nonlocal where
        for index, batch in enumerate(loader):
            where = place if index == 3 else ""
            Delayed.apply(model(batch), Raising()).sum().backward()
            optimizer.step()

    for place in ("data", "backward", "optimizer"):
        with pytest.raises(KeyboardInterrupt, match=place):
            train(place)
        where = ""
    for batch in DataLoader(Rows(5), batch_size=1):
        model(batch).sum().backward()
        optimizer.step()
    steps = checked_steps(records())
    assert counts(steps)[-4:] == [1] * 4
    assert not [r for r in records() if isinstance(r, MarkRecord) and r.mark == MarkKind.DEGRADED]


def test_a_loader_pickles_with_the_hooks_on(scope: Scope) -> None:
    """A loader that is trained on pickles, as spawn needs it; so does what it is made of."""
    model, optimizer = made()
    loader = DataLoader(Rows(4), batch_size=1)
    for batch in loader:
        model(batch).sum().backward()
        optimizer.step()
        copied = pickle.loads(pickle.dumps(loader))
    assert len(list(copied)) == 4
    assert pickle.loads(pickle.dumps(torch.save)) is torch.save


def test_attached_again(tmp_path: Path) -> None:
    """A process that detached can attach again, into a ring anew."""
    lines: list[str] = []
    for _ in range(2):
        model, optimizer = made()
        again = Scope({"RANKSCOPE_DIR": str(tmp_path), "RANKSCOPE_STACK_SIGNAL": ""}, write_error=lines.append)
        again.install()
        try:
            for batch in DataLoader(Rows(4), batch_size=1):
                model(batch).sum().backward()
                optimizer.step()
        finally:
            again.detach()
        (ring,) = tmp_path.glob("*.ring")
        assert len(checked_steps(RingReader(ring).read().records)) == 4
    assert lines == []


def test_patched_methods_of_c_classes_are_given_back(tmp_path: Path) -> None:
    """Methods of torch's C++ classes are restored as they lay there: bound to their objects again."""
    from rankscope.torch_hooks.collectives import OPERATIONS
    from rankscope.torch_hooks.patches import Undo

    distributed = importlib.import_module("torch.distributed")
    owners = {**dict.fromkeys(OPERATIONS, distributed.ProcessGroup), "wait": distributed.Work}
    names = [name for name, owner in owners.items() if hasattr(owner, name)]
    assert len(names) > 15
    before = [vars(owners[name])[name] for name in names]
    patches = Undo()
    for name in names:
        patches.replace(name, (owners[name],), lambda original: lambda *arguments: original(*arguments))
    assert all(vars(owners[name])[name] is not found for name, found in zip(names, before, strict=True))
    patches.remove()
    assert [vars(owners[name])[name] for name in names] == before


def test_detach_restores_every_choke_point(scope: Scope) -> None:
    """After detach nothing in torch carries the mark of our replacements, the parts imported later included."""
    model, optimizer = made()
    for batch in DataLoader(Rows(3, 0.011), batch_size=1):
        model(batch).sum().backward()
        optimizer.step()
    importlib.import_module("torch.distributed.checkpoint")
    scope.detach()
    places = {
        "torch.utils.data.dataloader": ["_BaseDataLoaderIter.__next__"],
        "torch.autograd": ["_engine_run_backward"],
        "torch.amp.grad_scaler": ["GradScaler.step"],
        "torch": ["save"],
        "torch.distributed": ["init_process_group", "Work.wait", "ProcessGroup.allreduce", "_broadcast_coalesced"],
        "torch.distributed.checkpoint.state_dict_saver": ["_save_state_dict", "async_save"],
        "torch.distributed.checkpoint": ["async_save"],
    }
    for module, names in places.items():
        for name in names:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            assert not hasattr(found, "_rankscope_original"), name
