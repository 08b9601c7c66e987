"""Reads one GPU group by group: values in the units of the metrics, and what is not to be had, said once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rankscope.probes.nvml_api import INVALID_ARGUMENT, Gpu, NvmlFailure
from rankscope.probes.nvml_calls import CALLS, Call, ratio
from rankscope.probes.nvml_fields import (
    ALL_LINKS,
    ECC_CURRENT,
    FieldBatch,
    FieldSource,
    FieldValue,
    field_batches,
    sum_of,
    unknown_metrics,
)
from rankscope.probes.nvml_gpm import GPM_METRICS
from rankscope.probes.nvml_links import FEC_FIELDS, LINK_FIELDS, LinkField, LinkReader
from rankscope.probes.nvml_parts import PartsReader
from rankscope.probes.nvml_pcie import PcieJudge
from rankscope.probes.nvml_rings import RINGS, RingReader
from rankscope.probes.nvml_sample import GpuSample, Refusals, is_never
from rankscope.reading import Outcome

# Utilization is a per cent and clocks fit 16 bits; the all-ones sentinel of a 32-bit field is no value.
_SENTINEL = (1 << 32) - 1

GROUPS = (
    "fast",
    "gpm",
    "counters",
    "samples",
    "slow",
    "processes",
    "health",
    "links",
    "rare",
    "description",
)


def readable_metrics() -> frozenset[str]:
    """Metrics that can be left out one by one: those of single calls, of fields, of links, and a GPU's own of GPM."""
    newest = (10**6, 0)
    calls = (metric for of_group in CALLS.values() for metrics, _ in of_group for metric in metrics)
    sources = (source.metric for group in GROUPS for batch in field_batches(group, newest) for source in batch)
    gpm = (metric for metric, _ in GPM_METRICS.values())
    return frozenset((*calls, *sources, *gpm, *(link.metric for link in (*LINK_FIELDS, *FEC_FIELDS))))


def _without(batches: list[list[FieldSource]], unread: frozenset[str]) -> list[list[FieldSource]]:
    return [[source for source in batch if source.metric not in unread] for batch in batches]


def _links_without(fields: tuple[LinkField, ...], unread: frozenset[str]) -> tuple[LinkField, ...]:
    return tuple(link for link in fields if link.metric not in unread)


class _Batch:
    """Fields that are read by one call, and at which place the only answer of a source stands, where it has but one."""

    def __init__(self, sources: list[FieldSource]) -> None:
        wanted = [(source.field_id, scope) for source in sources for scope in source.scopes]
        if any(source.needs_ecc for source in sources):
            wanted.append((ECC_CURRENT, 0))
        self.sources = sources
        self.fields = FieldBatch(wanted)
        self.places = [
            None if source.needs_ecc or len(source.scopes) > 1 else wanted.index((source.field_id, source.scopes[0]))
            for source in sources
        ]


