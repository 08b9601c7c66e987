"""Slow steps as traces, the whole way: a rank's ring, an agent, a collector that nobody here wrote, a receiver."""

from __future__ import annotations

import base64
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import components
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from scripted_receiver import HttpReceiver, http_receiver

from rankscope.exporters import otlp_traces
from rankscope.exporters.otlp_traces import trace_id

MAIN = [sys.executable, "-c", "from rankscope.agent.cli import main; main()"]
FAKE_RANK = str(Path(__file__).with_name("fake_rank.py"))


def spans(receiver: HttpReceiver) -> list[tuple[dict[str, Any], Span]]:
    """(attributes of its resource, span) of every span that came."""
    return [
        ({each.key: each.value.string_value for each in of_resource.resource.attributes}, span)
        for request in receiver.requests
        if request.path == "/v1/traces"
        for of_resource in ExportTraceServiceRequest.FromString(request.body).resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def exemplars(receiver: HttpReceiver) -> set[bytes]:
    """Trace ids that histograms of step times lead to."""
    return {
        base64.b64decode(exemplar["traceId"])
        for request in receiver.requests
        if request.path == "/v1/metrics"
        for of_resource in MessageToDict(ExportMetricsServiceRequest.FromString(request.body))["resourceMetrics"]
        for of_scope in of_resource["scopeMetrics"]
        for metric in of_scope["metrics"]
        if metric["name"] == "rankscope.step.duration"
        for point in metric["exponentialHistogram"]["dataPoints"]
        for exemplar in point.get("exemplars", ())
    }


def _longest_ns(steps: list[tuple[int, int, int]]) -> int:
    return max(end - start for _, start, end in steps)


def test_a_slow_step_comes_out_of_a_collector_as_the_span_it_was(tmp_path: Path) -> None:
    """`rankscope run` with `export.traces` sends to rotel, which sends on: steps that were slow, and no others, at the
    times that the recording has, with phases as children, and the histogram's exemplar names the same trace."""
    stall, settings = tmp_path / "stall", tmp_path / "agent.toml"
    with http_receiver() as receiver:
        onward = ["--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", receiver.url]
        with components.rotel(tmp_path / "rotel", onward) as collector:
            settings.write_text(
                f'[export]\nendpoint = "{collector.http}"\ntraces = true\nperiod_seconds = 0.5\n'
                "[rings]\npoll_seconds = 0.1\n[recording]\ncommit_seconds = 0.2\n"
            )
            environ = {key: value for key, value in os.environ.items() if not key.startswith(("RANKSCOPE", "OTEL"))}
            environ |= {"RANKSCOPE_CONFIG": str(settings), "RANKSCOPE_STATE": str(tmp_path / "state")}
            environ |= {"RANKSCOPE_DIR": str(tmp_path / "rings")}
            rank = [sys.executable, FAKE_RANK, "steps=100000", "step_ms=30", f"stall_file={stall}"]
            with (tmp_path / "output").open("wb") as output:
                running = subprocess.Popen(
                    [*MAIN, "run", "--job", "traced", "--", *rank], env=environ, stdout=output, stderr=output
                )
            found = tmp_path / "state/traced"

            def steps() -> list[tuple[int, int, int]]:
                (recording,) = found.glob("*.db")
                with sqlite3.connect(recording) as database:
                    return list(database.execute("SELECT step, start_ns, end_ns FROM steps ORDER BY step"))

            def far_enough() -> bool:
                try:
                    return len(steps()) > 50
                except (ValueError, sqlite3.OperationalError):
                    # The recording is not made yet, or is being made.
                    return False

            components.wait_for(far_enough, "50 steps")
            stall.touch()
            components.wait_for(lambda: bool(spans(receiver)) and not stall.exists(), "a span, and the stall")
            components.wait_for(lambda: _longest_ns(steps()) > 1e9, "the step that stalled")
            running.terminate()
            assert running.wait(60) == 128 + signal.SIGTERM, (tmp_path / "output").read_text()
            components.wait_for(
                lambda: exemplars(receiver) == {span.trace_id for _, span in spans(receiver)}, "the rest of them"
            )
        (recording,) = found.glob("*.db")
        with sqlite3.connect(recording) as database:
            anchor = dict(database.execute("SELECT key, value FROM meta WHERE key LIKE 'anchor_%'"))
        ahead_ns = anchor["anchor_wall_ns"] - anchor["anchor_monotonic_ns"]
        recorded = {step: (start + ahead_ns, end + ahead_ns) for step, start, end in steps()}
        came = spans(receiver)
        roots = {span.span_id: span for _, span in came if not span.parent_span_id}
        told = {}
        for of, span in ((of, span) for of, span in came if not span.parent_span_id):
            attributes = {each.key: each.value.int_value for each in span.attributes}
            step = attributes["rankscope.step"]
            assert (span.name, attributes["rankscope.rank"]) == ("rankscope.step", 0)
            assert (of["rankscope.job"], bool(of["host.name"])) == ("traced", True)
            assert span.trace_id == trace_id("traced", 0, step)
            assert (span.start_time_unix_nano, span.end_time_unix_nano) == recorded[step]
            told[step] = recorded[step][1] - recorded[step][0]
        taken = [end - start for start, end in recorded.values()]
        for step, taken_ns in told.items():
            # What was usual is looked at every 16 steps.
            before = taken[: step // 16 * 16][-otlp_traces._USUAL_OF :]
            assert taken_ns > 1.1 * statistics.median(before)
        # A minute has so many traces: a machine that stalls often may have had them before.
        assert any(taken_ns > 1e9 for taken_ns in told.values()) or len(told) == otlp_traces._A_MINUTE
        children = [span for _, span in came if span.parent_span_id]
        assert {span.name for span in children} >= {"rankscope.forward"}
        assert all(span.trace_id == roots[span.parent_span_id].trace_id for span in children)
        assert exemplars(receiver) == {span.trace_id for span in roots.values()}
