"""Every fault at moments drawn from a seed: SIGKILL to each part, full file systems, collectors that misbehave,
clocks that are set."""

from __future__ import annotations

from pathlib import Path

from survival.arena import CLOCKS
from survival.kills import COLLECTORS, FULL, KILLS, campaign

FAULTS = (*KILLS, *FULL, *COLLECTORS, *CLOCKS)


def test_whatever_strikes_when_training_goes_on_and_the_accounts_add_up(tmp_path: Path) -> None:
    """Each fault once: losses equal to the last bit, exit status 0, the recording opens, and every record, reading,
    step and batch is where the accounts say. `benchmarks/reliability.py` does the same for hundreds of moments."""
    told = campaign(tmp_path, seed=7, moments=len(FAULTS), faults=FAULTS, longest_s=0.4)
    assert told.broken == []
    assert sum(told.struck.values()) >= len(FAULTS) - len(FULL) - 2
    assert told.received > 10
    assert told.steps > 100
