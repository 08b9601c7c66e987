"""Attachment without a word in the script: under torchrun, in spawned workers, through exec, and only where asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankscope.records import MarkKind, MarkRecord, StepRecord
from rankscope.ring import RingReader

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_ddp.py"
TRAIN = "import torch\nfrom torch.utils.data import DataLoader\n{body}\n"
LOOP = """
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, index): return torch.ones(4)
def train(workers=0):
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Rows(), batch_size=1, num_workers=workers, multiprocessing_context={context}):
        model(batch).sum().backward()
        optimizer.step()
"""


def run(command: list[str], directory: Path, **environment: str) -> tuple[list[RingReader], str]:
    """Run a command with attachment asked for; its rings and its stderr."""
    environ = {**os.environ, "RANKSCOPE_ATTACH": "1", "RANKSCOPE_DIR": str(directory), "OMP_NUM_THREADS": "1"}
    environ.update(environment)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, cwd=directory.parent)
    assert done.returncode == 0, done.stderr
    return [RingReader(path) for path in sorted(directory.glob("*.ring"))], done.stderr


def steps(reader: RingReader) -> list[StepRecord]:
    """The steps of a ring."""
    return [record for record in reader.read().records if isinstance(record, StepRecord)]


def script(tmp_path: Path, body: str, context: str = "None") -> str:
    """A training script."""
    path = tmp_path / "train.py"
    path.write_text(TRAIN.format(body=LOOP.format(context=context) + body))
    return str(path)


def test_ranks_of_torchrun(tmp_path: Path) -> None:
    """Every rank of torchrun has one ring with its identity and steps; the launcher has none; own and wait differ."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    torchrun += ["--log-dir", str(tmp_path / "logs")]
    command = [*torchrun, str(SCRIPT), "--steps", "8"]
    rings, _ = run(command, tmp_path / "rings")
    assert sorted(ring.header.identity.rank for ring in rings) == [0, 1]
    for ring in rings:
        identity = ring.header.identity
        assert (identity.world_size, identity.local_rank, identity.device_clock) == (2, identity.rank, "host")
        records = ring.read().records
        found = [record for record in records if isinstance(record, StepRecord)]
        assert 7 <= len(found) <= 8
        assert all(
            record.backward_own_ns is not None and record.backward_own_ns < record.backward_ns for record in found
        )
        marks = [record.mark for record in records if isinstance(record, MarkRecord)]
        assert marks[0] == MarkKind.ATTACHED
        assert marks[-1] == MarkKind.ENDED


@pytest.mark.parametrize("context", ["'fork'", "'spawn'"])
def test_loader_workers_have_no_ring(tmp_path: Path, context: str) -> None:
    """Workers forked or spawned by the loader attach nothing and do not write into the rank's ring."""
    path = script(tmp_path, "if __name__ == '__main__': train(2)", context)
    rings, errors = run([sys.executable, path], tmp_path / "rings")
    assert len(rings) == 1
    assert len(steps(rings[0])) == 6
    assert "rankscope" not in errors


def test_spawned_training_process(tmp_path: Path) -> None:
    """A training process started by multiprocessing's spawn is watched, its parent is not."""
    body = (
        "if __name__ == '__main__':\n"
        "    import multiprocessing\n"
        "    child = multiprocessing.get_context('spawn').Process(target=train)\n"
        "    child.start(); child.join()"
    )
    rings, _ = run([sys.executable, script(tmp_path, body)], tmp_path / "rings")
    assert [len(steps(ring)) for ring in rings] == [6]


def test_script_that_replaces_itself(tmp_path: Path) -> None:
    """A script that execs another Python before it trains is watched."""
    path = script(tmp_path, "train()")
    launcher = tmp_path / "launch.py"
    launcher.write_text(f"import os, sys, torch\nos.execv(sys.executable, [sys.executable, {path!r}])\n")
    rings, _ = run([sys.executable, str(launcher)], tmp_path / "rings")
    assert [len(steps(ring)) for ring in rings] == [6]


def test_nothing_happens_unasked(tmp_path: Path) -> None:
    """Without RANKSCOPE_ATTACH no ring appears."""
    path = script(tmp_path, "train()")
    rings, _ = run([sys.executable, path], tmp_path / "rings", RANKSCOPE_ATTACH="")
    assert rings == []


def test_exception_is_told(tmp_path: Path) -> None:
    """A rank that dies of an exception says its type and message in its ring."""
    path = script(tmp_path, "import sys\ntry:\n    train()\n    raise ValueError('bad shape')\nexcept ValueError:\n"
                  "    sys.excepthook(*sys.exc_info())")  # fmt: skip
    rings, errors = run([sys.executable, path], tmp_path / "rings")
    texts = [r.text for r in rings[0].read().records if isinstance(r, MarkRecord) and r.mark == MarkKind.EXCEPTION]
    assert texts == ["ValueError: bad shape"]
    assert "ValueError: bad shape" in errors
