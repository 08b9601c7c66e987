"""A real job over several nodes with an agent each: one verdict from all recordings, and the same from a store."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import components
import nodes
import pytest
from click.testing import CliRunner
from nodes import HOSTS, Switch, address_of, on_node

from rankscope.agent.cli import main

pytestmark = pytest.mark.alone

MAIN = [sys.executable, "-c", "from rankscope.agent.cli import main; main()"]
JOB = str(Path(__file__).parents[1] / "node_job.py")
#: Trouble begins at the one step and the job ends at the other: some six seconds each, with a store that tells half a
#: second from the next.
TROUBLE, STEPS = 240, 320
DELAY_S = 0.006
HOUR_S = 3600
SETTINGS = """
[export]
period_seconds = 0.25
interval_seconds = 0.25
[rings]
poll_seconds = 0.2
[recording]
commit_seconds = 0.2
"""

Trouble = Callable[[Switch, Path], None]


@dataclass(frozen=True)
class Done:
    """A job that ran over all nodes."""

    recordings: list[str]
    verdict: dict[str, Any]
    #: The verdict on what all agents exported while it ran.
    from_store: dict[str, Any]


def diagnosed(store: str, namespace: str) -> dict[str, Any]:
    """The verdict over what a store in a node's network took, once it shows all of it."""
    inside = ["ip", "netns", "exec", namespace]
    shown = f"import urllib.request; urllib.request.urlopen('{store}/internal/force_flush')"
    subprocess.run([*inside, sys.executable, "-c", shown], check=True, timeout=30)
    command = [*inside, *MAIN, "diagnose", "--prometheus", store, "--job", "many", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def reported(recordings: Sequence[str]) -> dict[str, Any]:
    """The verdict over recordings."""
    done = CliRunner().invoke(main, ["report", *recordings, "--json"])
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@contextmanager
def store_on(namespace: str, place: Path) -> Iterator[str]:
    """A VictoriaMetrics in a node's network; its address there."""
    log = place / "store.log"
    command = [
        *("ip", "netns", "exec", namespace, str(components.need("victoria-metrics"))),
        f"-httpListenAddr={address_of(0)}:8428",
        f"-storageDataPath={place / 'store'}",
        *("-search.latencyOffset=0s", "-opentelemetry.usePrometheusNaming", "-memory.allowedBytes=128MB"),
    ]
    with components.running(command, log, lambda: "started server at" in log.read_text()):
        yield f"http://{address_of(0)}:8428"


def run_job(place: Path, trouble: Trouble, *, count: int = 3, steps: int = STEPS, ahead_s: Sequence[int] = ()) -> Done:
    """A rank and a `rankscope run` on each node, a store on the first; `trouble` begins at step TROUBLE.

    `ahead_s` is how far each node's wall clock is ahead; every node has a monotonic clock of its own anyway.
    """
    if reason := nodes.why_not():
        components.missing(reason) if os.geteuid() == 0 else pytest.skip(reason)
    known = {key: value for key, value in os.environ.items() if not key.startswith(("RANKSCOPE", "OTEL"))}
    reached = place / "reached"
    launched: list[subprocess.Popen[bytes]] = []
    settings = place / "agent.toml"
    settings.write_text(SETTINGS)
    clock = nodes.wall_clock_library(place) if any(ahead_s) else None
    with nodes.switched(count) as (names, switch), store_on(names[0], place) as store:
        try:
            for node in range(count):
                environ = known | {
                    "RANKSCOPE_STATE": str(place / f"state{node}"),
                    "RANKSCOPE_DIR": str(place / f"rings{node}"),
                    "RANKSCOPE_CONFIG": str(settings),
                    "OTEL_EXPORTER_OTLP_ENDPOINT": f"{store}/opentelemetry",
                    "OTEL_LOGS_EXPORTER": "none",
                    "OTEL_TRACES_EXPORTER": "none",
                    "GLOO_SOCKET_IFNAME": "link0",
                    "OMP_NUM_THREADS": "1",
                }
                if clock is not None and ahead_s[node]:
                    environ |= {"LD_PRELOAD": str(clock), "CLOCK_AHEAD_S": str(ahead_s[node])}
                torchrun = [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(count), "--nproc-per-node", "1"),
                    *("--node-rank", str(node), "--master-addr", address_of(0), "--master-port", "29500"),
                    *("--log-dir", str(place / f"logs{node}")),
                ]
                command = [*MAIN, "run", "--job", "many", "--", *torchrun, JOB, str(steps), str(TROUBLE), str(reached)]
                output = (place / f"output{node}").open("wb")
                launched.append(
                    subprocess.Popen(on_node(node, names, command), env=environ, stdout=output, stderr=output)
                )
                output.close()
            deadline = time.monotonic() + 120
            while (
                not reached.exists() and all(each.poll() is None for each in launched) and time.monotonic() < deadline
            ):
                time.sleep(0.01)
            trouble(switch, place)
            for node, each in enumerate(launched):
                assert each.wait(120) == 0, (place / f"output{node}").read_text()
        finally:
            for each in launched:
                each.terminate()
                each.wait(30)
        assert switch.packets > steps
        switch.port_delay_s[:] = [0.0] * count
        from_store = diagnosed(store, names[0])
    recordings = [str(next(place.glob(f"state{node}/many/*.db"))) for node in range(count)]
    assert [Path(each).stem for each in recordings] == list(HOSTS[:count])
    return Done(recordings, reported(recordings), from_store)


