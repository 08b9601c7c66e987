"""Writes the inputs that fuzzing begins with, by the project's own writers: the same bytes each time.

    .venv/bin/python tests/fuzz/make_corpus.py

Inputs named `found-...` broke something once and are kept as they were found.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fuzz.engine import CORPUS  # noqa: E402

from rankscope.agent.recording import Recording  # noqa: E402
from rankscope.clock import ClockAnchor  # noqa: E402
from rankscope.exporters.otlp_encode import OtlpEncoder  # noqa: E402
from rankscope.exporters.outbox import Outbox  # noqa: E402
from rankscope.identity import RankIdentity  # noqa: E402
from rankscope.reading import Event, Outcome, Reading, Severity  # noqa: E402
from rankscope.records import (  # noqa: E402
    SIZE_CLASSES,
    CollectiveRecord,
    DeviceRecord,
    GroupRecord,
    MarkKind,
    MarkRecord,
    MemoryRecord,
    Phase,
    PhaseRecord,
    RingRecord,
    SignalRecord,
    StepRecord,
)
from rankscope.ring import RingHeader, RingWriter  # noqa: E402
from rankscope.testing import FakeClock  # noqa: E402

MS, SECOND = 10**6, 10**9
BEGIN = FakeClock().monotonic_ns()
ANCHOR = ClockAnchor(BEGIN, FakeClock().wall_ns())
STEP_MS = 100
#: Above any pid that Linux gives (PID_MAX_LIMIT is 2^22): no process of any machine is meant.
PID = 2**22 + 17


def identity(rank: int) -> RankIdentity:
    """A rank of a job of two."""
    return RankIdentity("job", 0, rank, 2, rank, "node1", PID + rank, 77, "boot", f"GPU-{rank}", "cuda")


def records(rank: int, steps: int) -> Iterable[RingRecord]:
    """What one rank writes: of rank 1 backward becomes slower, and it ends by an exception."""
    yield MarkRecord(BEGIN, 0, MarkKind.ATTACHED, "stacks=SIGUSR2 flight=1")
    yield MarkRecord(BEGIN, 0, MarkKind.STEP_RULE, "optimizer steps")
    at = BEGIN
    for step in range(steps):
        own = (60 + 40 * (rank == 1 and step > steps // 2)) * MS
        wait = (100 * MS if step > steps // 2 else 60 * MS) - own
        length = own + wait + 30 * MS
        yield StepRecord(
            step, at, at + length, 5 * MS, 20 * MS, own + wait, 5 * MS, 0, 0, 0, own, work=32, hook_ns=20_000, flags=0
        )
        yield DeviceRecord(step, length, 5 * MS, 20 * MS, own, wait, 5 * MS, 0, 4 * MS, 40 * MS, 5 * MS, MS)
        yield GroupRecord(step, 2, 4, own, wait, 1, "dp")
        if step % 8 == 0:
            yield PhaseRecord(step, at, at + 5 * MS, "augment")
            yield SignalRecord(step, at, 2.0 / (1 + step), 1.0, 0, 32, 4096, 10**12, 10**15)
            sizes = tuple(range(SIZE_CLASSES))
            yield MemoryRecord(step, at, 1 << 33, 1 << 34, 1 << 30, 1 << 29, 0, 0, sizes, sizes)
            for on_device in (1, 2):
                yield CollectiveRecord(
                    step, step, at, at + MS, at + 3 * MS, wait, 1 << 20, None, on_device, 0, "allreduce", "dp"
                )
        at += length
    if rank:
        yield MarkRecord(at, steps, MarkKind.EXCEPTION, "RuntimeError: CUDA error: an illegal memory access")
    else:
        yield MarkRecord(at, steps, MarkKind.ENDED, "")


def ring(path: Path, rank: int, steps: int, slots: int) -> None:
    """A ring as a rank leaves it."""
    path.unlink(missing_ok=True)
    writer = RingWriter(path, identity(rank), ANCHOR, slots)
    for record in records(rank, steps):
        writer.append_record(record)
    writer.set_status(BEGIN, steps, Phase.BACKWARD, 1)
    writer.close()


def absurd_ring(path: Path) -> None:
    """A ring of a rank that lies: times and numbers at which clocks, sums and databases overflow."""
    path.unlink(missing_ok=True)
    writer = RingWriter(path, identity(0), ANCHOR, 16)
    writer.append_record(MarkRecord(-(2**63) + 1, 1, MarkKind.EXCEPTION, "Error: in the past"))
    writer.append_record(StepRecord(2**63 - 1, 2**63 - 2, 2**63 - 1, *[2**63 - 1] * 7))
    writer.append_record(PhaseRecord(1, BEGIN, BEGIN - 1, "ends before it begins"))
    writer.append_record(MarkRecord(BEGIN, 2, MarkKind.SNAPSHOT, "sound"))
    writer._next = 2**63 + 5
    writer.append_record(MarkRecord(BEGIN, 3, MarkKind.SNAPSHOT, "beyond any position"))
    writer.close()


def readings(seconds: int) -> Iterable[Reading]:
    """A second GPU that becomes hot and slow."""
    for second in range(seconds):
        now = BEGIN + second * SECOND
        for gpu in range(2):
            hot = gpu == 1 and second > seconds // 2
            yield Reading("gpu.temperature_celsius", 92 if hot else 60, now, f"GPU-{gpu}")
            yield Reading("gpu.clock_sm_hertz", 1.1e9 if hot else 1.9e9, now, f"GPU-{gpu}")
            yield Reading("gpu.power_watts", 500, now, f"GPU-{gpu}")
            yield Reading("gpu.throttle_hw_thermal", float(hot), now, f"GPU-{gpu}")
        yield Reading("host.cpu_busy_ratio", 0.3, now)
        yield Reading("process.runqueue_wait_ratio", 0.01, now, "rank:0")


EVENTS = (
    Event("agent-started", BEGIN, "agent 1 records", attributes={"pid": 1, "restart": 0}),
    Event("rank-attached", BEGIN, "rank 0", rank=0, attributes={"pid": PID, "gpu_uuid": "GPU-0"}),
    Event("rank-attached", BEGIN, "rank 1", rank=1, attributes={"pid": PID + 1, "gpu_uuid": "GPU-1"}),
    Event(
        "burst",
        BEGIN + SECOND,
        "GPU-1: read at burst rates",
        device="GPU-1",
        attributes={"reason": "slow-step", "begin_ns": BEGIN, "end_ns": BEGIN + SECOND, "devices": "GPU-1"},
    ),
    Event(
        "xid",
        BEGIN + 5 * SECOND,
        "Xid 79",
        Severity.CRITICAL,
        "GPU-1",
        attributes={"number": 79, "message": "GPU has fallen off the bus", "source": "kernel-log", "pci": "0000:1b:00"},
    ),
    Event("rank-stacks", BEGIN + 5 * SECOND, 'File "a.py", line 1 in f', rank=1, attributes={"source": "signal"}),
    Event(
        "rank-exited",
        BEGIN + 6 * SECOND,
        "rank 1 ended",
        Severity.CRITICAL,
        "GPU-1",
        1,
        attributes={"pid": PID + 1, "clean": 0, "last_step": 40, "phase": "backward", "signal": 9},
    ),
    Event("rank-exited", BEGIN + 7 * SECOND, "rank 0", rank=0, attributes={"pid": PID, "clean": 1, "last_step": 40}),
)


def recording(path: Path, steps: int, *, outbox: bool = False) -> None:
    """A recording as an agent leaves it, with batches that wait where `outbox` is."""
    path.unlink(missing_ok=True)
    made = Recording.create(path, job="job", host="node1", clock=FakeClock())
    for rank in range(2):
        header = RingHeader(identity(rank), ANCHOR, 64, 2)
        row, _ = made.add_rank(f"job.{rank}.ring", header)
        all_of_it = list(records(rank, steps))
        made.add_records(row, all_of_it, len(all_of_it))
    seen = list(readings(max(4, steps // 6)))
    made.add_readings(seen)
    made.add_events(EVENTS)
    made.set_outcome("kernel-log", "events", "", BEGIN, Outcome.NO_PERMISSION, "permission denied")
    for key, value in {
        "boot_id": "boot",
        "gpus": '["GPU-0", "GPU-1"]',
        "job_status": 1,
        "agent_cpu_ratio": 0.008,
        "agent_pss_bytes": 60_000_000,
        "clock_error_ns": 1000,
    }.items():
        made.set_meta(key, value)
    made.commit()
    if outbox:
        made.set_meta("exported_ns", BEGIN + SECOND)
        box = Outbox(made.connection)
        encoder = OtlpEncoder(job="job", host="node1", anchor=ANCHOR)
        for batch in (*encoder.readings(seen), *encoder.events(EVENTS)):
            made.connection.execute("BEGIN")
            box.add(batch.signal, batch.payload, batch.points, ANCHOR.wall_ns)
            made.connection.execute("COMMIT")
    made.close()
    connection = sqlite3.connect(path, isolation_level=None)
    # The smallest pages: fewer bytes to keep, and more of them mean something.
    connection.execute("PRAGMA page_size = 512")
    connection.execute("VACUUM")
    connection.close()


KERNEL_LOGS = {
    "gpu": """\
