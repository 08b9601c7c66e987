"""Instructions that the hooks add to a step, counted by callgrind: the same on a busy machine as on a quiet one.

    .venv/bin/python benchmarks/hook_instructions.py --write docs/hook-cost.md

Needs valgrind and a C compiler. One process trains; callgrind counts only in between two marks. Each loop is counted
plain, attached, and plain again (the null), after steps that warm the interpreter's caches up.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from document import Table

WARM_STEPS, STEPS = 40, 32
MARKS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def loops() -> dict[str, Callable[[int], None]]:
    """Loops to count in: by name, a function that trains so many steps."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(4 * 10_000, 32)), batch_size=4)

    def trainer(model: torch.nn.Module, collectives: int = 0) -> Callable[[int], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        scratch = torch.zeros(4)

        def train(steps: int) -> None:
            for (batch,), _ in zip(loader, range(steps), strict=False):
                model(batch).square().mean().backward()
                for _ in range(collectives):
                    dist.all_reduce(scratch)
                optimizer.step()
                optimizer.zero_grad()

        return train

    def layers(count: int) -> torch.nn.Module:
        return torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(count)))

    return {
        "one process, 2 modules": trainer(layers(2)),
        "one process, 64 modules": trainer(layers(64)),
        "DDP, 2 modules": trainer(DistributedDataParallel(layers(2))),
        "DDP and 20 collectives": trainer(DistributedDataParallel(layers(2)), 20),
    }


@contextmanager
def attached(directory: str) -> Iterator[None]:
    """The hooks on. A step counts as one of a job of two ranks, so that all that a job needs is at work."""
    from rankscope.torch_hooks import Scope

    environ = {"RANKSCOPE_DIR": directory, "RANKSCOPE_STACK_SIGNAL": "", "RANK": "0", "WORLD_SIZE": "2"}
    scope = Scope(environ, write_error=sys.exit)
    scope.install()
    try:
        yield
    finally:
        scope.detach()


def count_inside(library: str) -> None:
    """Run under callgrind: every loop plain, attached and plain again."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
        for number, train in enumerate(loops().values()):
            count_marked(library, number, "plain", train)
            with attached(directory):
                count_marked(library, number, "attached", train)
            count_marked(library, number, "null", train)
        dist.destroy_process_group()


def callgrind(script: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, dict[str, float]]:
    """Instructions a step by the two words of each mark, of a Python script that is given the library of marks last."""
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory, "marks.c"), Path(directory, "marks.so")
        source.write_text(MARKS)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=counts"]
        # Of the training thread alone: threads of gloo spin as long as they please.
        valgrind += ["--separate-threads=yes"]
        environ = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "RANKSCOPE_ATTACH": ""}
        command = [*valgrind, sys.executable, *script, str(library)]
        done = subprocess.run(
            command, cwd=directory, check=False, env=environ | dict(environment or {}), capture_output=True, text=True
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "Error" in line]
            sys.exit(f"{' '.join(script)}: {said[-1] if said else f'status {done.returncode}'}")
        found: dict[str, dict[str, float]] = {}
        for path in Path(directory).glob("counts.*"):
            text = path.read_text(errors="replace")
            trigger = next((line for line in text.splitlines() if line.startswith("desc: Trigger: ")), "")
            totals = next((line for line in text.splitlines() if line.startswith(("summary:", "totals:"))), "")
            words = trigger.removeprefix("desc: Trigger: Client Request: ").split()
            if len(words) == 2 and words[0].isdigit() and "\nthread: 1\n" in text:
                found.setdefault(words[0], {})[words[1]] = int(totals.split()[1]) / STEPS
    return found


def count_marked(library: str, number: int, name: str, train: Callable[[int], None]) -> None:
    """Train, and count the steps after those that warm up; a mark has a number and a name."""
    marks = ctypes.CDLL(library)
    train(WARM_STEPS)
    marks.begin()
    train(STEPS)
    marks.end(f"{number} {name}".encode())


def main() -> None:
    """Count and print, or write into the document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inside")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    if arguments.inside:
        count_inside(arguments.inside)
        return
    document = Table(arguments.write, "instructions") if arguments.write else None
    lines = ["| loop | instructions a step, plain | hooks add | null | share |", "|---|---|---|---|---|"]
    names = ("one process, 2 modules", "one process, 64 modules", "DDP, 2 modules", "DDP and 20 collectives")
    for number, found in sorted(callgrind([str(Path(__file__).resolve()), "--inside"]).items()):
        plain, hooks, null = (found[name] for name in ("plain", "attached", "null"))
        lines.append(
            f"| {names[int(number)]} | {plain:,.0f} | {hooks - plain:+,.0f} | {null - plain:+,.0f} "
            f"| {100 * (hooks - plain) / plain:.2f} % |"
        )
    text = "\n".join(lines)
    print(text)
    if document is not None:
        document.write(text)


if __name__ == "__main__":
    main()
