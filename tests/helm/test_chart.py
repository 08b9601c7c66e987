"""The chart: Helm accepts it, Kubernetes' schemas accept what it makes, and it asks for no more than it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import components
import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "rankscope"
#: Sets of values that ship with the chart, as Helm's own tools look for them.
SETS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
KUBERNETES = ("1.28", "1.31")
#: Of the Prometheus operator: Kubernetes' schemas do not know them, the operator's types do.
CUSTOM = {"PrometheusRule", "ServiceMonitor"}
#: A ConfigMap holds no more (Kubernetes' own limit), and Helm's release a third of it compressed.
LARGEST_CONFIGMAP_BYTES = 1 << 20


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm."""
    return subprocess.run([components.need("helm"), *arguments], capture_output=True, text=True, check=False)


def manifests(*arguments: str) -> list[dict[str, Any]]:
    """What the chart makes of some values, each checked against the schemas of Kubernetes."""
    done = helm("template", "r", str(CHART), "--namespace", "watch", *arguments)
    assert done.returncode == 0, done.stderr
    found = [document for document in yaml.safe_load_all(done.stdout) if document]
    for document in found:
        if document["kind"] not in CUSTOM:
            for version in KUBERNETES:
                kubernetes_validate.validate(document, version, strict=True)
    return found


def of_set(name: str) -> list[dict[str, Any]]:
    """The manifests of one of the sets that ship."""
    return manifests("--values", str(SETS[name]))


def named(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The document of a kind and a name."""
    (found,) = [each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one document of a kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def wrong(document: dict[str, Any]) -> list[str]:
    """What the Prometheus operator's own types have against a resource of its own."""
    path = components.TOOLS / "operator-schema" / f"{document['kind']}.json"
    if not path.exists():
        components.missing("the operator's schemas are not in .tools: run `make tools`")
    assert document["apiVersion"] == "monitoring.coreos.com/v1"
    validator = jsonschema.Draft7Validator(json.loads(path.read_text()))
    return [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(document["spec"])]


@pytest.mark.parametrize("name", ["collector", "everything"])
def test_the_operator_knows_every_field_of_its_resources(name: str) -> None:
    """Monitors and rules hold what the operator's API has, and nothing else; a word it does not know is seen."""
    custom = [each for each in of_set(name) if each["kind"] in CUSTOM]
    assert {each["kind"] for each in custom} == CUSTOM
    assert [found for each in custom for found in wrong(each)] == []
    monitor = of_kind([each for each in custom if each["kind"] == "ServiceMonitor"][:1], "ServiceMonitor")
    monitor["spec"]["endpoints"][0]["scrapeEvery"] = "15s"
    assert any("scrapeEvery" in found for found in wrong(monitor))
    rule = next(each for each in custom if each["kind"] == "PrometheusRule")
    rule["spec"]["groups"][0]["rules"][0]["expression"] = "up"
    assert wrong(rule)


@pytest.mark.parametrize("name", SETS)
def test_lint(name: str) -> None:
    """`helm lint` finds nothing in any set of values that ships."""
    done = helm("lint", "--strict", str(CHART), "--values", str(SETS[name]))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--set=kernellog=true", "kernellog"),
        ("--set=analyzer.enabled=true", "name the metric store to judge"),
        ("--set=collector.enabled=true", "name where the collector writes on to"),
        ("--set=scrape.enabled=true", "name the Secret"),
        ("--set=analyzer.shards=0", "shards"),
        ("--set=prometheusRule.store=influx", "store"),
        ("--set=ringDirectory=shm", "ringDirectory"),
        ("--set=collector.remoteWriteURL=prometheus:9090", "remoteWriteURL"),
        ("--set=settings.recording.max_byte=1000000", "max_byte"),
        ("--set=settings.budget.pss_bytes=big", "/settings/budget/pss_bytes"),
        ("--set=resources.limits.memory=64Mi", "64Mi is less than the 100000000 bytes"),
        ("--set=resources.limits.memory=0.2G,settings.budget.pss_bytes=300000000", "0.2G is less than the 300000000"),
        ("--set=resources.limits.memory=plenty", "/resources/limits/memory"),
        ("--set=scrape.enabled=true,scrape.secret=s,settings.prometheus.port=9464", "the one or the other"),
        ("--set=tolerations[0].efect=NoSchedule", "efect"),
        ("--set=journalDirectory=journal", "journalDirectory"),
    ],
)
def test_nonsense_is_refused(words: str, said: str) -> None:
    """A value that nothing knows or that makes no sense is named, and nothing is made of it."""
    wrong = helm("template", "r", str(CHART), words)
    assert wrong.returncode != 0
    assert said in wrong.stderr


