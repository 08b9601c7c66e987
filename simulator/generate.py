"""A scenario as the recording it would have left: records of ranks, readings and events, straight into a Window.

Nothing runs: a job of thousands of ranks and steps takes seconds. What is injected stays in the scenario; the window
holds only what hooks and probes would have seen.
"""

from __future__ import annotations

import uuid as uuid_module
from array import array
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Severity
from rankscope.records import StepFlag
from rankscope.simulator import generated_confounders, generated_faults
from rankscope.simulator.generated_endings import ENDINGS, Ended, end_of, fatal_of, signs
from rankscope.simulator.generated_job import Job, Waits
from rankscope.simulator.generated_readings import MOUNT, Readings, numa_node
from rankscope.simulator.generated_signs import show
from rankscope.simulator.scenario import Scenario
from rankscope.window import Columns, RankWindow, Window

MS = 1_000_000
SECOND = 1_000_000_000
_BEGIN_NS = 5_000 * SECOND
_WALL_NS = 1_790_000_000 * SECOND
#: Events of the last steps are not read any more when a job ends, nor has the first step an event at its begin.
_UNREAD_STEPS = 2
_MINOR = {
    "gpu-ecc-corrected-storm": (92, "High single-bit ECC error rate"),
    "gpu-row-remap-pending": (63, "Row Remapper: New row marked for remapping, reset gpu to activate."),
    "gpu-board-error": (122, "SPI PMU RPC read failure"),
}

Times = NDArray[np.float64]


def generate(scenario: Scenario) -> Window:
    """The window of a scenario; the same scenario with the same seed gives the same window."""
    job = Job(scenario)
    for fault in scenario.faults:
        effect = generated_faults.EFFECTS.get(fault.class_slug)
        if effect is not None and fault.slowdown:
            effect(job, fault)
    for confounder in scenario.confounders:
        oddity = generated_confounders.EFFECTS.get(confounder.kind)
        if oddity is not None:
            oddity(job, confounder)
    waits = job.close()
    starts = _BEGIN_NS + np.concatenate(([0.0], np.cumsum(job.length_ms)[:-1])) * MS
    uuids = [_uuid(scenario.seed, rank) for rank in range(job.shape[0])]
    hosts = [f"node{host:03d}" for host in job.host_of]
    events = _events(job, starts, uuids, hosts)
    end_ns = int(starts[-1] + job.length_ms[-1] * MS)
    steps, ended = job.shape[1], None
    fatal = fatal_of(job)
    if fatal is not None:
        ended = end_of(job, fatal, int(starts[fatal.from_step]), uuids, hosts)
        steps = fatal.from_step
        events += ended.events
        end_ns = max(event.time_ns for event in ended.events)
    readings = Readings(job, starts, end_ns, uuids, hosts)
    show(readings)
    if ended is not None:
        _fall_silent(readings, ended, uuids)
    built = _Columns(job, waits, starts, steps)
    return Window(
        job=scenario.name,
        ranks={
            rank: RankWindow(
                identity=_identity(scenario, rank, hosts[rank], uuids[rank]),
                steps=built.host(rank),
                device=built.device(rank),
                groups=built.groups(rank),
                members=built.members(rank),
            )
            for rank in range(job.shape[0])
        },
        series=readings.series,
        events=sorted(events, key=lambda event: event.time_ns),
        anchors={host: ClockAnchor(_BEGIN_NS, _WALL_NS) for host in hosts},
        begin_ns=_BEGIN_NS,
        end_ns=end_ns,
        world_size=job.shape[0],
        job_status=0 if ended is None else ended.status,
        gpus={host: [uuids[row] for row, name in enumerate(hosts) if name == host] for host in dict.fromkeys(hosts)},
    )


def _uuid(seed: int, rank: int) -> str:
    return f"GPU-{uuid_module.uuid5(uuid_module.NAMESPACE_OID, f'{seed}/{rank}')}"


def _identity(scenario: Scenario, rank: int, host: str, uuid: str) -> RankIdentity:
    local = rank % scenario.node.gpus
    return RankIdentity(
        scenario.name, 0, rank, scenario.workload.ranks, local, host, 1000 + rank, 1, host, uuid, "cuda"
    )


