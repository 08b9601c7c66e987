"""A probe that does at each read what a test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rankscope.reading import Group, Priority, ProbeResult, Reading

SECOND_NS = 1_000_000_000


class FakeProbe:
    """One group "all". `act` is called at each read and returns its result; None: one reading of `host.cpu_count`.

    What `act` raises, the read raises. `reads` counts, `times_ns` are when, `closed` tells whether it was closed.
    """

    def __init__(
        self,
        name: str = "fake",
        act: Callable[[], ProbeResult | None] = lambda: None,
        *,
        steady_ns: int = SECOND_NS,
        burst_ns: int | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        self.name = name
        burst = min(steady_ns, SECOND_NS // 5) if burst_ns is None else burst_ns
        self.groups: Sequence[Group] = (Group("all", steady_ns, burst, "for a test", priority),)
        self.times_ns: list[int] = []
        self.closed = False
        self._act = act

    @property
    def reads(self) -> int:
        """How often it was read."""
        return len(self.times_ns)

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """One read."""
        self.times_ns.append(now_ns)
        return self._act() or ProbeResult([Reading("host.cpu_count", 1, now_ns)])

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
