"""`rankscope analyzer`: judges every job of a metric store again and again, and sends the findings back by OTLP.

It keeps nothing that matters: which jobs run, and which findings were told already, it reads from the store. So it may
be restarted at any time, and several share the jobs by the hash of their names.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from rankscope.agent.diagnose import judge_store
from rankscope.agent.standing import Standing
from rankscope.agent.store import Store
from rankscope.agent.store_job import quoted
from rankscope.clock import Clock, ClockAnchor, SystemClock
from rankscope.errors import ConfigurationError, RankscopeError, StoreError
from rankscope.finding import Finding, Verdict

if TYPE_CHECKING:
    from rankscope.exporters.otlp_send import SignalSender
    from rankscope.exporters.otlp_settings import Target
    from rankscope.exporters.outbox import Signal

#: What stands as the host of its findings, so that they are no agent's series.
HOST = "rankscope-analyzer"
#: A job of which nothing came for this long is over.
_LIVE_SECONDS = 120
#: A finding that was told within this time, or three looks, is not new.
_LEAST_MEMORY_SECONDS = 180.0
#: What waits for a receiver that is away; the store is asked again anyway.
_OUTBOX_BYTES = 16_000_000
_SHARD = re.compile(r"(\d{1,4})/(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several analyzers: `number` of `count`, from 0."""

    number: int = 0
    count: int = 1

    def has(self, job: str) -> bool:
        """Whether a job is this one's; each job is exactly one's."""
        return zlib.crc32(job.encode()) % self.count == self.number