def _events(job: Job, starts: Times, uuids: list[str], hosts: list[str]) -> list[Event]:
    """What is said beside the steps: how GPUs are attached, what only counts, and what is old."""
    events = [
        Event(
            "gpu-described",
            _BEGIN_NS,
            f"GPU of rank {rank}",
            device=uuids[rank],
            host=hosts[rank],
            attributes={"numa_node": numa_node(rank, job.scenario.node.gpus)},
        )
        for rank in range(job.shape[0])
    ]
    for fault in job.scenario.faults:
        row = fault.rank if fault.rank is not None else fault.gpu or 0
        at_ns = int(starts[fault.from_step])
        if fault.class_slug in _MINOR:
            events.append(_xid(*_MINOR[fault.class_slug], at_ns, uuids[row], hosts[row]))
        elif not fault.slowdown and fault.class_slug in ENDINGS:
            events += signs(fault, at_ns, uuids[row], hosts[row])
        elif fault.class_slug == "network-filesystem-slow" and fault.counters:
            events += [
                Event(
                    "storage-server",
                    at_ns,
                    f"nfs: server {MOUNT} not responding",
                    Severity.WARNING,
                    host=host,
                    attributes={"filesystem": "nfs", "server": MOUNT, "state": "silent"},
                )
                for host in dict.fromkeys(hosts[row] for row in generated_faults.rows_of(job, fault))
            ]
    for confounder in job.scenario.confounders:
        if confounder.kind == "old-xid":
            row = confounder.gpu or 0
            old = _xid(31, "MMU Fault", _BEGIN_NS - 6 * 3600 * SECOND, uuids[row], hosts[row])
            events.append(replace(old, attributes=old.attributes | {"history": 1}))
    return events


def _xid(number: int, message: str, at_ns: int, uuid: str, host: str) -> Event:
    text = f"NVRM: Xid (PCI:0000:1b:00): {number}, {message}"
    attributes: dict[str, str | int | float | None] = {
        "number": number,
        "message": message,
        "source": "kernel-log",
        "pci": "0000:1b:00",
    }
    return Event("xid", at_ns, text, Severity.WARNING, uuid, host=host, attributes=attributes)


def _fall_silent(readings: Readings, ended: Ended, uuids: list[str]) -> None:
    """A lost GPU's readings end."""
    if ended.silent_rank is None or ended.silent_from_ns is None:
        return
    for key, series in list(readings.series.items()):
        if key.device.startswith(uuids[ended.silent_rank]):
            last = int(np.searchsorted(np.array(series.times_ns), ended.silent_from_ns))
            readings.series[key] = replace(series, times_ns=series.times_ns[:last], values=series.values[:last])


