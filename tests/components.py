"""Real components for tests: where they are, and running servers on free loopback ports.

A component is looked for on PATH and in .tools (`make tools`). A test that cannot have one is skipped with
the reason; where CI is set it fails instead, so that CI never passes by leaving tests out.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
START_SECONDS = 30.0


def find(name: str) -> Path | None:
    """The executable of a component, or None where it is not to be had."""
    search = os.pathsep.join([str(TOOLS / "bin"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=search)
    return Path(found) if found else None


def need(name: str) -> Path:
    """The executable of a component; skips the test without it, fails it in CI."""
    return find(name) or missing(f"{name} is neither on PATH nor in .tools: run `make tools`")


def missing(reason: str) -> Path:
    """Skip the running test for want of a component; fail it in CI. Never returns."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (a missing component is a failure in CI)")
    pytest.skip(reason)


def run(program: Path, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program of a component to its end and keep what it printed."""
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=seconds)


def now_ns() -> int:
    """The wall clock, as OTLP wants it."""
    return time.time_ns()


def free_port() -> int:
    """A TCP port that nobody listened on at this moment, on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Poll until the condition holds; fails the test, naming what it waited for, when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether a GET of the address gives a status below 400."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status < 400)
    except (urllib.error.URLError, OSError):
        return False


def listens(port: int) -> bool:
    """Whether somebody accepts TCP connections on the loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(
    command: list[str], log: Path, ready: Callable[[], bool], env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server from ready to killed. One that ends before it is ready fails the test with its last words."""
    with log.open("ab") as sink:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env)
    try:

        def ready_or_dead() -> bool:
            if server.poll() is not None:
                words = log.read_text(errors="replace")[-1500:]
                pytest.fail(f"{Path(command[0]).name} ended with {server.returncode}: {words}")
            return ready()

        wait_for(ready_or_dead, f"{Path(command[0]).name} to be ready; its log is {log}")
        yield server
    finally:
        server.kill()
        server.wait()


@contextmanager
def victoria_metrics(
    folder: Path, port: int | None = None, *, memory: str = "-memory.allowedBytes=128MB"
) -> Iterator[str]:
    """VictoriaMetrics on an empty or earlier store in the folder; gives its base address.

    OTLP goes to `/opentelemetry/v1/metrics`; GET `/internal/force_flush` before reading. Names follow
    Prometheus's conventions for OTLP.
    """
    program = need("victoria-metrics")
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        str(program),
        f"-httpListenAddr=127.0.0.1:{port}",
        f"-storageDataPath={folder / 'store'}",
        "-search.latencyOffset=0s",
        "-opentelemetry.usePrometheusNaming",
        memory,
        "-retentionPeriod=10y",
        # A batch sent twice is read once.
        "-dedup.minScrapeInterval=1ms",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with running(command, folder / "victoria-metrics.log", lambda: answers(f"{address}/health")) as server:
        try:
            yield address
        finally:
            # Killed outright, it would lose the last seconds of what it acknowledged.
            server.terminate()
            server.wait(START_SECONDS)


def query(address: str, promql: str) -> list[dict[str, Any]]:
    """The answer of the store to an instant query, after making what it took in readable.

    Poll for a sample that was just written: the store looks at whole seconds, so one of this second can
    still be missing.
    """
    with urllib.request.urlopen(f"{address}/internal/force_flush", timeout=10):
        pass
    with urllib.request.urlopen(f"{address}/api/v1/query?query={quote(promql)}", timeout=10) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return result


@dataclass(frozen=True)
class Rotel:
    """The addresses that a running rotel collector receives OTLP at."""

    grpc: str
    http: str
    process: subprocess.Popen[bytes]


@contextmanager
def rotel(folder: Path, exporter_arguments: list[str]) -> Iterator[Rotel]:
    """The rotel collector, receiving OTLP by gRPC and HTTP and exporting as the arguments say.

    To another OTLP receiver: `--exporter otlp --otlp-exporter-protocol http --otlp-exporter-endpoint URL`;
    to its log: `--exporter blackhole --debug-log metrics`.
    """
    program = rotel_program()
    grpc_port, http_port = free_port(), free_port()
    command = [
        str(program),
        "start",
        "--otlp-grpc-endpoint",
        f"127.0.0.1:{grpc_port}",
        "--otlp-http-endpoint",
        f"127.0.0.1:{http_port}",
        "--pid-file",
        str(folder / "rotel.pid"),
        *exporter_arguments,
    ]
    folders = [str(TOOLS / "lib"), str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH")]
    env = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}
    folder.mkdir(parents=True, exist_ok=True)
    with running(command, folder / "rotel.log", lambda: listens(grpc_port) and listens(http_port), env) as process:
        yield Rotel(f"http://127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}", process)


def rotel_program() -> Path:
    """The agent inside the installed rotel package."""
    program = Path(sysconfig.get_path("platlib"), "rotel", "rotel-agent")
    return program if program.exists() else missing("rotel is not installed: pip install 'rankscope[test]'")
