"""What a simulated run is made of: the scenario file, read into checked values.

A scenario names the job (`[workload]`), the machine it seems to run on (`[node]`), what is wrong
(`[[fault]]`) and what is odd but innocent (`[[confounder]]`). The tables in scenario_classes say for every
fault which place it takes, what its severity means and which options it knows.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rankscope.errors import ScenarioError, SimulatorError
from rankscope.finding import Side
from rankscope.simulator.profiles import profile_named
from rankscope.simulator.scenario_classes import CONFOUNDERS, FAULT_CLASSES

#: Environment variable of a simulated rank: path of its scenario file.
SCENARIO_VARIABLE = "RANKSCOPE_SIM_SCENARIO"
#: Environment variable of a simulated rank: a seed in place of the file's, if set.
SEED_VARIABLE = "RANKSCOPE_SIM_SEED"
#: Directory of the scenarios that come with the package.
SCENARIOS = Path(__file__).parent / "scenarios"

WORKLOAD_KINDS = ("ddp", "single")
_PLACES = ("gpu", "rank", "host", "link", "device")


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
    severity: float
    from_step: int = 0
    to_step: int


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


def load_scenario(path: Path) -> Scenario:
    """Read and check a scenario file. Raises ScenarioError, one line: what is wrong, where, what to do."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ScenarioError(f"cannot read scenario ({reason})", where=str(path)) from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"not TOML ({error})", where=str(path)) from error
    return _Reader(str(path)).scenario(document, path)


def scenario_from_environment(environ: Mapping[str, str]) -> Scenario:
    """The scenario a simulated rank runs in. Raises ScenarioError."""
    path = environ.get(SCENARIO_VARIABLE)
    if not path:
        raise ScenarioError("not set", where=SCENARIO_VARIABLE, todo="start it by `rankscope demo`")
    scenario = load_scenario(Path(path))
    seed = environ.get(SEED_VARIABLE)
    return replace(scenario, seed=int(seed)) if seed else scenario


_T = TypeVar("_T", Workload, Node)


