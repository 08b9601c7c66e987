"""A real job over two nodes with an agent each: one verdict from both recordings, and the same from a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import components
import pytest
import two_nodes
from two_nodes import ADDRESSES, HOSTS, on_node

pytestmark = pytest.mark.alone

MAIN = [sys.executable, "-c", "from rankscope.agent.cli import main; main()"]
JOB = str(Path(__file__).parents[1] / "two_node_job.py")
#: Some 20 s on two cores. A store is judged on means over seconds, and needs a longer job.
STEPS = 120
STEPS_FOR_STORE = 600


@dataclass(frozen=True)
class Done:
    """A job that ran over both nodes."""

    recordings: list[str]
    verdict: dict[str, Any]
    #: The verdict on what both agents exported while it ran.
    from_store: dict[str, Any]
    packets: int


def _json(*words: str, prefix: Sequence[str] = ()) -> dict[str, Any]:
    done = subprocess.run([*prefix, *MAIN, *words, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@contextmanager
def store_on(namespace: str, place: Path) -> Iterator[str]:
    """A VictoriaMetrics in a node's network; its address there."""
    log = place / "store.log"
    command = [
        *("ip", "netns", "exec", namespace, str(components.need("victoria-metrics"))),
        f"-httpListenAddr={ADDRESSES[0]}:8428",
        f"-storageDataPath={place / 'store'}",
        *("-search.latencyOffset=0s", "-opentelemetry.usePrometheusNaming", "-memory.allowedBytes=128MB"),
    ]
    with components.running(command, log, lambda: "started server at" in log.read_text()):
        yield f"http://{ADDRESSES[0]}:8428"


def run_job(place: Path, delay_s: float, steps: int = STEPS) -> Done:
    """Two ranks a node, `rankscope run` on each, a store on the first; from the job's middle on each packet between the
    nodes comes later by `delay_s`."""
    if reason := two_nodes.why_not():
        components.missing(reason) if os.geteuid() == 0 else pytest.skip(reason)
    known = {key: value for key, value in os.environ.items() if not key.startswith(("RANKSCOPE", "OTEL"))}
    middle = place / "middle"
    launched: list[subprocess.Popen[bytes]] = []
    settings = place / "agent.toml"
    settings.write_text("[export]\nperiod_seconds = 0.5\n[recording]\ncommit_seconds = 0.25\n")
    with two_nodes.two_nodes() as (names, link), store_on(names[0], place) as store:
        try:
            for node in range(2):
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
                torchrun = [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"),
                    *("--node-rank", str(node), "--master-addr", ADDRESSES[0], "--master-port", "29500"),
                ]
                command = [*MAIN, "run", "--job", "two", "--", *torchrun, JOB, str(steps), str(middle)]
                output = (place / f"output{node}").open("wb")
                launched.append(
                    subprocess.Popen(on_node(node, names, command), env=environ, stdout=output, stderr=output)
                )
                output.close()
            deadline = time.monotonic() + 120
            while not middle.exists() and all(each.poll() is None for each in launched) and time.monotonic() < deadline:
                time.sleep(0.01)
            link.delay_s = delay_s
            for node, each in enumerate(launched):
                assert each.wait(120) == 0, (place / f"output{node}").read_text()
        finally:
            for each in launched:
                each.terminate()
                each.wait(30)
        packets = link.packets
        link.delay_s = 0.0
        from_store = _json("diagnose", "--prometheus", store, "--job", "two", prefix=["ip", "netns", "exec", names[0]])
    recordings = [str(next(place.glob(f"state{node}/two/*.db"))) for node in range(2)]
    return Done(recordings, _json("report", *recordings), from_store, packets)


def check_slow(done: Done, steps: int) -> None:
    """One finding of the wait of all ranks since the middle; no rank, host or hardware is accused of it."""
    assert done.packets > steps
    assert [Path(each).stem for each in done.recordings] == list(HOSTS)
    (finding,) = done.verdict["findings"]
    where = {key: value for key, value in finding["where"].items() if value is not None}
    assert where == {"phase": "collective_wait"}
    assert finding["side"] != "hardware"
    assert steps // 2 - 2 <= finding["detected_step"] <= steps // 2 + 20


def test_a_slow_link_is_one_verdict_that_accuses_no_node(tmp_path: Path) -> None:
    """Both recordings give one verdict: the wait of all four ranks, since the link is slow, and of no single host. The
    store, which has means over seconds, holds both nodes and accuses nobody either."""
    done = run_job(tmp_path, 0.006)
    check_slow(done, STEPS)
    assert done.from_store["job"]["name"] == "two"
    assert not [each for each in done.from_store["findings"] if each["side"] == "hardware"]


@pytest.mark.verify
def test_a_store_says_the_same_of_a_longer_job(tmp_path: Path) -> None:
    """The first finding from what both agents exported is that from their recordings."""
    done = run_job(tmp_path, 0.006, STEPS_FOR_STORE)
    check_slow(done, STEPS_FOR_STORE)
    (finding,), (stored, *_) = done.verdict["findings"], done.from_store["findings"]
    assert (stored["class"], stored["where"]) == (finding["class"], finding["where"])


@pytest.mark.verify
def test_the_same_link_without_delay_is_healthy(tmp_path: Path) -> None:
    """The control: nobody is accused where nothing was slowed."""
    assert run_job(tmp_path, 0.0).verdict["verdict"] == "healthy"
