"""Reasons with many metrics in them, cut down for people."""

from __future__ import annotations

import pytest

from rankscope.agent.brevity import brief


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("gpu.ecc_a, gpu.ecc_b, gpu.ecc_c, gpu.ecc_d: ECC is off", "gpu.ecc_* (4): ECC is off"),
        (
            "nvlink.a_x, nvlink.b_x, nvlink.c_x, nvlink.d_x, nvlink.e_x, nvlink.f_x, nvlink.f_y, nvlink.f_z: no (3)",
            "nvlink.a_x, nvlink.b_x, nvlink.c_x, nvlink.d_x and 4 more: no (3)",
        ),
        ("gpu.a_x, gpu.a_y, gpu.a_z, gpu.b_x: no", "gpu.a_* (3), gpu.b_x: no"),
    ],
)
def test_groups_and_long_lists_are_cut(reason: str, short: str) -> None:
    """A common beginning stands for its metrics, the rest for its first few; no metric is left uncounted."""
    assert brief(reason) == short


@pytest.mark.parametrize("reason", ["", "gpu.a: no", "gpu.a, gpu.b: no", "no such file: a.b, c.d, e.f, g.h", "refused"])
def test_other_reasons_stay_as_they_are(reason: str) -> None:
    """A short list, and text that is no list of metrics."""
    assert brief(reason) == reason
