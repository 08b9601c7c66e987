"""`rankscope whatif`: every format, its JSON against the schema, and files that are none of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result
from pipeline_job import Row, job

from rankscope.agent.cli import main

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/schemas/whatif.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
#: Real operations with published results, where they have been put beside the repository.
PUBLISHED = ROOT.parent / "shared/data/whatif"


def call(*words: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, ["whatif", *map(str, words)], catch_exceptions=False)


def document(*words: str | Path) -> dict:
    """Its JSON, which fits the schema."""
    result = call("--json", *words)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    VALIDATOR.validate(found)
    return found


@pytest.fixture
def rows() -> list[Row]:
    """A job of 8 workers whose second rank is slow in stage 1."""
    return job(
        lambda d, s, _c, _m, _t, b: (0.2 if b else 0.1) * (1.5 if (d, s) == (1, 1) else 1.0),
        dp=4,
        stages=2,
        microbatches=4,
    )


def as_csv(rows: list[Row]) -> str:
    """Rows with a head line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_parquet(rows: list[Row], path: Path) -> None:
    """Rows as Parquet, with the narrow types that recorders choose."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows)
    narrow = {"start_ts": pyarrow.float32(), "duration": pyarrow.float32(), "dp_rank": pyarrow.int8()}
    for name, kind in narrow.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind, safe=False))
    names = table["optype"].dictionary_encode()
    parquet.write_table(table.set_column(table.column_names.index("optype"), "optype", names), path)


def test_every_format_gives_the_same_answer(rows: list[Row], tmp_path: Path) -> None:
    """CSV, JSON lines, one JSON array, Parquet, and any of them compressed."""
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.csv").write_text(as_csv(rows))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(as_csv(rows).encode()))
    as_parquet(rows, tmp_path / "a.parquet")
    found = [document(path) for path in sorted(tmp_path.iterdir())]
    assert len(found) == 5
    for each in found:
        assert each["cause"] == "few slow workers"
        assert (each["slowest"][0]["dp_rank"], each["slowest"][0]["stage"]) == (1, 1)
        assert each["slowdown"] == pytest.approx(found[0]["slowdown"], rel=1e-5)


def test_a_row_may_belong_to_no_chunk(rows: list[Row], tmp_path: Path) -> None:
    """Nulls and empty cells where an operation has no chunk, as some recorders write, count as -1 does in others."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    bare = [
        row | {"mc": row["mc"] if row["mc"] >= 0 else None, "gmc": row["gmc"] if row["gmc"] >= 0 else None}
        for row in rows
    ]
    parquet.write_table(pyarrow.Table.from_pylist(bare), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(as_csv(bare))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in bare))
    (tmp_path / "whole.csv").write_text(as_csv(rows))
    whole = document(tmp_path / "whole.csv")
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        assert document(tmp_path / name)["slowdown"] == pytest.approx(whole["slowdown"], rel=1e-6)


