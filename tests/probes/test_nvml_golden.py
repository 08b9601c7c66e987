"""Each product whole: what the probe says of a simulated GPU is what the golden file says, absences included."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_gpu import CASES, Case, said

from rankscope.metrics import METRICS

#: Not read but made of what is read, so that its absence is told with its parts.
DERIVED = {"gpu.nvlink_links_active"}
FAMILIES = ("gpu.", "gpu_process.", "nvlink.")
SENTINELS = {"-1", "4294967295", "4294967.295", "1.84467440737e+19", "nan", "inf"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path.stem)
def test_the_probe_says_of_a_gpu_what_the_golden_file_says(case: Case, library: Path, tmp_path: Path) -> None:
    """Every value with its unit, every absence with its reason, every fact, through the real helper.

    `python tests/golden_gpu.py` writes the files anew.
    """
    assert said(case, library, tmp_path) == case.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path.stem)
def test_every_metric_is_there_or_said_to_be_absent(case: Case) -> None:
    """No metric of a GPU is left out in silence, none is both read and absent, and none is a sentinel."""
    lines = case.path.read_text(encoding="utf-8").splitlines()
    absent = {line.partition(" ")[0] for line in lines if " is absent: " in line}
    read = {line.partition(" ")[0] for line in lines if line.startswith(FAMILIES)} - absent
    wanted = {name for name in METRICS if name.startswith(FAMILIES)}
    assert wanted - read - absent <= DERIVED
    both = {line.split()[0] for line in lines if line.startswith(FAMILIES) and " is absent: " not in line} & absent
    # A MIG instance may have what its whole GPU does not tell.
    assert not both or case.mig
    shown = [
        word for line in lines if line.startswith(FAMILIES) and " is absent: " not in line for word in line.split()
    ]
    assert not SENTINELS & set(shown)