def shard_of(text: str) -> Shard:
    """The shard that "0/4" names. Raises ConfigurationError."""
    found = _SHARD.fullmatch(text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ConfigurationError(f"{text!r} is no shard", where="--shard", todo="give NUMBER/COUNT, such as 0/4 to 3/4")
    return Shard(int(found[1]), int(found[2]))


def live_jobs(store: Store, shard: Shard, now_s: float) -> list[str]:
    """Jobs of a shard of which something came lately. Raises StoreError."""
    told = store.instant(f"count by (rankscope_job) (last_over_time(rankscope_rank_info[{_LIVE_SECONDS}s]))", now_s)
    names = {series.metric.get("rankscope_job", "") for series in told} - {""}
    return sorted(name for name in names if shard.has(name))


class Delivery:
    """Findings on their way to a receiver; what cannot be sent now waits in memory, within a bound."""

    def __init__(
        self, targets: Mapping[Signal, Target], clock: Clock, environ: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        """Raises ConfigurationError where what the environment says of the export cannot be used."""
        from rankscope.exporters.otlp_send import Backoff, SignalSender
        from rankscope.exporters.otlp_settings import resource_attributes
        from rankscope.exporters.otlp_transport import check_target, open_transport
        from rankscope.exporters.outbox import Outbox

        for target in targets.values():
            check_target(target)
        self._clock = clock
        self._extra = tuple(resource_attributes(environ))
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._outbox = Outbox(self._connection, quota_bytes=_OUTBOX_BYTES)
        self._senders: dict[Signal, SignalSender] = {
            each: SignalSender(
                self._outbox, target, open_transport, clock=clock, uniform=random.uniform, say=say, backoff=Backoff()
            )
            for each, target in targets.items()
        }

    def send(self, job: str, holding: Sequence[Finding], new: Sequence[Finding]) -> None:
        """What holds as metrics, what is new as log records too."""
        from rankscope.exporters.otlp_encode import OtlpEncoder

        anchor = ClockAnchor.take(self._clock)
        now_ns = anchor.monotonic_ns
        encoder = OtlpEncoder(job=job, host=HOST, anchor=anchor, resource_attributes=self._extra)
        standing = Standing()
        standing.hold(holding)
        for batch in [*encoder.readings(standing.readings(now_ns)), *encoder.findings(new, now_ns)]:
            if batch.signal in self._senders:
                self._outbox.add(batch.signal, batch.payload, batch.points, anchor.wall_ns)
        for sender in self._senders.values():
            while sender.step() == 0:
                pass

    def close(self) -> None:
        """Give connections back."""
        for sender in self._senders.values():
            sender.close()
        self._connection.close()


def told_already(store: Store, job: str, now_s: float, within_s: float) -> set[tuple[str, str, str]]:
    """Class, rank and GPU of the findings of a job that an analyzer told of lately. Raises StoreError."""
    labels = f"{{rankscope_job={quoted(job)}, host_name={quoted(HOST)}}}"
    found = store.instant(f"last_over_time(rankscope_finding_confidence_ratio{labels}[{round(within_s)}s])", now_s)
    return {
        tuple(series.metric.get(name, "") for name in ("rankscope_class", "rankscope_rank", "hw_id"))  # type: ignore[misc]
        for series in found
    }


def _key(finding: Finding) -> tuple[str, str, str]:
    rank = finding.where.rank
    return finding.class_slug, "" if rank is None else str(rank), finding.where.gpu_uuid or ""


def analyze_once(
    store: Store,
    shard: Shard,
    delivery: Delivery | None,
    *,
    now_s: float,
    window_s: float,
    period_s: float,
    tell: Callable[[str, Verdict, Sequence[Finding]], None],
    refuse: Callable[[str], None],
    last: dict[str, set[tuple[str, str, str]]] | None = None,
) -> int:
    """Judge every live job of the shard; returns how many were judged. `tell` hears of each with what is new.

    A job that cannot be judged is one line to `refuse`, and the others are. `last` holds what the look before told,
    which a store may take some seconds to show. Raises StoreError where no job can be had.
    """
    judged = 0
    for job in live_jobs(store, shard, now_s):
        try:
            verdict, _ = judge_store(store, job, since_s=now_s - window_s, until_s=now_s, now_s=now_s)
            before = told_already(store, job, now_s, max(3 * period_s, _LEAST_MEMORY_SECONDS))
        except StoreError as error:
            refuse(f"{job}: not judged: {error}")
            continue
        if last is not None:
            before |= last.get(job, set())
            last[job] = {_key(finding) for finding in verdict.findings}
        new = [finding for finding in verdict.findings if _key(finding) not in before]
        if delivery is not None and verdict.findings:
            delivery.send(job, verdict.findings, new)
        tell(job, verdict, new)
        judged += 1
    return judged


@click.command()
@click.option("--prometheus", "url", required=True, metavar="URL", help="Prometheus, VictoriaMetrics, Mimir or Thanos.")
@click.option("--endpoint", default="", help="URL of an OTLP receiver for findings; also $OTEL_EXPORTER_OTLP_ENDPOINT.")
@click.option("--protocol", default="", help="grpc or http/protobuf (default).")
@click.option("--shard", default="0/1", show_default=True, metavar="N/M", help="Only this share of the jobs.")
@click.option("--period", default=60.0, show_default=True, type=click.FloatRange(5), help="Seconds between two looks.")
@click.option("--window", default=30.0, show_default=True, type=click.FloatRange(1), help="Minutes that are judged.")
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option("--json", "as_json", is_flag=True, help="A JSON line for each job and look.")
def analyzer(
    url: str, endpoint: str, protocol: str, shard: str, period: float, window: float, once: bool, as_json: bool
) -> None:
    """Judge every job of a metric store, again and again. Runs until SIGTERM or Ctrl-C, and keeps no state."""
    mine, store, clock = shard_of(shard), Store(url, os.environ), SystemClock()
    targets = {}
    if endpoint or any(name.startswith("OTEL_EXPORTER_OTLP") for name in os.environ):
        from rankscope.exporters.otlp_settings import otlp_targets

        targets = otlp_targets(os.environ, endpoint=endpoint, protocol=protocol)

    def refuse(line: str) -> None:
        click.echo(f"rankscope: {line}", err=True)

    def tell(job: str, verdict: Verdict, new: Sequence[Finding]) -> None:
        if as_json:
            findings = [
                {"class": each.class_slug, "rank": each.where.rank, "new": each in new} for each in verdict.findings
            ]
            click.echo(json.dumps({"job": job, "verdict": verdict.verdict, "findings": findings}))
        else:
            for finding in new:
                click.echo(f"{job}: {finding.summary}")

    stop = threading.Event()
    last: dict[str, set[tuple[str, str, str]]] = {}
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    delivery = Delivery(targets, clock, os.environ, refuse) if targets else None
    try:
        while not stop.is_set():
            begun = clock.monotonic_ns()
            try:
                analyze_once(
                    store,
                    mine,
                    delivery,
                    now_s=time.time(),
                    window_s=window * 60,
                    period_s=period,
                    tell=tell,
                    refuse=refuse,
                    last=last,
                )
            except RankscopeError as error:
                if once:
                    raise
                refuse(str(error))
            if once:
                break
            stop.wait(max(0.0, period - (clock.monotonic_ns() - begun) / 1e9))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if delivery is not None:
            delivery.close()
