"""Windows and verdicts made up for the surfaces that show them: small jobs that look like real ones."""

from __future__ import annotations

import math
import random
from array import array
from dataclasses import replace

from rankscope.clock import ClockAnchor
from rankscope.finding import Advice, Basis, Evidence, Finding, Impact, Overhead, Side, Verdict, Where
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Severity
from rankscope.records import DeviceRecord, StepRecord, field_names
from rankscope.window import Columns, RankWindow, Series, SeriesKey, Window

MS = 1_000_000
SECOND = 1_000_000_000
BEGIN_NS = 5_000 * SECOND
WALL_NS = 1_790_000_000 * SECOND
OVERHEAD = Overhead(agent_cpu_fraction=0.0041, agent_pss_bytes=61_300_000, hook_ns_per_step=10_900.0)


def gpu_uuid(rank: int) -> str:
    """The UUID of a rank's GPU."""
    return f"GPU-{0x3F2A91C0 + 0x1111 * rank:08x}-77aa-4b1e-9f10-{rank:012d}"


class Job:
    """Builds a window step by step: every rank waits for the slowest one, as under DDP."""

    def __init__(self, ranks: int = 4, *, hosts: int = 1, job: str = "llama-8b-ft", seed: int = 7) -> None:
        self.random = random.Random(seed)
        self.job, self.ranks, self.hosts = job, ranks, [f"node-{chr(97 + index)}" for index in range(hosts)]
        self.steps: dict[int, list[dict[str, float]]] = {rank: [] for rank in range(ranks)}
        self.device: dict[int, list[dict[str, float]]] = {rank: [] for rank in range(ranks)}
        self.series: dict[SeriesKey, Series] = {}
        self.events: list[Event] = []
        self.now_ns = BEGIN_NS
        self.step = 0

    def host(self, rank: int) -> str:
        """The host a rank runs on."""
        return self.hosts[rank * len(self.hosts) // self.ranks]

    def run(self, steps: int, *, slow: dict[int, float] | None = None, data_ms: float = 3, every: int = 0) -> Job:
        """Add steps; `slow` stretches the own compute of ranks; every `every`-th step writes a checkpoint."""
        for _ in range(steps):
            own = {rank: (slow or {}).get(rank, 1.0) * self.random.gauss(1, 0.012) for rank in range(self.ranks)}
            checkpoint = 420 * MS if every and self.step % every == every - 1 else 0
            data = {rank: abs(self.random.gauss(data_ms, data_ms / 8)) * MS for rank in range(self.ranks)}
            arrival = {rank: data[rank] + own[rank] * 88 * MS for rank in range(self.ranks)}
            reduced = max(arrival.values()) + 4 * MS
            for rank in range(self.ranks):
                self._add(rank, own[rank], data[rank], reduced - arrival[rank], checkpoint)
            self.now_ns += int(reduced + 5 * MS + checkpoint)
            self.step += 1
        return self

    def _add(self, rank: int, own: float, data: float, wait: float, checkpoint: float) -> None:
        forward, backward_own, optimizer = own * 30 * MS, own * 58 * MS, 5 * MS
        step_ns = data + forward + backward_own + wait + optimizer
        step = dict.fromkeys(field_names(StepRecord), math.nan)
        step |= {"step": self.step, "start_ns": self.now_ns, "end_ns": self.now_ns + int(step_ns + checkpoint)}
        step |= {"data_wait_ns": data, "forward_ns": 8 * MS, "backward_own_ns": 11 * MS, "optimizer_ns": 2 * MS}
        step |= {
            "backward_ns": step_ns - data - 10 * MS,
            "checkpoint_ns": checkpoint,
            "evaluation_ns": 0,
            "other_ns": 0,
        }
        device = dict.fromkeys(field_names(DeviceRecord), math.nan)
        device |= {"step": self.step, "step_ns": step_ns + checkpoint, "data_wait_ns": data, "forward_ns": forward}
        device |= {"backward_own_ns": backward_own, "backward_wait_ns": wait, "optimizer_ns": optimizer}
        device |= {"other_ns": checkpoint, "lead_end_ns": 3 * MS}
        self.steps[rank].append(step)
        self.device[rank].append(device)

    def gpu(self, *, hot: int | None = None, hot_from_ns: int = 0, lost: int | None = None, lost_ns: int = 0) -> Job:
        """Add the counters of every GPU; `hot` heats up and throttles, `lost` falls silent."""
        for rank in range(self.ranks):
            heat = 58.0 + 2 * rank % 5
            for time_ns in range(BEGIN_NS, self.now_ns, SECOND // 2):
                if rank == lost and time_ns >= lost_ns:
                    break
                faulty = rank == hot and time_ns >= hot_from_ns
                heat += ((91 if faulty else 61 + rank % 3) - heat) * 0.12
                throttled = faulty and heat > 80
                clock = self.random.choice((1395, 1410, 1425)) if throttled else 1980 - 15 * self.random.randint(0, 1)
                self.read(rank, "gpu.sm_clock_mhz", time_ns, clock)
                self.read(rank, "gpu.clock_event_reasons", time_ns, 0x60 if throttled else 0x4 if rank == 1 else 0)
                power = self.random.gauss(455 if throttled else 640, 9)
                self.read(rank, "gpu.power_watts", time_ns, power)
                self.read(rank, "gpu.temperature_celsius", time_ns, round(heat + self.random.gauss(0, 0.4)))
        return self

    def read(self, rank: int, metric: str, time_ns: int, value: float) -> None:
        """Add one reading of a rank's GPU."""
        key = SeriesKey(self.host(rank), metric, gpu_uuid(rank))
        series = self.series.setdefault(key, Series(array("q"), array("d")))
        series.times_ns.append(time_ns)
        series.values.append(value)

    def event(
        self, kind: str, text: str, *, rank: int | None = None, time_ns: int | None = None, **more: object
    ) -> Job:
        """Add an event."""
        event = Event(kind, self.now_ns if time_ns is None else time_ns, text, rank=rank)
        host = self.hosts[0] if rank is None else self.host(rank)
        self.events.append(replace(event, host=host, **more))
        return self

    def window(self, *, status: int | None = 0, not_seen: tuple[str, ...] = ()) -> Window:
        """The window of all of it."""
        ranks = {}
        for rank in range(self.ranks):
            local = rank - min(other for other in range(self.ranks) if self.host(other) == self.host(rank))
            identity = RankIdentity(
                self.job, 0, rank, self.ranks, local, self.host(rank), 4000 + rank, 77, "boot", gpu_uuid(rank), "cuda"
            )
            ranks[rank] = RankWindow(
                identity, columns(StepRecord, self.steps[rank]), columns(DeviceRecord, self.device[rank])
            )
        return Window(
            job=self.job,
            ranks=ranks,
            series=self.series,
            events=sorted(self.events, key=lambda event: event.time_ns),
            anchors={host: ClockAnchor(BEGIN_NS, WALL_NS) for host in self.hosts},
            begin_ns=BEGIN_NS,
            end_ns=self.now_ns,
            world_size=self.ranks,
            not_seen=not_seen,
            job_status=status,
            gpus={
                host: [gpu_uuid(rank) for rank in range(self.ranks) if self.host(rank) == host] for host in self.hosts
            },
        )


def columns(record: type[StepRecord] | type[DeviceRecord], rows: list[dict[str, float]]) -> Columns:
    """Rows as columns."""
    return Columns({name: array("d", [row[name] for row in rows]) for name in field_names(record)})


def finding(window: Window, class_slug: str, side: Side, rank: int | None, since_ns: int, **more: object) -> Finding:
    """A finding about a rank, with plain defaults."""
    identity = None if rank is None else window.ranks[rank].identity
    where = Where() if identity is None else Where(identity.host, rank, identity.local_rank, identity.gpu_uuid)
    base = Finding(
        class_slug=class_slug,
        side=side,
        confidence=0.97,
        severity=Severity.CRITICAL,
        advice=Advice.ACT,
        where=where,
        basis=Basis.DEVICE_COMPUTE,
        since_ns=since_ns,
        detected_step=None,
        impact=Impact(),
        evidence=(),
        not_seen=(),
        action="",
        runbook=f"docs/runbooks/{class_slug}.md",
        summary="",
    )
    return replace(base, **more)


def verdict(window: Window, word: str, summary: str, *findings: Finding, **more: object) -> Verdict:
    """A verdict over findings."""
    job = {"name": window.job, "world_size": window.world_size, "status": window.job_status}
    return replace(Verdict(job, word, findings, tuple(window.not_seen), OVERHEAD, summary), **more)


def thermal() -> tuple[Window, Verdict]:
    """GPU 2 of 4 is throttled by heat from step 100 on; rank 1's checkpoints are a second, small finding."""
    job = Job().run(100)
    since = job.now_ns
    job.run(200, slow={2: 1.25}).gpu(hot=2, hot_from_ns=since - 3 * SECOND)
    job.event("rank-attached", "rank 2 attached", rank=2, time_ns=BEGIN_NS)
    job.event("governor", "NVML is read every 2 s to hold the budget", time_ns=since + SECOND)
    window = job.window(not_seen=("kernel log: permission denied", "PCIe replay counters: not offered by this GPU"))
    uuid = gpu_uuid(2)
    heat = finding(
        window,
        "gpu-thermal-slowdown",
        Side.HARDWARE,
        2,
        since,
        detected_step=103,
        impact=Impact(24.1, 0.2, 19.2),
        evidence=(
            Evidence("compute", "own compute per step is above its peers (ms)", 110.4, 88.1, 3.9),
            Evidence("thermal", "share of time in hardware thermal slowdown", 0.93, 0.0, 4.6),
            Evidence("thermal", "temperature (Celsius)", 91.0, 62.0, 0.0),
            Evidence("thermal", "SM clock at equal work (MHz)", 1410.0, 1972.0, 0.0),
            Evidence("own past", "own compute before step 100 (ms)", 88.3, None, 1.2),
            Evidence("work", "batch size is that of its peers", "32", "32", 0.4),
        ),
        not_seen=("memory temperature: not offered by this GPU",),
        action=(
            "Drain node-a after this run, clean or replace the cooling of GPU 2 (fan, heat sink, airflow), "
            "and return it when `nvidia-smi -q -d TEMPERATURE` stays below the slowdown temperature under load."
        ),
        summary=f"GPU 2 (rank 2, host node-a, {uuid}) is thermally throttled.",
    )
    stall = finding(
        window,
        "checkpoint-stall",
        Side.CODE,
        None,
        since + 8 * SECOND,
        confidence=0.61,
        severity=Severity.WARNING,
        advice=Advice.WATCH,
        basis=Basis.HOST,
        where=Where(phase="checkpoint"),
        impact=Impact(1.4, 0.012, None),
        evidence=(Evidence("checkpoint", "training stands still while a checkpoint is written (s)", 0.42, None, 0.5),),
        action="Write checkpoints asynchronously (torch.distributed.checkpoint.async_save).",
        summary="Checkpoints stop every rank for 0.4 s.",
    )
    sentence = (
        f"GPU 2 (rank 2, host node-a, {uuid}) is thermally throttled; it costs 24 ms a step (20 %), "
        "since step 103; confidence 97 %."
    )
    return window, verdict(window, "hardware", sentence, heat, stall)


def healthy() -> tuple[Window, Verdict]:
    """Nothing is wrong; a checkpoint every 60 steps."""
    window = Job().run(240, every=60).gpu().window()
    return window, verdict(window, "healthy", "No fault: 4 ranks run at 100 ms a step, within 2 % of each other.")


STACK = """Thread 0x00007f11 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f2a (most recent call first):
{frames}
  File "/home/ana/jobs/llama/train.py", line 88 in main
  File "/home/ana/jobs/llama/train.py", line 97 in <module>
"""
WAITING = """  File "/opt/torch/autograd/graph.py", line 841 in _engine_run_backward
  File "/opt/torch/_tensor.py", line 625 in backward"""
STUCK = """  File "/home/ana/jobs/llama/tokens.py", line 41 in fetch_vocabulary
  File "/home/ana/jobs/llama/train.py", line 61 in collate"""


def hang() -> tuple[Window, Verdict]:
    """Rank 1 stands still in its loader; three ranks wait for it inside backward."""
    job = Job().run(57)
    since = job.now_ns
    job.now_ns += 40 * SECOND
    job.gpu()
    for rank in range(4):
        frames = STUCK if rank == 1 else WAITING
        text = STACK.format(frames=frames).replace("7f2a", f"7f2{rank}")
        job.event("rank-stacks", text, rank=rank, attributes={"source": "faulthandler"})
    job.event(
        "rank-hung",
        "rank 1 makes no progress: step 57, data wait, for 40 s",
        rank=1,
        severity=Severity.CRITICAL,
        attributes={"step": 57, "phase": "data wait", "since_ns": since, "state": "S", "waited_ns": 40 * SECOND},
    )
    window = job.window(status=None)
    stuck = finding(
        window,
        "rank-hang",
        Side.CODE,
        1,
        since,
        confidence=0.93,
        basis=Basis.HOST,
        detected_step=57,
        evidence=(
            Evidence("progress", "time in data wait of step 57 (s)", 40.0, 0.003, 4.2),
            Evidence("progress", "last step completed", 56.0, 56.0, 0.0),
            Evidence(
                "stacks", "innermost frame", "tokens.py:41 fetch_vocabulary", "graph.py:841 _engine_run_backward", 1.1
            ),
        ),
        action="Look at fetch_vocabulary in tokens.py: rank 1 waits in it while the others are in backward.",
        summary="Rank 1 (host node-a) is stuck in data wait of step 57; 3 ranks wait for it.",
    )
    return window, verdict(
        window, "code", "Rank 1 (host node-a) is stuck in data wait of step 57 since 40 s; 3 ranks wait for it.", stuck
    )


def off_bus() -> tuple[Window, Verdict]:
    """GPU 3 falls off the bus with an Xid 79; its rank dies."""
    job = Job().run(120)
    since = job.now_ns
    job.event(
        "xid",
        "Xid 79 on PCI 0000:bb:00: GPU has fallen off the bus.",
        time_ns=since,
        device=gpu_uuid(3),
        severity=Severity.CRITICAL,
        attributes={
            "number": 79,
            "message": "GPU has fallen off the bus.",
            "source": "kernel-log",
            "pci": "0000:bb:00",
        },
    )
    job.event(
        "gpu-lost", "NVML says the GPU is lost", time_ns=since + SECOND, device=gpu_uuid(3), severity=Severity.CRITICAL
    )
    job.now_ns += 6 * SECOND
    job.gpu(lost=3, lost_ns=since)
    job.event("rank-exited", "rank 3 is gone: signal 6", rank=3, attributes={"clean": 0, "last_step": 119, "signal": 6})
    window = job.window(status=134)
    lost = finding(
        window,
        "gpu-off-bus",
        Side.HARDWARE,
        3,
        since,
        basis=Basis.COUNTERS,
        confidence=0.995,
        impact=Impact(None, None, 96.0),
        evidence=(
            Evidence("driver", "Xid 79 in the kernel log", "GPU has fallen off the bus", None, 5.2),
            Evidence("absence", "NVML answers for the GPU", "GPU is lost", "answers", 2.0),
        ),
        action="Restart the machine; if it happens again within a week, have the board replaced.",
        summary="GPU 3 (rank 3, host node-a) has fallen off the bus.",
    )
    return window, verdict(
        window, "hardware", "GPU 3 (rank 3, host node-a) has fallen off the bus; the job ended at step 119.", lost
    )


def unknown() -> tuple[Window, Verdict]:
    """Rank 0 is slow at equal work and no counter says why."""
    job = Job().run(80)
    since = job.now_ns
    window = job.run(160, slow={0: 1.14}).gpu().window(not_seen=("kernel log: permission denied",))
    slow = finding(
        window,
        "slow-rank-unexplained",
        Side.UNKNOWN,
        0,
        since,
        confidence=0.88,
        severity=Severity.WARNING,
        advice=Advice.WATCH,
        detected_step=86,
        impact=Impact(12.3, 0.11, 10.5),
        evidence=(Evidence("compute", "own compute per step is above its peers (ms)", 100.2, 88.0, 3.1),),
        not_seen=("kernel log: permission denied",),
        action="Swap ranks 0 and 1 in the next run and compare.",
        summary="Rank 0 (host node-a) is 14 % slower than its peers at equal work.",
    )
    sentence = "Rank 0 (host node-a) is 14 % slower than its peers at equal work; no counter says why."
    settle = (
        "Swap the GPUs of ranks 0 and 1: does the slowness follow the GPU or the rank?",
        "Read the kernel log (needs CAP_SYSLOG).",
    )
    return window, verdict(window, "unknown", sentence, slow, would_settle=settle)


def hostile() -> tuple[Window, Verdict]:
    """Names that try to be markup, to break out of a script, to move the cursor and to turn the writing round."""
    window, plain = thermal()
    name = "x</script><script>alert(1)</script>\"'&\n\u202egnp.exe\x1b[31m"
    for rank in window.ranks.values():
        rank.identity = replace(rank.identity, host=name, job=name)
        rank.phases[name] = Columns({"step": array("d"), "start_ns": array("d"), "end_ns": array("d")})
    window.job = name
    window.anchors = {name: next(iter(window.anchors.values()))}
    window.series = {replace(key, host=name): series for key, series in window.series.items()}
    window.gpus = {name: next(iter(window.gpus.values()))}
    window.events = [replace(event, host=name, text=name) for event in window.events]
    first = plain.findings[0]
    evil = replace(
        first,
        where=replace(first.where, host=name, phase=name),
        summary=name,
        action=name,
        runbook="javascript:alert(1)",
        evidence=(Evidence(name, name, name, name, 1.0),),
        not_seen=(name,),
    )
    job = {"name": name, "world_size": 4, name: name}
    return window, replace(plain, job=job, findings=(evil,), not_seen=(name,), summary=name, would_settle=(name,))


def large(ranks: int = 64, steps: int = 3000) -> tuple[Window, Verdict]:
    """Many ranks on several hosts over many steps; rank 17 is slow."""
    job = Job(ranks, hosts=max(1, ranks // 8)).run(steps // 3)
    since = job.now_ns
    window = job.run(steps - steps // 3, slow={17: 1.2}, every=200).gpu(hot=17, hot_from_ns=since).window()
    heat = finding(
        window,
        "gpu-thermal-slowdown",
        Side.HARDWARE,
        17,
        since,
        impact=Impact(18.0, 0.16, 250.0),
        summary="GPU 1 is hot.",
    )
    return window, verdict(window, "hardware", "GPU 1 (rank 17, host node-c) is thermally throttled.", heat)


EXAMPLES = {
    "thermal": thermal,
    "healthy": healthy,
    "hang": hang,
    "off-bus": off_bus,
    "unknown": unknown,
    "hostile": hostile,
}
