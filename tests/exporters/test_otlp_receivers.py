"""From the outbox through receivers that nobody here wrote, read back from the store."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import components
import pytest
from scripted_receiver import Answer, http_receiver

from rankscope.clock import ClockAnchor
from rankscope.exporters.otlp_common import EncodedBatch
from rankscope.exporters.otlp_encode import OtlpEncoder
from rankscope.exporters.otlp_exporter import Exporter, connect
from rankscope.exporters.otlp_send import Backoff
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.outbox import Outbox
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Reading, Severity
from rankscope.records import StepRecord

GPU = "GPU-3f2a91c0-77aa-4b1e-9f10-000000000002"
MS = 1_000_000
SECOND_NS = 1_000 * MS
QUICK = Backoff(first_s=0.02, most_s=0.1)


def _anchor() -> ClockAnchor:
    """Monotonic 0 is two minutes ago, on a whole millisecond: what stores keep."""
    return ClockAnchor(0, (time.time_ns() // MS - 120_000) * MS)


def _readings(begin: int, end: int) -> list[Reading]:
    """A temperature and an energy counter every 100 ms, each value its own."""
    return [
        reading
        for number in range(begin, end)
        for reading in (
            Reading("gpu.temperature_celsius", 40 + number / 8, number * 100 * MS, GPU),
            Reading("gpu.energy_joules", 1e6 + number, number * 100 * MS, GPU),
        )
    ]


class Producer:
    """What the agent does: encodes and adds in one transaction."""

    def __init__(self, path: Path, anchor: ClockAnchor) -> None:
        self.connection = connect(path)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.outbox = Outbox(self.connection)
        self.encoder = OtlpEncoder(job="llama", host="node-a", anchor=anchor)

    def add(self, batches: list[EncodedBatch]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        for batch in batches:
            self.outbox.add(batch.signal, batch.payload, batch.points, time.time_ns())
        self.connection.execute("COMMIT")

    def settled(self) -> bool:
        return not self.outbox.balance().waiting.batches


@contextmanager
def _exporter(path: Path, **settings: str) -> Iterator[Exporter]:
    exporter = Exporter(path, otlp_targets({}, **settings), backoff=QUICK, poll_s=0.05, say=print)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.stop(0)


def _stored(store: str, selector: str) -> list[dict[str, Any]]:
    """Series with every sample as a reader gets them (a query, not the raw export)."""
    with urllib.request.urlopen(f"{store}/internal/force_flush", timeout=10):
        pass
    return components.query(store, f"{selector}[10m]")


def _samples(store: str, name: str) -> list[tuple[int, float]]:
    found = _stored(store, f'{name}{{rankscope_job="llama"}}')
    assert len(found) <= 1
    return [(round(at * 1000), float(value)) for series in found for at, value in series["values"]]


def _expected(anchor: ClockAnchor, metric: str, readings: list[Reading]) -> list[tuple[int, float]]:
    return [(anchor.to_wall_ns(each.time_ns) // MS, each.value) for each in readings if each.metric == metric]


def _wait_for_samples(store: str, name: str, expected: list[tuple[int, float]]) -> None:
    components.wait_for(lambda: len(_samples(store, name)) >= len(expected), f"{len(expected)} samples of {name}")
    assert _samples(store, name) == expected


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_receiver_that_dies_in_the_middle_ends_with_each_sample_once(tmp_path: Path, compression: str) -> None:
    """VictoriaMetrics goes away and comes back while readings go on: the accounts add up, and reading the store gives
    each reading once, at its own time."""
    anchor, path = _anchor(), tmp_path / "r.db"
    producer = Producer(path, anchor)
    port = components.free_port()
    settings = {"endpoint": f"http://127.0.0.1:{port}/opentelemetry", "compression": compression}
    everything = _readings(0, 300)
    with _exporter(path, **settings) as exporter:
        with components.victoria_metrics(tmp_path / "store", port):
            for begin in range(0, 100, 10):
                producer.add(producer.encoder.readings(_readings(begin, begin + 10)))
            components.wait_for(lambda: producer.outbox.balance().acknowledged.batches >= 5, "the first half")
        for begin in range(100, 200, 10):
            producer.add(producer.encoder.readings(_readings(begin, begin + 10)))
        components.wait_for(lambda: exporter.status()[0].state == "waiting", "the outage to be noticed")
        assert producer.outbox.balance().holds
        assert producer.outbox.balance().waiting.batches >= 10
        with components.victoria_metrics(tmp_path / "store", port) as store:
            for begin in range(200, 300, 10):
                producer.add(producer.encoder.readings(_readings(begin, begin + 10)))
            components.wait_for(producer.settled, "everything to be delivered")
            balance = producer.outbox.balance()
            assert balance.holds
            assert balance.acknowledged == balance.produced
            assert balance.acknowledged.points == len(everything)
            for metric, name in (
                ("gpu.temperature_celsius", "hw_temperature_celsius"),
                ("gpu.energy_joules", "hw_energy_joules_total"),
            ):
                _wait_for_samples(store, name, _expected(anchor, metric, everything))


def test_a_batch_delivered_twice_is_read_once(tmp_path: Path) -> None:
    """Where only the answer was lost, the repeat is byte-identical and the store shows each sample once."""
    anchor, path = _anchor(), tmp_path / "r.db"
    producer = Producer(path, anchor)
    readings = _readings(0, 10)
    with http_receiver() as receiver, _exporter(path, endpoint=receiver.url):
        receiver.script = [Answer(0)]
        producer.add(producer.encoder.readings(readings))
        components.wait_for(producer.settled, "the repeat")
        bodies = [request.body for request in receiver.requests]
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
    with components.victoria_metrics(tmp_path / "store") as store:
        for body in bodies:
            request = urllib.request.Request(
                f"{store}/opentelemetry/v1/metrics", body, {"Content-Type": "application/x-protobuf"}
            )
            with urllib.request.urlopen(request):
                pass
        _wait_for_samples(store, "hw_temperature_celsius", _expected(anchor, "gpu.temperature_celsius", readings))


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_metrics_and_logs_pass_through_a_collector(tmp_path: Path, protocol: str) -> None:
    """The rotel collector takes both signals by both protocols: readings and histograms reach the store with their own
    times, log records keep their name, severity, text and attributes."""
    anchor, path = _anchor(), tmp_path / "r.db"
    producer = Producer(path, anchor)
    readings = _readings(0, 50)
    identity = RankIdentity("llama", 0, 2, 4, 2, "node-a", 4242, 7, "b", GPU)
    steps = [
        StepRecord(step, step * 100 * MS, (step + 1) * 100 * MS, 5 * MS, 30 * MS, 50 * MS, 15 * MS, 0, 0, 0)
        for step in range(40)
    ]
    xid = Event("xid", 3 * SECOND_NS, "Xid 79", Severity.CRITICAL, GPU, attributes={"number": 79})
    with ExitStack() as stack:
        logs = stack.enter_context(http_receiver())
        store = stack.enter_context(components.victoria_metrics(tmp_path / "store"))
        forward = [
            "--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", logs.url,
            "--otlp-exporter-metrics-endpoint", f"{store}/opentelemetry/v1/metrics",
            "--otlp-exporter-logs-endpoint", f"{logs.url}/v1/logs",
        ]  # fmt: skip
        collector = stack.enter_context(components.rotel(tmp_path / "rotel", forward))
        endpoint = collector.grpc if protocol == "grpc" else collector.http
        stack.enter_context(_exporter(path, endpoint=endpoint, protocol=protocol, compression="gzip"))
        producer.encoder.add_records(identity, steps)
        producer.add(
            producer.encoder.readings(readings) + producer.encoder.steps(4 * SECOND_NS) + producer.encoder.events([xid])
        )
        components.wait_for(producer.settled, "the delivery")
        balance = producer.outbox.balance()
        assert balance.holds
        assert balance.acknowledged == balance.produced
        _wait_for_samples(store, "hw_temperature_celsius", _expected(anchor, "gpu.temperature_celsius", readings))
        at = anchor.to_wall_ns(4 * SECOND_NS) // MS
        _wait_for_samples(store, "rankscope_rank_step", [(at, 39.0)])
        _wait_for_samples(store, "rankscope_step_duration_seconds_count", [(at, 40.0)])
        ((_, total),) = _samples(store, "rankscope_step_duration_seconds_sum")
        assert total == pytest.approx(4.0)
        # The join that docs/otlp.md shows.
        joined = "hw_temperature_celsius * on (hw_id, rankscope_job) group_left (rankscope_rank) rankscope_rank_info"
        (series,) = components.query(store, joined)
        assert series["metric"]["rankscope_rank"] == "2"
        components.wait_for(lambda: bool(logs.requests), "the log record")
        (record,) = logs.log_records()
        assert (record.event_name, record.body.string_value, record.severity_text) == (
            "rankscope.xid",
            "Xid 79",
            "critical",
        )
        assert record.time_unix_nano == anchor.to_wall_ns(3 * SECOND_NS)
        assert {pair.key for pair in record.attributes} == {"hw.id", "hw.type", "rankscope.xid.number"}


def test_an_hour_without_a_store_is_read_from_it_afterwards(tmp_path: Path) -> None:
    """What waited for an hour is taken by VictoriaMetrics beside what is new: every sample at its own time, those of
    the hour after the newest one of their series was there already."""
    now = (time.time_ns() // MS) * MS
    anchor, path = ClockAnchor(0, now - 3_700 * SECOND_NS), tmp_path / "r.db"
    producer = Producer(path, anchor)
    with components.victoria_metrics(tmp_path / "store") as store:
        old = [Reading("gpu.temperature_celsius", 40 + at / 100, at * SECOND_NS, GPU) for at in range(0, 3_600, 15)]
        new = [Reading("gpu.temperature_celsius", 90.0, 3_650 * SECOND_NS, GPU)]
        # Another encoder: an agent that was there for the newest sample alone.
        first = Producer(tmp_path / "first.db", anchor)
        for each, readings in ((first, new), (producer, old)):
            with _exporter(tmp_path / f"{'first' if each is first else 'r'}.db", endpoint=f"{store}/opentelemetry"):
                for begin in range(0, len(readings), 40):
                    each.add(each.encoder.readings(readings[begin : begin + 40]))
                components.wait_for(each.settled, "the delivery")
                assert each.outbox.balance().acknowledged == each.outbox.balance().produced
        with urllib.request.urlopen(f"{store}/internal/force_flush", timeout=10):
            pass
        expected = _expected(anchor, "gpu.temperature_celsius", [*old, *new])

        def stored() -> list[tuple[int, float]]:
            found = components.query(store, 'hw_temperature_celsius{rankscope_job="llama"}[2h]')
            return [(round(at * 1000), float(value)) for series in found for at, value in series["values"]]

        components.wait_for(lambda: len(stored()) == len(expected), "every sample")
        assert stored() == expected
