"""The steps of this host's ranks, read from their rings as an experiment counts them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rankscope.identity import RankIdentity
from rankscope.records import StepRecord
from rankscope.ring import SUFFIX, RingReader

_LOOK_SECONDS = 0.05
#: Time between two looks for rings that are new, and after which a rank that says nothing is not waited for, unless
#: steps are long.
_NEW_RINGS_NS = 10**9
_SILENT_NS = 10 * 10**9
#: Ranks of one start attach within this time of each other: so long after a new ring, more are looked for all the time.
_TOGETHER_NS = 3 * 10**9


@dataclass(slots=True)
class _Ring:
    """One rank's ring, the last step heard of it, and when that was, CLOCK_MONOTONIC ns."""

    reader: RingReader
    heard_ns: int
    last: int | None = None


class HostSteps:
    """The steps of this host's ranks as the last of them ends each: as long as the slowest rank's.

    Rings that come later, of a rank that was restarted, count from then on; a rank that says nothing any more is not
    waited for.
    """

    def __init__(self, rings: Path, over: threading.Event) -> None:
        self._directory = rings
        self._over = over
        self._rings: dict[Path, _Ring] = {}
        self._look_due_ns = self._newest_ns = 0
        #: Step -> (earliest begin, longest duration) of the ranks that have ended it, ns.
        self._ended: dict[int, tuple[int, int]] = {}
        self._longest_ns = 0
        #: Steps that have gone by, counted or not.
        self.seen = 0

    def skip(self, count: int) -> bool:
        """Let that many steps go by; False where the job ended before."""
        return self.take(0, count, 0) is not None

    def take(self, after_ns: int, settle: int, count: int) -> list[int] | None:
        """ns of `count` steps, after the first `settle` of those that began after `after_ns`; None at the job's end."""
        seen = 0
        taken: list[int] = []
        while True:
            over = self._over.is_set()
            for start_ns, length_ns in self._next():
                if start_ns < after_ns or seen >= settle + count:
                    continue
                seen += 1
                self.seen += 1
                if seen > settle:
                    taken.append(length_ns)
            if seen >= settle + count:
                return taken
            if over:
                return None
            self._over.wait(_LOOK_SECONDS)

    def identities(self) -> list[RankIdentity]:
        """The ranks whose rings were found."""
        return [ring.reader.header.identity for ring in self._rings.values()]

    def close(self) -> None:
        """Close every ring."""
        for ring in self._rings.values():
            ring.reader.close()

    def _next(self) -> list[tuple[int, int]]:
        now = time.monotonic_ns()
        if not self._rings or now >= self._look_due_ns:
            self._look(now)
            self._look_due_ns = now + (0 if now - self._newest_ns < _TOGETHER_NS else _NEW_RINGS_NS)
        for ring in self._rings.values():
            for record in ring.reader.read().records:
                if isinstance(record, StepRecord):
                    length_ns = record.end_ns - record.start_ns
                    begin_ns, longest_ns = self._ended.get(record.step, (record.start_ns, 0))
                    self._ended[record.step] = min(begin_ns, record.start_ns), max(longest_ns, length_ns)
                    self._longest_ns = max(self._longest_ns, length_ns)
                    ring.last, ring.heard_ns = record.step, now
        silent_ns = max(_SILENT_NS, 3 * self._longest_ns)
        passed = min(
            (ring.last for ring in self._rings.values() if ring.last is not None and now - ring.heard_ns < silent_ns),
            default=-1,
        )
        return [self._ended.pop(step) for step in sorted(self._ended) if step <= passed]

    def _look(self, now: int) -> None:
        for path in self._directory.glob(f"*{SUFFIX}"):
            if path not in self._rings:
                self._rings[path] = _Ring(RingReader(path), now)
                self._newest_ns = now
