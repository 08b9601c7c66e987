"""SIGKILL to every part of an installation, at moments drawn from a seed."""

from __future__ import annotations

from pathlib import Path

from survival.kills import campaign


def test_whatever_is_killed_when_training_goes_on_and_the_accounts_add_up(tmp_path: Path) -> None:
    """Agent, NVML helper, collector and ranks are killed a dozen times: losses equal to the last bit, exit status 0,
    the recording opens, and every record, reading, step and batch is where the accounts say.
    `benchmarks/reliability.py` does the same for hundreds of moments."""
    told = campaign(tmp_path / "arena", seed=7, moments=12, longest_s=0.5)
    assert told.broken == []
    assert sum(told.killed.values()) >= 8
    assert told.received > 10
    assert told.steps > 100
