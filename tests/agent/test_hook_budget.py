"""A rank whose hooks cost too much is told to stop; one that is within its share is not."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rankscope.agent.hook_budget import JUDGED_STEPS, HookBudget
from rankscope.clock import SystemClock
from rankscope.control import Command, ControlReader


def rank(ring: Path, shares: list[float]) -> Any:
    """A rank as the budget sees it."""
    identity = SimpleNamespace(rank=3)
    reader = SimpleNamespace(path=ring)
    return SimpleNamespace(
        identity=identity, reader=reader, row=1, gone=False, said_goodbye=False, hook_shares=deque(shares)
    )


def test_beyond_its_share_a_rank_is_told_once(tmp_path: Path) -> None:
    """The order arrives, the event says how much it was, and neither comes twice."""
    control = ControlReader(tmp_path / "a.ring")
    budget = HookBudget(0.05, SystemClock())
    dear = rank(tmp_path / "a.ring", [0.06] * JUDGED_STEPS)
    (event,) = budget.check([dear])
    assert event.rank == 3
    assert "6.0 %" in event.text
    assert control.poll() is Command.DETACH
    assert budget.check([dear]) == []
    assert control.poll() is Command.NONE


def test_a_busy_moment_or_few_steps_decide_nothing(tmp_path: Path) -> None:
    """A third of dear steps, or too few steps at all, leave the rank alone."""
    control = ControlReader(tmp_path / "a.ring")
    third = [0.5 if index % 3 == 0 else 0.001 for index in range(JUDGED_STEPS)]
    budget = HookBudget(0.05, SystemClock())
    assert budget.check([rank(tmp_path / "a.ring", third), rank(tmp_path / "a.ring", [0.5] * 20)]) == []
    assert control.poll() is Command.NONE


def test_a_rank_without_a_control_file_is_said(tmp_path: Path) -> None:
    """Where the order cannot be given, the event says so."""
    (event,) = HookBudget(0.05, SystemClock()).check([rank(tmp_path / "b.ring", [0.1] * JUDGED_STEPS)])
    assert "cannot command the rank" in event.text
