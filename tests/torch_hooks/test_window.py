"""Windows of the profiler: what they record, what they cost, and that they stay out of everybody's way."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rankscope.profiler_window import STEPS, window_path
from rankscope.torch_hooks.window import KinetoProfiler, Window, make_window

MS = 1_000_000


class Fake:
    """A profiler that notes what is asked of it; each call takes a millisecond of the test's clock."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []
        self.busy = False
        self.fails = ""
        self.before_another: Callable[[], None] = lambda: None

    def _call(self, name: str) -> None:
        self.now += MS
        self.calls.append(name)
        if self.fails == name:
            raise RuntimeError(f"{name} is not to be had")

    def enabled(self) -> bool:
        return self.busy

    def start(self, before_another: Callable[[], None]) -> None:
        self._call("start")
        self.before_another = before_another

    def step(self, name: str | None) -> None:
        self.calls.append(str(name))

    def stop(self) -> Any:
        self._call("stop")
        return self

    def save(self, path: str) -> None:
        self._call("save")
        Path(path).write_text("{}")


@pytest.fixture
def fake() -> Fake:
    """A profiler that notes what is asked of it."""
    return Fake()


@pytest.fixture
def window(fake: Fake, tmp_path: Path) -> Window:
    """Windows on the fake, with a share that is earned at once."""
    return Window(tmp_path / "w.json", fake, rank=3, share=0.5, expected_ns=0, monotonic_ns=lambda: fake.now)


def run(window: Window, fake: Fake, steps: int, took_ns: int = 10 * MS, begin: int = 0) -> list[str]:
    """Steps of a training; returns what was said."""
    said = []
    for step in range(begin, begin + steps):
        fake.now += took_ns
        text = window.step_end(step, took_ns)
        if text is not None:
            said.append(text)
    return said


def test_nothing_happens_until_it_is_asked_for(window: Window, fake: Fake) -> None:
    """Steps without an order call nothing of the profiler."""
    assert run(window, fake, 100) == []
    assert fake.calls == []


def test_a_window_is_whole_steps_and_says_its_cost(window: Window, fake: Fake, tmp_path: Path) -> None:
    """Three annotated steps, then the file, whole, and a cost that counts begin, end and the slower steps."""
    run(window, fake, 20)
    window.ask()
    (said,) = run(window, fake, 1 + STEPS, begin=20) or run(window, fake, STEPS, took_ns=15 * MS, begin=21)
    assert fake.calls == ["start", *(f"ProfilerStep#{21 + step}" for step in range(STEPS)), "None", "stop", "save"]
    assert f"steps=21-{20 + STEPS} " in said
    assert re.search(rf"cost_ns={3 * MS} ", said)
    assert [path.name for path in tmp_path.iterdir()] == ["w.json"]


def test_slower_steps_are_part_of_the_cost(window: Window, fake: Fake) -> None:
    """Steps that take 15 instead of 10 ms inside the window cost 5 ms each."""
    run(window, fake, 20)
    window.ask()
    run(window, fake, 1, begin=20)
    (said,) = run(window, fake, STEPS, took_ns=15 * MS, begin=21)
    assert f"cost_ns={3 * MS + STEPS * 5 * MS} " in said


def test_the_share_is_never_exceeded(fake: Fake, tmp_path: Path) -> None:
    """However often windows are asked for, their cost stays within the share of the time, at every moment."""
    share = 0.002
    window = Window(tmp_path / "w.json", fake, rank=0, share=share, expected_ns=0, monotonic_ns=lambda: fake.now)
    spent, windows = 0, 0
    for step in range(20_000):
        window.ask()
        fake.now += 10 * MS
        said = window.step_end(step, 10 * MS)
        if said:
            windows += 1
            spent += int(re.search(r"cost_ns=(\d+)", said)[1])  # type: ignore[index]
            (tmp_path / "w.json").unlink()
            # The first one's cost was not known; from then on the sum holds.
            assert windows == 1 or spent <= share * fake.now
    assert windows > 50