def test_parquet_without_pyarrow_says_what_to_install(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is optional: without it one line names it, and CSV as the other way."""
    as_parquet(rows, tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = call(tmp_path / "a.parquet")
    assert result.exit_code == 2
    assert "pip install 'rankscope[whatif]'" in result.stderr


def test_several_files_are_one_job(rows: list[Row], tmp_path: Path) -> None:
    """A file a rank is a usual way to record."""
    whole = tmp_path / "whole.csv"
    whole.write_text(as_csv(rows))
    parts = []
    for rank in range(4):
        parts.append(tmp_path / f"{rank}.csv")
        parts[-1].write_text(as_csv([row for row in rows if row["dp_rank"] == rank]))
    assert document(*parts)["m_w"] == pytest.approx(document(whole)["m_w"])


def test_the_text_names_the_worker_and_its_price(rows: list[Row], tmp_path: Path) -> None:
    """A person reads the cause, the place and the milliseconds first."""
    (tmp_path / "a.csv").write_text(as_csv(rows))
    result = call(tmp_path / "a.csv")
    first, second, *_ = result.stdout.splitlines()
    assert first == "few slow workers (looks like hardware)"
    assert "1 of 8 workers" in second
    assert "data-parallel rank 1, stage 1" in second


def otlp_request(trace: str, stock_ms: int) -> dict:
    """One request as a collector's file exporter writes it."""
    begin = 1_700_000_000_000_000_000

    def span(own: str, parent: str, start_ms: int, end_ms: int) -> dict:
        return {
            "traceId": trace,
            "spanId": own,
            "parentSpanId": parent,
            "name": "GET /",
            "kind": 2,
            "startTimeUnixNano": str(begin + start_ms * 1_000_000),
            "endTimeUnixNano": str(begin + end_ms * 1_000_000),
        }

    def resource(service: str, spans: list[dict]) -> dict:
        name = {"key": "service.name", "value": {"stringValue": service}}
        return {"resource": {"attributes": [name]}, "scopeSpans": [{"spans": spans}]}

    web = span("00000000000000aa", "", 0, stock_ms + 2)
    stock = span("00000000000000bb", "00000000000000aa", 1, stock_ms + 1)
    return {"resourceSpans": [resource("web", [web]), resource("stock", [stock])]}


def test_spans_of_a_collectors_file_exporter(tmp_path: Path) -> None:
    """One request a line, ids in hex and times as text: the slow call is priced by what a trace gives back."""
    requests = [otlp_request(f"{number:032x}", 100 if number == 1 else 10) for number in range(1, 6)]
    path = tmp_path / "spans.jsonl"
    path.write_text("\n".join(json.dumps(request) for request in requests))
    found = document(path)
    assert (found["kind"], found["traces"], found["spans"]) == ("spans", 5, 10)
    assert found["operations"][0]["service"] == "stock"
    assert found["operations"][0]["returns_ms"] == pytest.approx(90 / 5)
    assert "speeding stock GET / to its median returns 18.000 ms a trace" in call(path).stdout


@pytest.mark.parametrize("prefixed", [True, False])
def test_spans_that_the_sdk_made_as_protobuf(tmp_path: Path, prefixed: bool) -> None:
    """OpenTelemetry's own SDK and encoder: parents, a link to another trace, bare and behind lengths."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import Link, set_span_in_context

    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    ms = 1_000_000
    for number in range(5):
        begin, work = 10_000 * ms * (number + 1), 300 if number == 0 else 20
        order = tracer.start_span("order", start_time=begin)
        store = tracer.start_span("store", context=set_span_in_context(order), start_time=begin + ms)
        store.end(begin + 5 * ms)
        order.end(begin + 6 * ms)
        ship = tracer.start_span("ship", links=[Link(order.get_span_context())], start_time=begin + 16 * ms)
        ship.end(begin + (16 + work) * ms)
    data = encode_spans(memory.get_finished_spans()).SerializeToString()
    path = tmp_path / "spans.pb"
    path.write_bytes(len(data).to_bytes(4, "big") + data if prefixed else data)
    found = document(path)
    assert (found["traces"], found["spans"]) == (5, 15)
    assert found["mean_ms"] == pytest.approx((316 + 4 * 36) / 5)
    first = found["operations"][0]
    assert (first["service"], first["operation"], first["returns_ms"]) == ("shop", "ship", pytest.approx(280 / 5))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\x7fELF\x00\xff\xfe", "no format"),
        (b"PAR1 but no more", "Parquet"),
        (b"dprank,stage,step,optype,start_ts,duration\n", "nearest is 'dprank'"),
        (b"dp_rank,stage,step,optype,start_ts,duration\n", "no operations"),
        (b"dp_rank,stage,step,optype,start_ts,duration\n1,2\n", "line 2"),
        (b"dp_rank,stage,step,optype,start_ts,duration\n0,0,0,forward-compute,now,1\n", "column start_ts"),
        (b"dp_rank,stage,step,optype,start_ts,duration\n0,0,0,kernel,0,1\n", "forward-compute"),
        (b'{"dp_rank": 0}\n{"dp_rank": ', "line 2"),
        (b"[1, 2]", "object 1"),
        (b'{"resourceSpans": []}', "no span"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "aa"}]}]}]}', "request 1"),
        (b"\x1f\x8b\x08 not gzip", "cannot be read"),
    ],
)
def test_what_is_no_such_file_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    """Status 2, one line that names the file and what is wrong, nothing on standard output."""
    path = tmp_path / "given"
    path.write_bytes(content)
    result = call(path)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"rankscope: {path}: ")
    assert said in line


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published operations are not beside the repository")
def test_the_published_results_are_reproduced() -> None:
    """S within 2 %, M_W and M_S within 0.03 of what the study published, the slow worker named."""
    found = document(PUBLISHED / "trace-AR.parquet")
    result, m_w, m_s = (json.loads((PUBLISHED / f"{name}-AR.json").read_text()) for name in ("result", "mw", "ms"))
    assert found["slowdown"] == pytest.approx(result["blocking_slowdown"], rel=0.02)
    assert found["m_w"] == pytest.approx(m_w["Mw"], abs=0.03)
    assert found["m_s"] == pytest.approx(m_s["Ms"], abs=0.03)
    for stage, slowdown in result["blocking_decompose_by_stage"].items():
        assert found["by_stage"][stage] == pytest.approx(slowdown, rel=0.02)
    assert (found["slowest"][0]["dp_rank"], found["slowest"][0]["stage"]) == (0, 0)
    assert found["cause"] == "few slow workers"
