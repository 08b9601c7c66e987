"""The Prometheus endpoint of an agent: one for all its jobs, filled by the agent's own thread."""

from __future__ import annotations

from rankscope.agent.config import Settings
from rankscope.clock import Clock
from rankscope.exporters.export_levels import level_named
from rankscope.exporters.prometheus_endpoint import Listen, PrometheusEndpoint, open_endpoint
from rankscope.exporters.prometheus_text import JobSeries

#: A snapshot costs milliseconds, and a scrape every 15 s then sees one that is at most this old.
_PERIOD_NS = 5_000_000_000


class Exposition:
    """Call `refresh` each round."""

    def __init__(self, endpoint: PrometheusEndpoint, settings: Settings, clock: Clock) -> None:
        self.endpoint = endpoint
        self._level = level_named(settings.export.level)
        self._traces = settings.export.traces
        self._clock = clock
        self._jobs: dict[str, JobSeries] = {}
        self._due_ns = 0

    def job(self, name: str, host: str) -> JobSeries:
        """Where the series of this job go."""
        return self._jobs.setdefault(name, JobSeries(name, host, self._level, traces=self._traces))

    def drop(self, name: str) -> None:
        """This job is over: its series end."""
        self._jobs.pop(name, None)

    def refresh(self) -> None:
        """Show what holds now, where it is time to and somebody looks."""
        now = self._clock.monotonic_ns()
        if now >= self._due_ns and self.endpoint.wanted:
            self._due_ns = now + _PERIOD_NS
            self.endpoint.publish([family for job in self._jobs.values() for family in job.snapshot(now)])


def open_exposition(settings: Settings, clock: Clock) -> Exposition | None:
    """The endpoint of the configuration, None without one. Raises ConfigurationError."""
    asked = settings.prometheus
    if not asked.port:
        return None
    listen = Listen(asked.address, asked.port, asked.certificate, asked.key, asked.client_authority)
    endpoint = open_endpoint(listen, token_file=asked.token_file, user=asked.user, password_file=asked.password_file)
    return Exposition(endpoint, settings, clock)
