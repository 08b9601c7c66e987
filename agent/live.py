"""Rules while the job runs: on a thread of their own, over the recent past, as often as their cost allows."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from pathlib import Path

from rankscope.agent.config import RuleSettings
from rankscope.agent.kept_readings import KeptReadings
from rankscope.allocator import give_back_memory
from rankscope.clock import Clock
from rankscope.finding import Advice, Finding

#: Steps of each rank that the live rules look at.
_MAX_STEPS = 5_000
#: Of a core: the rules take what the budget leaves, no less than this.
SMALLEST_SHARE = 0.001
#: Beyond that, what cannot wait is looked at so often in this time, ns: GPUs fail one after the other, a log may flood.
_HURRIES = 5
_HURRY_NS = 50 * 10**9


class LiveRules:
    """Call `poll` now and then: it starts a round when one is due and returns findings that are new."""

    def __init__(self, recording: Path, settings: RuleSettings, clock: Clock) -> None:
        self._recording = recording
        self._settings = settings
        self._clock = clock
        self._due_ns = clock.monotonic_ns() + int(settings.period_seconds * 1e9)
        self._results: queue.SimpleQueue[tuple[tuple[Finding, ...], int, str]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._known: set[tuple[object, ...]] = set()
        self._kept = KeptReadings()
        #: When the last rounds were asked for that could not wait, and whether one is to follow the round that runs.
        self._hurries_ns: deque[int] = deque(maxlen=_HURRIES)
        self._again = False
        #: Whether such a round runs, or is about to.
        self.hurried = False
        #: What the last round found, the most important first.
        self.holding: tuple[Finding, ...] = ()
        #: Share of a core that rounds may take; what they took, for whoever counts it, ns.
        self.share = settings.cpu_ratio
        self.cpu_ns = 0
        #: Why the last round failed; "" while all is well.
        self.trouble = ""
        self._closed = False

    def poll(self) -> list[Finding]:
        """New findings of a round that ended. Never waits."""
        found: list[Finding] = []
        now = self._clock.monotonic_ns()
        while not self._results.empty():
            findings, cost_ns, self.trouble = self._results.get_nowait()
            self.cpu_ns += cost_ns
            self._thread = None
            self.holding = findings
            self._due_ns = now + max(int(self._settings.period_seconds * 1e9), int(cost_ns / self.share))
            self.hurried = self._again
            if self._again:
                self._again, self._due_ns = False, now
            for finding in findings:
                # An advice that hardened from "watch" to "act" is news.
                key = (finding.class_slug, finding.where, finding.advice is Advice.ACT)
                if key not in self._known:
                    self._known.add(key)
                    found.append(finding)
        if self._settings.live and self._thread is None and now >= self._due_ns and not self._closed:
            since = now - int(self._settings.window_seconds * 1e9)
            self._thread = threading.Thread(target=self._round, args=(since,), name="rankscope-rules", daemon=True)
            self._thread.start()
        return found

    def hurry(self) -> None:
        """Something was recorded that cannot wait for the next round: start one as soon as may be."""
        now = self._clock.monotonic_ns()
        at = now if len(self._hurries_ns) < _HURRIES else max(now, self._hurries_ns[0] + _HURRY_NS)
        if self._thread is not None:
            # The round that runs may have read the recording before this was in it.
            self._again = self._again or at == now
        else:
            self._due_ns = min(self._due_ns, at)
        if at == now:
            self._hurries_ns.append(now)
            self.hurried = self._settings.live

    def close(self, seconds: float) -> None:
        """Start no further round, and wait so long for one that runs: while it reads, a recording cannot be closed as
        one file. What it finds is `poll`'s to give."""
        self._closed = True
        if self._thread is not None:
            self._thread.join(seconds)

    def _round(self, since_ns: int) -> None:
        began = time.thread_time_ns()
        findings: tuple[Finding, ...] = ()
        trouble = ""
        try:
            findings = self._judge(since_ns)
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
        # A window is tens of megabytes for a moment, which the allocator would keep.
        give_back_memory()
        self._results.put((findings, time.thread_time_ns() - began, trouble))

    def _judge(self, since_ns: int) -> tuple[Finding, ...]:
        from rankscope.agent.load import load_window
        from rankscope.agent.site_table import site_table
        from rankscope.rules import diagnose

        window = load_window([self._recording], since_ns=since_ns, max_steps=_MAX_STEPS, kept=self._kept)
        return diagnose(window, site_table(self._settings.classes_file)) if window.ranks else ()
