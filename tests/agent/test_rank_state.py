"""Asking a rank that makes no progress: a real one that holds the interpreter's lock, and ones that answer nonsense."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flight_dumps import Fault, dumps, parallel_job

from rankscope.agent.load import load_window
from rankscope.agent.rank_state import RankState, StateTaker, ask, compact, find_pyspy, pyspy_text, wait_channel
from rankscope.agent.recording import Recording
from rankscope.clock import SystemClock
from rankscope.exporters.stacks import training_thread
from rankscope.reading import Event
from rankscope.rules import diagnose
from rankscope.rules.flight_live import live_comparison, named

_HOLDS_THE_LOCK = """
import ctypes, os, sys
from pathlib import Path
import torch, torch.distributed
from rankscope.torch_hooks.flight_socket import FlightSocket
assert FlightSocket(Path(sys.argv[1]), {}).open()
def stuck_in_native_code():
    ctypes.PyDLL(None).sleep(60)
print("ready", flush=True)
stuck_in_native_code()
"""


def answer(taker: StateTaker) -> RankState:
    """The next answer."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := taker.done():
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no answer")


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with torch that holds the interpreter's lock in native code."""
    tmp_path.chmod(0o700)
    command = [sys.executable, "-c", _HOLDS_THE_LOCK, str(tmp_path / "1.flight")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_a_rank_that_holds_the_lock(tmp_path: Path, stuck: subprocess.Popen[bytes]) -> None:
    """Its flight recorder answers although no Python of it can run; py-spy, if there is one, sees where it is."""
    pyspy = find_pyspy()
    taker = StateTaker(pyspy=pyspy)
    taker.take(7, stuck.pid, tmp_path / "1.flight")
    assert taker.waiting
    state = answer(taker)
    assert (state.row, state.flight_unseen, taker.waiting) == (7, "", False)
    assert json.loads(state.flight)["entries"] == []
    assert state.stacks or state.stacks_unseen
    if state.stacks:
        assert "stuck_in_native_code" in training_thread(state.stacks)[0]


def test_socket_only_in_a_private_directory(tmp_path: Path) -> None:
    """Where others may enter the directory no socket is opened, nor where it is not wanted."""
    from rankscope.torch_hooks.flight_socket import FlightSocket

    tmp_path.chmod(0o755)
    assert not FlightSocket(tmp_path / "1.flight", {}).open()
    tmp_path.chmod(0o700)
    assert not FlightSocket(tmp_path / "1.flight", {"RANKSCOPE_FLIGHT": "0"}).open()
    assert not FlightSocket(tmp_path / ("x" * 120), {}).open()
    assert not (tmp_path / "1.flight").exists()


def test_socket_opens_in_silence(tmp_path: Path) -> None:
    """A rank's standard error holds what the job says, and not torch's word of the new socket."""
    script = (
        "import os, sys, torch.distributed; from pathlib import Path\n"
        "from rankscope.torch_hooks.flight_socket import FlightSocket\n"
        "os.write(2, b'before;'); opened = FlightSocket(Path(sys.argv[1]), {}).open(); os.write(2, b'after')\n"
        "os._exit(not opened)"
    )
    tmp_path.chmod(0o700)
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "1.flight")]
    done = subprocess.run(command, env=os.environ | {"RANKSCOPE_ATTACH": ""}, stderr=subprocess.PIPE, check=True)
    assert done.stderr.endswith(b"before;after")


def serve(path: Path, reply: bytes, pause: float = 0.0) -> None:
    """Answer one request with anything."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(4096)
            for place in range(0, len(reply), 64):
                try:
                    connection.sendall(reply[place : place + 64])
                except OSError:
                    return
                time.sleep(pause)

    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 500 no\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\n\r\n{"entries',
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 50_000,
        b"\xff" * 500,
    ],
    ids=range(7),
)
def test_nonsense_answers(tmp_path: Path, reply: bytes) -> None:
    """Whatever a socket says, the state says that it could not be had, and why."""
    serve(tmp_path / "s", reply)
    taker = StateTaker()
    taker.take(1, os.getpid(), tmp_path / "s")
    state = answer(taker)
    assert state.flight == ""
    assert state.flight_unseen


def test_slow_answer_has_a_deadline(tmp_path: Path) -> None:
    """A rank that answers by drops is left."""
    serve(tmp_path / "s", b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 6400, pause=0.05)
    with pytest.raises(OSError, match=r"slow|timed out"):
        ask(tmp_path / "s", b"x", 0.3)


def test_what_is_no_socket(tmp_path: Path) -> None:
    """A file, a missing path or a process that is gone give a reason, never an exception."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "absent", None):
        taker = StateTaker(pyspy=tmp_path / "no-py-spy")
        taker.take(1, 2**22 + 1, path)
        state = answer(taker)
        assert state.flight_unseen
        assert "cannot be started" in state.stacks_unseen


