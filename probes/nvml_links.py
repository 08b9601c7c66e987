"""The NVLinks of one GPU, each a device of its own: state, speed, bytes and errors.

Which counters a link has follows its generation: 161-163 up to Hopper (before them an id a link: 32-37, 46-51 and so
on), 206-222 and 235-250 from Blackwell on (nvml.h 13.5). Each is asked for until every link has refused it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rankscope.gpu_device import link_of
from rankscope.metrics_nvlink import FEC_BINS
from rankscope.probes.nvml_api import NOT_SUPPORTED, Gpu, NvmlFailure
from rankscope.probes.nvml_fields import LINKS, FieldBatch, FieldValue
from rankscope.probes.nvml_sample import GpuSample, Refusals, is_never

#: Links asked for in one call: few calls, and none that holds the driver for long.
_LINKS_A_BATCH = 6
#: NVML_NVLINK_STATE_INACTIVE.
_OFF = 0


def bit_error_ratio(raw: float) -> float:
    """A BER as the driver packs it: exponent in bits 0-7, mantissa in bits 8-11 (nvml.h, fields 220 and 222)."""
    bits = int(raw)
    return (bits >> 8 & 0xF) * 10.0 ** -(bits & 0xFF)


def _times(factor: float) -> Callable[[float], float]:
    return lambda raw: raw * factor


@dataclass(frozen=True, slots=True)
class LinkField:
    """One metric of a link from one field, scoped to the link; another field where the links have not this one."""

    metric: str
    field_id: int
    convert: Callable[[float], float] = float
    otherwise: LinkField | None = None
    #: Where each link has an id of its own: those, from link 0 on.
    ids: tuple[int, ...] = ()

    def key(self, link: int) -> tuple[int, int] | None:
        """(field id, scope) of one link; None for a link that this field does not reach."""
        if not self.ids:
            return self.field_id, link
        return (self.ids[link], link) if link < len(self.ids) else None


def _run(metric: str, first: int, seventh: int) -> LinkField:
    """An error counter of 12 links at most: an id a link, in two runs of six."""
    return LinkField(metric, first, ids=(*range(first, first + 6), *range(seventh, seventh + 6)))


LINK_FIELDS = (
    LinkField("nvlink.state", 165),
    LinkField("nvlink.speed_bytes_per_second", 164, _times(1e6)),
    LinkField("nvlink.tx_bytes", 138, _times(1024.0), LinkField("nvlink.tx_bytes", 202)),
    LinkField("nvlink.rx_bytes", 139, _times(1024.0), LinkField("nvlink.rx_bytes", 204)),
    LinkField("nvlink.replay_errors", 161, otherwise=_run("nvlink.replay_errors", 46, 108)),
    LinkField("nvlink.recovery_errors", 162, otherwise=_run("nvlink.recovery_errors", 53, 114)),
    LinkField("nvlink.crc_errors", 163, otherwise=_run("nvlink.crc_errors", 32, 96)),
    LinkField("nvlink.malformed_packets", 206),
    LinkField("nvlink.buffer_overruns", 207),
    LinkField("nvlink.receive_errors", 208),
    LinkField("nvlink.remote_errors", 209),
    LinkField("nvlink.general_errors", 210),
    LinkField("nvlink.integrity_errors", 211),
    LinkField("nvlink.discarded_packets", 212),
    LinkField("nvlink.recoveries_successful", 213),
    LinkField("nvlink.recoveries_failed", 214),
    LinkField("nvlink.recoveries", 215),
    LinkField("nvlink.effective_errors", 219),
    LinkField("nvlink.effective_bit_error_ratio", 220, bit_error_ratio),
    LinkField("nvlink.symbol_errors", 221),
    LinkField("nvlink.symbol_bit_error_ratio", 222, bit_error_ratio),
)
FEC_FIELDS = tuple(LinkField(f"nvlink.fec_corrected_{n}", 235 + n) for n in range(FEC_BINS))


class LinkReader:
    """Reads some fields of every link that the GPU has. Links are found by asking; one that is off answers too."""

    def __init__(self, gpu: Gpu, refusals: Refusals, fields: tuple[LinkField, ...]) -> None:
        self._gpu = gpu
        self._refusals = refusals
        self._fields = list(fields)
        self._links = LINKS
        self._batches: dict[int, FieldBatch] = {}

    def read(self, sample: GpuSample, now_ns: int) -> None:
        """Add what the links say. Raises NvmlFailure where the GPU is down."""
        fields = [f for f in self._fields if not self._refusals.paused(f.metric, now_ns)]
        answers: dict[int, dict[str, FieldValue]] = {}
        for first in range(0, len(self._links) if fields else 0, _LINKS_A_BATCH):
            try:
                self._ask(sample, answers, self._links[first : first + _LINKS_A_BATCH], fields)
            except NvmlFailure as failure:
                for field in fields:
                    self._refusals.refused(sample, field.metric, failure.code, str(failure), now_ns)
                return
        # A link that every field refuses for good is not there: the header's most are more than most GPUs have.
        self._links = tuple(
            link
            for link in self._links
            if link not in answers or not all(is_never(answer.returned) for answer in answers[link].values())
        )
        for field in fields:
            own = {link: found[field.metric] for link, found in answers.items() if field.metric in found}
            if self._links:
                self._take(sample, field, own, now_ns)
            else:
                self._refusals.refused(sample, field.metric, NOT_SUPPORTED, "no NVLink", now_ns)

    def _ask(
        self,
        sample: GpuSample,
        answers: dict[int, dict[str, FieldValue]],
        links: tuple[int, ...],
        fields: list[LinkField],
    ) -> None:
        asked = [
            (link, field.metric, key) for link in links for field in fields if (key := field.key(link)) is not None
        ]
        wanted = tuple(key for _, _, key in asked)
        batch = self._batches.get(links[0])
        if batch is None or batch.wanted != wanted:
            batch = self._batches[links[0]] = FieldBatch(wanted)
        self._gpu.read_fields(batch)
        for (link, metric, _), answer in zip(asked, batch.answers(), strict=True):
            answers.setdefault(link, {})[metric] = answer
        sample.latency_us += batch.latency_us

    def _take(self, sample: GpuSample, field: LinkField, answers: dict[int, FieldValue], now_ns: int) -> None:
        given = {link: answer.value for link, answer in answers.items() if answer.value is not None}
        for link, value in given.items():
            sample.parts.append((link_of(self._gpu.uuid, link), field.metric, field.convert(value)))
        if given:
            self._refusals.taken(field.metric)
        if field.metric == "nvlink.state" and given:
            sample.values["gpu.nvlink_links_active"] = sum(state != _OFF for state in given.values())
        if not answers:
            return
        codes = [answer.returned for answer in answers.values() if answer.returned]
        if not codes or (given and all(map(is_never, codes))):
            return
        if not given and all(map(is_never, codes)) and field.otherwise is not None:
            self._fields[self._fields.index(field)] = field.otherwise
            return
        # A link that fails otherwise is not one that is not there.
        code = next((code for code in codes if not is_never(code)), codes[0])
        self._refusals.refused(sample, field.metric, code, f"field {field.field_id} answered code {code}", now_ns)
