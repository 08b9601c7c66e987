"""One time axis for the records of several hosts."""

from __future__ import annotations

from collections.abc import Iterator

from rankscope.exporters.verdict_json import anchor_of
from rankscope.window import Window


class TimeAxis:
    """Nanoseconds since the begin of a window, for what any of its hosts recorded.

    Hosts are joined by their wall clocks, so between hosts an instant is as good as those agree; on one host it is
    exact.
    """

    def __init__(self, window: Window) -> None:
        self._anchors = window.anchors
        moments = [self._wall(host, time_ns) for host, time_ns in _moments(window)]
        self.begin_wall_ns = min(moments)
        self.span_ns = max(moments) - self.begin_wall_ns

    def at(self, host: str | None, monotonic_ns: float) -> int:
        """Where on the axis a host's monotonic reading lies."""
        return self._wall(host, int(monotonic_ns)) - self.begin_wall_ns

    def _wall(self, host: str | None, monotonic_ns: int) -> int:
        return anchor_of(host, self._anchors).to_wall_ns(monotonic_ns)


def _moments(window: Window) -> Iterator[tuple[str | None, int]]:
    """Instants that the axis must hold."""
    # The window's own bounds are on one clock; where hosts kept theirs, the records speak for themselves.
    if len(set(window.anchors.values())) < 2:
        yield None, window.begin_ns
        yield None, window.end_ns
    for seen in window.ranks.values():
        if len(seen.steps):
            yield seen.identity.host, int(seen.steps.columns["start_ns"][0])
            yield seen.identity.host, int(seen.steps.columns["end_ns"][-1])
    for event in window.events:
        yield event.host, event.time_ns
