"""What ships beside the package for a site to start from: a service, Slurm's hooks, a local stack."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import components
import pytest
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
UNIT = EXAMPLES / "systemd/rankscope-agent.service"
STACK = EXAMPLES / "stack"


class Slurm:
    """A node of a Slurm cluster: commands on PATH that write down how they are called, and refuse what Slurm would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log, self.calls = directory / "log", directory / "calls"
        (directory / "bin").mkdir()
        (directory / "state/slurm-17").mkdir(parents=True)
        self._command("logger", f'echo "$@" >> {self.log}')
        self._command("rankscope", f"cat {directory}/verdict.json")
        self._command(
            "scontrol",
            'case "$1 $2 $3 $4" in "update NodeName=gpu-7 State=DRAIN Reason="?*) ;;'
            ' *) echo "scontrol: error: Invalid input: $*" >&2; exit 1 ;; esac\n'
            f'[ $# = 4 ] && printf "%s\\n" "$*" >> {self.calls}',
        )

    def _command(self, name: str, body: str) -> None:
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def epilog(self, verdict: str, *, drain: bool = True, job: str = "17") -> tuple[list[str], str]:
        """Run the epilog over a verdict; returns how scontrol was called, and what was logged."""
        self.calls.write_text("")
        self.log.write_text("")
        (self.directory / "verdict.json").write_text(verdict)
        (self.directory / "slurm.conf").write_text("RANKSCOPE_DRAIN=yes\n" if drain else "")
        environment = {
            "PATH": f"{self.directory}/bin:{os.environ['PATH']}",
            "RANKSCOPE": f"{self.directory}/bin/rankscope",
            "RANKSCOPE_STATE": f"{self.directory}/state",
            "RANKSCOPE_SETTINGS": f"{self.directory}/slurm.conf",
            "SLURM_JOB_ID": job,
            "SLURMD_NODENAME": "gpu-7",
        }
        done = subprocess.run(
            [str(EXAMPLES / "slurm/epilog.sh")], env=environment, capture_output=True, text=True, check=False
        )
        # Anything else would have Slurm drain the node by itself.
        assert done.returncode == 0, done.stderr
        return self.calls.read_text().splitlines(), self.log.read_text()


@pytest.fixture(name="slurm")
def make_slurm(tmp_path: Path) -> Slurm:
    """A node."""
    return Slurm(tmp_path)


def verdict(**changes: Any) -> str:
    """A verdict with one finding, as `rankscope report --json` writes it."""
    finding = {"class": "gpu-ecc-uncorrectable", "side": "hardware", "confidence": 0.97, "advice": "act"}
    return json.dumps({"findings": [{**finding, "where": {"host": "gpu-7.example.org", "rank": 3}, **changes}]})


def test_a_node_is_drained_only_where_the_site_allows_it(slurm: Slurm) -> None:
    """By default the log says what would be done; allowed, Slurm is told once, with the class and the job."""
    calls, log = slurm.epilog(verdict(), drain=False)
    assert calls == []
    assert "would drain gpu-7: rankscope: gpu-ecc-uncorrectable (0.97) in job 17" in log
    calls, log = slurm.epilog(verdict())
    assert calls == ["update NodeName=gpu-7 State=DRAIN Reason=rankscope: gpu-ecc-uncorrectable (0.97) in job 17"]
    assert "drained gpu-7" in log


@pytest.mark.parametrize(
    "changes",
    [
        {"side": "code"},
        {"side": "unknown"},
        {"confidence": 0.89},
        {"advice": "watch"},
        {"where": {"host": "gpu-8", "rank": 3}},
    ],
)
def test_nothing_else_drains_a_node(slurm: Slurm, changes: dict[str, Any]) -> None:
    """Code, doubt, an advice to watch, and another node's fault leave this node alone."""
    assert slurm.epilog(verdict(**changes))[0] == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"findings": [{}]}', '{"findings": 3}', "\0\xff"])
def test_a_verdict_that_is_none_drains_nothing(slurm: Slurm, text: str) -> None:
    """Whatever stands where a verdict should, the epilog ends well and Slurm is not told."""
    assert slurm.epilog(text)[0] == []


@pytest.mark.parametrize("job", ["", "../../etc", "17;reboot", "$(id)", "17 18"])
def test_a_job_id_that_is_no_number_becomes_no_path(slurm: Slurm, job: str) -> None:
    """Only what Slurm itself would give is looked up."""
    calls, log = slurm.epilog(verdict(), job=job)
    assert calls == []
    assert "no job id" in log


def test_tasks_are_told_where_rings_lie() -> None:
    """Each line that Slurm reads from a TaskProlog is an export, and names the job as the epilog looks for it."""
    done = subprocess.run(
        [str(EXAMPLES / "slurm/task_prolog.sh")], env={"SLURM_JOB_ID": "17"}, capture_output=True, text=True, check=True
    )
    lines = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
    assert lines == {"RANKSCOPE_ATTACH": "1", "RANKSCOPE_DIR": "/dev/shm/rankscope", "RANKSCOPE_JOB": "slurm-17"}
    assert subprocess.run(["bash", "-n", str(EXAMPLES / "slurm/train.sbatch")], check=False).returncode == 0