def test_pyspy_without_permission(tmp_path: Path) -> None:
    """No permission is a state of its own."""
    script = tmp_path / "py-spy"
    script.write_text("#!/bin/sh\necho 'Permission Denied: Try running again with elevated permissions' >&2\nexit 1\n")
    script.chmod(0o755)
    taker = StateTaker(pyspy=script)
    taker.take(1, os.getpid(), None)
    assert "not permitted" in answer(taker).stacks_unseen


def test_pyspy_text() -> None:
    """py-spy's threads come out as the fault handler writes them: the main thread last, and who holds the lock."""
    frame = {"name": "wait", "filename": "/usr/lib/python3.11/threading.py", "line": 320}
    text = pyspy_text(
        [
            {"thread_name": "MainThread", "thread_id": 140, "owns_gil": True, "frames": [frame | {"name": "main"}]},
            {"thread_name": "worker", "thread_id": 141, "owns_gil": False, "frames": [frame]},
        ]
    )
    assert training_thread(text) == ("python3.11/threading.py:320 main",)
    assert "holding the interpreter lock" in text.split("\n\n")[-1]


def test_compact() -> None:
    """A recorder full of operations is cut to its last ones and stays one that can be compared."""
    entry = {
        "profiling_name": "nccl:all_reduce",
        "collective_seq_id": 1,
        "thread_name": "x",
        "input_sizes": [[1] * 900],
    }
    whole = {"version": "2.10", "pg_config": {}, "pg_status": {}, "entries": [entry] * 2000, "secret": "x"}
    found = json.loads(compact(whole))
    assert 0 < len(found["entries"]) <= 128
    assert "thread_name" not in found["entries"][0]
    assert "secret" not in found
    with pytest.raises(ValueError, match="no document"):
        compact([])


def test_wait_channel(tmp_path: Path) -> None:
    """Where a thread sleeps in the kernel, without anything else that the file may hold."""
    (tmp_path / "7").mkdir()
    for text, expected in (("futex_do_wait", "futex_do_wait"), ("0", ""), ("a b\x1b[31m", "ab31m")):
        (tmp_path / "7/wchan").write_text(text)
        assert wait_channel(7, tmp_path) == expected
    assert wait_channel(8, tmp_path) == ""


def flights(documents: dict[int, dict[str, Any]]) -> list[Event]:
    """What ranks answered, as events."""
    return [Event("rank-flight", 1, json.dumps(document), rank=rank) for rank, document in documents.items()]


def test_live_comparison() -> None:
    """Answers of the ranks are compared; a rank that did not answer while the others wait for it is named too."""
    job = parallel_job(4, 2)
    stopped = flights(dumps(job, Fault("host", (5,), 9)))
    suspect = named(live_comparison(stopped))
    assert suspect is not None
    assert suspect.rank == 5
    silent = [event for event in stopped if event.rank != 5]
    silent.append(Event("rank-flight", 1, "no flight recorder of rank 5: it did not answer", rank=5))
    suspect = named(live_comparison(silent))
    assert suspect is not None
    assert suspect.rank == 5


def test_nothing_to_compare() -> None:
    """One answer, nonsense, or a job where nobody stands out: no name."""
    assert live_comparison([]) is None
    assert live_comparison([Event("rank-flight", 1, text, rank=0) for text in ("{", "[]", "[" * 9999)]) is None
    assert named(live_comparison(flights(dumps(parallel_job(4, 1), Fault())))) is None
    assert named(live_comparison(flights(dumps(parallel_job(8, 2), Fault("device", (6,), 9))))) is None


def test_recordings_of_two_hosts(tmp_path: Path) -> None:
    """Each host's agent asked its own ranks; the report over both recordings compares all of them."""
    documents = dumps(parallel_job(4, 2), Fault("host", (5,), 9))
    clock = SystemClock()
    now = clock.monotonic_ns()
    for host, ranks in (("a", range(4)), ("b", range(4, 8))):
        recording = Recording.create(
            tmp_path / f"{host}.db", job="j", host=host, max_bytes=10**7, reserve_bytes=10**6, clock=clock
        )
        where: dict[str, str | int | float | None] = {"step": 9, "phase": "collective_wait", "state": "S"}
        for rank in ranks:
            text = f"rank {rank} has been in collective_wait of step 9 for 31.0 s"
            recording.add_events([Event("rank-hung", now, text, rank=rank, attributes=where)])
            recording.add_events([Event("rank-flight", now + 1, compact(documents[rank]), rank=rank)])
        recording.commit()
        recording.close()
    window = load_window([tmp_path])
    assert window.ranks == {}
    (found,) = diagnose(window)
    assert (found.class_slug, found.where.rank) == ("rank-hang", 5)
    assert "Rank 5 holds up the job: 7 other ranks wait for it" in found.summary
