"""The scenario file, read into checked values: every refusal is one line that says what, where and what to do."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rankscope.errors import ScenarioError, SimulatorError
from rankscope.simulator.profiles import profile_named
from rankscope.simulator.scenario import WORKLOAD_KINDS, Confounder, Fault, Node, Scenario, Workload
from rankscope.simulator.scenario_classes import CONFOUNDERS, FAULT_CLASSES

#: Environment variable of a simulated rank: path of its scenario file.
SCENARIO_VARIABLE = "RANKSCOPE_SIM_SCENARIO"
#: Environment variable of a simulated rank: a seed in place of the file's, if set.
SEED_VARIABLE = "RANKSCOPE_SIM_SEED"
#: Directory of the scenarios that come with the package.
SCENARIOS = Path(__file__).parent / "scenarios"

_PLACES = ("gpu", "rank", "host", "link", "device", "stage")


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
    except RecursionError:
        raise ScenarioError("nested too deeply", where=str(path), todo="name a scenario file") from None
    return _Reader(str(path)).scenario(document, path)


def scenario_from_environment(environ: Mapping[str, str]) -> Scenario:
    """The scenario a simulated rank runs in. Raises ScenarioError."""
    path = environ.get(SCENARIO_VARIABLE)
    if not path:
        raise ScenarioError("not set", where=SCENARIO_VARIABLE, todo="start it by `rankscope demo`")
    scenario = load_scenario(Path(path))
    seed = environ.get(SEED_VARIABLE)
    return replace(scenario, seed=int(seed)) if seed else scenario


#: Faults of what lies between hosts.
_BETWEEN_HOSTS = ("network-link-flap", "network-link-errors", "network-congestion")


def _host(rank: int, node: Node) -> int:
    return rank // node.gpus


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
            ("workload.ranks", workload.ranks, 1, 16_384),
            ("workload.steps", workload.steps, 1, 1_000_000),
            ("workload.step_ms", workload.step_ms, 1, 60_000),
            ("workload.data_ms", workload.data_ms, 0, 60_000),
            ("workload.host_ms", workload.host_ms, 0, 60_000),
            ("workload.workers", workload.workers, 0, 16),
            ("workload.layers", workload.layers, 1, 256),
            ("workload.batch", workload.batch, 1, 65_536),
            ("workload.tensor", workload.tensor, 1, 64),
            ("workload.stages", workload.stages, 1, 64),
            ("workload.microbatches", workload.microbatches, 1, 1024),
            ("workload.experts", workload.experts, 1, 1024),
            ("workload.transfer_ms", workload.transfer_ms, 0, 60_000),
            ("workload.copy_ms", workload.copy_ms, 0, 60_000),
            ("workload.noise", workload.noise, 0.1, 10),
            ("node.gpus", node.gpus, 1, 16),
            ("node.hosts", node.hosts, 1, 4096),
        )
        for key, value, least, most in bounds:
            if not least <= value <= most:
                wanted = f"give {least}" if least == most else f"give {least} to {most}"
                raise self._refuse(f"{value:g} is out of range", key, wanted)
        if workload.kind == "single" and workload.ranks != 1:
            raise self._refuse(f"{workload.ranks} ranks in a single job", "workload.ranks", "give 1")
        self._check_groups(workload)
        if workload.ranks > node.gpus * node.hosts:
            what = f"{workload.ranks} ranks on {node.gpus} GPUs" + (f" of {node.hosts} hosts" * (node.hosts > 1))
            todo = "give at most one rank a GPU, or raise node.gpus or node.hosts"
            raise self._refuse(what, "workload.ranks", todo)
        try:
            profile_named(node.gpu)
        except SimulatorError as error:
            raise self._refuse(error.what, "node.gpu", error.todo) from None
        parts = node.driver.split(".")
        if not 2 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise self._refuse(f"{node.driver!r} is no driver version", "node.driver", "write it as 580.95.05")

    def _check_groups(self, workload: Workload) -> None:
        """Whether ranks can be dealt out to the groups asked for."""
        if workload.kind == "pipeline" and workload.stages < 2:
            raise self._refuse("a pipeline of one stage", "workload.stages", "give at least 2")
        if workload.kind != "pipeline" and workload.stages > 1:
            raise self._refuse(
                f"{workload.stages} stages in a {workload.kind} job",
                "workload.stages",
                'leave it out, or kind = "pipeline"',
            )
        if workload.kind == "fsdp" and workload.tensor > 1:
            raise self._refuse("tensor groups in an fsdp job", "workload.tensor", "leave it out, or another kind")
        whole = workload.tensor * workload.stages
        if workload.ranks % whole:
            todo = f"give a multiple of {whole} (tensor x stages)"
            raise self._refuse(f"{workload.ranks} ranks do not fill the groups", "workload.ranks", todo)
        if (workload.ranks // whole) % workload.experts:
            todo = f"give a divisor of {workload.ranks // whole}, the data-parallel ranks"
            raise self._refuse(f"{workload.experts} experts do not divide them", "workload.experts", todo)

    def _fault(self, table: Mapping[str, Any], key: str, workload: Workload, node: Node) -> Fault:
        slug = self._named(table, key, "class", FAULT_CLASSES)
        rules = FAULT_CLASSES[slug]
        options = ["class", "from_step", "counters", "slowdown", *_PLACES]
        options += ["severity"] * bool(rules.severity) + ["to_step"] * (not rules.fatal)
        options += ["xid"] * rules.xid + ["every"] * rules.periodic
        self._known(table, options, key)
        if rules.workloads and workload.kind not in rules.workloads:
            todo = f"give workload.kind = {' or '.join(map(repr, rules.workloads))}"
            raise self._refuse(f"{slug} in a {workload.kind} job", f"{key}.class", todo)
        values = self._place(table, key, rules.places, rules.everywhere, workload, node, slug)
        if slug == "expert-imbalance" and workload.experts < 2:
            raise self._refuse("expert-imbalance without experts", f"{key}.class", "give workload.experts")
        if slug in _BETWEEN_HOSTS and len({_host(rank, node) for rank in range(workload.ranks)}) < 2:
            raise self._refuse(f"{slug} in a job on one host", f"{key}.class", "use two hosts at least")
        if slug == "cooling-plant" and min(workload.ranks, node.gpus) < 2:
            raise self._refuse("one hot GPU is no cooling plant", f"{key}.class", "use two GPUs a host at least")
        if slug == "nvlink-degraded" and workload.ranks < 2:
            raise self._refuse("nvlink-degraded in a job of one rank", f"{key}.class", "use two ranks at least")
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
        rules = CONFOUNDERS[kind]
        options = ["kind", *_PLACES] + ["severity", "from_step", "to_step"] * bool(rules.severity)
        options += ["every", "from_step", "to_step"] * rules.periodic
        self._known(table, options, key)
        places = (rules.place,) if rules.place else ()
        values = self._place(table, key, places, not rules.place, workload, node, kind)
        begin, end = self._span(table, key, workload)
        severity = self._value(table, key, "severity", float, rules.default_severity)
        if not rules.least <= severity <= rules.most:
            todo = f"give {rules.least:g} to {rules.most:g} ({rules.severity})"
            raise self._refuse(f"{severity:g} is out of range", f"{key}.severity", todo)
        every = self._value(table, key, "every", int, 50 if rules.periodic else 1)
        if not 1 <= every <= workload.steps:
            raise self._refuse(f"{every} is out of range", f"{key}.every", f"give 1 to {workload.steps} steps")
        return Confounder(kind=kind, severity=severity, from_step=begin, to_step=end, every=every, **values)

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
        places: Sequence[str],
        optional: bool,
        workload: Workload,
        node: Node,
        slug: str,
    ) -> dict[str, Any]:
        """The one place given, checked against the size of job and node; the host of a one-host job is 0."""
        for other in _PLACES:
            if other in table and other not in places:
                todo = f"give {' or '.join(places)}" if places else "leave the place out: it is everywhere"
                raise self._refuse(f"{slug} has no {other}", f"{key}.{other}", todo)
        given = [place for place in places if place in table]
        if len(given) > 1:
            raise self._refuse(f"{' and '.join(given)} at once", key, "give one place")
        if not given:
            if places == ("host",) and node.hosts == 1:
                return {"host": 0}
            if optional or not places:
                return {}
            raise self._refuse(f"{slug} needs a {' or '.join(places)}", key, f"add {places[0]} = N")
        place = given[0]
        value: int = self._value(table, key, place, int, 0)
        # Rank k runs on GPU k: a fault of a GPU without a rank would change nothing.
        hosts = -(-workload.ranks // node.gpus)
        gpus = node.gpus if node.hosts == 1 else workload.ranks
        limit = {"gpu": gpus, "rank": workload.ranks, "host": hosts, "stage": workload.stages}[place]
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
