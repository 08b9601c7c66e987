"""What a window of the profiler costs a rank, and after how long that is 0.2 % of the training.

    .venv/bin/python benchmarks/profiler_window.py --write docs/trace.md

One process trains a network on one core and takes one window after the other, by the hooks' own code: three steps each,
the trace written to memory. The cost is what the hooks account: begin, slower steps, end and file. The null is the same
with a profiler that does nothing: what it shows is how much the steps differ by themselves.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from document import Table, machine

from rankscope.profiler_window import SHARE, STEPS
from rankscope.torch_hooks.window import KinetoProfiler, Profiler, Window

#: Steps between two windows, which say what a usual step takes.
BETWEEN = 20


class Nothing:
    """A profiler that records nothing."""

    def enabled(self) -> bool:
        return False

    def start(self, before_another: Callable[[], None]) -> None:
        pass

    def step(self, name: str | None) -> None:
        pass

    def stop(self) -> Any:
        return self

    def save(self, path: str) -> None:
        Path(path).touch()


def costs(profiler: Profiler, layers: int, windows: int) -> tuple[float, list[float], float]:
    """Median step in ms, the cost of each window in ms, and the size of its trace in KB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batch = torch.randn(64, 256)
    steps, found, size = [], [], 0.0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder) / "window.json"
        window = Window(file, profiler, rank=0, share=1.0, expected_ns=0)
        began = time.monotonic_ns()
        for step in range((windows + 1) * (BETWEEN + STEPS + 1)):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            now = time.monotonic_ns()
            steps.append((now - began) / 1e6)
            if step and step % (BETWEEN + STEPS + 1) == 0:
                window.ask()
            said = window.step_end(step, now - began)
            if said is not None:
                match = re.search(r"cost_ns=(\d+) bytes=(\d+)", said)
                if match is None:
                    raise SystemExit(said)
                found.append(int(match[1]) / 1e6)
                size = int(match[2]) / 1e3
                file.unlink()
            began = time.monotonic_ns()
    return statistics.median(steps), found, size


def table(windows: int) -> str:
    """A row for each step length."""
    profiler = KinetoProfiler(0, {})
    begin = time.perf_counter()
    profiler.warm_up()
    warm_ms = (time.perf_counter() - begin) * 1e3
    count = f"{windows} windows of {STEPS} steps each; warm-up {warm_ms:.1f} ms; not yet run on a GPU:"
    lines = [
        f"{machine()}, one of them, torch {torch.__version__}; {count}",
        "",
        f"| step | cost of a window, median (quartiles) | null | trace | {SHARE:.1%} of the training after |",
        "|---|---|---|---|---|",
    ]
    for layers in (8, 40, 120):
        step_ms, found, size = costs(profiler, layers, windows)
        _, null, _ = costs(Nothing(), layers, windows)
        low, middle, high = statistics.quantiles(found, n=4)
        lines.append(
            f"| {step_ms:.1f} ms | {middle:.1f} ms ({low:.1f} to {high:.1f}) | {statistics.median(null):.1f} ms "
            f"| {size:.0f} KB | {middle / SHARE / 1e3:.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, "window") if arguments.write else None
    text = table(arguments.windows)
    print(text)
    if document is not None:
        document.write(text)


if __name__ == "__main__":
    main()
