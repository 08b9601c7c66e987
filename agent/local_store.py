"""A metric store beside one run, without Docker: VictoriaMetrics on a loopback port, stopped with the run.

The agent exports into it by OTLP; its own page (vmui) and `rankscope diagnose --prometheus` read it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from rankscope.agent.config import Settings
from rankscope.agent.export import export_targets
from rankscope.agent.run import RunResult, run_job
from rankscope.agent.supervisor import SignalsHeld
from rankscope.errors import ConfigurationError

#: As packages and the project's own releases call it.
_NAMES = ("victoria-metrics", "victoria-metrics-prod", "victoriametrics")
#: Where a checkout keeps the components that its tests run against.
_TOOLS = Path(__file__).resolve().parents[1] / ".tools/bin"
_READY_SECONDS = 15.0
_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


def find_program(named: Path | None, environ: Mapping[str, str]) -> Path:
    """The VictoriaMetrics to run: the one named, else from PATH, else of this checkout. Raises ConfigurationError."""
    if named is not None:
        if not os.access(named, os.X_OK) or not named.is_file():
            raise ConfigurationError("no program that can be run", where=str(named), todo="name VictoriaMetrics itself")
        return named.resolve()
    search = os.pathsep.join([environ.get("PATH", os.defpath), str(_TOOLS)])
    for name in _NAMES:
        if found := shutil.which(name, path=search):
            return Path(found)
    raise ConfigurationError(
        f"no {_NAMES[0]} on PATH", where="--store", todo="install VictoriaMetrics, or name it with --store-program"
    )


class LocalStore:
    """Runs while the context lasts. Data stays in `directory` if one is given, else it goes with the run."""

    def __init__(self, program: Path, directory: Path | None = None) -> None:
        self._program = program
        self._kept = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        #: Base address, as `diagnose --prometheus` takes it.
        self.url = ""

    def __enter__(self) -> LocalStore:
        self._folder = Path(tempfile.mkdtemp(prefix="rankscope-store-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        data = self._kept or self._folder / "data"
        try:
            data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot be used ({error.strerror})", where=str(data)) from error
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            str(self._program),
            f"-httpListenAddr=127.0.0.1:{port}",
            f"-storageDataPath={data}",
            "-opentelemetry.usePrometheusNaming",
            # A run is read while it is young, and a kept one when it is old.
            "-search.latencyOffset=0s",
            "-retentionPeriod=10y",
            "-memory.allowedBytes=256MB",
        ]
        log = self._folder / "log"
        with log.open("wb") as sink:
            try:
                # A session of its own: a Ctrl-C is the job's, and the store outlives it until all is exported.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,  # noqa: PLW1509 - no other thread runs yet
                )
            except OSError as error:
                raise ConfigurationError(
                    f"cannot be started ({error.strerror})", where=str(self._program), todo="name another program"
                ) from error
        deadline = time.monotonic() + _READY_SECONDS
        while not _answers(f"{self.url}/health"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = log.read_text(errors="replace").strip().splitlines()
                raise ConfigurationError(
                    "the store did not come up" + (f": {words[-1][-300:]}" if words else ""), where=str(self._program)
                )
            time.sleep(0.05)


def run_beside_store(
    command: Sequence[str],
    *,
    settings: Settings,
    job: str,
    say: Callable[[str], None],
    program: Path | None = None,
    directory: Path | None = None,
) -> RunResult:
    """`run_job` with a store that its agent exports to. Raises ConfigurationError where there is none to be had."""
    if export_targets(settings.export, os.environ):
        raise ConfigurationError(
            "the run exports to a receiver of its own already", where="--store", todo="leave out one of the two"
        )
    # What is asked of the job meanwhile waits for the supervisor, so that the store is never left behind.
    with SignalsHeld():
        with LocalStore(find_program(program, os.environ), directory) as store:
            export = replace(settings.export, endpoint=f"{store.url}/opentelemetry", protocol="http/protobuf")
            page = f"{store.url}/vmui/"
            # Distributions leave the page out of their builds.
            look = page if _answers(page) else f"{store.url} (this build of it has no vmui page)"
            say(f"store: {look}; rankscope diagnose --prometheus {store.url} --job NAME")
            result = run_job(
                command,
                settings=replace(settings, export=export),
                job=job,
                say=say,
                # It takes metrics only.
                agent_environ={"OTEL_LOGS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"},
            )
        if directory is not None:
            say(f"store: its data is in {directory}")
    return result


def _end_with_parent() -> None:
    """In the child before it becomes the store: it is asked to stop where the run is killed outright."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
