"""What the agent costs on a node of eight GPUs: an hour of the shipped loop on simulated time, in a minute."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from rankscope.simulator.state import STATE_VARIABLE

BENCHMARK = Path(__file__).parents[2] / "benchmarks/agent_cost.py"


@pytest.fixture(name="benchmark")
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/agent_cost.py as a module."""
    monkeypatch.setenv(STATE_VARIABLE, "")
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("agent_cost", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "agent_cost", module)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_measures_and_leaves_nothing(benchmark: ModuleType) -> None:
    """Five minutes of simulated time: memory and a table come out, and no thread or file stays."""
    threads, files = threading.enumerate(), len(os.listdir("/proc/self/fd"))
    hour = benchmark.in_simulated_time(302)
    assert len(hour) == 1
    assert hour[0] > 0
    run = benchmark.Measured("steady", 60.0, 0.008, 90_000_000, {"nvml/fast": 0.001, "rest": 0.007}, 500.0, 0)
    text = benchmark.markdown([run], 302, hour)
    assert "| CPU, share of one core | 0.80% |" in text
    assert "| nvml/fast | 0.100% |" in text
    # A thread that was told to end ends a moment later.
    for thread in set(threading.enumerate()) - set(threads):
        thread.join(30)
        assert not thread.is_alive(), thread.name
    assert len(os.listdir("/proc/self/fd")) <= files + 1


def test_a_document_without_the_marks_is_refused_first(benchmark: ModuleType, tmp_path: Path) -> None:
    """Before anything is measured, in one line."""
    (tmp_path / "page.md").write_text("no table here")
    for name in ("page.md", "absent.md"):
        with pytest.raises(SystemExit, match=name):
            benchmark.Table(tmp_path / name, "table")


@pytest.mark.verify
def test_memory_is_flat_over_an_hour() -> None:
    """After the first ten minutes it moves by less than a tenth (the benchmark's own share is in it too)."""
    # In a process of its own: a test runner holds memory too.
    code = "import agent_cost; print(agent_cost.in_simulated_time(3600))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARK.parent, capture_output=True, text=True, timeout=900, check=True
    )
    sizes = json.loads(done.stdout)
    assert len(sizes) >= 10
    assert max(sizes[1:]) < 1.1 * min(sizes[1:])
