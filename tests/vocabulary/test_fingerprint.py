"""Fingerprints: what may be recorded of an environment and a command line, and the commit by files alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rankscope.fingerprint import allowed_environment, commit_of, safe_arguments
from rankscope.probes.host_facts import host_facts
from rankscope.torch_hooks.fingerprint import MAX_BYTES, SUFFIX, fingerprint, write_fingerprint

SECRET = "hf_Zz9secretSECRETsecret"


def test_only_listed_variables_are_taken_and_none_that_names_a_secret() -> None:
    """Secrets stand in variables of every name; what is listed steers libraries, and even there names are looked at."""
    found = allowed_environment(
        {
            "NCCL_ALGO": "Ring",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            "CUDA_VISIBLE_DEVICES": "0,1",
            "TORCH_HUB_TOKEN": SECRET,
            "NCCL_AUTH_KEY": SECRET,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "WANDB_API_KEY": SECRET,
            "HOME": "/root",
            "PYTORCH_REPOSITORY": f"https://user:{SECRET}@index/simple",
            "NCCL_DEBUG_FILE": "x" * 5000,
        }
    )
    assert list(found) == [
        "CUDA_VISIBLE_DEVICES",
        "NCCL_ALGO",
        "NCCL_DEBUG_FILE",
        "PYTORCH_REPOSITORY",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    ]
    assert SECRET not in str(found)
    assert len(found["NCCL_DEBUG_FILE"]) == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key", SECRET],
        [f"--api-key={SECRET}"],
        ["--token", "short"],
        ["--login", "short"],
        ["short"],
        ["--name", "hunter2"],
        ["-phunter2"],
        ["--password=short"],
        ["--login", SECRET],
        [f"--endpoint=https://user:{SECRET}@host/"],
        [SECRET],
        [f"-p{SECRET}!"],
    ],
    ids=str,
)
def test_no_secret_of_a_command_line_is_kept(arguments: list[str]) -> None:
    """By the option's name, or because it is no number, short word or path: then a hash tells whether it changed."""
    safe = safe_arguments(arguments)
    assert SECRET not in str(safe)
    assert not {"short", "hunter2", "-phunter2"} & set(safe)
    assert "--password=short" not in safe
    assert len(safe) == len(arguments)


def test_what_steers_a_run_is_kept() -> None:
    """Numbers, words and paths are what one wants to compare."""
    given = [
        "--lr",
        "3e-4",
        "--bf16",
        "--optimizer",
        "adamw",
        "--dtype=bf16",
        "--size",
        "7b",
        "--data=/data/corpus-v2",
        "configs/7b.yaml",
        "--world",
        "8",
        "--offset",
        "-2",
    ]
    assert safe_arguments(given) == given


def test_the_commit_is_read_from_the_repositorys_files(tmp_path: Path) -> None:
    """A branch, a packed branch, a worktree and a detached head give what git gives; no repository gives None."""
    script = tmp_path / "src/train.py"
    script.parent.mkdir()
    script.write_text("")
    assert commit_of(tmp_path / "src" / "train.py") is None or not (tmp_path / ".git").exists()

    def git(*words: str, cwd: Path = tmp_path) -> str:
        quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        who = {f"GIT_{role}_{field}": "a@b" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", *words], cwd=cwd, check=True, capture_output=True, text=True, env={**os.environ, **quiet, **who}
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert commit_of(script) == commit
    git("pack-refs", "--all")
    assert commit_of(script) == commit
    git("worktree", "add", "-q", "../tree", "-b", "other")
    assert commit_of(tmp_path / "../tree/src/train.py") == commit
    git("checkout", "-q", "--detach")
    assert commit_of(script) == commit


def test_a_rank_leaves_its_facts_beside_its_ring(tmp_path: Path) -> None:
    """Readable by its user alone and bounded; a directory that cannot be written raises nothing."""
    ring = tmp_path / "job.0.1.2.ring"
    write_fingerprint(ring, {"NCCL_ALGO": "Ring", "HF_TOKEN": SECRET})
    left = ring.with_name(ring.name + SUFFIX)
    assert left.stat().st_mode & 0o777 == 0o600
    assert 0 < left.stat().st_size <= MAX_BYTES
    assert SECRET not in left.read_text()
    facts = fingerprint({"NCCL_ALGO": "Ring"})
    assert facts["environment"] == {"NCCL_ALGO": "Ring"}
    assert facts["packages"]["numpy"]
    write_fingerprint(left / "no" / "directory.ring", {})


def test_the_host_is_described_by_files_alone(tmp_path: Path) -> None:
    """Kernel, firmware, drivers and cards from a tree of files; what is absent is left out."""
    for name, text in {
        "proc/sys/kernel/osrelease": "6.8.0-31-generic\n",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: EPYC 9654\nmicrocode\t: 0xa1\n\nprocessor\t: 1\n",
        "proc/meminfo": "MemTotal:       1056429 kB\n",
        "sys/module/nvidia/version": "580.95.05\n",
        "etc/nccl.conf": "# tuned\nNCCL_IB_HCA = mlx5 # cards\nNCCL_SECRET=x\nOTHER=1\nnonsense\n",
        "sys/class/infiniband/mlx5_0/fw_ver": "28.39.1002\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert host_facts(proc=tmp_path / "proc", sys=tmp_path / "sys", etc=tmp_path / "etc") == {
        "kernel": "6.8.0-31-generic",
        "gpu_driver": "580.95.05",
        "transparent_huge_pages": "madvise",
        "cpu": "EPYC 9654",
        "microcode": "0xa1",
        "cores": 2,
        "memory_total_kib": 1056429,
        "nccl_conf": {"NCCL_IB_HCA": "mlx5"},
        "network": {"mlx5_0": {"firmware": "28.39.1002"}},
    }
    assert host_facts(proc=tmp_path / "none", sys=tmp_path / "none", etc=tmp_path / "none") == {}