class _Reader:
    """Turns one parsed document into a Scenario; knows the file's name for its errors."""

    def __init__(self, file: str) -> None:
        self._file = file

    def _refuse(self, what: str, key: str, todo: str) -> ScenarioError:
        return ScenarioError(what, where=f"{self._file}: {key}" if key else self._file, todo=todo)

    def scenario(self, document: Mapping[str, Any], path: Path) -> Scenario:
        self._known(document, ("name", "seed", "workload", "node", "fault", "confounder"), "")
        name = self._value(document, "", "name", str, path.stem)
        seed = self._value(document, "", "seed", int, 1)
        workload = self._table(Workload, document, "workload")
        node = self._table(Node, document, "node")
        self._check_size(workload, node)
        faults = tuple(self._fault(table, key, workload, node) for key, table in self._tables(document, "fault"))
        confounders = tuple(
            self._confounder(table, key, workload, node) for key, table in self._tables(document, "confounder")
        )
        return Scenario(
            name=name,
            seed=seed,
            workload=workload,
            node=node,
            faults=faults,
            confounders=confounders,
            path=path.absolute(),
        )

    def _known(self, table: Mapping[str, Any], known: Sequence[str], key: str) -> None:
        for name in table:
            if name not in known:
                place = f"{key}.{name}" if key else name
                raise self._refuse("unknown key", place, _nearest(name, known))

    def _value(self, table: Mapping[str, Any], key: str, name: str, kind: type, default: Any) -> Any:
        """The value of a key, of the type asked for (an integer will do for a number with a fraction)."""
        value = table.get(name, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            place = f"{key}.{name}" if key else name
            wanted = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
            raise self._refuse(f"{value!r} has the wrong type", place, f"give {wanted}")
        return value

    def _table(self, kind: type[_T], document: Mapping[str, Any], key: str) -> _T:
        table = document.get(key, {})
        if not isinstance(table, dict):
            raise self._refuse("not a table", key, f"write it as [{key}]")
        known = fields(kind)
        self._known(table, [item.name for item in known], key)
        values = {
            item.name: self._value(table, key, item.name, type(item.default), item.default)
            for item in known
            if item.default is not MISSING
        }
        return kind(**values)

    def _tables(self, document: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
        tables = document.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._refuse("not a list of tables", key, f"write each as [[{key}]]")
        return [(f"{key}[{index}]", table) for index, table in enumerate(tables)]

    def _check_size(self, workload: Workload, node: Node) -> None:
        if workload.kind not in WORKLOAD_KINDS:
            todo = f"choose {' or '.join(WORKLOAD_KINDS)}"
            raise self._refuse(f"cannot simulate {workload.kind!r}", "workload.kind", todo)
        bounds: tuple[tuple[str, float, float, float], ...] = (
            ("workload.ranks", workload.ranks, 1, 64),
            ("workload.steps", workload.steps, 1, 1_000_000),
            ("workload.step_ms", workload.step_ms, 1, 60_000),
            ("workload.data_ms", workload.data_ms, 0, 60_000),
            ("workload.host_ms", workload.host_ms, 0, 60_000),
            ("workload.workers", workload.workers, 0, 16),
            ("workload.layers", workload.layers, 1, 256),
            ("workload.batch", workload.batch, 1, 65_536),
            ("node.gpus", node.gpus, 1, 16),
            ("node.hosts", node.hosts, 1, 1),
        )
        for key, value, least, most in bounds:
            if not least <= value <= most:
                wanted = f"give {least}" if least == most else f"give {least} to {most}"
                raise self._refuse(f"{value:g} is out of range", key, wanted)
        if workload.kind == "single" and workload.ranks != 1:
            raise self._refuse(f"{workload.ranks} ranks in a single job", "workload.ranks", "give 1")
        if workload.ranks > node.gpus:
            what = f"{workload.ranks} ranks on {node.gpus} GPUs"
            raise self._refuse(what, "workload.ranks", "give at most one rank a GPU, or raise node.gpus")
        try:
            profile_named(node.gpu)
        except SimulatorError as error:
            raise self._refuse(error.what, "node.gpu", error.todo) from None
        parts = node.driver.split(".")
        if not 2 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise self._refuse(f"{node.driver!r} is no driver version", "node.driver", "write it as 580.95.05")

    def _fault(self, table: Mapping[str, Any], key: str, workload: Workload, node: Node) -> Fault:
        slug = self._named(table, key, "class", FAULT_CLASSES)
        rules = FAULT_CLASSES[slug]
        options = ["class", "from_step", "counters", "slowdown", *_PLACES]
        options += ["severity"] * bool(rules.severity) + ["to_step"] * (not rules.fatal)
        options += ["xid"] * rules.xid + ["every"] * rules.periodic
        self._known(table, options, key)
        values = self._place(table, key, rules.place, rules.everywhere, workload, node, slug)
        begin, end = self._span(table, key, workload)
        severity = self._value(table, key, "severity", float, rules.default_severity)
        if severity < rules.least_severity:
            todo = f"give at least {rules.least_severity:g} ({rules.severity})"
            raise self._refuse(f"{severity:g} is out of range", f"{key}.severity", todo)
        every = self._value(table, key, "every", int, 1)
        if not 1 <= every <= workload.steps:
            raise self._refuse(f"{every} is out of range", f"{key}.every", f"give 1 to {workload.steps} steps")
        flags = {name: self._value(table, key, name, bool, True) for name in ("counters", "slowdown", "xid")}
        for name in ("counters", "slowdown"):
            if not flags[name] and not rules.twins:
                todo = "leave it out"
                raise self._refuse(f"{slug} has no twin without {name}", f"{key}.{name}", todo)
        if not flags["counters"] and not flags["slowdown"]:
            todo = "leave one of them true, or remove the fault"
            raise self._refuse("counters and slowdown are both false: nothing is wrong", key, todo)
        return Fault(
            class_slug=slug,
            severity=severity,
            from_step=begin,
            to_step=end,
            every=every,
            **values,
            **flags,
        )

    def _confounder(self, table: Mapping[str, Any], key: str, workload: Workload, node: Node) -> Confounder:
        kind = self._named(table, key, "kind", CONFOUNDERS)
        place = CONFOUNDERS[kind][1]
        scaled = "severity:" in CONFOUNDERS[kind][0]
        options = ["kind", *_PLACES] + ["severity", "from_step", "to_step"] * scaled
        self._known(table, options, key)
        values = self._place(table, key, place, place == "", workload, node, kind)
        begin, end = self._span(table, key, workload)
        default = {"silicon-spread": 0.08, "power-cap": 1.05, "more-work": 1.25}.get(kind, 1.0)
        severity = self._value(table, key, "severity", float, default)
        least, most = (0.0, 0.5) if kind == "silicon-spread" else (1.0, 100.0)
        if not least <= severity <= most:
            raise self._refuse(f"{severity:g} is out of range", f"{key}.severity", f"give {least:g} to {most:g}")
        return Confounder(kind=kind, severity=severity, from_step=begin, to_step=end, **values)

    def _named(self, table: Mapping[str, Any], key: str, name: str, known: Mapping[str, Any]) -> str:
        if name not in table:
            raise self._refuse(f"no {name}", key, f"choose one of {', '.join(known)}")
        value: str = self._value(table, key, name, str, "")
        if value not in known:
            raise self._refuse(f"unknown {name} {value!r}", f"{key}.{name}", _nearest(value, list(known)))
        return value

    def _place(
        self,
        table: Mapping[str, Any],
        key: str,
        place: str,
        optional: bool,
        workload: Workload,
        node: Node,
        slug: str,
    ) -> dict[str, Any]:
        """The one place given, checked against the size of job and node; a host's is 0 unless given."""
        for other in _PLACES:
            if other in table and other != place:
                todo = f"give {place}" if place else "leave the place out: it is everywhere"
                raise self._refuse(f"{slug} has no {other}", f"{key}.{other}", todo)
        if not place:
            return {}
        if place == "host":
            optional = True
        if place not in table:
            if optional:
                return {"host": 0} if place == "host" else {}
            raise self._refuse(f"{slug} needs a {place}", key, f"add {place} = N")
        value: int = self._value(table, key, place, int, 0)
        # Rank k runs on GPU k: a fault of a GPU without a rank would change nothing.
        limit = {"gpu": node.gpus, "rank": workload.ranks, "host": node.hosts}[place]
        if not 0 <= value < limit:
            raise self._refuse(f"no {place} {value}", f"{key}.{place}", f"choose 0 to {limit - 1}")
        return {place: value}

    def _span(self, table: Mapping[str, Any], key: str, workload: Workload) -> tuple[int, int]:
        begin = self._value(table, key, "from_step", int, 0)
        end = self._value(table, key, "to_step", int, workload.steps)
        if not 0 <= begin < workload.steps:
            todo = f"choose 0 to {workload.steps - 1}, or raise workload.steps"
            raise self._refuse(f"step {begin} is not in the run", f"{key}.from_step", todo)
        if end <= begin:
            raise self._refuse(f"ends at step {end}, before it begins at {begin}", f"{key}.to_step", "raise it")
        if end > workload.steps:
            raise self._refuse(f"ends at step {end} of {workload.steps}", f"{key}.to_step", "leave it out for the end")
        return begin, end


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
