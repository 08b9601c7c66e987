"""What watching adds to a step of a small transformer: Rankscope's hooks beside others', and nothing at all.

    .venv/bin/python benchmarks/peers_hooks.py --write docs/benchmarks.md [--ranks 2]

Rows that were not asked for stay as they are in the document. In each job of 1, 2 or 4 ranks (DDP over gloo) blocks of
steps run watched (B) or not (A), in quartets ABBA or BAAB drawn at random, the same on every rank; a quartet gives one
ratio of medians. "nothing" is the same protocol with nothing attached: what it shows is noise. Intervals are 95 %
bootstrap over quartets. A step's length is its slowest rank's; the tail compares the 99th percentile of all watched
steps with that of all others.

TraceML and the resiliency extension are installed from PyPI without their dependencies, and run on this environment's
torch. The extension's sections time the host only: there is no CUDA here. Lightning's profiler is its SimpleProfiler
around the same four parts of a step as the extension's sections.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from document import Table, machine
from peer_environment import peer_python

#: Steps at the begin of a block that are not counted: tools prepare in them.
SETTLING_STEPS = 3
TOOLS = ("nothing", "rankscope", "resiliency sections", "lightning profiler", "traceml", "torch.profiler")
PACKAGES = ("nvidia-resiliency-ext==0.4.1", "nvidia-cuda-cupti-cu12==12.9.79", "traceml-ai==0.5.0")
HEAD = (
    "| tool | ranks | step, ms | longer by | 95 % interval | 99th percentile longer by |",
    "|---|---|---|---|---|---|",
)
Section = Callable[[str], AbstractContextManager[Any]]


def no_section(_name: str) -> AbstractContextManager[None]:
    """A part of a step that nobody times."""
    return nullcontext()


class Training:
    """A small transformer under DDP, trained on, a block of steps at a time."""

    def __init__(self, samples: int = 64 * 4096) -> None:
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        torch.manual_seed(0)
        torch.set_num_threads(1)
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.model = torch.nn.parallel.DistributedDataParallel(torch.nn.TransformerEncoder(layer, 4))
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)
        self._data = TensorDataset(torch.randn(samples, 8, 64))
        self._loader: Any = DataLoader(self._data, batch_size=4)

    def last(self, step_ms: float) -> None:
        """Take batches that make a step about so long."""
        import torch
        import torch.distributed as dist
        from torch.utils.data import DataLoader

        for _ in range(5):
            taken = torch.tensor([statistics.median(self.block(4)) / 1e6])
            dist.all_reduce(taken)
            wanted = self._loader.batch_size * step_ms * dist.get_world_size() / float(taken)
            self._loader = DataLoader(self._data, batch_size=max(1, min(512, round(wanted))))

    def block(self, steps: int, **how: Any) -> list[int]:
        """Train; the wall time of each settled step, ns."""
        return self.train(steps + SETTLING_STEPS, **how)[SETTLING_STEPS:]

    def train(self, steps: int, section: Section = no_section, step: Callable[[Any], Any] | None = None) -> list[int]:
        """Train; the wall time of each step, ns."""
        walls = []
        batches = iter(self._loader)
        for _ in range(steps):
            began = time.monotonic_ns()
            with section("data"):
                (batch,) = next(batches)
            with nullcontext() if step is None else step(self.model):
                with section("forward"):
                    loss = self.model(batch).square().mean()
                with section("backward"):
                    loss.backward()
                with section("optimizer"):
                    self._optimizer.step()
                    self._optimizer.zero_grad()
            walls.append(time.monotonic_ns() - began)
        return walls


@contextmanager
def rankscope() -> Iterator[dict[str, Any]]:
    """The hooks as `rankscope run` attaches them."""
    from rankscope.torch_hooks import Scope

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        environ = {**os.environ, "RANKSCOPE_DIR": directory, "RANKSCOPE_STACK_SIGNAL": ""}
        scope = Scope(environ, write_error=sys.exit)
        scope.install()
        try:
            yield {}
        finally:
            scope.detach()


@contextmanager
def resiliency() -> Iterator[dict[str, Any]]:
    """The resiliency extension's sections."""
    from nvidia_resiliency_ext.straggler import Detector

    if not Detector.initialized:
        Detector.initialize(gather_on_rank0=False)
    yield {"section": lambda name: Detector.detection_section(name, profile_cuda=False)}


@contextmanager
def lightning() -> Iterator[dict[str, Any]]:
    """Lightning's SimpleProfiler."""
    from lightning.pytorch.profilers import SimpleProfiler

    profiler = SimpleProfiler()
    yield {"section": profiler.profile}


@contextmanager
def traceml() -> Iterator[dict[str, Any]]:
    """TraceML with its automatic patches; outside its steps these stand by."""
    import traceml_ai

    yield {"step": traceml_ai.trace_step}


