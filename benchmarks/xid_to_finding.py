"""How long after an Xid is written to the kernel log its finding is in the recording.

    .venv/bin/python benchmarks/xid_to_finding.py [--ranks 8] [--kernel]

The node agent, with its default settings, watches ranks on GPUs of their own (a rank is a process that writes a ring,
and the log a file in the form of /dev/kmsg, or with --kernel that device itself, for root on a machine of one's own).
One GPU after the other falls off the bus; the time runs from before the line is written until another process reads the
finding from the recording on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rankscope.simulator.kernel_log import KernelLog

RANK = Path(__file__).resolve().parents[1] / "tests/agent/fake_rank.py"
#: The rules are hurried once in ten seconds at most.
PAUSE_S = 11.0


def uuid(number: int) -> str:
    """UUID of a GPU."""
    return f"GPU-00000000-0000-0000-0000-{number:012d}"


def main() -> None:
    """Print the times and their middle and largest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--kernel", action="store_true", help="write to the kernel's own log")
    options = parser.parse_args()
    ranks = options.ranks
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        log_path = Path("/dev/kmsg") if options.kernel else place / "kmsg"
        log = None if options.kernel else KernelLog(log_path)
        (place / "rings").mkdir()
        (place / "agent.toml").write_text(f"[probes]\ndisabled = ['nvml']\n[roots]\nkernel_log = '{log_path}'\n")
        environ = os.environ | {
            "RANKSCOPE_STATE": str(place / "state"),
            "RANKSCOPE_DIR": str(place / "rings"),
            "RANKSCOPE_JOB": "benchmark",
        }
        words = ["steps=5", "step_ms=50", "then=spin", f"world={ranks}"]
        started = [
            subprocess.Popen([sys.executable, RANK, *words, f"rank={rank}", f"gpu={uuid(rank)}"], env=environ)
            for rank in range(ranks)
        ]
        begin = [sys.executable, "-c", "from rankscope.agent.cli import main; main()"]
        command = [*begin, "agent", "--json", "--config", str(place / "agent.toml")]
        agent = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE)
        started.append(agent)
        try:
            assert agent.stdout is not None
            recording = json.loads(agent.stdout.readline())["recording"]
            time.sleep(5)
            times = []
            for rank in range(ranks):
                pci = f"0000:{rank + 16:02x}:00"
                write(log, f"NVRM: GPU at PCI:{pci}: {uuid(rank)}")
                began = time.monotonic()
                write(log, f"NVRM: Xid (PCI:{pci}): 79, GPU has fallen off the bus.")
                while not told(recording, rank):
                    time.sleep(0.01)
                times.append(time.monotonic() - began)
                print(f"rank {rank}: {times[-1]:.3f} s", flush=True)
                time.sleep(PAUSE_S)
        finally:
            for process in started:
                process.kill()
                process.wait()
    print(f"{ranks} Xids: median {statistics.median(times):.3f} s, largest {max(times):.3f} s")


def write(log: KernelLog | None, text: str) -> None:
    """A line into the log of the benchmark, or into the kernel's own."""
    if log is not None:
        log.write(text)
    else:
        Path("/dev/kmsg").write_text(f"<4>{text}\n")


def told(recording: str, rank: int) -> bool:
    """Whether the recording holds the finding of a rank's GPU."""
    connection = sqlite3.connect(f"file:{recording}?mode=ro", uri=True)
    try:
        bodies = connection.execute("SELECT body FROM findings WHERE class = 'gpu-off-bus'").fetchall()
    finally:
        connection.close()
    return any(json.loads(body)["where"]["gpu_uuid"] == uuid(rank) for (body,) in bodies)


if __name__ == "__main__":
    main()
