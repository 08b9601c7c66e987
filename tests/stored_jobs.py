"""Jobs in a real metric store: generated scenarios, sent to it as their agents would have."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import components

from rankscope.agent.standing import PERIOD_NS, Standing
from rankscope.exporters.export_levels import Level
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.prometheus_text import JobSeries, exposition
from rankscope.exporters.replay import CHUNK_NS, readings_of, records_of, replay
from rankscope.finding import Finding
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario_file import load_scenario
from rankscope.window import Series, SeriesKey, Window

#: Ten minutes: 40 exports of 15 s.
_JOB = """
name = "{name}"
seed = 1
[workload]
{kind}
ranks = {ranks}
steps = {steps}
step_ms = 2400
data_ms = 80
host_ms = 240
[node]
gpu = "H100-SXM5-80GB"
gpus = 8
hosts = {hosts}
driver = "580.95.05"
"""


def generated(
    folder: Path, name: str, fault: str = "", ranks: int = 8, steps: int = 250, kind: str = 'kind = "ddp"'
) -> Window:
    """The window of a job of ten minutes, or of so many steps of 2.4 s, with a fault, its events counted as an agent
    counts them. `kind` is what its scenario says of its groups."""
    path = folder / f"{name}.toml"
    path.write_text(
        _JOB.format(name=name, ranks=ranks, steps=steps, hosts=-(-ranks // 8), kind=kind) + fault, encoding="utf-8"
    )
    return with_counted_events(generate(load_scenario(path)))


def with_counted_events(window: Window, held: Sequence[Finding] = ()) -> Window:
    """The window with the series that each host's agent exports beside its readings, findings that it held included."""
    series = dict(window.series)
    for host in window.anchors:
        standing, found = Standing(), dict[tuple[str, str], Series]()
        waiting = sorted((each for each in window.events if each.host == host), key=lambda each: each.time_ns)
        for now_ns in range(window.begin_ns, window.end_ns + PERIOD_NS, PERIOD_NS):
            happened = [each for each in waiting if each.time_ns <= now_ns]
            waiting = waiting[len(happened) :]
            standing.count(happened)
            standing.hold([each for each in held if each.since_ns <= now_ns])
            for reading in standing.readings(now_ns):
                of = found.setdefault((reading.metric, reading.device), Series(array("q"), array("d")))
                of.times_ns.append(reading.time_ns)
                of.values.append(reading.value)
        series |= {SeriesKey(host, *key): of for key, of in found.items()}
    return replace(window, series=series)


def send(window: Window, address: str, *, otlp: str = "") -> float:
    """Replay it into a VictoriaMetrics, through another OTLP receiver if one is named; gives the job's end in seconds
    since the epoch."""
    targets = otlp_targets({}, endpoint=otlp or f"{address}/opentelemetry")
    balance = replay(window, {signal: target for signal, target in targets.items() if signal == "metrics"})
    assert not balance.dropped.points, balance
    return _shown(window, address)


def scrape(window: Window, address: str, every_ns: int = CHUNK_NS) -> float:
    """Put into a VictoriaMetrics what scrapes of each host's endpoint would have found, with the labels that a scraper
    adds; gives the job's end in seconds since the epoch."""
    for host, anchor in window.anchors.items():
        shown = JobSeries(window.job, host, Level.LINK)
        records, readings = records_of(window, host), readings_of(window, host)
        record, reading = next(records, None), next(readings, None)
        for now_ns in range(window.begin_ns, window.end_ns + every_ns, every_ns):
            while reading is not None and reading.time_ns <= now_ns:
                shown.add((reading,))
                reading = next(readings, None)
            while record is not None and record[0] <= now_ns:
                shown.add_records(record[1], (record[2],))
                record = next(records, None)
            page = exposition(shown.snapshot(now_ns), open_metrics=False)
            scraped = [
                ("timestamp", anchor.to_wall_ns(now_ns) // 1_000_000),
                ("extra_label", "job=rankscope"),
                ("extra_label", f"instance={host}:9464"),
            ]
            url = f"{address}/api/v1/import/prometheus?{urllib.parse.urlencode(scraped)}"
            urllib.request.urlopen(url, data=page.encode(), timeout=30).close()
    return _shown(window, address)


def _shown(window: Window, address: str) -> float:
    """The job's end, once the store shows its ranks."""
    end_s = next(iter(window.anchors.values())).to_wall_ns(window.end_ns) / 1e9
    query = urllib.parse.urlencode({"query": f'rankscope_rank_info{{rankscope_job="{window.job}"}}', "time": end_s})

    def shown() -> bool:
        urllib.request.urlopen(f"{address}/internal/force_flush", timeout=30).read()
        with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=30) as answer:
            return len(json.load(answer)["data"]["result"]) >= len(window.ranks)

    components.wait_for(shown, f"the store to show {window.job}")
    return end_s


@contextmanager
def prometheus_with(victoria_metrics: str, job: str, end_s: float, folder: Path) -> Iterator[str]:
    """A Prometheus that holds the samples of a job from another store; its base address.

    Copied and not sent: what Debian packages has no OTLP receiver. Histograms come as their sum and count.
    """
    asked = {"match[]": f'{{rankscope_job="{job}"}}', "start": end_s - 7200, "end": end_s + 60}
    samples: dict[str, list[str]] = {}
    with urllib.request.urlopen(
        f"{victoria_metrics}/api/v1/export?{urllib.parse.urlencode(asked)}", timeout=60
    ) as answer:
        for line in answer:
            series = json.loads(line)
            name = series["metric"].pop("__name__")
            if name.endswith("_bucket"):
                continue
            labels = ",".join(f"{key}={json.dumps(value)}" for key, value in series["metric"].items())
            samples.setdefault(name, []).extend(
                f"{name}{{{labels}}} {value} {time_ms / 1000}\n"
                for value, time_ms in zip(series["values"], series["timestamps"], strict=True)
            )
    text = folder / "samples.txt"
    with text.open("w") as sink:
        for name, lines in sorted(samples.items()):
            sink.write(f"# TYPE {name} unknown\n")
            sink.writelines(lines)
        sink.write("# EOF\n")
    blocks = folder / "blocks"
    made = components.run(
        components.need("promtool"), "tsdb", "create-blocks-from", "openmetrics", str(text), str(blocks)
    )
    assert made.returncode == 0, made.stderr
    configuration = folder / "prometheus.yml"
    configuration.write_text("{}")
    port = components.free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        str(components.need("prometheus")),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={blocks}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=10y",
    ]
    with components.running(command, folder / "log", lambda: components.answers(f"{address}/-/ready")):
        yield address
