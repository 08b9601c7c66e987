"""An Xid in the kernel log becomes a finding at once, without waiting for the rules' next turn."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rankscope.simulator.kernel_log import KernelLog

UUID = "GPU-11111111-2222-3333-4444-555555555555"


def test_an_xid_is_a_finding_at_once(
    rings: Path, start_rank: Callable[..., subprocess.Popen[bytes]], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    """The node agent reads the line, runs the rules and records the finding, though their turn is in an hour.

    The driver names the GPU in a line before its first Xid. An Xid from before the agent is no finding.
    """
    log = KernelLog(tmp_path / "kmsg")
    log.write(f"NVRM: GPU at PCI:0000:2b:00: {UUID.replace('1', '9')}")
    log.xid("0000:2b:00", 79, "GPU has fallen off the bus.")
    config = tmp_path / "agent.toml"
    config.write_text(
        f"[probes]\ndisabled = ['nvml']\n[roots]\nkernel_log = '{log.path}'\n[rules]\nperiod_seconds = 3600\n"
    )
    environ = os.environ | {"RANKSCOPE_STATE": str(tmp_path / "state"), "RANKSCOPE_DIR": str(rings)}
    command = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "agent", "--json"]
    agent = subprocess.Popen([*command, "--config", str(config)], env=environ, stdout=subprocess.PIPE)
    try:
        start_rank(steps=5, step_ms=10, then="spin", gpu=UUID)
        assert agent.stdout is not None
        recording = json.loads(agent.stdout.readline())["recording"]
        wait_until(lambda: rows(recording, "SELECT 1 FROM steps LIMIT 1"))
        log.write(f"NVRM: GPU at PCI:0000:1b:00: {UUID}")
        log.xid("0000:1b:00", 79, "GPU has fallen off the bus.")
        # On a busy machine there may be others: a fake rank is slowed down by its neighbours too.
        query = "SELECT body FROM findings WHERE class = 'gpu-off-bus'"
        wait_until(lambda: rows(recording, query), what="the finding")
        ((body,),) = rows(recording, query)
        assert json.loads(body)["where"]["gpu_uuid"] == UUID
    finally:
        agent.kill()
        agent.communicate()


def rows(recording: str, query: str) -> list[tuple[str]]:
    """What a query of a recording that is being written gives."""
    connection = sqlite3.connect(f"file:{recording}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