def slow_port(switch: Switch, _: Path) -> None:
    """All that the last node sends and receives comes late."""
    switch.port_delay_s[-1] = DELAY_S


def slow_pair(switch: Switch, _: Path) -> None:
    """A port of two comes later still: between two ranks a collective has few passes to feel it in."""
    switch.port_delay_s[-1] = 3 * DELAY_S


def slow_path(switch: Switch, _: Path) -> None:
    """What the first and the last node send each other comes late."""
    switch.path_delay_s[frozenset((0, len(switch.port_delay_s) - 1))] = DELAY_S


def nothing(_: Switch, __: Path) -> None:
    """No trouble."""


def held_up(_: Switch, place: Path) -> None:
    """The rank of the last node is stopped for three quarters of the time, until it ends."""
    pid = int((place / "reached").read_text().split()[-1])

    def hold() -> None:
        try:
            while True:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.03)
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.01)
        except ProcessLookupError:
            return

    threading.Thread(target=hold, daemon=True).start()


def place_of(finding: dict[str, Any]) -> dict[str, Any]:
    """What a finding names."""
    return {key: value for key, value in finding["where"].items() if value is not None}


def check_slow(verdict: dict[str, Any], where: dict[str, str]) -> None:
    """One finding, at this place."""
    (finding,) = verdict["findings"]
    assert (finding["class"], finding["side"]) == ("network-delay", "environment")
    assert place_of(finding) == {"phase": "collective_wait", **where}


def check_stored(done: Done) -> None:
    """The first finding from what the store took is at the recordings' place, and of their cause."""
    finding, stored = done.verdict["findings"][0], done.from_store["findings"][0]
    assert place_of(stored) == place_of(finding)
    assert stored["class"] == finding["class"]


def check_stored_accuses_nobody_else(done: Done) -> None:
    """What the store took shows the trouble, and if it names a host, it is the one that the recordings name."""
    host = done.verdict["findings"][0]["where"]["host"]
    assert done.from_store["findings"]
    for stored in done.from_store["findings"]:
        assert stored["side"] in ("environment", "unknown"), stored
        assert stored["where"]["host"] in (None, host), stored


def check_clocks(verdict: dict[str, Any]) -> None:
    """The second node's wall clock was an hour ahead, and what ranks did together told so."""
    ahead = next(clock for clock in verdict["job"]["clocks"] if clock["host"] == HOSTS[1])
    assert abs(ahead["ahead_ms"] / 1000 - HOUR_S) < 1, ahead
    assert ahead["source"] == "collectives"


