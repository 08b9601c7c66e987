"""The chart: Helm accepts it, Kubernetes' schemas accept what it makes, and it asks for no more than it says."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import components
import kubernetes_validate
import pytest
import yaml

CHART = Path(__file__).parents[2] / "helm" / "rankscope"
EXPORTING = ["otlp.endpoint=http://collector:4318", "otlp.headersSecret=otlp"]
VALUES = {
    "default": [],
    "kernel log and export": ["kernelLog=true", *EXPORTING],
    "other users": ["otherUsers=true"],
    "nvidia runtime": ["runtimeClassName=nvidia", "hostPID=false", "settings.hang.floor_seconds=12.5"],
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm."""
    return subprocess.run([components.need("helm"), *arguments], capture_output=True, text=True, check=False)


def manifests(tmp_path: Path, values: list[str]) -> list[dict[str, Any]]:
    """What the chart makes of some values, each checked against the schemas of Kubernetes."""
    settings = [word for value in values for word in ("--set-json" if "settings" in value else "--set", value)]
    done = helm("template", "r", str(CHART), "--namespace", "watch", *settings)
    assert done.returncode == 0, done.stderr
    found = [document for document in yaml.safe_load_all(done.stdout) if document]
    for document in found:
        kubernetes_validate.validate(document, "1.30", strict=True)
    return found


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one document of a kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def test_lint() -> None:
    """`helm lint` finds nothing, and a value that nothing knows is refused by the values' schema."""
    assert helm("lint", "--strict", str(CHART)).returncode == 0
    wrong = helm("template", "r", str(CHART), "--set", "kernellog=true")
    assert wrong.returncode != 0
    assert "kernellog" in wrong.stderr


@pytest.mark.parametrize("name", VALUES)
def test_manifests_are_kubernetes_own(tmp_path: Path, name: str) -> None:
    """Every manifest of every set of values is one that Kubernetes' schemas know, field by field."""
    kinds = {document["kind"] for document in manifests(tmp_path, VALUES[name])}
    assert kinds == {"ConfigMap", "ServiceAccount", "DaemonSet"}


def test_least_privilege_unless_asked(tmp_path: Path) -> None:
    """Nothing is privileged; root and each capability come with what needs them only."""
    for name, added in (
        ("default", []),
        ("kernel log and export", ["SYSLOG"]),
        ("other users", ["DAC_READ_SEARCH", "SYS_PTRACE"]),
    ):
        pod = of_kind(manifests(tmp_path, VALUES[name]), "DaemonSet")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        context = container["securityContext"]
        assert not context["allowPrivilegeEscalation"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert (context["runAsUser"] == 0) == bool(added)
        assert context["capabilities"].get("add", []) == added
        assert "ports" not in container


def test_settings_are_the_agents_own(tmp_path: Path) -> None:
    """The configuration that the chart writes is one the agent takes, with numbers as numbers."""
    from rankscope.agent.config import parse_settings

    text = of_kind(manifests(tmp_path, VALUES["nvidia runtime"]), "ConfigMap")["data"]["rankscope.toml"]
    assert tomllib.loads(text)["recording"]["max_bytes"] == 2_000_000_000
    settings = parse_settings(text)
    assert settings.hang.floor_seconds == 12.5


def test_export_headers_come_from_a_secret(tmp_path: Path) -> None:
    """The endpoint is in the environment, the headers only by reference."""
    pod = of_kind(manifests(tmp_path, VALUES["kernel log and export"]), "DaemonSet")["spec"]["template"]["spec"]
    environment = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"]["value"] == "http://collector:4318"
    assert environment["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"]["secretKeyRef"] == {"name": "otlp", "key": "headers"}
    assert "headers" not in json.dumps([e for e in environment.values() if "value" in e]).lower()