class _Columns:
    """A job's arrays as the columns of its ranks. What is one number is one column, shared."""

    def __init__(self, job: Job, waits: Waits, starts: Times, steps: int) -> None:
        self._job, self._waits, self._steps = job, waits, steps
        self._number = array("d", np.arange(steps, dtype=np.float64))
        self._start = array("d", starts[:steps])
        self._end = array("d", (starts + job.length_ms * MS)[:steps])
        self._length = array("f", (job.length_ms[:steps] * MS).astype(np.float32))
        self._device = slice(1, max(1, steps - _UNREAD_STEPS))
        self._shared: dict[tuple[float, bool], array[float]] = {}
        flags = np.zeros(steps)
        flags[:1] = StepFlag.WARM_UP
        self._flags = array("f", flags.astype(np.float32))

    def _one(self, value: float, *, device: bool = False) -> array[float]:
        key = (value, device)
        if key not in self._shared:
            count = len(range(*self._device.indices(self._steps))) if device else self._steps
            self._shared[key] = array("f", [value]) * count
        return self._shared[key]

    def _part(self, rank: int, name: str, scale: float = MS, *, device: bool = False) -> array[float]:
        values = self._job.part(name)
        if self._job.plain(name):
            return self._one(float(values[0, 0]) * scale, device=device)
        row = values[rank, : self._steps]
        if device:
            row = row[self._device]
        return _packed(row * np.float32(scale))

    def _sum(self, rank: int, *names: str, device: bool = True) -> array[float]:
        total = np.zeros(self._steps, dtype=np.float32)
        touched = [name for name in names if not self._job.plain(name)]
        if not touched:
            return self._one(0.0, device=device)
        for name in touched:
            total = total + self._job.part(name)[rank, : self._steps]
        return _packed((total[self._device] if device else total) * np.float32(MS))

    def host(self, rank: int) -> Columns:
        """Fields of StepRecord. The host runs ahead; for the rest of the step it is blocked in backward."""
        job = self._job
        host_ms = min(job.scenario.workload.host_ms, 0.5 * job.step_ms)
        launched = float(0.9 * host_ms)
        stalls = [
            self._job.part(name)[rank, : self._steps]
            for name in ("data", "gc", "checkpoint", "evaluation", "stall", "sync", "copy")
        ]
        rest = job.length_ms[: self._steps].astype(np.float32) - launched
        for stall in stalls:
            rest = rest - stall
        backward = np.maximum(rest, 0.5 * host_ms)
        return Columns(
            {
                "step": self._number,
                "start_ns": self._start,
                "end_ns": self._end,
                "data_wait_ns": self._part(rank, "data"),
                "h2d_ns": self._part(rank, "copy"),
                "forward_ns": self._one(0.4 * host_ms * MS),
                "backward_ns": _packed(backward * np.float32(MS)),
                "backward_own_ns": self._one(0.5 * host_ms * MS),
                "optimizer_ns": self._one(0.1 * host_ms * MS),
                "checkpoint_ns": self._part(rank, "checkpoint"),
                "evaluation_ns": self._part(rank, "evaluation"),
                "other_ns": self._sum(rank, "stall", "gc", device=False),
                "sync_ns": self._part(rank, "sync"),
                "sync_count": self._part(rank, "sync_count", 1.0),
                "gc_ns": self._part(rank, "gc"),
                "compile_ns": self._part(rank, "compile"),
                "recompiles": self._part(rank, "recompiles", 1.0),
                "alloc_retries": self._part(rank, "retries", 1.0),
                "runqueue_ns": self._part(rank, "runqueue"),
                "work": self._part(rank, "work", 1.0),
                "loader_ready": self._part(rank, "ready", 1.0),
                "loader_workers": self._one(float(job.scenario.workload.workers)),
                "flags": self._flags,
            }
        )

    def device(self, rank: int) -> Columns:
        """Fields of DeviceRecord: `gap` (the device waits for its host) lies among forward and backward."""
        job, chosen = self._job, self._device
        steps = slice(0, self._steps)
        gap = job.part("gap")[rank, steps]
        forward = job.part("forward")[rank, steps] + np.float32(0.4) * gap
        backward = job.part("backward")[rank, steps] + np.float32(0.6) * gap

        def waited(values: NDArray[np.float32]) -> array[float]:
            return _packed(values[rank, steps][chosen] * np.float32(MS))

        lead = self._part(rank, "lead", device=True)
        columns = {
            "step": self._number[chosen],
            "step_ns": self._length[chosen],
            "data_wait_ns": self._part(rank, "data", device=True),
            "h2d_ns": self._part(rank, "copy", device=True),
            "forward_ns": _packed(forward[chosen] * np.float32(MS)),
            "backward_own_ns": _packed(backward[chosen] * np.float32(MS)),
            "backward_wait_ns": waited(self._waits.backward),
            "optimizer_ns": self._part(rank, "optimizer", device=True),
            "other_ns": self._sum(rank, "stall", "gc", "checkpoint", "evaluation"),
            "checkpoint_ns": self._part(rank, "checkpoint", device=True),
            "evaluation_ns": self._part(rank, "evaluation", device=True),
            "lead_forward_ns": lead,
            "lead_backward_ns": lead,
            # Sharded layers wait where the hooks see it.
            "contaminated": self._one(0.0, device=True),
        }
        groups = job.groups
        if groups.tensor is not None or groups.expert is not None:
            columns["inner_wait_ns"] = waited(self._waits.inner)
        if groups.pipeline is not None:
            columns["bubble_ns"] = waited(self._waits.bubble)
        return Columns(columns)

    def groups(self, rank: int) -> dict[str, Columns]:
        """Fields of GroupRecord by group, on the device's clock."""
        job, steps = self._job, slice(0, self._steps)
        found = {}
        for group, waited in (
            (job.groups.data, self._waits.backward),
            (job.groups.tensor, self._waits.inner),
            (job.groups.expert, self._waits.inner),
            (job.groups.pipeline, self._waits.bubble),
        ):
            if group is None:
                continue
            columns: dict[str, array[float]] = {
                "step": self._number,
                "size": self._one(float(group.size)),
                "count": self._one(1.0),
                "wait_ns": _packed(waited[rank, steps] * np.float32(MS)),
                "on_device": self._one(1.0),
                "group_kind": self._one(float(group.kind)),
            }
            found[f"{group.kind.name.lower()}:{group.of[rank]}"] = Columns(columns)
        return found

    def members(self, rank: int) -> dict[str, str]:
        """Global ranks of each of its groups."""
        groups = self._job.groups
        return {
            f"{group.kind.name.lower()}:{group.of[rank]}": group.members(rank)
            for group in (groups.data, groups.tensor, groups.expert, groups.pipeline)
            if group is not None
        }


def _packed(values: NDArray[np.float32]) -> array[float]:
    packed = array("f")
    packed.frombytes(np.ascontiguousarray(values, dtype=np.float32).tobytes())
    return packed