@pytest.mark.parametrize("why", ["profiling", "file", "share"])
def test_it_stands_down(window: Window, fake: Fake, tmp_path: Path, why: str) -> None:
    """Another profiler, a trace nobody took, or a share not earned yet: the order waits, and is kept."""
    run(window, fake, 5)
    fake.busy = why == "profiling"
    if why == "file":
        (tmp_path / "w.json").write_text("{}")
    if why == "share":
        window._spent_ns = 10**12
    window.ask()
    assert run(window, fake, 10, begin=5) == []
    assert fake.calls == []
    fake.busy, window._spent_ns = False, 0
    (tmp_path / "w.json").unlink(missing_ok=True)
    assert len(run(window, fake, 1 + STEPS, begin=15)) == 1


def test_a_profiler_that_begins_inside_ends_the_window(window: Window, fake: Fake, tmp_path: Path) -> None:
    """Theirs comes first: ours is stopped before it begins, keeps nothing, and the next order works again."""
    run(window, fake, 5)
    window.ask()
    run(window, fake, 2, begin=5)
    fake.before_another()
    assert fake.calls[-1] == "stop"
    assert run(window, fake, 5, begin=7) == ["window ended early: the job began to profile"]
    assert list(tmp_path.iterdir()) == []
    window.ask()
    assert len(run(window, fake, 1 + STEPS, begin=12)) == 1


@pytest.mark.parametrize("fails", ["start", "stop", "save"])
def test_what_fails_is_said_once_and_never_raised(window: Window, fake: Fake, fails: str) -> None:
    """An error of the profiler ends the windows of this rank and nothing else."""
    fake.fails = fails
    window.ask()
    assert run(window, fake, 10) == [f"window unavailable: RuntimeError: {fails} is not to be had"]
    window.ask()
    assert run(window, fake, 10) == []


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Window]:
    """Windows on torch's own profiler."""
    profiler = KinetoProfiler(3, {})
    profiler.warm_up()
    window = Window(window_path(tmp_path / "a.ring", 3), profiler, rank=3, share=1.0, expected_ns=0)
    yield window
    window.close()


def train(window: Window, steps: int) -> list[str]:
    """A small network on the CPU."""
    model = torch.nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    said = []
    began = time.monotonic_ns()
    for step in range(steps):
        model(torch.ones(4, 16)).sum().backward()
        optimizer.step()
        now = time.monotonic_ns()
        text = window.step_end(step, now - began)
        began = now
        if text is not None:
            said.append(text)
    return said


def test_torch_s_own_profiler_leaves_a_trace_that_is_read(real: Window, tmp_path: Path) -> None:
    """The file holds the annotated steps, the operators between them and the rank. Not yet run on a GPU."""
    from rankscope.agent.trace import trace_document

    train(real, 3)
    real.ask()
    (said,) = train(real, 2 + STEPS)
    assert "cost_ns=" in said
    (path,) = tmp_path.iterdir()
    (rank,) = trace_document([path])["ranks"]
    assert (rank["rank"], len(rank["steps"])) == (3, STEPS)
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert "aten::linear" in names
    assert not torch._C._autograd._profiler_enabled()


def test_the_user_s_profiler_works_inside_and_after_a_window(real: Window, tmp_path: Path) -> None:
    """A profiler that the job starts in the middle of a window records as if there were none."""
    original = torch.autograd.profiler._enable_profiler
    real.ask()
    train(real, 2)
    assert torch.autograd.profiler._enable_profiler is not original
    with torch.profiler.profile() as theirs:
        torch.ones(3).add(1)
        assert real.step_end(2, MS) == "window ended early: the job began to profile"
    assert torch.autograd.profiler._enable_profiler is original
    assert "aten::add" in {event.key for event in theirs.key_averages()}
    assert list(tmp_path.iterdir()) == []


def test_windows_are_only_made_where_they_are_asked_for(tmp_path: Path) -> None:
    """Nothing of the profiler is touched without RANKSCOPE_WINDOWS; another tool under the driver holds windows off."""
    assert make_window(tmp_path / "a.ring", 0, {}) is None
    window = make_window(tmp_path / "a.ring", 0, {"RANKSCOPE_WINDOWS": "1", "CUDA_INJECTION64_PATH": "/nsys.so"})
    assert window is not None
    assert window._profiler.enabled()
