"""Lightning, the Hugging Face Trainer and Accelerate themselves, with small models: phases, steps and signals."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankscope.records import RingRecord, SignalRecord, StepRecord
from rankscope.torch_hooks.scope import Scope

pytestmark = pytest.mark.filterwarnings("ignore")

SLOW_S = 0.02


def steps_of(found: list[RingRecord]) -> list[StepRecord]:
    """The steps, each of whose phases fill it."""
    steps = [record for record in found if isinstance(record, StepRecord)]
    for step in steps:
        assert sum(step.phases_ns().values()) == pytest.approx(step.end_ns - step.start_ns, rel=0.02)
    return steps


class Slow(torch.autograd.Function):
    """A backward that takes SLOW_S."""

    @staticmethod
    def forward(_context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Any) -> Any:
        time.sleep(SLOW_S)
        return gradients[0]


def test_lightning(attached: Scope, records: Callable[[], list[RingRecord]], tmp_path: Path) -> None:
    """Lightning calls forward and backward inside the optimizer's step: they come back as what they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch as lightning

        from rankscope.torch_hooks.lightning import RankscopeCallback

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)

        def training_step(self, batch: torch.Tensor, _index: int) -> torch.Tensor:
            time.sleep(SLOW_S / 2)
            return Slow.apply(self.layer(batch).square().mean())

        def validation_step(self, _batch: torch.Tensor, _index: int) -> None:
            time.sleep(SLOW_S)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[RankscopeCallback()],
        default_root_dir=tmp_path,
    )
    loader = torch.utils.data.DataLoader(torch.randn(24, 8), batch_size=4)
    trainer.fit(Model(), loader, torch.utils.data.DataLoader(torch.randn(8, 8), batch_size=4))
    found = records()
    steps = steps_of(found)
    assert len(steps) == 12 - 1  # the last one has no end yet
    # Half of the steps may have been stretched by a busy machine.
    forward_ns = statistics.median_low(step.forward_ns for step in steps)
    optimizer_ns = statistics.median_low(step.optimizer_ns for step in steps)
    assert min(step.backward_ns for step in steps) > SLOW_S * 1e9 > forward_ns > SLOW_S / 2 * 1e9
    assert optimizer_ns < SLOW_S / 2 * 1e9
    # Two batches of validation come before the first one (Lightning's sanity check), and after the sixth.
    assert [step.step for step in steps if step.evaluation_ns > 2 * SLOW_S * 1e9] == [0, 5]
    losses = [record for record in found if isinstance(record, SignalRecord)]
    assert [record.step for record in losses] == list(range(12))
    assert all(record.loss is not None for record in losses)


def test_hugging_face(attached: Scope, records: Callable[[], list[RingRecord]], tmp_path: Path) -> None:
    """Accumulated batches, fetched ahead, are one step; evaluation, checkpoints, loss, norm and tokens are told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

        from rankscope.torch_hooks.huggingface import RankscopeCallback

    class Sentences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.arange(8) + index % 40, "labels": torch.tensor(index % 2)}

    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
    )
    model.bert.register_forward_hook(lambda *_: time.sleep(SLOW_S) if model.training else None)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=9,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=3,
        eval_strategy="steps",
        eval_steps=4,
        save_steps=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        include_num_input_tokens_seen=True,
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
        callbacks=[RankscopeCallback()],
    ).train()
    found = records()
    steps = steps_of(found)
    assert len(steps) >= 8
    assert {step.backward_count for step in steps} == {2}
    # Both batches' forwards are in it, though the second one was fetched with the first. Of the first step there is
    # what followed its first backward, with which the watching begins.
    assert all(step.forward_ns > 2 * SLOW_S * 1e9 for step in steps[1:])
    assert [step.step for step in steps if step.evaluation_ns] == [3, 7]
    assert [step.step for step in steps if step.checkpoint_ns] == [5]
    signals = [record for record in found if isinstance(record, SignalRecord)]
    assert [record.step for record in signals] == [2, 5, 8]
    assert [record.tokens for record in signals] == [3 * 2 * 2 * 8] * 3
    assert all(record.loss and record.gradient_norm and record.flops for record in signals)


def test_accelerate(attached: Scope, records: Callable[[], list[RingRecord]]) -> None:
    """A loop under Accelerate with accumulation: a step an optimizer step, and what is logged is a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from accelerate import Accelerator

        from rankscope.torch_hooks.huggingface import RankscopeTracker

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, log_with=RankscopeTracker())
    accelerator.init_trackers("job", config={"lr": 0.01})
    model = torch.nn.Linear(8, 1)
    loader = torch.utils.data.DataLoader(torch.randn(48, 8), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = Slow.apply(model(batch).square().mean())
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            accelerator.log({"loss": loss.item(), "tokens": 32, "lr": 0.01})
    accelerator.end_training()
    found = records()
    steps = steps_of(found)
    assert {step.backward_count for step in steps} == {2}
    assert all(step.backward_ns > 2 * SLOW_S * 1e9 for step in steps)
    signals = [record for record in found if isinstance(record, SignalRecord)]
    assert [(record.step, record.tokens) for record in signals] == [(number, 32) for number in range(6)]
