"""`rankscope diagnose`: the verdict from a metric store is the verdict from the recordings."""

from __future__ import annotations

import json
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import components
import jsonschema
import numpy as np
import pytest
import stored_jobs
from click.testing import CliRunner

from rankscope.agent.cli import main
from rankscope.agent.diagnose import judge_store, moment
from rankscope.agent.store import Store
from rankscope.agent.store_job import StoredJob
from rankscope.errors import ConfigurationError, StoreError
from rankscope.exporters.prometheus_names import spellings
from rankscope.finding import Finding, Overhead, Verdict
from rankscope.metrics import METRICS
from rankscope.metrics_rules import pack
from rankscope.rules import judge
from rankscope.window import Series, SeriesKey, Window

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A VictoriaMetrics for the tests of this file; each sends jobs of its own."""
    with components.victoria_metrics(tmp_path_factory.mktemp("store")) as address:
        yield address


def _first(verdict: Verdict) -> tuple[str, int | None, str | None] | None:
    def place(finding: Finding) -> tuple[str, int | None, str | None]:
        return finding.class_slug, finding.where.rank, finding.where.host

    return place(verdict.findings[0]) if verdict.findings else None


#: Scenario -> where its fault is.
SCENARIOS = {
    "healthy": None,
    "gpu-thermal-slowdown": "gpu = 2",
    "gpu-clocks-locked": "gpu = 2",
    "nvlink-degraded": "gpu = 2",
    "pcie-downgraded": "gpu = 2",
    "cooling-plant": "host = 0",
    "noisy-neighbour": "gpu = 2",
    "cpu-contention": "rank = 2",
    "host-sync": "rank = 2",
    "gc-pause": "rank = 2\nseverity = 400",
    "checkpoint-stall": "rank = 2\nseverity = 2000",
    "gpu-board-error": "gpu = 2",
}


def _fault(name: str, place: str | None) -> str:
    return "" if place is None else f'[[fault]]\nclass = "{name}"\n{place}\nfrom_step = 75\n'


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_store_gives_the_recordings_first_finding(store: str, tmp_path: Path, name: str) -> None:
    """Class, rank and host of the first finding, and about its cost, are the same over the store and the recording."""
    window = stored_jobs.generated(tmp_path, name, _fault(name, SCENARIOS[name]), ranks=4)
    recorded = judge(window, Overhead())
    assert (_first(recorded) or ("healthy",))[0] == name
    end_s = stored_jobs.send(window, store)
    told, fetched = judge_store(Store(store, {}), name, since_s=None, until_s=end_s, now_s=end_s)
    assert recorded.verdict == told.verdict
    assert _first(told) == _first(recorded)
    assert len(fetched.ranks) == 4
    costs = [each.findings[0].impact.ms_per_step for each in (told, recorded) if each.findings]
    if costs and costs[1] is not None:
        assert costs[0] == pytest.approx(costs[1], rel=0.25)


PIPELINE = 'kind = "pipeline"\nstages = 4\ntensor = 2\nmicrobatches = 8'


@pytest.mark.parametrize(
    ("name", "place", "ranks", "kind"),
    [
        ("stage-imbalance", "stage = 3\nseverity = 1.5", 16, PIPELINE),
        ("work-imbalance", "rank = 2", 4, 'kind = "ddp"'),
        ("launch-bound", "", 4, 'kind = "ddp"'),
    ],
)
def test_groups_work_and_leads_are_in_the_store(
    store: str, tmp_path: Path, name: str, place: str, ranks: int, kind: str
) -> None:
    """What needs the kinds and members of groups, the size of batches, or how far the device runs behind its host, is
    told from the store as from the recording: the same class at the same rank or stage."""
    window = stored_jobs.generated(tmp_path, name, _fault(name, place), ranks=ranks, kind=kind)
    recorded = judge(window, Overhead())
    end_s = stored_jobs.send(window, store)
    told, fetched = judge_store(Store(store, {}), name, since_s=None, until_s=end_s, now_s=end_s)
    first, stored = recorded.findings[0], told.findings[0]
    assert first.class_slug == name
    assert (stored.class_slug, stored.where) == (first.class_slug, first.where)
    for rank, of in fetched.ranks.items():
        known = window.ranks[rank]
        assert of.members == known.members
        for group, columns in of.groups.items():
            assert set(columns.columns["group_kind"]) == set(known.groups[group].columns["group_kind"])


#: Of which it is shown each time that scrapes tell it, too; of all of them by `-m verify`.
_SCRAPED = ("healthy", "gpu-thermal-slowdown", "cpu-contention", "checkpoint-stall")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _SCRAPED else pytest.mark.verify) for name in SCENARIOS]
)
def test_scrapes_give_the_recordings_first_finding(store: str, tmp_path: Path, name: str) -> None:
    """From the text that an agent's endpoint shows every 15 s, with the labels of a scraper and histograms of classic
    buckets, come the class, rank and host that the recording gives."""
    job = f"{name}-scraped"
    window = stored_jobs.generated(tmp_path, job, _fault(name, SCENARIOS[name]), ranks=4)
    recorded = judge(window, Overhead())
    assert (_first(recorded) or ("healthy",))[0] == name
    end_s = stored_jobs.scrape(window, store)
    told, fetched = judge_store(Store(store, {}), job, since_s=None, until_s=end_s, now_s=end_s)
    assert recorded.verdict == told.verdict
    assert _first(told) == _first(recorded)
    assert {of.identity.gpu_uuid for of in fetched.ranks.values()} == {
        of.identity.gpu_uuid for of in window.ranks.values()
    }


@pytest.fixture(scope="module")
def hot(store: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Window]:
    """A job of 16 ranks on two hosts, rank 13 of which gets hot, in the store; its end."""
    window = stored_jobs.generated(
        tmp_path_factory.mktemp("hot"), "hot", _fault("gpu-thermal-slowdown", "gpu = 13"), ranks=16
    )
    return stored_jobs.send(window, store), window


def test_of_a_large_job_only_suspects_and_peers_are_fetched(store: str, hot: tuple[float, Window]) -> None:
    """What the store sorts names the rank; the verdict says that not all were looked at."""
    end_s, _ = hot
    fetched = {}
    for most in (16, 8):
        asked = Store(store, {})
        verdict, fetched[most] = judge_store(asked, "hot", since_s=None, until_s=end_s, now_s=end_s, most_ranks=most)
        assert _first(verdict) == ("gpu-thermal-slowdown", 13, "node001")
        assert verdict.job["world_size"] == 16
    assert len(fetched[16].ranks) == 16
    assert len(fetched[8].ranks) <= 8
    assert any("of 16" in line for line in fetched[8].not_seen)


def test_what_was_read_is_what_was_sent(store: str, hot: tuple[float, Window]) -> None:
    """Readings keep their metric, host and device; ranks their GPU and process; a row is the mean of its steps."""
    end_s, window = hot
    fetched = judge_store(Store(store, {}), "hot", since_s=None, until_s=end_s, now_s=end_s)[1]
    sent = {key for key in window.series if not key.metric.startswith("event.")}
    assert set(fetched.series) == sent
    for rank, of in fetched.ranks.items():
        known = window.ranks[rank]
        assert (of.identity.gpu_uuid, of.identity.pid) == (known.identity.gpu_uuid, known.identity.pid)
        assert of.identity.host == known.identity.host
        steps, means = (np.array(each.device.columns["step_ns"]) for each in (known, of))
        assert means.mean() == pytest.approx(steps.mean(), rel=0.05)
        assert len(means) < len(steps) / 4


@pytest.mark.parametrize(
    ("name", "place", "said"), [("rank-hang", "rank = 2", "rank-hung"), ("gpu-off-bus", "gpu = 2", "gpu-lost")]
)
def test_a_job_that_stopped_is_not_called_healthy(store: str, tmp_path: Path, name: str, place: str, said: str) -> None:
    """How it ended is not in the store; that it did is, and what to read instead."""
    end_s = stored_jobs.send(stored_jobs.generated(tmp_path, name, _fault(name, place), ranks=4), store)
    verdict, window = judge_store(Store(store, {}), name, since_s=None, until_s=end_s + 60, now_s=end_s + 60)
    assert verdict.verdict == "unknown"
    ranks = " (ranks 0-3)" if said == "rank-hung" else ""
    assert f"{said} on node000{ranks}" in verdict.summary
    assert "rankscope report" in verdict.would_settle[0]
    if name == "gpu-off-bus":
        (xid,) = [event for event in window.events if event.attributes.get("number") == 79]
        assert xid.device == window.ranks[2].identity.gpu_uuid


def test_prometheus_answers_as_well(store: str, hot: tuple[float, Window], tmp_path: Path) -> None:
    """The same queries on the same samples in a Prometheus name the same rank, fetched whole or not."""
    end_s, _ = hot
    with stored_jobs.prometheus_with(store, "hot", end_s, tmp_path) as address:
        for most in (16, 8):
            verdict, _ = judge_store(
                Store(address, {}), "hot", since_s=None, until_s=end_s, now_s=end_s, most_ranks=most
            )
            assert _first(verdict) == ("gpu-thermal-slowdown", 13, "node001")


def test_the_command_tells_a_person_and_a_program(store: str, hot: tuple[float, Window], tmp_path: Path) -> None:
    """As text, as a document of the schema, and as a page; a job that ended long ago is found by itself."""
    end_s, _ = hot
    page = tmp_path / "page.html"
    asked = ["diagnose", "--prometheus", store, "--job", "hot", "--until", f"{end_s:.0f}"]
    shown = CliRunner().invoke(main, [*asked, "--html", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "rank 13" in shown.output
    assert "<html" in page.read_text()
    document = json.loads(CliRunner().invoke(main, [*asked, "--json"]).stdout)
    jsonschema.validate(document, json.loads((ROOT / "docs/schemas/verdict.schema.json").read_text()))
    assert document["findings"][0]["where"]["rank"] == 13
    later = judge_store(Store(store, {}), "hot", since_s=None, until_s=None, now_s=end_s + 5 * 86400)[0]
    assert _first(later) == ("gpu-thermal-slowdown", 13, "node001")


def test_a_job_that_is_not_there_is_named_with_those_that_are(store: str, hot: tuple[float, Window]) -> None:
    """The nearest names, and not a verdict on nothing."""
    end_s, _ = hot
    with pytest.raises(StoreError, match=r"no job hott; there are \d+, such as hot"):
        judge_store(Store(store, {}), "hott", since_s=None, until_s=end_s, now_s=end_s)
    with pytest.raises(StoreError, match="nothing of job hot in this window of 60 minutes"):
        judge_store(Store(store, {}), "hot", since_s=None, until_s=end_s - 86400, now_s=end_s)
    quoting = 'a"b\\'
    with pytest.raises(StoreError, match="no job a"):
        judge_store(Store(store, {}), quoting, since_s=None, until_s=end_s, now_s=end_s)


@contextmanager
def _answering(status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server that always says the same; gives its address and the Authorization headers it was sent."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 - the name that the base class calls

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (401, b"", {}, r"does not let us in \(HTTP 401\); set RANKSCOPE_PROMETHEUS_TOKEN"),
        (404, b"<html>", {}, r"answered with HTTP 404; give the address that stands before /api/v1"),
        (200, b"<html>hello", {}, "answers, but not as a Prometheus API does"),
        (200, b'{"status":"success","data":{"result":7}}', {}, "answers, but not as a Prometheus API does"),
        (503, b"", {}, "answered with HTTP 503"),
        (422, b'{"status":"error","error":"too many samples"}', {}, r"refused a query \(HTTP 422: too many samples\)"),
        (302, b"", {"Location": "http://elsewhere.invalid/"}, r"points to http://elsewhere.invalid/ \(HTTP 302\)"),
    ],
)
def test_every_failure_is_one_line(status: int, body: bytes, headers: dict[str, str], said: str) -> None:
    """What the store answered and what to do, never a traceback; status 2."""
    with _answering(status, body, headers) as (address, seen):
        with pytest.raises(StoreError, match=said):
            Store(address, {}).instant("up", 0)
        done = CliRunner().invoke(main, ["diagnose", "--prometheus", address, "--job", "j"])
    assert done.exit_code == 2
    assert done.output.startswith(f"rankscope: {address}")
    assert done.output.count("\n") == 1
    assert len(seen) == 2


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    """No job of ours within a month of the window."""
    with _answering(200, b'{"status":"success","data":[]}') as (address, _), pytest.raises(StoreError, match="Prom"):
        Store(address, {}).instant("up", 0)
    with components.victoria_metrics(tmp_path) as address, pytest.raises(StoreError, match="no series with the label"):
        judge_store(Store(address, {}), "j", since_s=None, until_s=None, now_s=1_790_000_000.0)


def test_the_path_of_the_api_may_stand_in_the_address() -> None:
    """As people copy it, with or without a slash at the end."""
    for url in ("http://store:1/prometheus", "http://store:1/prometheus/", "http://store:1/prometheus/api/v1/"):
        assert Store(url, {}).address == "http://store:1/prometheus"


def test_a_store_that_is_not_there_is_one_line() -> None:
    """Nobody listens."""
    with pytest.raises(StoreError, match="cannot be reached"):
        Store(f"http://127.0.0.1:{components.free_port()}", {}).instant("up", 0)


def test_credentials_come_from_the_environment_or_the_address() -> None:
    """A token goes before a password; neither shows in an address that is told."""
    environments = [
        ({"RANKSCOPE_PROMETHEUS_TOKEN": "t"}, "Bearer t"),
        ({"RANKSCOPE_PROMETHEUS_USER": "u", "RANKSCOPE_PROMETHEUS_PASSWORD": "p"}, "Basic dTpw"),
        ({}, "Basic eDp5"),
    ]
    with _answering(401, b"") as (address, seen):
        for environ, _ in environments:
            with pytest.raises(StoreError) as refused:
                Store(address.replace("//", "//x:y@"), environ).instant("up", 0)
            assert "x:y" not in str(refused.value)
    assert seen == [expected for _, expected in environments]
    with pytest.raises(ConfigurationError, match="RANKSCOPE_PROMETHEUS_TOKEN: holds what no header can"):
        Store("http://store:9090", {"RANKSCOPE_PROMETHEUS_TOKEN": "a\nb"})


@pytest.mark.parametrize("url", ["", "store:9090", "ftp://store", "http://", "http://store:port", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigurationError, match=r"^--prometheus"):
        Store(url, {})


def test_times_are_read_as_people_write_them() -> None:
    """So long ago, seconds since the epoch, ISO 8601; anything else is refused."""
    assert moment("90m", "--since", 10_000.0) == 4_600.0
    assert moment("1790000000", "--since", 0.0) == 1_790_000_000.0
    assert moment("2026-05-01T12:00:00Z", "--since", 0.0) == 1_777_636_800.0
    for text in ("", "m", "yesterday", "-5", "nan", "1e99d", "inf"):
        with pytest.raises(ConfigurationError, match="is no time"):
            moment(text, "--since", 1e9)


def test_no_two_metrics_share_a_spelling() -> None:
    """Whatever a receiver appends, a name leads back to one metric."""
    names = [name for metric in METRICS.values() for name in spellings(metric)]
    assert len(names) == len(set(names))


def test_native_histograms_are_asked_for_in_their_own_words(tmp_path: Path) -> None:
    """Prometheus' own engine gives sums, counts and growth of native histograms by the expressions used for them."""
    job = StoredJob("j", True, True, 4, 4, 0.0, 3600.0, 60.0, 3600.0)
    phases = "rankscope_step_phase_duration_seconds"
    late = 'rankscope_rank="3"'
    series = []
    for rank in range(4):
        for phase, seconds in (("forward", 1), ("backward_own", 3 if rank == 3 else 2)):
            labels = f'rankscope_job="j", rankscope_rank="{rank}", rankscope_phase="{phase}"'
            point = f"{{{{schema:0 sum:{seconds} count:10 buckets:[10]}}}}"
            series.append({"series": f"{phases}{{{labels}}}", "values": f"{point}+{point}x60"})
    expected = [
        (f"sum({job.sum_of(phases, late)})", "{}", 61 * 4),
        (f"sum({job.count_of(phases, late)})", "{}", 61 * 20),
        (f"topk(1, sum by (rankscope_rank) ({job.grown(phases, '', 1200)}))", f"{{{late}}}", 20 * 4),
    ]
    asked = [
        {"expr": expression, "eval_time": "60m", "exp_samples": [{"labels": labels, "value": value}]}
        for expression, labels, value in expected
    ]
    path = tmp_path / "cases.json"
    cases = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    path.write_text(json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": [cases]}))
    done = components.run(components.need("promtool"), "test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_agents_found_is_listed(store: str, tmp_path: Path) -> None:
    """A finding that agents hold beside the job is told, with its place, though the store holds no evidence for it."""
    window = stored_jobs.generated(tmp_path, "held", ranks=4)
    times = array("q", range(window.begin_ns, window.end_ns, 15_000_000_000))
    key = SeriesKey("node000", "finding.confidence", pack(("work-imbalance", "code", "act", 1, None)))
    held = replace(window, series={**window.series, key: Series(times, array("d", [0.97]) * len(times))})
    end_s = stored_jobs.send(held, store)
    verdict, _ = judge_store(Store(store, {}), "held", since_s=None, until_s=end_s, now_s=end_s)
    assert any("work-imbalance on rank 1 of node000 (97%)" in line for line in verdict.not_seen)
