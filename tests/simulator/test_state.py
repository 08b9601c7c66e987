"""The shared file of a host: the same for every process that maps it, the same for the same seed, and checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from simulated_nvml import NodeFactory

from rankscope.errors import SimulatorError
from rankscope.simulator.profiles import PROFILES
from rankscope.simulator.state import NodeState


def test_another_process_sees_each_write(make_node: NodeFactory) -> None:
    """A rank in its own process adds busy time and reads the work factor; both sides see each other's writes."""
    node = make_node()
    node.gpus[1].work_factor = 1.25
    rank = (
        "import sys\nfrom rankscope.simulator.state import NodeState\n"
        "gpu = NodeState.open(sys.argv[1]).gpus[1]\ngpu.busy_ns += int(1000 * gpu.work_factor)"
    )
    subprocess.run([sys.executable, "-c", rank, str(node.path)], check=True)
    assert node.gpus[1].busy_ns == 1250
    assert node.gpus[0].busy_ns == 0


@pytest.mark.parametrize("profile", PROFILES)
def test_identity_follows_seed_host_and_index(profile: str, tmp_path: Path) -> None:
    """The same seed gives the same GPUs again; another seed, host or index gives another UUID."""

    def identities(seed: int, host: str) -> list[str]:
        node = NodeState.create(tmp_path / "n", profile=profile, gpus=8, seed=seed, host=host)
        assert len({gpu.pci_bus_id for gpu in node.gpus}) == 8
        return [gpu.uuid for gpu in node.gpus]

    first = identities(1, "a")
    assert identities(1, "a") == first
    assert len({*first, *identities(2, "a"), *identities(1, "b")}) == 24


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"profile": "H200"}, "no GPU profile 'H200'; choose one of H100-SXM5-80GB"),
        ({"gpus": 0}, "0 GPUs; choose 1 to 64"),
        ({"gpus": 65}, "65 GPUs; choose 1 to 64"),
        ({"driver": "latest"}, "driver version 'latest'; write it like 580.95.05"),
    ],
)
def test_a_host_that_cannot_be_is_refused(arguments: dict[str, object], words: str, make_node: NodeFactory) -> None:
    """An unknown profile, a wrong count and a driver version that is none are named in one line."""
    with pytest.raises(SimulatorError) as raised:
        make_node(**arguments)
    assert words in str(raised.value)


def test_what_is_no_state_is_not_opened(make_node: NodeFactory, tmp_path: Path) -> None:
    """A missing file, one cut short and one of another layout version are refused."""
    node = make_node()
    whole = node.path.read_bytes()
    (tmp_path / "short").write_bytes(whole[:-8])
    (tmp_path / "newer").write_bytes(whole[:8] + b"\xff" + whole[9:])
    for name, words in (("absent", "cannot open"), ("short", "not a node state"), ("newer", "not a node state")):
        with pytest.raises(SimulatorError, match=words):
            NodeState.open(tmp_path / name)


def test_a_new_host_does_not_disturb_readers_of_the_old(make_node: NodeFactory) -> None:
    """Creating a host again replaces the file: who mapped the old one keeps a whole map of it."""
    old = make_node()
    old.gpus[0].busy_ns = 7
    new = make_node()
    assert (old.gpus[0].busy_ns, new.gpus[0].busy_ns) == (7, 0)
