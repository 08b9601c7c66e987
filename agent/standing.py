"""Findings that hold and events that happened, as readings: what dashboards and alerts of a metric store live on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rankscope.finding import Finding
from rankscope.metrics_rules import pack
from rankscope.reading import Event, Reading

#: The export's own period by default: a gauge that is not said again goes stale in the store.
PERIOD_NS = 15_000_000_000
#: Findings told at once; more would be a storm, and the first ones matter most.
MAX_FINDINGS = 32
#: Kinds and devices of events that are counted apart; what comes after them is counted as "other".
MAX_EVENTS = 256


class Standing:
    """Call `readings` now and then; it gives something once a period."""

    def __init__(self, period_ns: int = PERIOD_NS) -> None:
        self._period_ns = period_ns
        self._findings: Sequence[Finding] = ()
        self._counts: Counter[str] = Counter()
        self._due_ns = 0

    def hold(self, findings: Sequence[Finding]) -> None:
        """These hold now, the most important first, and no others."""
        self._findings = findings[:MAX_FINDINGS]

    def count(self, events: Iterable[Event]) -> None:
        """These happened."""
        for event in events:
            number = event.attributes.get("number") if event.kind in ("xid", "sxid") else None
            key = pack((event.kind, number, event.device if event.device.startswith(("GPU-", "MIG-")) else None))
            self._counts[key if key in self._counts or len(self._counts) < MAX_EVENTS else "other"] += 1

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
        said += [Reading("event.count", float(count), now_ns, device) for device, count in self._counts.items()]
        return said