class Cluster:
    """A `kubectl` on PATH over some nodes, that writes down taints and refuses what the real one would."""

    def __init__(self, directory: Path, *nodes: str) -> None:
        self.directory, self.calls = directory, directory / "calls"
        self.calls.touch()
        names = " ".join(f"node/{node}" for node in nodes)
        path = directory / "kubectl"
        path.write_text(
            "#!/bin/sh\n"
            f'case "$*" in "get nodes -o name") printf "%s\\n" {names} ;;\n'
            f'"taint nodes "*":NoSchedule --overwrite") [ $# = 5 ] && echo "$*" >> {self.calls} ;;\n'
            '*) echo "error: unknown command: $*" >&2; exit 1 ;; esac\n'
        )
        path.chmod(0o755)

    def taint(self, verdict: str, *arguments: str) -> tuple[int, list[str], str]:
        """Hand a verdict to the script; returns its status, the taints that were set and what it said."""
        done = subprocess.run(
            [str(EXAMPLES / "kubernetes-taint.sh"), *arguments],
            input=verdict,
            env={"PATH": f"{self.directory}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, self.calls.read_text().splitlines(), done.stdout + done.stderr


def test_a_kubernetes_node_is_tainted_only_by_request(tmp_path: Path) -> None:
    """A dry run says what it would do; with --apply the node whose first label the verdict names gets the class."""
    cluster = Cluster(tmp_path, "gpu-8.example.org", "gpu-7.example.org")
    taint = "taint nodes gpu-7.example.org rankscope/hardware=gpu-ecc-uncorrectable:NoSchedule --overwrite"
    assert cluster.taint(verdict()) == (0, [], f"would run: kubectl {taint}\n")
    assert cluster.taint(verdict(), "--apply") == (0, [taint], "")


@pytest.mark.parametrize("host", ["gpu-9", "gpu", "gpu-7;reboot", "$(id)", "", None, "gpu-6"])
def test_a_node_that_is_not_one_is_not_tainted(tmp_path: Path, host: str | None) -> None:
    """Unknown and hostile names, and one that two nodes begin with, are left alone."""
    cluster = Cluster(tmp_path, "gpu-7.example.org", "gpu-6.example.org", "gpu-6.example.com")
    status, calls, _ = cluster.taint(verdict(where={"host": host, "rank": 3}), "--apply")
    assert (status, calls) == (0, [])


@pytest.mark.parametrize("changes", [{"side": "code"}, {"confidence": 0.89}, {"advice": "watch"}, {"class": "x y"}])
def test_doubt_taints_no_node(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Code, doubt and an advice to watch leave every node alone."""
    assert Cluster(tmp_path, "gpu-7").taint(verdict(**changes), "--apply")[:2] == (0, [])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"findings": [{}]}', '{"findings": 3}', "\0"])
def test_what_is_no_verdict_taints_no_node(tmp_path: Path, text: str) -> None:
    """One line, status 2, and no call."""
    status, calls, said = Cluster(tmp_path, "gpu-7").taint(text, "--apply")
    assert (status, calls, said) == (2, [], "kubernetes-taint: no verdict on standard input\n")
    assert Cluster(tmp_path, "gpu-7").taint(verdict(), "--aply")[:2] == (2, [])


def test_the_service_may_do_little(tmp_path: Path) -> None:
    """The unit holds what docs/privileges.md lists and nothing more; systemd takes it where it is installed."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert set(service["CapabilityBoundingSet"].split()) == {"CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_SYSLOG"}
    assert service["NoNewPrivileges"] == service["PrivateTmp"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["DevicePolicy"] == "closed"
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    rankscope = tmp_path / "rankscope"
    rankscope.write_text("#!/bin/sh\n")
    rankscope.chmod(0o755)
    installed = tmp_path / UNIT.name
    installed.write_text(UNIT.read_text().replace("/opt/rankscope/bin/rankscope", str(rankscope)))
    done = subprocess.run([analyze, "verify", str(installed)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_stack_listens_on_loopback_and_mounts_what_is_there() -> None:
    """Each image has a version, each port is loopback's, each file that is mounted exists and is read-only."""
    stack = yaml.safe_load((STACK / "compose.yaml").read_text())
    assert set(stack["services"]) == {"collector", "prometheus", "alertmanager", "grafana"}
    for service in stack["services"].values():
        assert service["image"].rpartition(":")[2][:2].strip("v")[0].isdigit()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (STACK / source).exists(), source
                assert rest.endswith(":ro")
            else:
                assert source in stack["volumes"]


def test_the_stacks_collector_leads_somewhere() -> None:
    """Every component that is configured is in a pipeline, and metrics go to the stack's own Prometheus."""
    collector = yaml.safe_load((STACK / "collector.yaml").read_text())
    pipelines = collector["service"]["pipelines"]
    for part in ("receivers", "processors", "exporters"):
        assert {each for pipeline in pipelines.values() for each in pipeline[part]} == set(collector[part])
    assert pipelines["metrics"]["exporters"] == ["otlphttp"]
    assert collector["exporters"]["otlphttp"]["endpoint"].startswith("http://prometheus:9090/")


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """`promtool check config` reads it, with every rule file where the stack mounts them.

    The section on OTLP is of Prometheus 2.55 and later, which the one here may not be: only its keys are looked at.
    """
    configuration = yaml.safe_load((STACK / "prometheus.yaml").read_text())
    assert configuration.pop("otlp") == {"promote_resource_attributes": ["host.name", "rankscope.job"]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    shutil.copytree(EXAMPLES.parent / "dashboards/rules", tmp_path / "rules")
    command = [str(components.need("promtool")), "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in configuration["rule_files"]:
        assert f"/{name}\n  SUCCESS" in done.stdout
