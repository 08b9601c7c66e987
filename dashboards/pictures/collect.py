"""What the pictures show: four jobs run at once, each with its agent, into one store; then every panel's own question,
asked as Grafana asks it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dashboards.pictures.watched_job import EXPORT_SECONDS

from rankscope.agent.local_store import LocalStore, find_program
from rankscope.errors import RankscopeError

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ("fleet", "job", "rank", "hardware", "agent")
#: The file that holds the first and the last second of a run's pages.
TIME = "time.json"
_SCRIPT = Path(__file__).with_name("watched_job.py")
_RULES = ROOT / "dashboards/rules/recording.victoriametrics.json"
#: Time for a job that was told to end to say its last, seconds.
_END_SECONDS = 30.0

_SCENARIO = """
name = "{name}"
seed = {seed}
[workload]
kind = "ddp"
ranks = {ranks}
steps = 100000
step_ms = {step_ms}
data_ms = 5
host_ms = 8
[node]
gpu = "H100-SXM5-80GB"
gpus = 4
driver = "580.95.05"
[[fault]]
{fault}
"""


@dataclass(frozen=True)
class Job:
    """A job of the pictures, and what is wrong with it."""

    name: str
    host: str
    ranks: int
    step_ms: int
    fault: str


#: One of each side, and one that a GPU's memory ends.
JOBS = (
    Job("pretrain", "gpu-node-1", 4, 200, 'class = "gpu-thermal-slowdown"\ngpu = 2\nseverity = 1.35\nfrom_step = 250'),
    Job("vision", "gpu-node-2", 2, 250, 'class = "slow-storage"\nhost = 0\nseverity = 80\nfrom_step = 250'),
    Job("finetune", "gpu-node-3", 2, 200, 'class = "host-sync"\nseverity = 4\nfrom_step = 250'),
    Job("evaluate", "gpu-node-4", 2, 250, 'class = "gpu-ecc-uncorrectable"\ngpu = 1\nfrom_step = 300'),
)
#: What is chosen at the top of each page.
CHOSEN: Mapping[str, Mapping[str, str]] = {
    "fleet": {},
    "job": {"job": "pretrain"},
    "rank": {"job": "pretrain", "rank": "0 + 2"},
    "hardware": {"host": "All"},
    "agent": {"host": "All"},
}


def run_jobs(folder: Path, seconds: float, say: Callable[[str], None]) -> None:
    """Run the jobs for so long; the store's data and the time that a page shows stay in `folder`."""
    with ExitStack() as stack:
        store = stack.enter_context(LocalStore(find_program(None, os.environ), folder / "store")).url
        began_s = time.time()
        running = [_start(job, number, folder, store) for number, job in enumerate(JOBS, 1)]
        try:
            say(f"{len(running)} jobs run for {seconds:.0f} s")
            time.sleep(seconds)
            # The newest samples of all are in by then.
            end_s = time.time() - 2 * EXPORT_SECONDS
        finally:
            for job in running:
                job.send_signal(signal.SIGINT)
            for job in running:
                try:
                    job.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    job.kill()
                    job.wait()
        _record(store, folder, began_s, end_s)
        first = _ask(store, "query_range", query="count(rankscope_rank_step)", start=began_s, end=end_s, step=1)
        if not first:
            words = "".join((folder / job.name / "output").read_text()[-500:] for job in JOBS)
            raise RankscopeError(f"no job said anything; their outputs end: {words}")
        (folder / TIME).write_text(json.dumps([first[0]["values"][0][0], end_s]))


def pages(folder: Path) -> dict[str, Any]:
    """For each dashboard all that its page draws, asked of the store that `run_jobs` left in `folder`."""
    began_s, end_s = json.loads((folder / TIME).read_text())
    with LocalStore(find_program(None, os.environ), folder / "store") as store:
        return {name: _page(store.url, name, began_s, end_s) for name in DASHBOARDS}


def _start(job: Job, number: int, folder: Path, store: str) -> subprocess.Popen[bytes]:
    home = folder / job.name
    home.mkdir(parents=True)
    scenario = home / "scenario.toml"
    scenario.write_text(
        _SCENARIO.format(name=job.name, seed=number, ranks=job.ranks, step_ms=job.step_ms, fault=job.fault)
    )
    environ = os.environ | {
        "RANKSCOPE_HOST": job.host,
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_TRACES_EXPORTER": "none",
        "PYTHONPATH": str(ROOT),
    }
    with (home / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(_SCRIPT), str(scenario), str(home / "run"), store],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )


def _record(store: str, folder: Path, began_s: float, end_s: float) -> None:
    """The recording rules, evaluated over the whole time by vmalert."""
    rules = json.loads(_RULES.read_text())
    for group in rules["groups"]:
        group["interval"] = f"{EXPORT_SECONDS:.0f}s"
    path = folder / "recording.json"
    path.write_text(json.dumps(rules))
    done = subprocess.run(
        [
            str(find_program(None, os.environ).with_name("vmalert")),
            f"-rule={path}",
            f"-datasource.url={store}",
            f"-remoteWrite.url={store}",
            f"-replay.timeFrom={_rfc3339(began_s)}",
            f"-replay.timeTo={_rfc3339(end_s)}",
            "-replay.rulesDelay=0s",
            "-replay.disableProgressBar",
            "-httpListenAddr=127.0.0.1:0",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RankscopeError(f"vmalert ended with {done.returncode}: {done.stderr[-500:]}")


def _rfc3339(at_s: float) -> str:
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _page(store: str, name: str, began_s: float, end_s: float) -> dict[str, Any]:
    document = json.loads((ROOT / f"dashboards/grafana/{name}.json").read_text())
    # A panel of half the width has some 900 points at most: no step is below the time between two samples.
    step_s = max(EXPORT_SECONDS, (end_s - began_s) // 900)
    variables = {f"${name}": _matched(value) for name, value in CHOSEN[name].items()}
    asked = []
    for panel in document["panels"]:
        answers = [_answer(store, target, variables, began_s, end_s, step_s) for target in panel.get("targets", ())]
        asked.append({"panel": panel, "step_ms": step_s * 1000, "answers": answers})
    return {
        "title": document["title"],
        "chosen": CHOSEN[name],
        "from_ms": began_s * 1000,
        "to_ms": end_s * 1000,
        "panels": asked,
    }


def _matched(value: str) -> str:
    """What Grafana puts in the place of a choice: several are joined by "+" on the page."""
    return ".*" if value == "All" else value.replace(" + ", "|")


def _answer(
    store: str, target: Mapping[str, Any], variables: Mapping[str, str], began_s: float, end_s: float, step_s: float
) -> list[dict[str, Any]]:
    # Grafana's own rule. What is sampled every so many seconds at the agent's own pace is as much faster here.
    sampled_s = float(target.get("interval", "15s").rstrip("s")) / 15 * EXPORT_SECONDS
    rate_s = max(step_s + sampled_s, 4 * sampled_s)
    expression = target["expr"].replace("$__rate_interval", f"{rate_s:.0f}s")
    for name, value in variables.items():
        expression = expression.replace(name, value)
    if target["instant"]:
        return _ask(store, "query", query=expression, time=end_s)
    return _ask(store, "query_range", query=expression, start=began_s, end=end_s, step=step_s)


def _ask(store: str, what: str, **parameters: Any) -> list[dict[str, Any]]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(f"{store}/internal/force_flush", timeout=30).read()
    try:
        with opener.open(f"{store}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=60) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise RankscopeError(f"{error.read().decode(errors='replace')[:500]}", where=parameters["query"]) from error
    return result
