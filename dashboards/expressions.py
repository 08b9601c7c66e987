"""Expressions that several panels and alerts share."""

from __future__ import annotations

from dashboards.panels import RATE

JOB = 'rankscope_job=~"$job"'
BY_RANK = "by (rankscope_job, rankscope_rank)"


def mean_ms(metric: str, labels: str = "", by: str = BY_RANK, window: str = RATE) -> str:
    """Mean duration in ms over the window, from a histogram's sum and count."""
    select = f"{{{JOB}{labels}}}"
    return (
        f"1000 * sum {by} (rate({metric}_seconds_sum{select}{window}))"
        f" / sum {by} (rate({metric}_seconds_count{select}{window}))"
    )


def phase_ms(phase: str, clock: str = "device", by: str = BY_RANK) -> str:
    """ms a step in a phase: steps in which it took no time are counted, too."""
    phases = f'{{{JOB}, rankscope_clock="{clock}", rankscope_phase="{phase}"}}'
    steps = f'{{{JOB}, rankscope_clock="{clock}"}}'
    return (
        f"1000 * sum {by} (rate(rankscope_step_phase_duration_seconds_sum{phases}{RATE}))"
        f" / sum {by} (rate(rankscope_step_duration_seconds_count{steps}{RATE}))"
    )


def share_of_time(counter_ns: str, labels: str = JOB) -> str:
    """Share of the time that a counter of nanoseconds ran: never above all of it, as samples a little late make it."""
    return f"clamp_max(rate({counter_ns}_nanoseconds_total{{{labels}}}{RATE}) / 1e9, 1)"


def short_gpu(expression: str) -> str:
    """The same series with a label `gpu`: as much of the UUID as tells GPUs apart by eye."""
    return f'label_replace({expression}, "gpu", "$1", "hw_id", "([A-Z]+-[^-]+).*")'


def at_rank(expression: str) -> str:
    """The same series with a label `where`: " rank 3" where there is a rank, else nothing."""
    return f'label_replace({expression}, "where", " rank $1", "rankscope_rank", "(.+)")'


def risen(counter: str, window: str) -> str:
    """The counters that rose in the window, or appeared in it: Prometheus sees no rise in the first event, which is all
    that a scrape ever shows of a counter that begins with it. One that was away for a while has not appeared."""
    return f"increase({counter}[{window}]) > 0 or {counter} unless last_over_time({counter}[6h] offset {window})"
