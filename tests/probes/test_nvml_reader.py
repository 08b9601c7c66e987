"""One GPU read through a fake of the narrow Protocol: units, refusals, absence."""

from __future__ import annotations

import dataclasses

import pytest

from rankscope.metrics import METRICS
from rankscope.probes.nvml_api import GpuIdentity, NvmlFailure
from rankscope.probes.nvml_fields import ALL_LINKS, ECC_CURRENT, FieldBatch
from rankscope.probes.nvml_reader import FIRST_PAUSE_NS, LONGEST_PAUSE_NS, PERMISSION_RETRY_NS, GpuReader
from rankscope.reading import Outcome

DRIVER = (580, 95)
IDENTITY = GpuIdentity("GPU-0", 0, "0000:1b:00", "fake")


@dataclasses.dataclass
class FakeGpu:
    """A GPU that answers what a test says: `fields` maps (id, scope) to (code, value type, raw value)."""

    fields: dict[tuple[int, int], tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    failing: dict[str, int] = dataclasses.field(default_factory=dict)
    percent: tuple[int, int] = (50, 25)
    timestamp_us: int = 1
    batches: list[tuple[tuple[int, int], ...]] = dataclasses.field(default_factory=list)
    identity: GpuIdentity = IDENTITY

    def _answer(self, name: str, value: int) -> int:
        if name in self.failing:
            raise NvmlFailure(self.failing[name], name)
        return value

    def utilization(self) -> tuple[int, int]:
        self._answer("utilization", 0)
        return self.percent

    def clock_mhz(self, kind: int) -> int:
        return self._answer("clock", 1000 + kind)

    def max_clock_mhz(self, kind: int) -> int:
        return self._answer("max_clock", 1980)

    def clock_event_reasons(self) -> int:
        return self._answer("reasons", 0x40)

    def memory(self) -> tuple[int, int]:
        return self._answer("memory", 5), 10

    def temperature(self) -> int:
        return self._answer("temperature", 61)

    def slowdown_temperature(self) -> int:
        return self._answer("slowdown", 89)

    def read_fields(self, batch: FieldBatch) -> None:
        self.batches.append(batch.wanted)
        self._answer("fields", 0)
        batch.reset()
        for record, key in zip(batch.array, batch.wanted, strict=True):
            record.returned, record.value_type, record.value = self.fields.get(key, (3, 0, 0))
            record.timestamp_us = self.timestamp_us


def full() -> FakeGpu:
    """A GPU that offers every field with the value 2000."""
    everything = [(n, 0) for n in (*range(1, 8), *range(74, 84), 94, *range(185, 199), *range(251, 272))]
    fields = dict.fromkeys([*everything, (138, ALL_LINKS), (139, ALL_LINKS)], (0, 3, 2000))
    fields[ECC_CURRENT, 0] = (0, 1, 1)
    return FakeGpu(fields)


def test_values_come_in_the_units_of_their_metrics() -> None:
    """mW become W, mJ J, KiB bytes, per cent a ratio; every name is in the vocabulary."""
    reader = GpuReader(full(), DRIVER)
    values = {k: v for group in ("fast", "counters", "slow", "health") for k, v in reader.read(group, 0).values.items()}
    assert values["gpu.power_instant_watts"] == 2.0
    assert values["gpu.energy_joules"] == 2.0
    assert values["gpu.nvlink_tx_bytes"] == 2000 * 1024
    assert values["gpu.utilization_ratio"] == 0.5
    assert values["gpu.memory_utilization_ratio"] == 0.25
    assert set(values) <= set(METRICS)


def test_what_a_gpu_does_not_offer_is_dropped_and_said_once() -> None:
    """An unsupported metric is asked for once, told once, and absent from then on; the others are not touched."""
    gpu = full()
    gpu.fields[186, 0] = (3, 3, 77)
    gpu.failing["utilization"] = 13
    reader = GpuReader(gpu, DRIVER)
    first, second = reader.read("fast", 0), reader.read("fast", 10**12)
    told = {(metric, outcome) for metric, outcome, _ in first.outcomes}
    assert told == {
        ("gpu.power_instant_watts", Outcome.UNSUPPORTED),
        ("gpu.utilization_ratio", Outcome.UNSUPPORTED),
        ("gpu.memory_utilization_ratio", Outcome.UNSUPPORTED),
    }
    assert second.outcomes == []
    assert "gpu.power_instant_watts" not in second.values
    assert second.values["gpu.power_watts"] == 2.0
    assert gpu.batches[-1] == ((185, 0),)


@pytest.mark.parametrize("percent", [4294967295, 101])
def test_a_sentinel_is_no_utilization(percent: int) -> None:
    """The all-ones value some drivers give is left out, never passed on."""
    gpu = full()
    gpu.percent = (percent, 7)
    values = GpuReader(gpu, DRIVER).read("fast", 0).values
    assert "gpu.utilization_ratio" not in values
    assert values["gpu.memory_utilization_ratio"] == 0.07


@pytest.mark.parametrize(("ecc", "timestamp_us"), [(0, 1), (1, 0)])
def test_ecc_counters_are_absent_while_ecc_is_off(ecc: int, timestamp_us: int) -> None:
    """Counters that NVML leaves uninitialised are no values, while the rest of their batch still is."""
    gpu = full()
    gpu.fields[ECC_CURRENT, 0] = (0, 1, ecc)
    gpu.timestamp_us = timestamp_us
    values = GpuReader(gpu, DRIVER).read("health", 0).values
    assert not [metric for metric in values if "ecc" in metric]
    assert values["gpu.pcie_replays"] == 2000


def test_a_refusal_for_lack_of_permission_is_retried_rarely() -> None:
    """It is said once, left alone for its time, then tried again and taken when allowed."""
    gpu = full()
    gpu.failing["temperature"] = 4
    reader = GpuReader(gpu, DRIVER)
    assert [o for _, o, _ in reader.read("slow", 0).outcomes] == [Outcome.NO_PERMISSION]
    gpu.failing.clear()
    assert "gpu.temperature_celsius" not in reader.read("slow", PERMISSION_RETRY_NS - 1).values
    assert reader.read("slow", PERMISSION_RETRY_NS).values["gpu.temperature_celsius"] == 61


def test_an_unknown_error_is_retried_with_a_growing_pause() -> None:
    """Pauses double up to their limit and start anew after a success."""
    gpu = full()
    gpu.failing["temperature"] = 999
    reader = GpuReader(gpu, DRIVER)
    now, pause, tries = 0, FIRST_PAUSE_NS, 0
    for _ in range(10):
        sample = reader.read("slow", now)
        tries += bool(sample.outcomes)
        gpu.failing["temperature"] = 15
        assert reader.read("slow", now + pause - 1).down is None, "asked again too early"
        gpu.failing["temperature"] = 999
        now += pause
        pause = min(2 * pause, LONGEST_PAUSE_NS)
    assert tries == 1
    gpu.failing.clear()
    assert reader.read("slow", now).values["gpu.temperature_celsius"] == 61


@pytest.mark.parametrize("code", [6, 10, 21])
def test_no_value_at_the_moment_is_no_reason_to_pause(code: int) -> None:
    """A value that comes back with the next read is taken with the next read."""
    gpu = full()
    gpu.failing["temperature"] = code
    reader = GpuReader(gpu, DRIVER)
    assert [o for _, o, _ in reader.read("slow", 0).outcomes] == [Outcome.NO_DATA]
    gpu.failing.clear()
    assert reader.read("slow", 1).values["gpu.temperature_celsius"] == 61


@pytest.mark.parametrize("code", [15, 16])
@pytest.mark.parametrize("where", ["call", "batch", "field"])
def test_a_gpu_that_is_down_is_told_from_wherever_it_shows(code: int, where: str) -> None:
    """A lost GPU is noticed by a call, by a batch as a whole, and by the code of a single field."""
    gpu = full()
    if where == "field":
        gpu.fields[185, 0] = (code, 0, 0)
    else:
        gpu.failing["clock" if where == "call" else "fields"] = code
    assert GpuReader(gpu, DRIVER).read("fast", 0).down == code


def test_nvlink_bytes_fall_back_to_the_links_that_are_there() -> None:
    """Where the common counter is not offered, the counters of the present links are added up."""
    gpu = full()
    del gpu.fields[138, ALL_LINKS]
    gpu.fields |= {(202, link): (0, 3, 100 + link) for link in range(4)}
    reader = GpuReader(gpu, DRIVER)
    reader.read("counters", 0)
    assert reader.read("counters", 1).values["gpu.nvlink_tx_bytes"] == 100 + 101 + 102 + 103
    gpu.fields[202, 2] = (999, 3, 0)
    assert "gpu.nvlink_tx_bytes" not in reader.read("counters", 2).values, "a missing link is no zero"


def test_nvlink_of_all_links_is_asked_for_apart() -> None:
    """Fields scoped to all links share no batch with others: one such mixture failed as a whole on GB200."""
    gpu = full()
    GpuReader(gpu, DRIVER).read("counters", 0)
    for batch in gpu.batches:
        assert len({scope == ALL_LINKS for _, scope in batch}) == 1


def test_an_old_driver_is_asked_for_the_old_thermal_counter() -> None:
    """Before R575 the thermal policy counter stands in, and the two others are not asked for."""
    gpu = full()
    values = GpuReader(gpu, (570, 172)).read("counters", 0).values
    assert "gpu.throttle_sw_thermal_ns" in values
    assert "gpu.throttle_hw_thermal_ns" not in values
    assert not [field for batch in gpu.batches for field, _ in batch if field >= 251]
