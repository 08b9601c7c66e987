"""What a simulated run is made of: the values of a scenario, as scenario_file reads and checks them.

A scenario names the job (`[workload]`), the machine it seems to run on (`[node]`), what is wrong
(`[[fault]]`) and what is odd but innocent (`[[confounder]]`). The tables in scenario_classes say for every
fault which place it takes, what its severity means and which options it knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rankscope.finding import Side
from rankscope.simulator.scenario_classes import CONFOUNDERS, FAULT_CLASSES

WORKLOAD_KINDS = ("ddp", "fsdp", "pipeline", "single")
#: Largest job whose ranks can be processes of this machine; larger ones are generated.
REAL_RANKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The training job. Steps count from 0."""

    kind: str = "ddp"
    ranks: int = 4
    steps: int = 120
    #: Device time of a healthy step.
    step_ms: float = 50.0
    #: Time to prepare one batch in a loader worker.
    data_ms: float = 5.0
    #: Loader workers of each rank.
    workers: int = 1
    #: Processor time the host needs to launch one step's work.
    host_ms: float = 8.0
    #: Layers of the model; each is work items of its own on the device.
    layers: int = 4
    #: Samples in a batch.
    batch: int = 32
    #: Ranks that share one layer; stages of a pipeline, with its microbatches; ranks that exchange experts' tokens.
    tensor: int = 1
    stages: int = 1
    microbatches: int = 8
    experts: int = 1
    #: Part of a collective that computing does not hide; 0: a twentieth of the step.
    transfer_ms: float = 0.0
    #: Copy of a batch to the device; 0: a fiftieth of the step.
    copy_ms: float = 0.0
    #: Factor on the noise of generated recordings.
    noise: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The machine the job seems to run on."""

    gpu: str = "H100-SXM5-80GB"
    gpus: int = 4
    driver: str = "580.95.05"
    hosts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong, active in from_step <= step < to_step. Its class documents the unit of `severity`."""

    class_slug: str
    gpu: int | None = None
    rank: int | None = None
    host: int | None = None
    stage: int | None = None
    link: str | None = None
    device: str | None = None
    severity: float
    from_step: int = 0
    to_step: int
    counters: bool = True
    slowdown: bool = True
    xid: bool = True
    every: int = 1

    @property
    def side(self) -> Side:
        """Whose fault it is."""
        return FAULT_CLASSES[self.class_slug].side

    def on_rank(self, rank: int) -> bool:
        """Whether a rank is hit by it: rank k runs on GPU k, and a host's fault hits all of its ranks."""
        place = self.rank if self.rank is not None else self.gpu
        return place is None or place == rank

    def at(self, step: int) -> bool:
        """Whether it is active in a step; a periodic one is so in every N-th step from from_step on."""
        return self.from_step <= step < self.to_step and (step - self.from_step) % self.every == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Confounder:
    """Something odd that must not be accused. `kind` is one of CONFOUNDERS."""

    kind: str
    gpu: int | None = None
    rank: int | None = None
    host: int | None = None
    severity: float
    from_step: int = 0
    to_step: int
    every: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run, healthy or not. All randomness in it comes from `seed`."""

    name: str
    seed: int = 1
    workload: Workload = field(default_factory=Workload)
    node: Node = field(default_factory=Node)
    faults: tuple[Fault, ...] = ()
    confounders: tuple[Confounder, ...] = ()
    path: Path | None = None

    @property
    def why_not_real(self) -> str | None:
        """What keeps it from being run as a real job on this machine; None where nothing does."""
        workload = self.workload
        if workload.kind not in ("ddp", "fsdp", "single"):
            return f"a {workload.kind} job can only be generated"
        if workload.ranks > REAL_RANKS or self.node.hosts > 1 or max(workload.tensor, workload.experts) > 1:
            return f"real jobs have one host, at most {REAL_RANKS} ranks, and data-parallel groups only"
        for fault in self.faults:
            everywhere = fault.class_slug == "work-imbalance" and fault.rank is None
            if not FAULT_CLASSES[fault.class_slug].real or everywhere:
                return f"{fault.class_slug} can only be generated" + (" without a rank" if everywhere else "")
        for confounder in self.confounders:
            if not CONFOUNDERS[confounder.kind].real:
                return f"{confounder.kind} can only be generated"
        return None

    def fault_on(self, class_slug: str, rank: int, step: int) -> Fault | None:
        """The fault of a class that works on a rank in a step; only those that slow or break."""
        for fault in self.faults:
            if fault.class_slug == class_slug and fault.slowdown and fault.on_rank(rank) and fault.at(step):
                return fault
        return None

    def work_share(self, rank: int, step: int) -> float:
        """Factor on the size of a rank's batch in a step, from faults and confounders."""
        fault = self.fault_on("work-imbalance", rank, step)
        share = fault.severity if fault else 1.0
        for confounder in self.confounders:
            active = confounder.from_step <= step < confounder.to_step
            if confounder.kind == "more-work" and confounder.rank == rank and active:
                share *= confounder.severity
        return share
