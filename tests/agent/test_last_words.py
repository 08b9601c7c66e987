"""What a dead rank's process left: error file, end of standard error, cgroup's kills - bounded, foreign, no secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankscope.agent.last_words import ProcessTraces, clean_tail, left_behind, parse_error_file
from rankscope.reading import Event
from rankscope.redact import without_secrets


def fake_process(root: Path, *, error_file: Path | None = None, kills: int = 0, stderr: Path | None = None) -> Path:
    """A /proc and a cgroup tree with one process, 7."""
    process = root / "proc/7"
    (process / "fd").mkdir(parents=True)
    named = b"" if error_file is None else b"TORCHELASTIC_ERROR_FILE=" + os.fsencode(error_file)
    (process / "environ").write_bytes(b"HOME=/root\0" + named + b"\0API_TOKEN=never-read\0")
    (process / "cgroup").write_text("0::/job/rank7\n")
    if stderr is not None:
        (process / "fd/2").symlink_to(stderr)
    cgroup = root / "cgroup/job/rank7"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.events").write_text(f"low 0\noom 3\noom_kill {kills}\n")
    (cgroup / "memory.max").write_text("4294967296\n")
    return cgroup


def traces(root: Path) -> ProcessTraces:
    """Its traces."""
    return ProcessTraces(7, proc=root / "proc", cgroups=root / "cgroup")


def exited(**attributes: int) -> Event:
    """The event of a rank's end."""
    return Event("rank-exited", 5, "rank 3 ended", rank=3, attributes={"pid": 7, "clean": 0} | attributes)


def test_error_file(tmp_path: Path) -> None:
    """The launcher's error file is found by the process's environment and read once it has ended."""
    file = tmp_path / "error.json"
    fake_process(tmp_path, error_file=file)
    found = traces(tmp_path)
    file.write_text(
        json.dumps({"message": {"message": "KeyError: 'x'", "extraInfo": {"py_callstack": "Traceback\n  train"}}})
    )
    events = left_behind(found, exited(status=1), [found])
    assert [(event.kind, event.rank) for event in events] == [("rank-error", 3)]
    assert events[0].text.startswith("KeyError: 'x'\nTraceback")


def test_killed_for_memory(tmp_path: Path) -> None:
    """A cgroup whose counter moved while the rank lived, and a SIGKILL: killed for memory, with the limit."""
    cgroup = fake_process(tmp_path, kills=2)
    found = traces(tmp_path)
    assert left_behind(found, exited(signal=9), [found]) == []
    (cgroup / "memory.events").write_text("oom_kill 3\n")
    (event,) = left_behind(found, exited(signal=9), [found])
    assert (event.kind, event.attributes["pid"]) == ("oom-kill", 7)
    assert "limit 4.0 GiB" in event.text
    assert left_behind(found, exited(signal=15), [found]) == []


def test_stderr_of_a_real_process(tmp_path: Path) -> None:
    """The end of a file that standard error goes to, from where this process began to write."""
    log = tmp_path / "stderr"
    log.write_text("of an earlier process\n")
    script = (
        "import sys; sys.stdin.readline(); sys.stderr.write('Traceback\\nValueError: no password=hunter22 here\\n')"
    )
    with (
        log.open("ab") as file,
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=file) as job,
    ):
        found = ProcessTraces(job.pid)
        job.communicate(b"\n", timeout=60)
    (event,) = left_behind(found, exited(status=1), [found])
    assert event.text == "Traceback\nValueError: no password=[removed] here"
    (shared,) = left_behind(found, exited(status=1), [found, found])
    assert (event.attributes["shared"], shared.attributes["shared"]) == (0, 1)


def test_ended_well(tmp_path: Path) -> None:
    """A rank that ended well leaves nothing worth recording."""
    file = tmp_path / "error.json"
    file.write_text('{"message": "x"}')
    fake_process(tmp_path, error_file=file)
    found = traces(tmp_path)
    assert left_behind(found, exited(clean=1), [found]) == []


def test_nothing_there(tmp_path: Path) -> None:
    """A process that is gone, and files that are pipes, links or directories, give nothing and raise nothing."""
    assert ProcessTraces(7, proc=tmp_path, cgroups=tmp_path).read().error == ""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    fake_process(tmp_path, error_file=pipe, stderr=pipe)
    words = traces(tmp_path).read()
    assert (words.error, words.stderr) == ("", "")
    assert "terminal or a pipe" in words.stderr_unseen


@pytest.mark.parametrize(
    "data", [b"", b"x", b"[]", b"{}", b'{"message": 3}', b'{"message": {"message": []}}', b"[" * 100_000, b"\xff" * 99]
)
def test_error_files_that_are_none(data: bytes) -> None:
    """Anything else in the launcher's file says nothing."""
    assert parse_error_file(data) == ""


def test_bounded() -> None:
    """However much was written, some thousand characters are kept: the last ones."""
    text = clean_tail(b"".join(b"line %d\x1b[31m\n" % number for number in range(2000))[-8192:])
    assert len(text) <= 4000
    assert text.endswith("line 1999?[31m")
    assert text.startswith("line ")
    assert len(parse_error_file(json.dumps({"message": "m" * 100_000}).encode())) <= 4000


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("password=hunter22", "hunter22"),
        ('{"api_key": "abcd1234efgh"}', "abcd1234efgh"),
        ("HF_TOKEN=hf_aBcDeFgHiJkLmNoPqRsT", "hf_aBc"),
        ("pushing with hf_aBcDeFgHiJkLmNoPqRsT", "hf_aBc"),
        ("Authorization: Bearer abc.def.ghi12345", "abc.def"),
        ("git clone https://user:s3cr3tpw@host/x.git", "s3cr3tpw"),
        ("s3://bucket/x?X-Amz-Signature=deadbeefcafe01", "deadbeef"),
        ("key AKIAABCDEFGHIJKLMNOP used", "AKIAABCD"),
        ("wandb login --token 0123456789abcdef0123", "0123456789abcdef"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM", "eyJhbGci"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
        ("AWS_SECRET_ACCESS_KEY='wJalrXUtnFEMI/K7MDENG'", "wJalr"),
    ],
)
def test_secrets(text: str, gone: str) -> None:
    """Passwords and keys do not get into a recording, and twice is as once."""
    assert gone not in without_secrets(text)
    assert without_secrets(without_secrets(text)) == without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: token 50257 out of range",
        "RuntimeError: The size of tensor a (64) must match the size of tensor b (32)",
        "KeyError: 'tokens'",
        "12000 tokens per second",
        "socket authentication failed",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    """Ordinary errors stay as they are."""
    assert without_secrets(text) == text
