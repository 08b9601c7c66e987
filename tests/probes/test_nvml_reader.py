"""One GPU read through a fake of the narrow Protocol: units, refusals, absence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest

from rankscope.metrics import METRICS
from rankscope.probes.nvml_api import Device, Fabric, Facts, GpuIdentity, NvmlFailure, ProcessUse, SampleRing
from rankscope.probes.nvml_fields import ALL_LINKS, ECC_CURRENT, FieldBatch
from rankscope.probes.nvml_gpm import GPM_METRICS
from rankscope.probes.nvml_reader import GROUPS, GpuReader, readable_metrics
from rankscope.probes.nvml_rings import RINGS
from rankscope.probes.nvml_sample import FIRST_PAUSE_NS, LONGEST_PAUSE_NS, PERMISSION_RETRY_NS
from rankscope.probes.nvml_structures import SramEcc
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
    rings: dict[int, SampleRing] = dataclasses.field(default_factory=dict)
    link: tuple[int, int] = (5, 16)
    instances: Sequence[Device] = ()

    @property
    def uuid(self) -> str:
        return self.identity.uuid

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

    def memory(self) -> tuple[int, int, int]:
        return self._answer("memory", 5), 10, 1

    def performance_state(self) -> int | None:
        return self._answer("state", 0)

    def temperature_margin(self) -> int:
        return self._answer("margin", 20)

    def pcie_link(self) -> tuple[int, int]:
        self._answer("pcie", 0)
        return self.link

    def pcie_link_max(self) -> tuple[int, int]:
        return 5, 16

    def uptime_seconds(self) -> int:
        return self._answer("uptime", 77)

    def mig_mode(self) -> int:
        return self._answer("mig", int(bool(self.instances)))

    def mig_instances(self) -> Sequence[Device]:
        return self.instances

    def fabric(self) -> Fabric:
        return Fabric(self._answer("fabric", 3), 0, 0, 1)

    def sram_ecc(self) -> Mapping[str, int]:
        return {name: self._answer("sram", place) for place, (name, _) in enumerate(SramEcc._fields_[1:])}

    def row_remap_banks(self) -> Mapping[str, int]:
        return {"max": self._answer("banks", 640), "high": 0, "partial": 0, "low": 0, "none": 0}

    def samples(self, kind: int, last_seen_us: int) -> SampleRing:
        self._answer("samples", 0)
        return self.rings.get(kind, SampleRing((), full=False))

    def processes(self) -> Sequence[ProcessUse]:
        return [ProcessUse(4711, self._answer("processes", 1 << 30)), ProcessUse(4712, None)]

    def process_utilization(self, last_seen_us: int) -> Sequence[tuple[int, int, int]]:
        return [(4711, last_seen_us + 1, self._answer("shares", 40))]

    def gpm(self, now_ns: int) -> Mapping[int, tuple[int, float]] | None:
        self._answer("gpm", 0)
        return dict.fromkeys(GPM_METRICS, (0, 50.0))

    def facts(self) -> Facts:
        return {"numa_node": str(self._answer("facts", 1))}

    def temperature(self) -> int:
        return self._answer("temperature", 61)

    def threshold_celsius(self, kind: int) -> int:
        return self._answer("threshold", 89 + kind)

    def read_fields(self, batch: FieldBatch) -> None:
        self.batches.append(batch.wanted)
        self._answer("fields", 0)
        batch.reset()
        for record, key in zip(batch.array, batch.wanted, strict=True):
            record.returned, record.value_type, record.value = self.fields.get(key, (3, 0, 0))
            record.timestamp_us = self.timestamp_us


def full() -> FakeGpu:
    """A GPU of 4 links that offers every field with the value 2000."""
    ids = (
        *range(1, 32),
        *range(74, 84),
        91,
        94,
        95,
        *range(142, 146),
        160,
        169,
        *range(173, 199),
        230,
        *range(251, 272),
    )
    of_links = (138, 139, 161, 162, 163, 164, 165, *range(206, 223), *range(235, 251))
    keys = [(n, 0) for n in ids] + [(n, link) for n in of_links for link in range(4)]
    totals = [(n, ALL_LINKS) for n in range(138, 142)]
    fields = dict.fromkeys([*keys, *totals, (186, 1)], (0, 3, 2000))
    fields[ECC_CURRENT, 0] = (0, 1, 1)
    rings = {kind: SampleRing([(1, 50)], full=False) for kind, *_ in RINGS}
    return FakeGpu(fields, rings=rings)


def test_values_come_in_the_units_of_their_metrics() -> None:
    """mW become W, mJ J, KiB bytes, per cent a ratio; every name is in the vocabulary."""
    reader = GpuReader(full(), DRIVER)
    samples = [reader.read(group, 0) for group in GROUPS]
    values = {metric: value for sample in samples for metric, value in sample.values.items()}
    values |= {metric: value for sample in samples for _, metric, value in sample.parts}
    values |= {metric: points[0][1] for sample in samples for metric, points in sample.series.items()}
    assert values["gpu.power_instant_watts"] == 2.0
    assert values["gpu.energy_joules"] == 2.0
    assert values["gpu.nvlink_tx_bytes"] == 2000 * 1024
    assert values["gpu.utilization_ratio"] == 0.5
    assert values["gpu.memory_utilization_ratio"] == 0.25
    assert values["nvlink.speed_bytes_per_second"] == 2e9
    assert values["nvlink.tx_bytes"] == 2000 * 1024
    assert values["gpu.power_sample_watts"] == 0.05
    told_by_the_agent = {"gpu.driver_latency_ns", "gpu.samples_lost"}
    families = ("gpu.", "nvlink.", "gpu_process.")
    assert set(values) == {name for name in METRICS if name.startswith(families)} - told_by_the_agent


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
    assert gpu.batches[-1] == ((185, 0), (186, 1))


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
    assert not [metric for metric in values if metric.startswith(("gpu.ecc_corrected", "gpu.ecc_uncorrected"))]
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


@pytest.mark.parametrize("missing", [(), (138,), (138, 139, 140, 141)])
def test_nvlink_of_all_links_is_asked_for_apart(missing: tuple[int, ...]) -> None:
    """Fields scoped to all links share no batch with others, fallbacks included: one mixture failed on GB200."""
    gpu = full()
    for field in missing:
        del gpu.fields[field, ALL_LINKS]
    gpu.fields |= {(202, link): (0, 3, 100 + link) for link in range(4)}
    reader = GpuReader(gpu, DRIVER)
    for now_ns in range(4):
        for group in GROUPS:
            reader.read(group, now_ns)
    assert any(scope == ALL_LINKS for batch in gpu.batches for _, scope in batch)
    for batch in gpu.batches:
        assert len({scope == ALL_LINKS for _, scope in batch}) == 1


def test_a_fault_of_ours_costs_its_group_and_no_other() -> None:
    """What is no answer of NVML is said once with its kind, and the GPU is read on."""
    gpu = full()
    gpu.instances = [object()]  # type: ignore[list-item]
    reader = GpuReader(gpu, DRIVER)
    first = reader.read("health", 0)
    assert [(name, outcome) for name, outcome, _ in first.outcomes] == [("health", Outcome.FAILED)]
    assert first.outcomes[0][2].startswith("cannot be read: AttributeError: ")
    assert reader.read("health", 1).outcomes == []
    assert reader.read("fast", 2).values["gpu.power_watts"] == 2.0


def test_an_old_driver_is_asked_for_the_old_thermal_counter() -> None:
    """Before R575 the thermal policy counter stands in, and the two others are not asked for."""
    gpu = full()
    values = GpuReader(gpu, (570, 172)).read("counters", 0).values
    assert "gpu.throttle_sw_thermal_ns" in values
    assert "gpu.throttle_hw_thermal_ns" not in values
    assert not [field for batch in gpu.batches for field, _ in batch if field >= 251]


def test_single_metrics_are_left_out() -> None:
    """Neither asked for, where no other comes with them, nor told; the others are read as ever."""
    gpu, whole = full(), full()
    left = {"gpu.sm_clock_mhz", "gpu.memory_utilization_ratio", "gpu.power_instant_watts", "gpu.temperature_celsius"}
    gpu.failing |= {"clock": 999, "temperature": 999}
    left |= {"gpu.memory_clock_mhz", "gpu.sm_active_ratio"}
    reader, other = GpuReader(gpu, DRIVER, left), GpuReader(whole, DRIVER)
    for group in ("fast", "slow", "gpm"):
        read, expected = reader.read(group, 0), other.read(group, 0)
        assert expected.values
        assert read.values == {metric: value for metric, value in expected.values.items() if metric not in left}
        assert not [metric for metric, _, _ in read.outcomes if metric in left]
    assert (186, 0) not in {wanted for batch in gpu.batches for wanted in batch}
    assert left <= readable_metrics() <= METRICS.keys()
