"""Do multi-rank traces, masked down to what hooks in training would have seen, name the same rank as the whole trace?

    .venv/bin/python benchmarks/masked_traces.py --seeds 10 --real FOLDER --write docs/trace.md

Played traces of every layout, culprit and way to launch, several seeds each, and what real traces of two ranks or more
there are in FOLDER. Three answers are compared with the truth: of the whole trace, of its masked form by the same
comparison, and of the product's rules over the masked form as a recording. The table between the marks is replaced.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from array import array
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from document import Table

from rankscope.agent.kineto import read_trace
from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.records import DeviceRecord, GroupRecord, StepRecord, field_names
from rankscope.rules import diagnose
from rankscope.rules.trace.analysis import analyse
from rankscope.rules.trace.blame import blame
from rankscope.rules.trace.exchange import exchange_of
from rankscope.rules.trace.seen import Seen, masked, seen_of
from rankscope.simulator.traces import TraceJob, TracePlan
from rankscope.torch_hooks.groups import kind_of, ranges
from rankscope.window import Columns, RankWindow, Window

STEPS = 40
RecordType = type[StepRecord] | type[DeviceRecord] | type[GroupRecord]


def as_recorded(seen: Seen) -> Window:
    """A masked trace as the hooks would have put it into a recording: a device record a step, and one a group."""
    ends = np.nanmedian(seen.step_ns, axis=0).cumsum()

    def columns(
        kind: type[StepRecord] | type[DeviceRecord] | type[GroupRecord], told: dict[str, np.ndarray]
    ) -> Columns:
        missing = np.full(len(seen.steps), np.nan)
        return Columns({name: array("d", told.get(name, missing)) for name in field_names(kind)})

    ranks = {}
    for row, rank in enumerate(seen.ranks):
        zero = np.zeros(len(seen.steps))
        step, own = seen.step_ns[row], seen.own_ns[row]
        host = {"step": np.array(seen.steps), "start_ns": ends - step, "end_ns": ends, "backward_ns": step}
        phases = dict.fromkeys(("data_wait_ns", "forward_ns", "optimizer_ns", "other_ns"), zero)
        device = {"step": np.array(seen.steps), "step_ns": step, "backward_own_ns": own, "backward_wait_ns": step - own}
        identity = RankIdentity(
            "job", 0, rank, len(seen.ranks), rank, "h", 100 + rank, 1, "boot", f"GPU-{rank}", "cuda"
        )
        own_groups = [group for group in seen.groups if rank in group.members]
        groups, members = {}, {}
        for number, group in enumerate(own_groups):
            told = {"step": np.array(seen.steps), "own_ns": own, "wait_ns": group.took_ns[row]}
            same = {"size": len(group.members), "count": 1, "on_device": 1, "group_kind": int(kind_of(group.kind))}
            same |= {"contaminated": 0}
            told |= {name: np.full(len(seen.steps), value) for name, value in same.items()}
            groups[f"{group.kind} {number}"] = columns(GroupRecord, told)
            members[f"{group.kind} {number}"] = ranges(sorted(group.members))
        ranks[rank] = RankWindow(
            identity,
            columns(StepRecord, host | phases),
            columns(DeviceRecord, device | phases),
            groups=groups,
            members=members,
        )
    anchors = {"h": ClockAnchor(0, 0)}
    return Window("job", ranks, {}, (), anchors, 0, int(ends[-1]), len(seen.ranks))


def played(plan: TracePlan, folder: Path) -> Seen:
    """The traces of a job that never ran, read from files as any other."""
    found = []
    for rank, document in enumerate(TraceJob(plan).traces()):
        path = folder / f"rank{rank}.json"
        path.write_text(json.dumps(document))
        found.append(exchange_of(analyse(read_trace(path).trace)))
    return seen_of(found)


def by_rules(seen: Seen) -> int | None:
    """Whom the rules accuse first of those they locate; None where nobody."""
    return next((finding.where.rank for finding in diagnose(as_recorded(masked(seen)))), None)


def lines(seeds: int) -> Iterator[str]:
    """One line of the table a case."""
    for layout, slow in product(("ddp", "grid"), ("device", "host", "link", None)):
        whole = hooks = rules = runs = 0
        for seed, synchronise in product(range(1, seeds + 1), (True, False)):
            plan = TracePlan(
                slow=slow, layout=layout, seed=seed, culprit=seed % 4, synchronise=synchronise,
                steps=STEPS, layers=6, host_delay_us=3_000.0,
            )  # fmt: skip
            truth = None if slow is None or (slow, layout) == ("link", "ddp") else plan.culprit
            with tempfile.TemporaryDirectory() as folder:
                seen = played(plan, Path(folder))
            runs += 1
            whole += blame(seen).rank == truth
            hooks += blame(masked(seen)).rank == truth
            rules += by_rules(seen) == truth
        name = {"link": "link of one rank", None: "nobody"}.get(slow, f"{slow} of one rank")
        yield f"| {layout}: {name} slow | {whole}/{runs} | {hooks}/{runs} | {rules}/{runs} |"


def real_lines(folder: Path) -> Iterator[str]:
    """Real traces of one job: files that differ in the number of a rank alone."""
    jobs: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.json.gz")):
        stem = path.name.removesuffix(".json.gz")
        jobs.setdefault(stem.rstrip("0123456789"), []).append(path)
    for name, paths in jobs.items():
        if len(paths) < 2:
            continue
        seen = seen_of([exchange_of(analyse(read_trace(path).trace)) for path in paths])
        whole, hooks = blame(seen).rank, blame(masked(seen)).rank
        steps = f"{len(seen.steps)} step{'s' if len(seen.steps) > 1 else ''}: too few for the rules"
        told = f"rank {by_rules(seen)}" if len(seen.steps) >= STEPS // 2 else steps
        yield f"| real: {name.rstrip('-_')}, {len(paths)} ranks | rank {whole} | rank {hooks} | {told} |"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--real", type=Path, help="Folder with real traces.")
    parser.add_argument("--write", type=Path, help="Document whose table is replaced.")
    options = parser.parse_args()
    document = Table(options.write, "masked") if options.write else None
    table = "| what is slow | whole trace | masked | masked, by the rules of a recording |\n|---|---|---|---|\n"
    table += "\n".join([*lines(options.seeds), *(real_lines(options.real) if options.real else ())])
    print(table)
    if document is not None:
        document.write(table)


if __name__ == "__main__":
    main()
