"""`rankscope analyzer`: every job of a store judged, findings sent back, nothing kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import components
import pytest
import stored_jobs
from click.testing import CliRunner
from scripted_receiver import http_receiver

from rankscope.agent.analyzer import HOST, Delivery, Shard, analyze_once, live_jobs, shard_of, told_already
from rankscope.agent.cli import main
from rankscope.agent.store import Store
from rankscope.clock import ClockAnchor, SystemClock
from rankscope.errors import ConfigurationError
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.finding import Finding, Verdict

HOT = '[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = 2\nfrom_step = 75\n'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A VictoriaMetrics in which a healthy and a hot job run, now."""
    folder = tmp_path_factory.mktemp("store")
    with components.victoria_metrics(folder / "data") as address:
        now_ns = time.time_ns()
        for name, fault in (("well", ""), ("hot", HOT)):
            window = stored_jobs.generated(folder, name, fault, ranks=4)
            anchors = {host: ClockAnchor(window.end_ns, now_ns) for host in window.anchors}
            stored_jobs.send(replace(window, anchors=anchors), address)
        yield address


def _look(address: str, shard: Shard, delivery: Delivery | None = None) -> dict[str, tuple[str, list[str]]]:
    """Job -> verdict and classes of what is new, of one look."""
    seen = {}

    def tell(job: str, verdict: Verdict, new: Sequence[Finding]) -> None:
        seen[job] = verdict.verdict, [each.class_slug for each in new]

    analyze_once(
        Store(address, {}),
        shard,
        delivery,
        now_s=time.time(),
        window_s=1800,
        period_s=60,
        tell=tell,
        refuse=pytest.fail,
    )
    return seen


def test_each_job_is_one_shards() -> None:
    """Whatever the number of shards, a job belongs to exactly one; nonsense is refused."""
    for count in (1, 2, 7):
        for name in ("a", "llama-70b", "ünïcode"):
            assert sum(Shard(number, count).has(name) for number in range(count)) == 1
    assert shard_of("3/4") == Shard(3, 4)
    for text in ("", "4/4", "1", "-1/2", "0/0", "a/b", "1/2/3"):
        with pytest.raises(ConfigurationError, match="is no shard"):
            shard_of(text)


def test_shards_share_the_jobs(store: str) -> None:
    """Together they judge all that runs, and none twice."""
    all_jobs = live_jobs(Store(store, {}), Shard(), time.time())
    assert all_jobs == ["hot", "well"]
    parts = [_look(store, Shard(number, 3)) for number in range(3)]
    assert sorted(job for part in parts for job in part) == all_jobs
    together = {job: told for part in parts for job, told in part.items()}
    assert together["well"] == ("healthy", [])
    assert together["hot"] == ("hardware", ["gpu-thermal-slowdown"])


def test_a_restarted_analyzer_tells_nothing_twice(store: str) -> None:
    """Findings go to the store as metrics and to a receiver as logs; another process reads there what was told."""
    with http_receiver() as logs:
        targets = otlp_targets({}, endpoint=f"{store}/opentelemetry", logs_endpoint=f"{logs.url}/v1/logs")

        def look() -> list[str]:
            delivery = Delivery(targets, SystemClock(), {}, pytest.fail)
            try:
                return _look(store, Shard(), delivery)["hot"][1]
            finally:
                delivery.close()

        assert look() == ["gpu-thermal-slowdown"]
        components.query(store, "up")
        components.wait_for(
            lambda: bool(components.query(store, "rankscope_finding_confidence_ratio")), "the finding in the store"
        )
        assert {each[0] for each in told_already(Store(store, {}), "hot", time.time(), 180)} == {"gpu-thermal-slowdown"}
        assert look() == []
        (record,) = logs.log_records()
        assert record.event_name == "rankscope.finding"
    (series,) = components.query(store, 'rankscope_finding_confidence_ratio{rankscope_job="hot"}')
    assert series["metric"]["host_name"] == HOST
    assert series["metric"]["rankscope_rank"] == "2"


def test_a_slow_store_is_not_told_twice(store: str) -> None:
    """What the look before told is not new, though the store does not show it yet."""
    told: list[str] = []
    last: dict[str, set[tuple[str, str, str]]] = {}
    for _ in range(2):
        analyze_once(
            Store(store, {}),
            Shard(),
            None,
            # Before anything was sent back.
            now_s=time.time() - 30,
            window_s=1800,
            period_s=5,
            tell=lambda job, verdict, new: told.extend(each.class_slug for each in new),
            refuse=pytest.fail,
            last=last,
        )
    assert len(told) == len(set(told))


def test_the_command_looks_once(store: str) -> None:
    """A JSON line a job; a store that is not there is one line and status 2."""
    done = CliRunner().invoke(main, ["analyzer", "--prometheus", store, "--once", "--json"], env={})
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["job"]: line["verdict"] for line in lines} == {"hot": "hardware", "well": "healthy"}
    away = f"http://127.0.0.1:{components.free_port()}"
    refused = CliRunner().invoke(main, ["analyzer", "--prometheus", away, "--once"])
    assert refused.exit_code == 2
    assert "cannot be reached" in refused.output
    assert CliRunner().invoke(main, ["analyzer", "--prometheus", store, "--shard", "9/2"]).exit_code == 2
