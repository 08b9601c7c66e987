"""Training that any fault may strike: PyTorch in a process of its own, started again from its checkpoint when it dies.

    trainer.py DIRECTORY RANK STEPS PAUSE_MS     STEPS 0: until SIGTERM

The launcher imports torch once and forks each attempt, so that a restart takes some ms. Every step's data comes from
its number alone: whatever is killed when, the curve of losses is one and the same to the last bit. Each line of
losses.RANK is "STEP LOSS" with the loss as a hexadecimal float; an attempt that was killed leaves steps that the next
makes again. The launcher ends with 0 where training came to its end.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

CHECKPOINT_STEPS = 10


class Training:
    """A small network, its optimizer, and where both are kept."""

    def __init__(self, directory: Path, rank: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(rank)
        self.model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)
        self.checkpoint = directory / f"checkpoint.{rank}"
        self.step = 0
        if self.checkpoint.exists():
            kept = torch.load(self.checkpoint)
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step = kept["step"]

    def make_step(self) -> float:
        """One step; returns its loss."""
        chance = torch.Generator().manual_seed(self.step)
        inputs = torch.randn(8, 16, generator=chance)
        self.optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(self.model(inputs), inputs.sum(1, keepdim=True).sin())
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def keep(self) -> None:
        """A checkpoint that is there as a whole or not at all."""
        new = self.checkpoint.with_name(f"{self.checkpoint.name}.new")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, new)
        new.replace(self.checkpoint)


def attempt(directory: Path, rank: int, steps: int, pause_s: float) -> None:
    """Train on from the last checkpoint."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if os.environ.get("RANKSCOPE_DIR"):
        from rankscope.torch_hooks import attach

        attach()
    training = Training(directory, rank)
    losses = os.open(directory / f"losses.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while not asked and (not steps or training.step < steps):
        number = training.step
        os.write(losses, f"{number} {training.make_step().hex()}\n".encode())
        if training.step % CHECKPOINT_STEPS == 0:
            training.keep()
        time.sleep(pause_s)


def launch(directory: Path, rank: int, steps: int, pause_s: float) -> int:
    """Start attempts until one ends by itself, or was killed when the end was asked for; the exit status."""
    child = 0
    asked: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        asked.append(number)
        if child:
            os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    for number in range(1_000_000):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        # Held back until it is clear whom it is for.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        child = os.fork()
        if child == 0:
            attempt(directory, rank, steps, pause_s)
            return 0
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        (directory / f"pid.{rank}").write_text(str(child))
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            return os.waitstatus_to_exitcode(status)
        if asked:
            return 0
    return 1


def losses(directory: Path, rank: int) -> dict[int, set[str]]:
    """Every loss that was written, by step: a step that was made again has one loss where nothing went wrong."""
    found: dict[int, set[str]] = {}
    written = directory / f"losses.{rank}"
    for line in written.read_text().splitlines() if written.exists() else ():
        number, loss = line.split()
        found.setdefault(int(number), set()).add(loss)
    return found


if __name__ == "__main__":
    where, its_rank, how_many, pause_ms = sys.argv[1:]
    os.environ |= {"RANK": its_rank, "LOCAL_RANK": its_rank, "WORLD_SIZE": "2"}
    sys.exit(launch(Path(where), int(its_rank), int(how_many), float(pause_ms) / 1000))