def set_ahead(recording: str) -> None:
    """A recording as an agent makes it whose wall clock is an hour ahead."""
    with sqlite3.connect(recording) as database:
        ahead_ns = HOUR_S * 10**9
        database.execute("UPDATE meta SET value = value + ? WHERE key = 'anchor_wall_ns'", (ahead_ns,))
        database.execute("UPDATE ranks SET anchor_wall_ns = anchor_wall_ns + ?", (ahead_ns,))


def test_the_host_behind_a_slow_port_is_named(tmp_path: Path) -> None:
    """Three nodes, one late in all that it sends and receives: one verdict names it, from three recordings, also once
    one of them is of a host with its wall clock an hour ahead, and the store's names nobody else."""
    done = run_job(tmp_path, slow_port)
    check_slow(done.verdict, {"host": HOSTS[2]})
    # A neighbour of the machine may have slowed a step or two just before.
    assert abs(done.verdict["findings"][0]["detected_step"] - TROUBLE) <= 20
    # Of six seconds of trouble a store keeps a dozen points, and a busy machine spoils some of them: it may know less.
    check_stored_accuses_nobody_else(done)
    set_ahead(done.recordings[1])
    apart = reported(done.recordings)
    check_slow(apart, {"host": HOSTS[2]})
    check_clocks(apart)


@pytest.mark.verify
def test_the_store_tells_the_cause_of_a_longer_trouble(tmp_path: Path) -> None:
    """With twice as long to see it, the verdict over the store is the one over the recordings, cause and all."""
    done = run_job(tmp_path, slow_port, steps=TROUBLE + 2 * (STEPS - TROUBLE))
    check_slow(done.verdict, {"host": HOSTS[2]})
    check_stored(done)


@pytest.mark.verify
def test_a_wall_clock_an_hour_ahead_changes_nothing(tmp_path: Path) -> None:
    """All processes of one node read a wall clock that is ahead: its rank and its agent, and what it exports."""
    done = run_job(tmp_path, slow_port, ahead_s=(0, HOUR_S, 0))
    check_slow(done.verdict, {"host": HOSTS[2]})
    check_clocks(done.verdict)
    check_stored(done)


@pytest.mark.verify
@pytest.mark.parametrize(
    ("count", "trouble", "where"),
    [(3, slow_path, {"link": f"{HOSTS[0]} - {HOSTS[2]}"}), (2, slow_pair, {"link": f"{HOSTS[0]} - {HOSTS[1]}"})],
    ids=["one path of three", "two nodes"],
)
def test_a_slow_link_is_named_with_both_its_ends(
    tmp_path: Path, count: int, trouble: Trouble, where: dict[str, str]
) -> None:
    """No host is accused where one link of three is slow, nor of two nodes that share one link."""
    done = run_job(tmp_path, trouble, count=count)
    check_slow(done.verdict, where)
    check_stored(done)


@pytest.mark.verify
def test_nothing_is_said_of_a_job_without_trouble(tmp_path: Path) -> None:
    """The control: nobody is accused where nothing was slowed, by neither."""
    done = run_job(tmp_path, nothing, steps=3 * TROUBLE)
    assert done.verdict["verdict"] == "healthy"
    assert done.from_store["verdict"] == "healthy"


@pytest.mark.verify
def test_a_rank_that_its_host_holds_up_is_no_matter_of_the_network(tmp_path: Path) -> None:
    """A rank that is kept from running for most of the time answers late, too: its rank is named, and no network."""
    done = run_job(tmp_path, held_up, steps=2 * TROUBLE)
    where = done.verdict["findings"][0]["where"]
    assert (where["rank"], where["host"]) == (2, HOSTS[2])
    found = [*done.verdict["findings"], *done.from_store["findings"]]
    assert not [each for each in found if each["class"].startswith("network")]