@contextmanager
def profiler() -> Iterator[dict[str, Any]]:
    """torch.profiler over the whole block; starting and exporting are not in the steps."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        yield {}


@contextmanager
def nothing() -> Iterator[dict[str, Any]]:
    """The null."""
    yield {}


WATCHING: dict[str, Callable[[], AbstractContextManager[dict[str, Any]]]] = {
    "nothing": nothing,
    "rankscope": rankscope,
    "resiliency sections": resiliency,
    "lightning profiler": lightning,
    "traceml": traceml,
    "torch.profiler": profiler,
}


def prepare(tool: str, site: Path) -> None:
    """What a tool needs once in a process."""
    if tool == "resiliency sections":
        ctypes.CDLL(str(site / "nvidia/cuda_cupti/lib/libcupti.so.12"), mode=ctypes.RTLD_GLOBAL)
    if tool == "traceml":
        import traceml_ai

        traceml_ai.init(on_missing_aggregator="raise")


def rank_main(tool: str, quartets: int, steps: int, step_ms: float, site: Path) -> None:
    """One rank: prints the walls of each block, by letter, as JSON."""
    import torch.distributed as dist

    sys.path.append(str(site))
    dist.init_process_group("gloo")
    prepare(tool, site)
    training = Training()
    training.last(step_ms)
    draw = random.Random(1)
    blocks = []
    for _ in range(quartets):
        quartet = []
        for letter in draw.choice(("ABBA", "BAAB")):
            dist.barrier()
            with WATCHING[tool]() if letter == "B" else nothing() as how:
                quartet.append((letter, training.block(steps, **how)))
        blocks.append(quartet)
    Path(os.environ["BENCH_OUT"], os.environ["RANK"]).write_text(json.dumps(blocks))
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def aggregator(tool: str, ranks: int, site: Path, directory: str) -> Iterator[dict[str, str]]:
    """What TraceML's ranks send to, where that is the tool; gives what their environment needs."""
    if tool != "traceml":
        yield {}
        return
    port = str(29800 + os.getpid() % 100)
    environ = {"TRACEML_AGGREGATOR_PORT": port, "TRACEML_LOGS_DIR": directory, "PYTHONPATH": str(site)}
    serve = [sys.executable, "-m", "traceml_ai.launcher.cli", "serve", "--aggregator-port", port]
    serving = subprocess.Popen(
        [*serve, "--nproc-per-node", str(ranks), "--mode", "summary", "--logs-dir", directory],
        env={**os.environ, "RANKSCOPE_ATTACH": "", **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield environ
    finally:
        serving.kill()
        serving.wait()


def packages() -> Path:
    """Where the peers' packages lie, installed where they are not."""
    python = peer_python("hooks", *PACKAGES, dependencies=False)
    return next(python.parents[1].glob("lib/python3*/site-packages"))


def job(tool: str, ranks: int, arguments: argparse.Namespace, site: Path) -> list[list[tuple[str, list[int]]]]:
    """Run a job; quartets of (letter, the slowest rank's wall of each step)."""
    with tempfile.TemporaryDirectory() as directory, aggregator(tool, ranks, site, directory) as environment:
        environ = {**os.environ, "BENCH_OUT": directory, "RANKSCOPE_ATTACH": "", "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        inside = ["--inside", tool, "--quartets", str(arguments.quartets), "--steps", str(arguments.steps)]
        script = [str(Path(__file__).resolve()), *inside, "--step-ms", str(arguments.step_ms), "--site", str(site)]
        done = subprocess.run([*command, *script], env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "Error" in line]
            sys.exit(f"{tool} on {ranks} ranks: {said[0] if said else f'status {done.returncode}'}")
        by_rank = [json.loads(Path(directory, str(rank)).read_text()) for rank in range(ranks)]
    return [
        [
            (blocks[0][0], [max(walls) for walls in zip(*(walls for _, walls in blocks), strict=True)])
            for blocks in zip(*quartets, strict=True)
        ]
        for quartets in zip(*by_rank, strict=True)
    ]


def row(tool: str, ranks: int, quartets: list[list[tuple[str, list[int]]]]) -> str:
    """A line of the table."""
    ratios, walls = [], {"A": list[int](), "B": list[int]()}
    for quartet in quartets:
        mine: dict[str, list[float]] = {"A": [], "B": []}
        for letter, found in quartet:
            mine[letter].append(statistics.median(found))
            walls[letter] += found
        ratios.append(statistics.fmean(mine["B"]) / statistics.fmean(mine["A"]) - 1)
    drawn = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000))
    tail = {letter: statistics.quantiles(found, n=100)[98] for letter, found in walls.items()}
    step_ms = statistics.median(walls["A"]) / 1e6
    told = f"{statistics.median(ratios):+.2%} | {drawn[50]:+.2%} to {drawn[1949]:+.2%}"
    return f"| {tool} | {ranks} | {step_ms:.0f} | {told} | {tail['B'] / tail['A'] - 1:+.1%} |"


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--quartets", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="counted steps of a block")
    parser.add_argument("--step-ms", type=float, default=100)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--site", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        rank_main(arguments.inside, arguments.quartets, arguments.steps, arguments.step_ms, arguments.site)
        return
    import torch

    document = Table(arguments.write, "hooks") if arguments.write else None
    random.seed(1)
    site = packages()
    made_on = (
        f"{machine()}, torch {torch.__version__}; {arguments.quartets} quartets of {arguments.steps} steps a block."
    )
    rows = {}
    print(made_on, "", *HEAD, sep="\n", flush=True)
    for ranks in arguments.ranks:
        for tool in arguments.tools:
            rows[tool, str(ranks)] = row(tool, ranks, job(tool, ranks, arguments, site))
            print(rows[tool, str(ranks)], flush=True)
    if document is not None:
        what = f"{', '.join(map(str, arguments.ranks))} ranks" if arguments.tools == list(TOOLS) else "some rows"
        document.merge(made_on, HEAD, rows, lambda key: (int(key[1]), TOOLS.index(key[0])), what)


if __name__ == "__main__":
    main()
