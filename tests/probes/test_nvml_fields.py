"""Field ids by driver version, and what is believed of a field value."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynvml import c_nvmlFieldValue_t

from rankscope.metrics import METRICS
from rankscope.probes.nvml_fields import (
    FieldBatch,
    FieldRecord,
    FieldValue,
    decode,
    field_batches,
    slowdown_fields,
    sum_of,
    version_of,
)
from rankscope.probes.nvml_reader import GROUPS


@pytest.mark.parametrize(
    ("driver", "ids"),
    [
        ("550.163.01", None),
        ("570.172.08", None),
        ("575.57.08", (251, 252, 253)),
        ("580.65.06", (251, 252, 253)),
        ("580.95.05", (269, 270, 271)),
        ("595.45", (269, 270, 271)),
    ],
)
def test_slowdown_counters_follow_the_driver_version(driver: str, ids: tuple[int, ...] | None) -> None:
    """The three renumbered counters are asked for by the ids of the running driver, or not at all."""
    assert slowdown_fields(version_of(driver)) == ids


@pytest.mark.parametrize("text", ["", "devel", "580", "580.x.1", "\u0663.1"])
def test_an_odd_driver_version_raises_nothing(text: str) -> None:
    """A version that is no number counts as an old one."""
    assert slowdown_fields(version_of(text)) in (None, (251, 252, 253))


@pytest.mark.parametrize("driver", [(550, 0), (575, 0), (595, 45)])
def test_every_field_feeds_a_known_metric_once(driver: tuple[int, int]) -> None:
    """Each source names a metric of the vocabulary, and no metric has two sources."""
    metrics = [s.metric for group in GROUPS for batch in field_batches(group, driver) for s in batch]
    assert set(metrics) <= set(METRICS)
    assert len(metrics) == len(set(metrics))


def test_the_record_has_the_layout_of_nvidia_ml_py() -> None:
    """The array is laid out as NVML's own structure: same size, same offsets."""
    theirs = [getattr(c_nvmlFieldValue_t, name).offset for name, *_ in c_nvmlFieldValue_t._fields_]
    assert [getattr(FieldRecord, name).offset for name, _ in FieldRecord._fields_] == theirs


@given(st.integers(0, 2**64 - 1))
def test_values_are_read_by_their_type(raw: int) -> None:
    """Each nvmlValueType_t takes its own bytes of the union, signed or not; all ones is no value."""
    data = raw.to_bytes(8, "little")
    assert decode(1, raw) == (None if data[:4] == b"\xff" * 4 else struct.unpack("<I", data[:4])[0])
    assert decode(3, raw) == (None if raw == 2**64 - 1 else raw)
    assert decode(4, raw) == struct.unpack("<q", data)[0]
    assert decode(5, raw) == struct.unpack("<i", data[:4])[0]
    assert decode(6, raw) == struct.unpack("<H", data[:2])[0]
    number = struct.unpack("<d", data)[0]
    assert decode(0, raw) == (number if math.isfinite(number) else None)


@given(st.integers(7, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_a_value_of_an_unknown_type_is_not_believed(value_type: int, raw: int) -> None:
    """A type that a later driver may add yields no value instead of a wrong one."""
    assert decode(value_type, raw) is None


def test_a_record_the_library_left_alone_reads_as_failed() -> None:
    """After a reset no answer of an earlier call can be taken for a new one."""
    batch = FieldBatch([(83, 0), (74, 0)])
    batch.array[0].returned, batch.array[0].value_type, batch.array[0].value = 0, 3, 1234
    assert [answer.value for answer in batch.answers()] == [1234, None]
    batch.reset()
    assert [(answer.returned, answer.value) for answer in batch.answers()] == [(999, None)] * 2
    assert [(record.field_id, record.scope_id) for record in batch.array] == [(83, 0), (74, 0)]


def test_a_sum_with_a_missing_part_is_missing() -> None:
    """One link that does not answer makes the total unknown, not smaller."""
    assert sum_of([FieldValue(0, 2, 1), FieldValue(0, 3, 1)]) == 5
    assert sum_of([FieldValue(0, 2, 1), FieldValue(15, None, 1)]) is None
