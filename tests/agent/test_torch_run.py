"""A real torchrun job under `rankscope run`, nothing simulated: attached without a change to the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from rankscope.agent.fingerprint import load_fingerprints
from rankscope.agent.load import load_window

TRAIN = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
torch.set_num_threads(1)
model = DistributedDataParallel(torch.nn.Linear(64, 8))
optimizer = torch.optim.SGD(model.parameters(), 0.01)
data = torch.utils.data.TensorDataset(torch.randn(320, 64), torch.randn(320, 8))
for inputs, targets in torch.utils.data.DataLoader(data, batch_size=8):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
dist.barrier()
dist.destroy_process_group()
"""


def test_torchrun_is_watched_without_a_change(tmp_path: Path) -> None:
    """Two DDP ranks attach by themselves, every step of both is recorded, and the verdict is healthy with status 0."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "shm").mkdir()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RANKSCOPE")}
    environ |= {
        "RANKSCOPE_STATE": str(tmp_path / "state"),
        "RANKSCOPE_DIR": str(tmp_path / "shm"),
        "OMP_NUM_THREADS": "1",
    }
    watched = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "run"]
    watched += ["--json", str(tmp_path / "verdict.json"), "--"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    torchrun += ["--log-dir", str(tmp_path / "logs")]
    done = subprocess.run(
        [*watched, *torchrun, str(tmp_path / "train.py")], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["job"]["name"] == "train"
    assert [finding for finding in verdict["findings"] if finding["side"] == "hardware"] == []
    assert any(line.startswith("nvml: unsupported") for line in verdict["not_seen"])
    window = load_window([tmp_path / "state" / "train"])
    assert sorted(window.ranks) == [0, 1]
    for rank in window.ranks.values():
        assert len(rank.steps) >= 39
        assert list(rank.groups) != []
        assert rank.identity.world_size == 2
    facts = load_fingerprints([tmp_path / "state" / "train"]).ranks
    assert {of["torch"] for of in facts.values()} == {torch.__version__}
    assert all(of["environment"]["OMP_NUM_THREADS"] == "1" and len(of["script_sha256"]) == 64 for of in facts.values())
    exits = [event for event in window.events if event.kind == "rank-exited"]
    assert [event.attributes["clean"] for event in exits] == [1, 1]
    assert list((tmp_path / "shm").iterdir()) == []
