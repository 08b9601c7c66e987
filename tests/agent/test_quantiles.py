"""`rankscope quantiles`: what it reads out of logs and streams, what it merges, and what it refuses."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import termios
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rankscope.agent.processes import process_stat
from rankscope.exporters.histogram import ExponentialHistogram

COMMAND = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "quantiles"]
SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/quantiles.schema.json").read_text())


def run(*words: object, stdin: bytes = b"") -> tuple[int, str, str]:
    """(status, standard output, standard error)."""
    done = subprocess.run([*COMMAND, *map(str, words)], input=stdin, capture_output=True, check=False, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def document(*words: object, stdin: bytes = b"") -> dict[str, Any]:
    """The JSON of a run that went well."""
    status, out, err = run("--json", *words, stdin=stdin)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    return found


def test_bounds_hold_over_files_streams_and_merged_sketches(tmp_path: Path) -> None:
    """A plain and a gzipped file, and their sketches merged, have the same quantiles, around the exact ones."""
    chance = random.Random(5)
    values = [chance.lognormvariate(0, 1) for _ in range(20_000)]
    lines = "".join(f"{value}\n" for value in values).encode()
    half = lines.index(b"\n", len(lines) // 2) + 1
    (tmp_path / "a").write_bytes(lines[:half])
    (tmp_path / "b.gz").write_bytes(gzip.compress(lines[half:]))
    for name in ("a", "b.gz"):
        assert run(tmp_path / name, "--save", tmp_path / f"{name}.sketch")[0] == 0
    whole = document(stdin=lines)
    assert document(tmp_path / "a", tmp_path / "b.gz")["quantiles"] == whole["quantiles"]
    merged = document(tmp_path / "a.sketch", tmp_path / "b.gz.sketch")
    assert (merged["count"], merged["quantiles"]) == (20_000, whole["quantiles"])
    assert merged["sum"] == pytest.approx(sum(values))
    values.sort()
    for row in whole["quantiles"]:
        exact = values[int(row["q"] * (len(values) - 1))]
        assert row["low"] <= exact <= row["high"]
        assert abs(row["value"] - exact) <= 0.005 * exact


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ((), "1ms\n2 ms\n\n3000us\n"),
        (("--unit", "ms"), "1\n2\n3\n"),
        (("--field", "took"), '{"took": "1ms"}\n{"took": "2ms", "x": []}\nlevel=info took=3ms\n'),
        (("--field", "a.b"), '{"a": {"b": "1ms"}}\n{"a": {"b": "2ms"}}\n{"a": {"b": "3ms"}}'),
        (("--column", "lat", "--unit", "ms"), 'name,lat\n"a,b",1\nc,2\nd,3\n'),
        (("--pattern", "took (.*) to"), "it took 1ms to load\nit took 2ms to\nit took 3ms to\n"),
    ],
)
def test_latencies_are_found_where_they_stand(words: tuple[str, ...], lines: str) -> None:
    """Plain lines, JSON, logfmt, columns and patterns give the same three latencies, in seconds."""
    found = document(*words, stdin=lines.encode())
    assert (found["count"], found["unread"], found["unit"]) == (3, 0, "s")
    assert found["minimum"] == pytest.approx(0.001)
    assert found["sum"] == pytest.approx(0.006)


def test_what_is_no_latency_is_counted_and_shown() -> None:
    """Text, negative and endless numbers, foreign units and a line of megabytes are counted; the rest is read."""
    lines = b"5\nhello\n-1\n1e999\n7 parsecs\n" + b"9" * 5_000_000 + b"\n6\n"
    found = document(stdin=lines)
    assert (found["count"], found["unread"], found["minimum"], found["maximum"]) == (2, 5, 5, 6)
    assert 'as "hello"' in run(stdin=lines)[2]


def test_histograms_of_a_collector_are_merged(tmp_path: Path) -> None:
    """OTLP/JSON: of a cumulative series the last point counts, series are added up, metrics are not mixed."""

    def point(values: list[float], start: int) -> dict[str, Any]:
        histogram = ExponentialHistogram()
        histogram.add_all(values)
        offset, counts = histogram.buckets()
        positive = {"offset": offset, "bucketCounts": [str(count) for count in counts]}
        return {"startTimeUnixNano": str(start), "scale": histogram.scale, "positive": positive, "sum": sum(values)}

    def line(rank: int, points: list[dict[str, Any]], name: str = "step") -> str:
        metric = {
            "name": name,
            "unit": "s",
            "exponentialHistogram": {"aggregationTemporality": 2, "dataPoints": points},
        }
        resource = {"attributes": [{"key": "rank", "value": {"intValue": str(rank)}}]}
        return json.dumps({"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [metric]}]}]})

    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "\n".join([line(0, [point([1.0], 7)]), line(0, [point([1.0, 2.0], 7)]), line(1, [point([4.0, 8.0, 8.0], 7)])])
    )
    found = document(path, "--quantiles", "0,p50,1")
    assert (found["count"], found["unit"], found["sum"]) == (5, "s", 23.0)
    assert [row["low"] <= exact <= row["high"] for row, exact in zip(found["quantiles"], (1, 4, 8), strict=True)] == [
        True
    ] * 3
    with path.open("a") as file:
        file.write("\n" + line(0, [point([9.0], 7)], name="other"))
    assert "choose one with --metric" in run(path)[2]
    assert document(path, "--metric", "other")["count"] == 1


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        ((), b"", "no latency in 0 lines"),
        ((), b"hello\n", 'as in "hello"; say where it stands'),
        ((), b"1\n2ms\n", "some latencies carry a unit"),
        ((), b'{"a": 1}\n', "name the latency's field with --field"),
        ((), b'{"schema": "rankscope.sketch/1", "scale": 99}\n', "not a whole sketch"),
        ((), b'{"resourceMetrics": 7}\n', "not OTLP metrics"),
        (("--column", "x"), b"a,b\n1,2\n", 'no column "x"; there are a, b'),
        (("--pattern", "("), b"1\n", "not a regular expression"),
        (("--pattern", "x"), b"1\n", "has no group"),
        (("--quantiles", "p101"), b"1\n", "cannot use 'p101'"),
        (("--relative-error", "7"), b"1\n", "out of reach"),
        (("--field", "a", "--pattern", "b"), b"1\n", "exclude each other"),
        (("/nowhere",), b"", "/nowhere: cannot be read"),
    ],
)
def test_nonsense_is_one_line_and_status_two(words: tuple[str, ...], stdin: bytes, said: str) -> None:
    """What cannot be used ends with 2 and one line that says why."""
    status, out, err = run(*words, stdin=stdin)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_ctrl_c_tells_what_was_read(wait_until: Callable[..., None]) -> None:
    """A stream that goes on is ended by Ctrl-C, and what came before counts."""
    read, write = os.pipe()
    process = subprocess.Popen([*COMMAND, "--json"], stdin=read, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        os.write(write, b"1\n2\n3\n")

        def waits_for_more() -> bool:
            left = array("i", [0])
            fcntl.ioctl(read, termios.FIONREAD, left)
            stat = process_stat(process.pid)
            return not left[0] and stat is not None and stat.state == "S"

        wait_until(waits_for_more)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(write)
        os.close(read)
    assert process.returncode == 0, err
    assert (json.loads(out)["count"], json.loads(out)["interrupted"]) == (3, True)
