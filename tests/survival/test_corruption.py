"""Rings whose bytes change while they are read."""

from __future__ import annotations

from pathlib import Path

from survival.corruption import corrupt


def test_no_false_record_comes_out_of_a_ring_that_is_corrupted_while_it_is_read(tmp_path: Path) -> None:
    """Forty seeds: every record read was written, and read + overwritten + damaged is what was written."""
    told = [corrupt(tmp_path, seed) for seed in range(40)]
    assert [each.broken for each in told if each.broken] == []
    assert sum(each.damaged > 0 for each in told) > 20
    assert sum(each.overwritten > 0 for each in told) > 2
