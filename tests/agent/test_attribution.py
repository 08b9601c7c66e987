"""Who uses which GPU: by UUID and announced process ids, each process with its own share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema

from rankscope.agent.attribution import GpuUse, RankProcess, attribute
from rankscope.agent.places import Place
from rankscope.gpu_device import process_on
from rankscope.reading import Event, Reading
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.state import STATE_VARIABLE, NodeState
from rankscope.testing import FakeHost

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/gpus.schema.json").read_text())
MIB = 2.0**20


def process(host: FakeHost, pid: int, name: str, parent: int = 1) -> None:
    """A process of a made-up /proc."""
    host.write(f"proc/{pid}/comm", f"{name}\n")
    host.write(f"proc/{pid}/stat", f"{pid} ({name}) S {parent} " + " ".join(["0"] * 49))


def memory(device: str, pid: int, mib: float) -> Reading:
    """What NVML says of one process."""
    return Reading("gpu_process.memory_used_bytes", mib * MIB, 1, process_on(device, pid))


def test_each_process_has_its_own_share_of_a_shared_gpu(tmp_path: Path) -> None:
    """Memory by process; SM time by process where NVML tells it, else the device's, shared; a worker is its rank's."""
    host = FakeHost(tmp_path)
    for pid, name, parent in ((70, "train", 1), (71, "pt_worker", 70), (90, "notebook", 1)):
        process(host, pid, name, parent)
    uses = attribute(
        [
            memory("GPU-a", 70, 4000),
            memory("GPU-a", 71, 300),
            memory("GPU-a", 90, 900),
            Reading("gpu_process.sm_utilization_ratio", 0.6, 1, process_on("GPU-a", 70)),
            Reading("gpu.utilization_ratio", 0.9, 1, "GPU-a"),
        ],
        [RankProcess("job", 3, 70, "GPU-a")],
        proc=host.proc,
        place=lambda pid: Place(pod="p") if pid == 90 else Place(slurm_job="12"),
    )
    told = [(u.pid, u.process, u.rank, u.relation, u.memory_used_bytes, u.sm_utilization_ratio) for u in uses]
    assert told == [
        (70, "train", 3, "rank", 4000 * MIB, 0.6),
        (71, "pt_worker", 3, "below", 300 * MIB, None),
        (90, "notebook", None, None, 900 * MIB, None),
    ]
    assert {(use.device_utilization_ratio, use.sharers) for use in uses} == {(0.9, 3)}
    assert [use.place.known() for use in uses] == [{"slurm_job": "12"}, {"slurm_job": "12"}, {"pod": "p"}]


def test_instances_of_a_gpu_are_devices_of_their_own(tmp_path: Path) -> None:
    """A process on a MIG instance is on that instance and its GPU; SM time told by GPU counts once."""
    uses = attribute(
        [
            memory("MIG-1", 70, 100),
            memory("MIG-2", 80, 200),
            Reading("gpu_process.sm_utilization_ratio", 0.5, 1, process_on("GPU-a", 70)),
        ],
        [RankProcess("job", 0, 70, "MIG-1"), RankProcess("job", 1, 80, "MIG-2")],
        {"MIG-1": "GPU-a", "MIG-2": "GPU-a"},
        proc=tmp_path,
    )
    assert [(u.device, u.gpu_uuid, u.rank, u.sharers, u.sm_utilization_ratio) for u in uses] == [
        ("MIG-1", "GPU-a", 0, 1, 0.5),
        ("MIG-2", "GPU-a", 1, 1, None),
    ]


def test_a_rank_that_nvml_does_not_show_is_there_by_what_it_announced(tmp_path: Path) -> None:
    """In some containers NVML lists no process: the UUID from the ring names the device, in torch's spelling too."""
    uses = attribute([memory("GPU-a", 5, 1)], [RankProcess("job", 2, 70, "a")], proc=tmp_path)
    assert [(use.device, use.pid, use.rank, use.memory_used_bytes) for use in uses] == [
        ("GPU-a", 5, None, MIB),
        ("GPU-a", 70, 2, None),
    ]


