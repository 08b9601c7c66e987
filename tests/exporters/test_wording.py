"""Words and numbers as every surface shows them."""

from __future__ import annotations

import time

import pytest

from rankscope.exporters.wording import evidence_values, place, runbook_text
from rankscope.finding import Evidence, Where


@pytest.mark.parametrize(
    ("what", "value", "peers", "told"),
    [
        ("the GPU slowed itself for heat in 100% of the time at 88 °C", 1.0, 0.0, ("100 %", "0 %")),
        ("the GPU ran at 88 °C", 88.0, 61.5, ("88 °C", "61.5 °C")),
        ("the device ran 48.6 ms behind the host", 48.55, 50.22, ("48.55 ms", "50.22 ms")),
        ("power limit 1,200 W against 700 W", 1200.0, None, ("1,200 W", None)),
        ("2 uncorrectable memory errors in the window", 2, None, ("2", None)),
        ("it waits 4.8 ms a step", 0.3, 0.1, ("0.3", "0.1")),
        ("clock reasons in 12% of the readings", "gpu-lost", None, ("gpu-lost", None)),
        ("no reading", None, None, ("not seen", None)),
        ("100% of it", float("nan"), None, ("not seen", None)),
    ],
)
def test_values_have_the_unit_of_their_sentence(
    what: str, value: float | str | None, peers: float | None, told: tuple[str, str | None]
) -> None:
    """A share is percent, a duration ms; what the sentence does not give, or gives without a unit, stays bare."""
    assert evidence_values(Evidence("thermal", what, value, peers, 1.0)) == told


def test_a_sentence_of_a_stranger_takes_no_time() -> None:
    """Megabytes of figures in it are looked at no further than a sentence is long."""
    began = time.process_time()
    evidence_values(Evidence("exception", "1,1" * 1_000_000, 5.0, None, 1.0))
    long = time.process_time() - began
    began = time.process_time()
    for _ in range(200):
        evidence_values(Evidence("exception", "1,1" * 100, 5.0, None, 1.0))
    assert long < time.process_time() - began


def test_a_gpu_is_named_by_its_index_too() -> None:
    """As nvidia-smi counts on that host; by its UUID alone where that is not known."""
    where = Where(host="a", rank=2, gpu_uuid="GPU-2")
    assert ("GPU", "1 (GPU-2)") in place(where, {"a": ("GPU-1", "GPU-2"), "b": ("GPU-2",)})
    assert ("GPU", "GPU-2") in place(where, {"b": ("GPU-2",)})
    assert ("GPU", "GPU-2") in place(where)


def test_a_runbook_is_what_a_person_can_open() -> None:
    """A page of ours by the command that shows it, anything else as it is."""
    assert runbook_text("docs/runbooks/gpu-off-bus.md") == "rankscope runbook gpu-off-bus"
    assert runbook_text("https://wiki/gpu\x1b") == "https://wiki/gpu\\x1b"