class GpuReader:
    """Reads one GPU. A metric the device does not offer is dropped for it alone, and that is said once."""

    def __init__(self, gpu: Gpu, driver: tuple[int, int], unread: Collection[str] = ()) -> None:
        """Metrics in `unread` are not asked for, where no other comes with them."""
        self.gpu = gpu
        self._unread = frozenset(unread)
        self._calls = {
            group: [each for each in calls if not self._unread.issuperset(each[0])] for group, calls in CALLS.items()
        }
        self._sources = {group: _without(field_batches(group, driver), self._unread) for group in GROUPS}
        self._batches: dict[tuple[str, int], _Batch] = {}
        self._refusals = Refusals()
        self._rings = RingReader(gpu, self._refusals)
        self._links = {
            "links": LinkReader(gpu, self._refusals, _links_without(LINK_FIELDS, self._unread)),
            "rare": LinkReader(gpu, self._refusals, _links_without(FEC_FIELDS, self._unread)),
        }
        self._parts = PartsReader(gpu, self._refusals)
        self._pcie = PcieJudge()
        #: Groups that failed otherwise than by an answer of NVML.
        self._broken: set[str] = set()
        self._unknown = [metric for metric in unknown_metrics(driver) if metric not in self._unread]

    def read(self, group: str, now_ns: int, seen: Sequence[int] = (0,) * len(RINGS)) -> GpuSample:
        """Read one group; never raises. `seen` is for the sample buffers (RingReader)."""
        sample = GpuSample()
        if group in self._broken:
            return sample
        try:
            self._read(sample, group, now_ns, seen)
        except NvmlFailure as failure:
            sample.down = failure.code
        except Exception as error:
            # A fault of ours or of the binding costs this group on this GPU, and not everything else.
            self._broken.add(group)
            sample.outcomes.append((group, Outcome.FAILED, f"cannot be read: {type(error).__name__}: {error}"))
        return sample

    def _read(self, sample: GpuSample, group: str, now_ns: int, seen: Sequence[int]) -> None:
        for call in self._calls.get(group, ()):
            if not self._refusals.paused(call[0][0], now_ns):
                self._read_call(sample, call, now_ns)
        for number in range(len(self._sources[group])):
            self._read_batch(sample, group, number, now_ns)
        if group in self._links:
            self._links[group].read(sample, now_ns)
        self._read_parts(sample, group, now_ns, seen)

    def _read_parts(self, sample: GpuSample, group: str, now_ns: int, seen: Sequence[int]) -> None:
        if group == "samples":
            self._rings.read(sample, now_ns, seen)
        elif group == "gpm":
            self._parts.read_gpm(sample, now_ns)
            # They come with one call, all or none.
            for metric in self._unread & sample.values.keys():
                del sample.values[metric]
        elif group == "slow":
            self._parts.read_instances(sample)
        elif group == "processes":
            self._parts.read_processes(sample, now_ns)
        elif group == "counters":
            for metric in self._unknown:
                self._refusals.refused(sample, metric, INVALID_ARGUMENT, "", now_ns)
            self._pcie.note(sample.values, now_ns)
        elif group == "health":
            self._parts.look_for_instances(sample, now_ns)
            self._judge_pcie(sample, now_ns)
        elif group == "description":
            sample.facts[self.gpu.uuid] = self.gpu.facts()

    def _judge_pcie(self, sample: GpuSample, now_ns: int) -> None:
        try:
            utilization = ratio(self.gpu.utilization()[0])
        except NvmlFailure as failure:
            self._refusals.raise_if_down(failure)
            utilization = None
        speed = self._pcie.speed_ratio(sample.values, utilization, now_ns)
        if speed is not None:
            sample.values["gpu.pcie_link_speed_ratio"] = speed

    def _read_call(self, sample: GpuSample, call: Call, now_ns: int) -> None:
        metrics, function = call
        try:
            values = function(self.gpu)
        except NvmlFailure as failure:
            for metric in metrics:
                self._refusals.refused(sample, metric, failure.code, str(failure), now_ns)
            return
        for metric, value in zip(metrics, values, strict=True):
            if value is not None and value != _SENTINEL and metric not in self._unread:
                sample.values[metric] = value
                self._refusals.taken(metric)

    def _read_batch(self, sample: GpuSample, group: str, number: int, now_ns: int) -> None:
        sources = [s for s in self._sources[group][number] if not self._refusals.paused(s.metric, now_ns)]
        if not sources:
            return
        batch = self._batches.get((group, number))
        if batch is None or batch.sources != sources:
            batch = self._batches[group, number] = _Batch(sources)
        try:
            self.gpu.read_fields(batch.fields)
        except NvmlFailure as failure:
            for source in sources:
                self._refusals.refused(sample, source.metric, failure.code, str(failure), now_ns)
            return
        answers = batch.fields.answers()
        sample.latency_us += batch.fields.latency_us
        by_field: dict[tuple[int, int], FieldValue] | None = None
        for source, place in zip(sources, batch.places, strict=True):
            if place is not None and (value := answers[place].value) is not None:
                sample.values[source.metric] = value * source.scale
                self._refusals.taken(source.metric)
            else:
                by_field = by_field or dict(zip(batch.fields.wanted, answers, strict=True))
                self._take(sample, group, number, source, by_field, by_field.get((ECC_CURRENT, 0)), now_ns)

    def _take(
        self,
        sample: GpuSample,
        group: str,
        number: int,
        source: FieldSource,
        answers: dict[tuple[int, int], FieldValue],
        ecc: FieldValue | None,
        now_ns: int,
    ) -> None:
        own = {scope: answers[source.field_id, scope] for scope in source.scopes}
        if source.needs_ecc and (ecc is None or ecc.value != 1 or not any(a.timestamp_us for a in own.values())):
            if ecc is not None and ecc.value == 0:
                self._refusals.say(sample, source.metric, Outcome.UNSUPPORTED, "ECC is off")
            else:
                self._answer_failed(sample, source, own, now_ns)
            return
        offered = tuple(scope for scope, answer in own.items() if answer.returned == 0)
        if not offered and source.otherwise and all(is_never(a.returned) for a in own.values()):
            self._replace(group, number, source, source.otherwise)
            return
        if offered and len(offered) < len(own) and all(is_never(a.returned) for a in own.values() if a.returned):
            # Links that this device has not got; from now on every one asked for must answer.
            self._replace(group, number, source, FieldSource(source.metric, source.field_id, source.scale, offered))
            own = {scope: own[scope] for scope in offered}
        total = sum_of(list(own.values()))
        if total is None:
            self._answer_failed(sample, source, own, now_ns)
            return
        sample.values[source.metric] = total * source.scale
        self._refusals.taken(source.metric)

    def _replace(self, group: str, number: int, old: FieldSource, new: FieldSource) -> None:
        sources = self._sources[group][number]
        if (ALL_LINKS in old.scopes) != (ALL_LINKS in new.scopes):
            # Fields of all links together share no batch with others.
            sources.remove(old)
            self._sources[group].append([new])
        else:
            sources[sources.index(old)] = new

    def _answer_failed(self, sample: GpuSample, source: FieldSource, own: dict[int, FieldValue], now_ns: int) -> None:
        code = next((answer.returned for answer in own.values() if answer.returned), 0)
        if code:
            text = f"field {source.field_id} answered code {code}"
            self._refusals.refused(sample, source.metric, code, text, now_ns)