4,1,1000000,-;NVRM: Xid (PCI:0000:1b:00): 79, pid=4242, name=python, GPU has fallen off the bus.
4,2,2000000,-;NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus.
4,3,2500000,-;NVRM: Xid (PCI:0000:1b:00): 145, RLW_CTRL Nonfatal XC0 i0 Link 03 (0x00000004 0x00000001)
4,4,2600000,-;nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up
 SUBSYSTEM=pci
 DEVICE=+pci:0000:1b:00.0
""",
    "host": """\
3,7,3000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a,task_memcg=/a/b,task=python,pid=4242,uid=0
3,8,3000001,-;Memory cgroup out of memory: Killed process 4242 (python) total-vm:1kB, anon-rss:2kB, file-rss:3kB
3,9,3100000,-;INFO: task python:4242 blocked for more than 120 seconds.
0,10,3200000,-;watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [python:4242]
3,11,3300000,-;python[4242]: segfault at 0 ip 00007f0000000000 sp 00007fff00000000 error 4 in libc.so.6[7f00+1000]
3,12,3400000,-;pcieport 0000:00:01.0: AER: Corrected error received: 0000:1b:00.0
3,13,3500000,-;mce: [Hardware Error]: Machine check events logged
3,14,3600000,-;EDAC MC0: 1 CE memory read error on CPU_SrcID#0_Ha#0_Chan#1_DIMM#0
4,99,3700000,-;nfs: server store not responding, still trying
3,100,3800000,-;blk_update_request: I/O error, dev sda, sector 1 op 0x0:(READ) flags 0x0
6,101,3900000,-;mlx5_core 0000:05:00.0 ib0: Link down\\x0atwice
""",
}

SCENARIOS = {
    "nested": f"a = {'[' * 1000}\n",
    "thermal": """name = "thermal"
