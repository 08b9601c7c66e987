"""From a store to a page: vmalert over the committed rules, Alertmanager with the committed routes, webhooks that keep
what they are sent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import components
from scripted_receiver import HttpReceiver, http_receiver

RULES = Path(__file__).parents[1] / "dashboards/rules"


@dataclass(frozen=True)
class Pages:
    """What one Alertmanager told its receivers, over one webhook."""

    webhook: HttpReceiver

    def told(self) -> list[dict[str, Any]]:
        """Every notification, as Alertmanager's webhook format has it, in order; only alerts that fire."""
        sent = [json.loads(request.body) for request in self.webhook.requests]
        return [each for each in sent if each["status"] == "firing"]

    def incidents(self) -> set[tuple[str, str]]:
        """(receiver, group) of every notification: one an incident, however often it is said."""
        return {(each["receiver"], each["groupKey"]) for each in self.told()}

    def alerts(self) -> set[tuple[str, str]]:
        """(receiver, name) of every alert that was told."""
        return {(each["receiver"], alert["labels"]["alertname"]) for each in self.told() for alert in each["alerts"]}


def hurried(rules: dict[str, Any]) -> dict[str, Any]:
    """The same rules with a second for every minute, in windows, offsets and `for`: for jobs of seconds."""

    def shorter(text: str) -> str:
        hours = re.sub(r"(?<=[\[ ])(\d+)h\b", lambda found: f"{60 * int(found[1])}m", text)
        return re.sub(r"(?<=[\[ ])(\d+)m\b", r"\1s", hours)

    groups = []
    for group in rules["groups"]:
        changed = [
            rule | {"expr": shorter(rule["expr"])} | ({"for": rule["for"].replace("m", "s")} if "for" in rule else {})
            for rule in group["rules"]
        ]
        groups.append({"name": group["name"], "interval": "1s", "rules": changed})
    return {"groups": groups}


def routes(webhook: str, *, maintenance: bool = False) -> dict[str, Any]:
    """The committed configuration with its receivers filled in, and waits that a test can afford."""
    configuration: dict[str, Any] = json.loads((RULES / "alertmanager.json").read_text())
    configuration["route"] |= {"group_wait": "2s", "group_interval": "1s", "repeat_interval": "4h"}
    for receiver in configuration["receivers"]:
        receiver["webhook_configs"] = [{"url": webhook, "send_resolved": False}]
    if maintenance:
        (window,) = configuration["time_intervals"]
        window["time_intervals"] = [{"weekdays": ["sunday:saturday"]}]
    return configuration


@contextmanager
def alertmanager(folder: Path, *, maintenance: bool = False) -> Iterator[tuple[str, Pages]]:
    """Alertmanager with the committed routes; its base address, and what it tells."""
    program = components.need("prometheus-alertmanager")
    folder.mkdir(parents=True, exist_ok=True)
    port = components.free_port()
    address = f"http://127.0.0.1:{port}"
    with http_receiver() as webhook:
        configuration = folder / "alertmanager.json"
        configuration.write_text(json.dumps(routes(f"{webhook.url}/page", maintenance=maintenance)))
        command = [
            *_with_templates(program),
            f"--config.file={configuration}",
            f"--storage.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ]
        with components.running(command, folder / "log", lambda: components.answers(f"{address}/-/ready")):
            yield address, Pages(webhook)


def _with_templates(program: Path) -> list[str]:
    """Debian's build reads its templates under /usr/share only: an unpacked one sees its own there, and nobody else
    does."""
    share = program.resolve().parents[1] / "share"
    if share == Path("/usr/share") or not (share / "prometheus/alertmanager/default.tmpl").exists():
        return [str(program)]
    unshare = shutil.which("unshare") or str(components.missing("unshare is not installed"))
    script = 'mount --bind "$1" /usr/share && shift && exec "$@"'
    return [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(share), str(program)]


@contextmanager
def vmalert(folder: Path, store: str, notify: Sequence[str], *, rules: dict[str, dict[str, Any]]) -> Iterator[None]:
    """vmalert over a VictoriaMetrics, evaluating every second; recorded series go back into the store."""
    program = components.need("vmalert")
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in rules.items():
        (folder / name).write_text(json.dumps(document))
    port = components.free_port()
    command = [
        str(program),
        *(f"-rule={folder / name}" for name in rules),
        f"-datasource.url={store}",
        f"-remoteWrite.url={store}",
        f"-remoteRead.url={store}",
        *(f"-notifier.url={each}" for each in notify),
        f"-httpListenAddr=127.0.0.1:{port}",
        "-evaluationInterval=1s",
        "-rule.evalDelay=0s",
        "-remoteWrite.flushInterval=200ms",
    ]
    with components.running(command, folder / "log", lambda: components.answers(f"http://127.0.0.1:{port}/health")):
        yield


def _rfc3339(at_s: float) -> str:
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def evaluate_past(folder: Path, store: str, rules: dict[str, dict[str, Any]], begin_s: float, end_s: float) -> None:
    """Have vmalert go through the past: what it records, and since when alerts hold, is in the store then."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in rules.items():
        (folder / name).write_text(json.dumps(document))
    done = components.run(
        components.need("vmalert"),
        *(f"-rule={folder / name}" for name in rules),
        f"-datasource.url={store}",
        f"-remoteWrite.url={store}",
        f"-replay.timeFrom={_rfc3339(begin_s)}",
        f"-replay.timeTo={_rfc3339(end_s)}",
        "-replay.rulesDelay=0s",
        "-replay.disableProgressBar",
        f"-httpListenAddr=127.0.0.1:{components.free_port()}",
    )
    assert done.returncode == 0, done.stderr[-2000:]


@contextmanager
def on_call(folder: Path, store: str, rules: dict[str, dict[str, Any]]) -> Iterator[tuple[Pages, Pages]]:
    """The whole of it twice: pages of ordinary days, and of a maintenance window, from the same alerts."""
    with ExitStack() as stack:
        ordinary, pages = stack.enter_context(alertmanager(folder / "ordinary"))
        maintained, quiet = stack.enter_context(alertmanager(folder / "maintenance", maintenance=True))
        stack.enter_context(vmalert(folder / "vmalert", store, [ordinary, maintained], rules=rules))
        yield pages, quiet