def test_each_set_makes_what_it_says() -> None:
    """Every manifest is one that Kubernetes' schemas know, field by field, and no set makes more than it asks for."""
    agent = {"ConfigMap", "ServiceAccount", "DaemonSet"}
    expected = {
        "minimal": agent,
        "restricted": agent | {"NetworkPolicy"},
        "step-up": agent,
        "analyzer": agent | {"StatefulSet", "Service"},
        "collector": agent | {"Deployment", "Service", "PrometheusRule", "ServiceMonitor"},
        "sidecar": {"ConfigMap", "ServiceAccount", "StatefulSet", "Deployment", "Service", "NetworkPolicy"},
        "everything": agent | CUSTOM | {"StatefulSet", "Deployment", "Service", "NetworkPolicy"},
    }
    assert {name: {each["kind"] for each in of_set(name)} for name in SETS} == expected


def pods_of(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods that a set of manifests starts."""
    return [each["spec"]["template"]["spec"] for each in documents if "template" in each.get("spec", {})]


#: The capabilities that a container has in a set of values; none where it is not named.
ADDED = {("step-up", "agent"): ["DAC_READ_SEARCH", "SYS_PTRACE"], ("everything", "directories"): ["CHOWN"]}


@pytest.mark.parametrize("name", SETS)
def test_least_privilege_unless_asked(name: str) -> None:
    """Nothing is privileged or on the host's network; root and each capability come with what needs them only."""
    pods = pods_of(of_set(name))
    assert pods
    for pod in pods:
        assert not {"hostNetwork", "hostIPC"} & pod.keys()
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            context = container["securityContext"]
            assert not context.get("privileged")
            assert not context["allowPrivilegeEscalation"]
            assert context["readOnlyRootFilesystem"]
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["capabilities"]["drop"] == ["ALL"]
            mine = ADDED.get((name, container["name"]), [])
            assert context["capabilities"].get("add", []) == mine
            assert (context["runAsUser"] == 0) == bool(mine)
            assert container["resources"]["limits"]["memory"]
            assert container["name"] == "collector" or name == "everything" or "ports" not in container
            writable = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable <= {"rings", "state", "scratch"}


def refused_by_restricted(pod: dict[str, Any]) -> set[str]:
    """What of a pod the Pod Security level "restricted" refuses (Pod Security Standards of Kubernetes 1.31)."""
    refused = {key for key in ("hostPID", "hostIPC", "hostNetwork") if pod.get(key)}
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    refused |= {kind for volume in pod.get("volumes", []) for kind in volume.keys() - {"name"} - allowed}
    above = pod.get("securityContext", {})
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        context = {**above, **container.get("securityContext", {})}
        capabilities = context.get("capabilities", {})
        wanted = {
            "privileged": not context.get("privileged"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
            "capabilities": "ALL" in capabilities.get("drop", [])
            and set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "runAsNonRoot": context.get("runAsNonRoot") is True,
            "runAsUser": context.get("runAsUser") != 0,
            "seccompProfile": context.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        refused |= {key for key, fine in wanted.items() if not fine}
    return refused


def test_which_pod_security_each_part_needs() -> None:
    """Analyzer, collector and sidecar are admitted as restricted; the node's agent is not, for its directories."""
    sidecar = yaml.safe_load((ROOT / "examples/kubernetes-sidecar.yaml").read_text())["spec"]
    parts = pods_of(of_set("sidecar"))
    assert len(parts) == 2
    assert [refused_by_restricted(pod) for pod in (*parts, sidecar)] == [set()] * 3
    assert [refused_by_restricted(pod) for pod in pods_of(of_set("restricted"))] == [{"hostPath"}]
    assert [refused_by_restricted(pod) for pod in pods_of(of_set("minimal"))] == [{"hostPath", "hostPID"}]


def test_the_kernel_log_needs_a_group_or_root_and_no_capability() -> None:
    """The journal's files are read by the group that is named, else as root; the closed device is not asked for."""
    (by_group,) = pods_of(manifests("--set=kernelLog=true,journalGroup=190"))
    (by_root,) = pods_of(manifests("--set=kernelLog=true"))
    assert by_group["securityContext"]["supplementalGroups"] == [190]
    assert by_group["containers"][0]["securityContext"]["runAsUser"] == 10001
    assert by_root["containers"][0]["securityContext"]["runAsUser"] == 0
    for pod in (by_group, by_root):
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {v["hostPath"]["path"]: v["hostPath"]["type"] for v in pod["volumes"] if v["name"] == "journal"} == {
            "/var/log/journal": "Directory"
        }


def test_directories_are_prepared_with_one_capability(tmp_path: Path) -> None:
    """The init container's own words as root with CAP_CHOWN only: rings for all, recordings for the agent; twice."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be root with one capability")
    (pod,) = pods_of(manifests("--set=prepareDirectories=true"))
    (container,) = pod["initContainers"]
    assert container["securityContext"]["capabilities"]["add"] == ["CHOWN"]
    for name in ("rings", "state"):
        (tmp_path / name).mkdir(mode=0o755)
    program, flags, script = container["command"]
    script = script.replace("/rings", str(tmp_path / "rings")).replace("/state", str(tmp_path / "state"))
    command = ["setpriv", "--bounding-set=-all,+chown", "--no-new-privs", program, flags, script]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        rings, state = ((tmp_path / name).stat() for name in ("rings", "state"))
        assert (oct(rings.st_mode & 0o7777), rings.st_uid) == ("0o1777", 0)
        assert (oct(state.st_mode & 0o7777), state.st_uid) == ("0o700", 10001)


def test_the_agent_is_told_its_node() -> None:
    """Findings and series name the node, and not the pod that looked."""
    (pod,) = pods_of(of_set("minimal"))
    (told,) = [entry for entry in pod["containers"][0]["env"] if entry["name"] == "RANKSCOPE_HOST"]
    assert told["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_settings_are_the_agents_own() -> None:
    """The configuration that the chart writes is one the agent takes, with numbers as numbers."""
    from rankscope.agent.config import parse_settings

    text = named(of_set("step-up"), "ConfigMap", "r-agent")["data"]["rankscope.toml"]
    assert tomllib.loads(text)["recording"]["max_bytes"] == 500_000_000
    settings = parse_settings(text)
    assert settings.hang.floor_seconds == 12.5


def test_export_headers_come_from_a_secret() -> None:
    """The endpoint is in the environment, the headers only by reference."""
    pod = of_kind(of_set("step-up"), "DaemonSet")["spec"]["template"]["spec"]
    environment = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"]["value"] == "http://collector:4317"
    assert environment["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"]["secretKeyRef"] == {"name": "otlp", "key": "headers"}
    assert "headers" not in json.dumps([e for e in environment.values() if "value" in e]).lower()


def test_agents_find_the_charts_own_collector() -> None:
    """Without an endpoint of one's own, agents send to the service whose selector finds the collector's pods."""
    documents = of_set("collector")
    environment = of_kind(documents, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://r-collector:4318"} in environment
    service = named(documents, "Service", "r-collector")["spec"]
    template = of_kind(documents, "Deployment")["spec"]["template"]
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    named_ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    for port in service["ports"]:
        assert named_ports[port["targetPort"]] == port["port"]
    # The agents' own pods are not the collector's, whatever else they share.
    agent = of_kind(documents, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert not service["selector"].items() <= agent.items()


def test_each_pipeline_of_the_collector_ends_in_what_is_configured() -> None:
    """Every component that a pipeline names is there, and every one that is there is named."""
    for name in ("collector", "everything"):
        text = named(of_set(name), "ConfigMap", "r-collector")["data"]["collector.yaml"]
        configuration = yaml.safe_load(text)
        pipelines = configuration["service"]["pipelines"]
        assert set(pipelines) == {"metrics", "logs", "traces"}
        for part in ("receivers", "processors", "exporters"):
            assert {each for pipeline in pipelines.values() for each in pipeline[part]} == set(configuration[part])


def test_shards_are_told_apart_by_their_pods() -> None:
    """Each analyzer is told which share of the jobs is its own, out of as many as there are pods."""
    stateful = of_kind(of_set("analyzer"), "StatefulSet")["spec"]
    (container,) = stateful["template"]["spec"]["containers"]
    assert stateful["replicas"] == 4
    assert container["args"][-2:] == ["--shard", "$(SHARD)/4"]
    (shard,) = [entry for entry in container["env"] if entry["name"] == "SHARD"]
    assert shard["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"


@pytest.mark.parametrize(("name", "store"), [("everything", "prometheus"), ("collector", "victoriametrics")])
def test_rules_are_those_of_the_project(name: str, store: str) -> None:
    """Alerts and recording rules arrive as they are committed, `{{ $labels }}` and all, in the store's own words."""
    documents = of_set(name)
    for rule, committed in (("r-alerts", "rankscope.rules.json"), (f"r-recording-{store}", f"recording.{store}.json")):
        spec = named(documents, "PrometheusRule", rule)["spec"]
        assert spec == json.loads((ROOT / "dashboards/rules" / committed).read_text())


def test_dashboards_are_those_of_the_project() -> None:
    """Each is a ConfigMap that Grafana's sidecar finds, no larger than one may be."""
    maps = [each for each in of_set("everything") if "grafana_dashboard" in each["metadata"]["labels"]]
    found = {name: json.loads(text) for each in maps for name, text in each["data"].items()}
    assert found == {path.name: json.loads(path.read_text()) for path in (ROOT / "dashboards/grafana").glob("*.json")}
    assert all(len(json.dumps(each)) < LARGEST_CONFIGMAP_BYTES for each in maps)
    assert {each["metadata"]["annotations"]["grafana_folder"] for each in maps} == {"Rankscope"}


def test_nothing_comes_in_but_to_the_collector() -> None:
    """Each pod has a policy: what is scraped or sent to is open, and nothing else."""
    policies = [each["spec"] for each in of_set("everything") if each["kind"] == "NetworkPolicy"]
    by_component = {each["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: each for each in policies}
    assert set(by_component) == {"agent", "analyzer", "collector"}
    for component, policy in by_component.items():
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        ports = [port["port"] for rule in policy.get("ingress", []) for port in rule["ports"]]
        assert ports == {"collector": [4317, 4318, 8888], "agent": [9464], "analyzer": []}[component]
    (policy,) = [each["spec"] for each in of_set("restricted") if each["kind"] == "NetworkPolicy"]
    assert "ingress" not in policy


def egress(documents: list[dict[str, Any]]) -> dict[str, set[int]]:
    """Ports by component that its policy lets out, but for name look-ups."""
    found = {}
    for each in documents:
        if each["kind"] == "NetworkPolicy":
            component = each["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            found[component] = {port["port"] for rule in each["spec"]["egress"] for port in rule["ports"]} - {53}
    return found


def test_only_what_the_values_name_is_called() -> None:
    """A policy lets each component out to the ports of its own URLs, whatever they are, and to those a site adds."""
    assert egress(of_set("everything")) == {"agent": {4318}, "analyzer": {4318, 9090}, "collector": {9090, 4318}}
    assert egress(of_set("sidecar")) == {"analyzer": {4318, 8428}, "collector": {8428}}
    words = "--set=networkPolicy.enabled=true"
    assert egress(manifests(words)) == {"agent": set()}
    assert egress(manifests(words, "--set=otlp.endpoint=https://otlp.example.org/v1")) == {"agent": {443}}
    assert egress(manifests(words, "--set=otlp.endpoint=http://[fd00::1]")) == {"agent": {80}}
    more = manifests(words, "--set=otlp.endpoint=http://o:4318", "--set=networkPolicy.egressPorts={9009,4318}")
    assert egress(more) == {"agent": {4318, 9009}}


#: Of the definitions of prometheus-operator 0.82: fields of a group and of a rule, and how durations are written.
GROUP = {"name", "interval", "labels", "limit", "partial_response_strategy", "query_offset", "rules"}
RULE = {"alert", "annotations", "expr", "for", "keep_firing_for", "labels", "record"}
DURATION = re.compile(r"(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?")


@pytest.mark.parametrize("name", ["everything", "collector"])
def test_rules_are_such_as_the_operator_takes(name: str) -> None:
    """Its definition knows every field, durations are its own, groups have names of their own, a rule is one of two."""
    for spec in (each["spec"] for each in of_set(name) if each["kind"] == "PrometheusRule"):
        assert spec.keys() == {"groups"}
        names = [group["name"] for group in spec["groups"]]
        assert len(set(names)) == len(names)
        for group in spec["groups"]:
            assert group.keys() <= GROUP
            for rule in group["rules"]:
                assert rule.keys() <= RULE
                assert ("alert" in rule) != ("record" in rule)
                assert isinstance(rule["expr"], str)
                durations = [rule[key] for key in ("for", "keep_firing_for") if key in rule]
                assert all(DURATION.fullmatch(each) for each in (*durations, group.get("interval", "1m")))
                texts = [*rule.get("labels", {}).values(), *rule.get("annotations", {}).values()]
                assert all(isinstance(text, str) for text in texts)


def test_the_schema_of_the_values_says_what_each_is() -> None:
    """Each value that the chart has stands in its schema with a description, and no object takes what nobody reads."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() - {"global"} == values.keys()
    assert all(each.get("description") for each in schema["properties"].values() if "$ref" not in each)
    free = {"nodeSelector", "global"}
    for name, each in schema["properties"].items():
        if each.get("type") == "object" and name not in free:
            assert each["additionalProperties"] is False, name
            assert isinstance(values[name], dict)
            if name != "settings":
                assert values[name].keys() <= each["properties"].keys()


def test_agents_are_scraped_over_tls_with_a_token() -> None:
    """What the agent is configured with is what is mounted, and what the operator is told to send."""
    from rankscope.agent.config import parse_settings

    documents = of_set("everything")
    settings = parse_settings(named(documents, "ConfigMap", "r-agent")["data"]["rankscope.toml"]).prometheus
    pod = of_kind(documents, "DaemonSet")["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "scrape"]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "scrape"]
    mounted = {f"{mount['mountPath']}/{item['path']}" for item in volume["secret"]["items"]}
    assert {settings.certificate, settings.key, settings.token_file} == mounted
    assert pod["containers"][0]["ports"] == [{"name": "metrics", "containerPort": settings.port}]
    (endpoint,) = named(documents, "ServiceMonitor", "r-agent")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["authorization"]["credentials"] == {"name": volume["secret"]["secretName"], "key": "token"}


def test_the_sidecar_is_a_pod_that_a_restricted_namespace_takes() -> None:
    """No hostPath, no host namespace, one user, and both containers share the rings."""
    pod = yaml.safe_load((ROOT / "examples/kubernetes-sidecar.yaml").read_text())
    kubernetes_validate.validate(pod, "1.31", strict=True)
    spec = pod["spec"]
    assert not {"hostPID", "hostNetwork", "hostIPC"} & spec.keys()
    assert all("emptyDir" in volume for volume in spec["volumes"])
    for container in (*spec["initContainers"], *spec["containers"]):
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"name": "rings", "mountPath": "/rings"} in container["volumeMounts"]
        assert {"name": "RANKSCOPE_DIR", "value": "/rings"} in container["env"]
