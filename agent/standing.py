"""Findings that hold and events that happened, as readings: what dashboards and alerts of a metric store live on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rankscope.finding import Finding
from rankscope.metrics_rules import pack
from rankscope.reading import Event, Reading

#: The export's own period by default: a gauge that is not said again goes stale in the store.
PERIOD_NS = 15_000_000_000
#: The metric that counts events. Its first sample is a zero dated back by a period.
EVENT_COUNT = "event.count"
#: Findings told at once; more would be a storm, and the first ones matter most.
MAX_FINDINGS = 32
#: Kinds and devices of events that are counted apart; what comes after them is counted as "other".
MAX_EVENTS = 256
#: Kinds that are counted by rank: how ranks end, or stop going on.
_BY_RANK = frozenset({"rank-exception", "rank-exited", "rank-hung"})


class Standing:
    """Call `readings` now and then; it gives something once a period."""

    def __init__(self, period_ns: int = PERIOD_NS) -> None:
        self._period_ns = period_ns
        self._findings: Sequence[Finding] = ()
        #: Series -> how often each source told of it. An Xid comes from the driver's library and from the kernel log.
        self._counts: dict[str, Counter[str]] = {}
        self._said: set[str] = set()
        self._due_ns = 0

    def hold(self, findings: Sequence[Finding]) -> None:
        """These hold now, the most important first, and no others."""
        self._findings = findings[:MAX_FINDINGS]

    def count(self, events: Iterable[Event]) -> None:
        """These happened. What two sources tell of counts as often as the one that told more."""
        for event in events:
            if event.attributes.get("history"):
                continue  # the kernel log tells of it from before the agent began
            number = event.attributes.get("number") if event.kind in ("xid", "sxid") else None
            gpu = event.device if event.device.startswith(("GPU-", "MIG-")) else None
            key = pack((event.kind, number, gpu, *((event.rank,) if event.kind in _BY_RANK else ())))
            if key not in self._counts and len(self._counts) >= MAX_EVENTS:
                key = "other"
            self._counts.setdefault(key, Counter())[str(event.attributes.get("source"))] += 1

    def readings(self, now_ns: int) -> list[Reading]:
        """What stands now, where it is time to say it."""
        if now_ns < self._due_ns:
            return []
        self._due_ns = now_ns + self._period_ns
        said: list[Reading] = []
        for finding in self._findings:
            where, impact = finding.where, finding.impact
            device = pack((finding.class_slug, finding.side, finding.advice, where.rank, where.gpu_uuid))
            said.append(Reading("finding.confidence", finding.confidence, now_ns, device))
            for metric, value in (
                ("finding.ms_per_step", impact.ms_per_step),
                ("finding.gpu_hours_per_day", impact.gpu_hours_per_day),
            ):
                if value is not None:
                    said.append(Reading(metric, value, now_ns, device))
        for device, counts in self._counts.items():
            if device not in self._said:
                # A store sees a counter rise from the second sample on: the first event would raise no alert.
                self._said.add(device)
                said.append(Reading(EVENT_COUNT, 0.0, now_ns - self._period_ns, device))
            said.append(Reading(EVENT_COUNT, float(max(counts.values())), now_ns, device))
        return said