def test_a_stranger_is_told_once(tmp_path: Path) -> None:
    """An event when somebody else comes onto a rank's GPU, none for other GPUs, and one more when he comes back."""
    host = FakeHost(tmp_path)
    process(host, 70, "train")
    process(host, 90, "notebook")
    follow = GpuUse("job", host.proc)
    ranks = [RankProcess("job", 0, 70, "GPU-a")]

    def round_of(*readings: Reading) -> list[str]:
        return [event.text for event in follow.take(readings, (), ranks, 1)]

    own, stranger = memory("GPU-a", 70, 10), memory("GPU-a", 90, 20)
    assert round_of(own, memory("GPU-b", 90, 20)) == []
    assert round_of(own, stranger) == ["notebook (pid 90, 20 MiB) uses GPU-a beside the job"]
    assert round_of(own, stranger) == []
    # Another GPU may be told of apart.
    assert round_of(memory("GPU-b", 91, 1)) == []
    assert {use.device for use in follow.uses} == {"GPU-a", "GPU-b"}
    assert round_of(own) == []
    assert round_of(own, stranger) != []
    # A device without a process any more has no users.
    assert round_of(Reading("gpu.processes", 0, 1, "GPU-b")) == []
    assert {use.device for use in follow.uses} == {"GPU-a"}


def test_numbers_of_another_namespace_make_no_strangers(tmp_path: Path) -> None:
    """Where NVML's process ids match no rank, they are not ours to judge."""
    follow = GpuUse("job", tmp_path)
    described = Event("gpu-described", 1, "", device="MIG-1", attributes={"parent": "GPU-a"})
    assert follow.take([memory("MIG-1", 4711, 1)], [described], [RankProcess("job", 0, 7, "MIG-1")], 1) == []
    assert {use.gpu_uuid for use in follow.uses} == {"GPU-a"}


def test_the_command_lists_a_shared_node(
    tmp_path: Path, rings: Path, start_rank: Callable[..., subprocess.Popen[bytes]], wait_until: Callable[..., None]
) -> None:
    """Over a simulated node with a real rank: its process is named as rank 0 of its job, the other one is not."""
    node = NodeState.create(tmp_path / "node", profile="H100-SXM5-80GB", gpus=2)
    rank = start_rank(steps=10, then="stuck")
    node.gpus[1].set_process(rank.pid, 3 << 30)
    node.gpus[1].set_process(os.getpid(), 1 << 30, 1)
    small, large = node.gpus[0].split([(16, 10 << 30), (60, 40 << 30)])
    node.gpus[0].set_process(os.getpid(), 2 << 30, mig=0)
    node.gpus[0].set_process(rank.pid, 5 << 30, 1, mig=1)
    wait_until(lambda: any(rings.glob("*.ring")))
    (tmp_path / "agent.toml").write_text(f"[roots]\nnvml_library = '{build(tmp_path) / LIBRARY}'\n")
    environ = os.environ | {STATE_VARIABLE: str(node.path), "RANKSCOPE_DIR": str(rings), "COLUMNS": "200"}
    command = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "gpus"]
    command += ["--config", str(tmp_path / "agent.toml")]
    said = subprocess.run([*command, "--json"], env=environ, capture_output=True, text=True, timeout=60, check=True)
    document = json.loads(said.stdout)
    jsonschema.validate(document, SCHEMA)
    told = document["uses"]
    found = {(use["device"], use["pid"]): (use["job"], use["rank"], use["memory_used_bytes"]) for use in told}
    assert found == {
        (node.gpus[1].uuid, rank.pid): ("test", 0, 3 << 30),
        (node.gpus[1].uuid, os.getpid()): (None, None, 1 << 30),
        (small.uuid, os.getpid()): (None, None, 2 << 30),
        (large.uuid, rank.pid): ("test", 0, 5 << 30),
    }
    assert {use["gpu_uuid"] for use in told} == {gpu.uuid for gpu in node.gpus}
    assert {use["device"]: use["sharers"] for use in told} == {node.gpus[1].uuid: 2, small.uuid: 1, large.uuid: 1}
    table = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "test rank 0" in table
    assert "3072 MiB" in table
