"""Slow steps as traces: which, how many, with what in them, linked from the histogram and delivered."""

from __future__ import annotations

from pathlib import Path

import components
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from scripted_receiver import http_receiver

from rankscope.clock import ClockAnchor
from rankscope.exporters.otlp_common import EncodedBatch
from rankscope.exporters.otlp_encode import OtlpEncoder
from rankscope.exporters.otlp_exporter import Exporter, connect
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.outbox import Outbox, Signal
from rankscope.identity import RankIdentity
from rankscope.records import CollectiveRecord, PhaseRecord, RingRecord, StepRecord

MS = 1_000_000
ANCHOR = ClockAnchor(0, 1_700_000_000_000 * MS)


def _identity(rank: int, host: str = "node-a") -> RankIdentity:
    return RankIdentity("llama", 1, rank, 4, rank, host, 100 + rank, 7, "b", "GPU-1")


def _records(count: int, slow: set[int]) -> list[RingRecord]:
    """Steps of 99 to 101 ms, the slow ones of 180 ms with a collective and a named phase in them."""
    records: list[RingRecord] = []
    at = 0
    for step in range(count):
        length = 180 * MS if step in slow else (99 + step % 3) * MS
        if step in slow:
            records.append(
                CollectiveRecord(step, 5, at, at + MS, at + 9 * MS, None, 64, None, 0, 1, "all_reduce", "dp")
            )
            records.append(PhaseRecord(step, at + 2 * MS, at + 4 * MS, "augment"))
        records.append(StepRecord(step, at, at + length, 10 * MS, length - 30 * MS, 20 * MS, 0, 0, 0, 0))
        at += length
    return records


def _encoder(host: str = "node-a") -> OtlpEncoder:
    return OtlpEncoder(job="llama", host=host, anchor=ANCHOR, traces=True)


def _spans(batches: list[EncodedBatch]) -> list[Span]:
    (batch,) = batches
    (of_resource,) = ExportTraceServiceRequest.FromString(batch.payload).resource_spans
    spans = list(of_resource.scope_spans[0].spans)
    assert batch.points == len(spans)
    return spans


def test_a_slow_step_is_one_trace_over_ranks_and_hosts() -> None:
    """Ranks of two hosts tell one trace, each a root with its phases and operations inside it; usual ones none."""
    told = {}
    for rank, host in ((0, "node-a"), (3, "node-b")):
        encoder = _encoder(host)
        encoder.add_records(_identity(rank, host), _records(100, {70}))
        told[rank] = _spans(encoder.traces())
        assert encoder.traces() == []
    assert len({span.trace_id for spans in told.values() for span in spans}) == 1
    assert len({span.span_id for spans in told.values() for span in spans}) == sum(map(len, told.values()))
    root, *children = told[0]
    assert (root.name, root.parent_span_id) == ("rankscope.step", b"")
    assert root.end_time_unix_nano - root.start_time_unix_nano == 180 * MS
    assert {child.parent_span_id for child in children} == {root.span_id}
    assert [child.name for child in children] == [
        "rankscope.data_wait", "rankscope.forward", "rankscope.backward", "all_reduce", "augment",
    ]  # fmt: skip
    for child in children:
        assert root.start_time_unix_nano <= child.start_time_unix_nano < child.end_time_unix_nano
        assert child.end_time_unix_nano <= root.end_time_unix_nano
    assert sum(each.end_time_unix_nano - each.start_time_unix_nano for each in children[:3]) == 180 * MS


def _metrics(batch: EncodedBatch) -> list[Metric]:
    (of_resource,) = ExportMetricsServiceRequest.FromString(batch.payload).resource_metrics
    return list(of_resource.scope_metrics[0].metrics)


def test_the_histogram_links_to_the_trace_once() -> None:
    """The point of step times of that export holds the slow step as an exemplar, and the next one does not."""
    encoder = _encoder()
    records = _records(110, {70})
    encoder.add_records(_identity(0), records[:103])
    (root, *_) = _spans(encoder.traces())
    found = []
    for batch in encoder.steps(20_000 * MS):
        for metric in _metrics(batch):
            points = metric.exponential_histogram.data_points
            found += [(metric.name, each) for point in points for each in point.exemplars]
    ((name, exemplar),) = found
    assert (name, exemplar.trace_id, exemplar.span_id) == ("rankscope.step.duration", root.trace_id, root.span_id)
    assert exemplar.as_double == pytest.approx(0.18)
    encoder.add_records(_identity(0), records[103:])
    assert not any(root.trace_id in batch.payload for batch in encoder.steps(30_000 * MS))


def test_a_job_that_stumbles_all_the_time_is_bounded() -> None:
    """Every eighth step of 600 (over a minute) slow: at most four traces a minute of a rank; the others are counted."""
    encoder = _encoder()
    encoder.add_records(_identity(0), _records(600, set(range(40, 600, 8))))
    roots = [span for span in _spans(encoder.traces()) if not span.parent_span_id]
    assert 4 <= len(roots) <= 8
    counts = [{each.key: each.value.int_value for each in root.attributes} for root in roots]
    left_out = [each.get("rankscope.slow_steps_left_out", 0) for each in counts]
    # Between the fourth trace and the fifth every eighth step of a minute was slow.
    assert left_out[:4] == [0, 0, 0, 0]
    if len(roots) > 4:
        assert left_out[4] == (counts[4]["rankscope.step"] - counts[3]["rankscope.step"]) // 8 - 1


def test_parts_of_a_step_beyond_the_limit_are_counted() -> None:
    """A slow step of a hundred named phases tells the latest 64, and how many more there were."""
    encoder = _encoder()
    records = _records(100, {70})
    (at,) = [place for place, each in enumerate(records) if isinstance(each, StepRecord) and each.step == 70]
    begin = records[at].start_ns
    named = [PhaseRecord(70, begin + number, begin + number + 1, f"part {number}") for number in range(100)]
    encoder.add_records(_identity(0), [*records[: at - 2], *named, *records[at:]])
    root, *children = _spans(encoder.traces())
    assert {each.key: each.value.int_value for each in root.attributes}["rankscope.parts_left_out"] == 36
    assert [child.name for child in children if child.name.startswith("part")] == [f"part {n}" for n in range(36, 100)]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_takes_the_traces(tmp_path: Path, protocol: str) -> None:
    """Through the outbox and a real collector: what arrives is what was sent, and the accounts hold."""
    encoder = _encoder()
    encoder.add_records(_identity(0), _records(100, {70}))
    batches = encoder.traces()
    with http_receiver() as behind:
        forward = ["--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", behind.url]
        with components.rotel(tmp_path / "rotel", forward) as collector:
            connection = connect(tmp_path / "r.db")
            outbox = Outbox(connection)
            outbox.add(batches[0].signal, batches[0].payload, batches[0].points, 0)
            endpoint = collector.grpc if protocol == "grpc" else collector.http
            targets = otlp_targets({}, [Signal.TRACES], endpoint=endpoint, protocol=protocol)
            exporter = Exporter(tmp_path / "r.db", targets, poll_s=0.05)
            exporter.start()
            assert exporter.stop(20)
            balance = outbox.balance()
            connection.close()
            assert balance.holds
            assert balance.acknowledged.points == batches[0].points
            components.wait_for(lambda: bool(behind.requests), "the spans")
    (request,) = behind.requests
    assert request.path == "/v1/traces"
    received = ExportTraceServiceRequest.FromString(request.body).resource_spans[0].scope_spans[0].spans
    assert [(span.trace_id, span.span_id, span.name) for span in received] == [
        (span.trace_id, span.span_id, span.name) for span in _spans(batches)
    ]
