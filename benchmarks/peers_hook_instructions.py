"""Instructions that hooks and their peers add to a step, counted by callgrind: beside the times of peers_hooks.py.

    .venv/bin/python benchmarks/peers_hook_instructions.py --write docs/benchmarks.md [--tools traceml]

Rows that were not asked for stay as they are in the document. The same tools in the same places of a step. One process
trains a small transformer (DDP over gloo, alone in its group) plain, watched, and plain again (the null), each tool in
a process of its own. What a tool does in threads and processes of its own while it waits is not in these figures, what
it does in the steps is. Needs valgrind and a C compiler; some minutes a tool.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from document import Table, machine
from hook_instructions import STEPS, WARM_STEPS, callgrind, count_marked
from peers_hooks import TOOLS, WATCHING, Training, aggregator, packages, prepare

HEAD = ("| tool | instructions a step, plain | it adds | null | share |", "|---|---|---|---|---|")


def count_inside(tool: str, site: Path, library: str) -> None:
    """Run under callgrind: plain, watched and plain again."""
    import torch.distributed as dist

    sys.path.append(str(site))
    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
        prepare(tool, site)
        training = Training(samples=4 * max(WARM_STEPS, STEPS))
        count_marked(library, 0, "plain", lambda steps: training.train(steps))
        with WATCHING[tool]() as how:
            count_marked(library, 0, "watched", lambda steps: training.train(steps, **how))
        count_marked(library, 0, "null", lambda steps: training.train(steps))
        dist.destroy_process_group()


def counted(tool: str, site: Path) -> dict[str, float]:
    """Instructions a step, by condition."""
    with tempfile.TemporaryDirectory() as directory, aggregator(tool, 1, site, directory) as environment:
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        script = [str(Path(__file__).resolve()), "--inside", tool, "--site", str(site), "--library"]
        return callgrind(script, environment)["0"]


def main() -> None:
    """Count and print, or write into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--site", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        count_inside(arguments.inside, arguments.site, arguments.library)
        return
    document = Table(arguments.write, "hook-instructions") if arguments.write else None
    site = packages()
    made_on = f"{machine()}; one rank."
    rows = {}
    print(made_on, "", *HEAD, sep="\n", flush=True)
    for tool in arguments.tools:
        found = counted(tool, site)
        plain, watched, null = (found[name] for name in ("plain", "watched", "null"))
        rows[tool,] = (
            f"| {tool} | {plain:,.0f} | {watched - plain:+,.0f} | {null - plain:+,.0f}"
            f" | {100 * (watched - plain) / plain:.3f} % |"
        )
        print(rows[tool,], flush=True)
    if document is not None:
        what = "some rows" if len(arguments.tools) < len(TOOLS) else "all"
        document.merge(made_on, HEAD, rows, lambda key: TOOLS.index(key[0]), what)


if __name__ == "__main__":
    main()