seed = 1
[workload]
kind = "ddp"
ranks = 4
steps = 300
step_ms = 100
data_ms = 5
[node]
gpu = "H100-SXM5-80GB"
gpus = 4
driver = "580.95.05"
hosts = 1
[[fault]]
class = "gpu-thermal-slowdown"
gpu = 2
severity = 1.25
from_step = 100
to_step = 300
counters = true
[[confounder]]
kind = "old-xid"
""",
    "pipeline": """[workload]
kind = "pipeline"
ranks = 16
stages = 4
tensor = 2
microbatches = 8
[node]
gpus = 8
hosts = 2
[[fault]]
class = "network-congestion"
host = 1
severity = 2.0
""",
}

CONFIGURATIONS = {
    "nested": f"a = {'[' * 1000}\n",
    "too-large": "[recording]\nmax_bytes = 99999999999999999999\ncommit_seconds = inf\n",
    "all": """[recording]
state_directory = "/var/lib/rankscope"
max_bytes = 2_000_000_000
commit_seconds = 2.0
[rings]
poll_seconds = 1.0
[hang]
floor_seconds = 30.0
stack_signal = "SIGUSR2"
pyspy = true
[probes]
disabled = ["edac"]
deadline_seconds = 2
burst_seconds = 30
replace_stuck_seconds = 0
[export]
endpoint = "http://collector:4318"
protocol = "http/protobuf"
period_seconds = 15
interval_seconds = 15.0
level = "rank"
temporality = "delta"
drain_seconds = 5
[budget]
cpu_ratio = 0.01
pss_bytes = 100_000_000
hook_ratio = 0.05
[windows]
period_seconds = 600
[rules]
live = false
period_seconds = 5
window_seconds = 600.0
[prometheus]
port = 0
""",
    "empty": "",
}


_STATUS = b"\x08\x0e\x12\x0cslow down, :)"  # google.rpc.Status: 14, "slow down, :)" cut short
_PARTIAL = b"\x0a\x0b\x08\x02\x12\x07too old"  # ExportMetricsServiceResponse: 2 rejected, "too old"
ANSWERS = {
    "taken": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "partial": b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nContent-Type: application/x-protobuf\r\n\r\n" + _PARTIAL,
    "chunked": b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n" + _PARTIAL + b"\r\n0\r\n\r\n",
    "busy": b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n",
    "later": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n\r\nlater",
    "status": b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/x-protobuf\r\n\r\n" + _STATUS,
    "elsewhere": b"HTTP/1.0 302 Found\r\nLocation: http://elsewhere/\r\n\r\n<html>moved</html>",
    "less-than-nothing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n",
    "never": b"HTTP/1.1 503 No\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 -2359\r\n\r\n",
}

#: Changes to a recording that broke a reader once.
CHANGES = {
    "recording": {
        "status-of-text": "UPDATE meta SET value = 'text' WHERE key = 'job_status'",
        "no-ranks": "DROP TABLE ranks",
        "cost-of-infinity": "UPDATE meta SET value = 9e999 WHERE key LIKE 'agent_%'",
        "process-of-nobody": "UPDATE series SET device = '[1, a]' WHERE metric LIKE 'process.%'",
        "events-of-nothing": "UPDATE events SET attributes = 'null', rank = 'a'",
        "parts-of-nothing": "UPDATE steps SET backward_ns = NULL WHERE step > 3",
        "infinite-steps": "UPDATE steps SET start_ns = 9e999, end_ns = 9e999",
        "deep-sizes": f"UPDATE memory SET blocks = '{'[' * 3000}'",
    },
    "outbox": {
        "batches-that-are-none": "UPDATE outbox_batch SET payload = x'1f8b00ff', points = 'many'",
        "torn-batches": "UPDATE outbox_batch SET payload = substr(payload, 1, length(payload) / 2)",
        "accounts-of-text": "UPDATE outbox_account SET batches = 'a', state = 'lost'",
        "limits-of-infinity": "UPDATE meta SET value = 9e999 WHERE key LIKE '%_bytes'",
        "begun-never": "UPDATE meta SET value = NULL WHERE key LIKE 'anchor_%'",
        "exported-at-noon": "UPDATE meta SET value = 'noon' WHERE key = 'exported_ns'",
    },
}


def main() -> None:
    """Write everything."""
    for name in ("answer", "ring", "recording", "outbox", "kernel-log", "scenario", "configuration"):
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
    ring(CORPUS / "ring/whole.ring", 0, 4, 24)
    ring(CORPUS / "ring/lapped.ring", 1, 12, 16)
    recording(CORPUS / "recording/base.db", 40)
    recording(CORPUS / "outbox/base.db", 6, outbox=True)
    for name, data in ANSWERS.items():
        (CORPUS / f"answer/{name}.http").write_bytes(data)
    for name, text in KERNEL_LOGS.items():
        (CORPUS / f"kernel-log/{name}.log").write_text(text)
    absurd_ring(CORPUS / "ring/absurd.ring")
    for target, changes in CHANGES.items():
        for name, change in changes.items():
            (CORPUS / f"{target}/{name}.sql").write_text(f"-- {target}/base.db\n{change}\n")
    for name, text in SCENARIOS.items():
        (CORPUS / f"scenario/{name}.toml").write_text(text)
    for name, text in CONFIGURATIONS.items():
        (CORPUS / f"configuration/{name}.toml").write_text(text)


if __name__ == "__main__":
    main()
