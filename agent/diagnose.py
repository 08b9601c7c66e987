"""`rankscope diagnose`: the verdict on a job from the metric store that its agents export to."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankscope.errors import ConfigurationError
from rankscope.reading import Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rankscope.agent.store import Store
    from rankscope.agent.store_job import StoredJob
    from rankscope.finding import Verdict
    from rankscope.reading import Event
    from rankscope.window import Window

#: Events after which a job makes no more steps.
_ENDS = frozenset({"rank-exception", "rank-hung", "gpu-lost", "gpu-fallen-off"})
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str, option: str, now_s: float) -> float:
    """Seconds since the epoch of a time: ISO 8601, seconds since the epoch, or so long ago ("90m", "2h")."""
    number, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS:
            at_s = now_s - timedelta(**{_UNITS[unit]: float(number)}).total_seconds()
        else:
            try:
                at_s = float(text)
            except ValueError:
                at_s = datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{text!r} is no time", where=option, todo='give "90m", "2h" or "2026-05-01T12:00:00Z"'
        ) from error
    if not 0 <= at_s < 1e11:
        raise ConfigurationError(f"{text!r} is no time", where=option)
    return at_s


def judge_store(
    store: Store,
    job: str,
    *,
    since_s: float | None,
    until_s: float | None,
    now_s: float,
    most_ranks: int | None = None,
) -> tuple[Verdict, Window]:
    """The verdict on a job in a store, and the window that it rests on. Raises StoreError."""
    from rankscope.agent.store_job import find_job
    from rankscope.agent.store_suspects import MOST_RANKS, choose
    from rankscope.agent.store_window import fetch_window
    from rankscope.finding import Overhead
    from rankscope.rules import judge

    found = find_job(store, job, since_s=since_s, until_s=until_s, now_s=now_s)
    window = fetch_window(store, found, choose(store, found, most_ranks or MOST_RANKS))

    def most(metric: str) -> float | None:
        values = [series.values[-1] for key, series in window.series.items() if key.metric == metric and series.values]
        return max(values, default=None)

    memory = most("agent.pss_bytes")
    overhead = Overhead(most("agent.cpu_ratio"), None if memory is None else int(memory), None)
    return _unless_it_stopped(judge(window, overhead), window, found), window


def _unless_it_stopped(verdict: Verdict, window: Window, job: StoredJob) -> Verdict:
    """Steps that are all well are no health where ranks failed or hung after the last: the store does not say why."""
    last_ns = round((job.end_s - job.begin_s - 2 * job.step_s) * 1e9)
    ended = [each for each in window.events if each.kind in _ENDS and each.time_ns >= last_ns]
    if not ended or any(finding.severity is not Severity.INFO for finding in verdict.findings):
        return verdict
    told = ", ".join(_ends(ended)[:4])
    return replace(
        verdict,
        verdict="unknown",
        summary=f"Nothing was wrong with the steps until the job stopped ({told}); the store does not hold why.",
        would_settle=("the recordings of these hosts: `rankscope report`", *verdict.would_settle),
    )


def _ends(events: Sequence[Event]) -> list[str]:
    """What happened on each host, with the ranks it happened to, in the order of the exports that told it."""
    from rankscope.rules.flight_wording import ranks_text

    ranks: dict[tuple[str, str], set[int]] = {}
    for each in sorted(events, key=lambda event: (event.time_ns, event.kind, event.host)):
        of = ranks.setdefault((each.kind, each.host), set())
        rank = each.attributes.get("rank")
        if isinstance(rank, int):
            of.add(rank)
    return [
        f"{kind} on {host}" + (f" ({ranks_text(sorted(those))})" if those else "")
        for (kind, host), those in ranks.items()
    ]


@click.command()
@click.option("--prometheus", "url", required=True, metavar="URL", help="Prometheus, VictoriaMetrics, Mimir or Thanos.")
@click.option("--job", required=True, help="Name of the job, as its agents export it.")
@click.option("--since", default="", metavar="TIME", help='Begin of the window: "90m", "2h", or ISO 8601. [an hour]')
@click.option("--until", default="", metavar="TIME", help="Its end. [now, or when the job was last seen]")
@click.option("--json", "as_json", is_flag=True, help="The verdict as JSON on standard output.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="The verdict as one HTML page.")
def diagnose(url: str, job: str, since: str, until: str, as_json: bool, html: Path | None) -> None:
    """The verdict on a job from a Prometheus-compatible store, whatever the job's size."""
    from rankscope.agent.store import Store
    from rankscope.agent.verdict import show, write_outputs

    now_s = time.time()
    until_s = moment(until, "--until", now_s) if until else None
    since_s = moment(since, "--since", now_s) if since else None
    if since_s is not None and since_s >= (now_s if until_s is None else until_s):
        raise ConfigurationError("the window ends before it begins", where="--since")
    store = Store(url, os.environ)
    verdict, window = judge_store(store, job, since_s=since_s, until_s=until_s, now_s=now_s)
    if not as_json:
        from rich.console import Console

        show(verdict, window, Console())
        click.echo(f"{store.queries} queries, {store.bytes / 1e6:.1f} MB, {len(window.ranks)} ranks fetched", err=True)
    write_outputs(verdict, window, json_file="-" if as_json else "", html=html)
