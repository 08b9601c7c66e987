"""A profiler window of a few steps, now and then and when the agent asks: what each kernel waited for, from the inside.

The rank only records and writes Kineto's own file; reading it is the agent's work. What a window costs is measured
here, and the next one waits until the share it may take has been earned. The user's own profiler always goes first.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from rankscope.profiler_window import EXPECTED_NS, SHARE, STEPS, window_path

#: Steps whose median is the usual step.
_USUAL_STEPS = 16
#: Rings lie in memory: a window is written only where this much is free, and kept only below it.
_FREE_BYTES = 256 * 1024 * 1024
#: With one of these another tool has put itself under the CUDA driver: there is room for one.
_OTHER_TOOLS = (
    "CUDA_INJECTION64_PATH",
    "CUDA_INJECTION32_PATH",
    "NSYS_PROFILING_SESSION_ID",
    "NV_COMPUTE_PROFILER_PERFWORKS_DIR",
)
#: What libkineto prints is the job's standard error; it reads this once.
_LOG_LEVEL = "KINETO_LOG_LEVEL"
_SILENT = "99"


class Profiler(Protocol):
    """The parts of torch's profiler that a window needs."""

    def enabled(self) -> bool:
        """Whether somebody is profiling."""

    def start(self, before_another: Callable[[], None]) -> None:
        """Begin to record; `before_another` is called when somebody else is about to, and has to end this."""

    def step(self, name: str | None) -> None:
        """End the annotation before, and begin the one of this name, if any."""

    def stop(self) -> Any:
        """End the recording without waiting for the device; what it returns can `save(path)`."""


class Window:
    """Windows of one rank. Called in the training thread at each step's end; never raises."""

    def __init__(
        self,
        file: Path,
        profiler: Profiler,
        *,
        rank: int,
        share: float = SHARE,
        expected_ns: int = EXPECTED_NS,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`file` is where a window's trace is left for the agent, which takes it away."""
        self._file = file
        self._profiler = profiler
        self._rank = rank
        self._share = share
        self._expected_ns = expected_ns
        self._now = monotonic_ns
        self._attached_ns = monotonic_ns()
        self._spent_ns = 0
        self._usual: deque[int] = deque(maxlen=_USUAL_STEPS)
        self._asked = False
        self._left = 0
        self._first = 0
        self._began_ns = 0
        self._inside_ns = 0
        self._interrupted = False
        self.broken = ""

    def ask(self) -> None:
        """A window is wanted: it begins at the next step's end at which it may."""
        self._asked = True

    def step_end(self, step: int, took_ns: int) -> str | None:
        """Step `step` has ended and took that long. Returns what to say, once a window is over."""
        if not self._left:
            self._usual.append(took_ns)
            if not self._asked or self.broken or not self._may():
                return None
        try:
            return self._go_on(step, took_ns)
        except Exception as error:
            self._end_quietly()
            self.broken = f"{type(error).__name__}: {error}"
            return f"window unavailable: {self.broken}"

    def close(self) -> None:
        """End a window that is going on, and leave nothing of it."""
        if self._left:
            self._end_quietly()

    def _may(self) -> bool:
        """Whether the share was earned, nobody else profiles, and the trace before was taken away."""
        elapsed = self._now() - self._attached_ns
        if self._spent_ns + self._expected_ns > self._share * elapsed:
            return False
        if self._profiler.enabled() or self._file.exists():
            return False
        found = os.statvfs(self._file.parent)
        return found.f_bavail * found.f_frsize >= _FREE_BYTES

    def _go_on(self, step: int, took_ns: int) -> str | None:
        begin = self._now()
        if not self._left:
            self._asked, self._interrupted = False, False
            self._left, self._first = STEPS, step + 1
            self._profiler.start(self._interrupt)
            self._profiler.step(f"ProfilerStep#{step + 1}")
            self._began_ns = self._now() - begin
            self._inside_ns = 0
            return None
        if self._interrupted:
            self._left = 0
            return "window ended early: the job began to profile"
        self._inside_ns += took_ns
        self._left -= 1
        self._profiler.step(f"ProfilerStep#{step + 1}" if self._left else None)
        if self._left:
            return None
        size = self._keep(self._profiler.stop())
        usual = int(median(self._usual)) if self._usual else 0
        slower = max(0, self._inside_ns - STEPS * usual)
        cost = self._began_ns + slower + (self._now() - begin)
        self._spent_ns += cost
        self._expected_ns = cost
        where = self._file.name if size is not None else "-"
        return f"window steps={self._first}-{step} cost_ns={cost} bytes={size or 0} file={where}"

    def _keep(self, results: Any) -> int | None:
        """Write the trace, whole or not at all; returns its size, or None where it was too large."""
        partial = self._file.with_name(f".{self._file.name}.partial")
        results.save(str(partial))
        size = partial.stat().st_size
        if size > _FREE_BYTES:
            partial.unlink()
            return None
        partial.chmod(0o600)
        partial.rename(self._file)
        return size

    def _interrupt(self) -> None:
        """Somebody else begins to profile: theirs is the profiler, and this window is lost."""
        self._interrupted = True
        self._end_quietly(left=1)

    def _end_quietly(self, *, left: int = 0) -> None:
        self._left = left
        try:
            self._profiler.step(None)
            self._profiler.stop()
        except Exception:
            # What cannot be ended was never begun.
            self._left = 0


class KinetoProfiler:
    """torch's profiler by the functions under `torch.profiler`, which would wait for the device at the end."""

    def __init__(self, rank: int, environ: Mapping[str, str]) -> None:
        """Raises AttributeError or ImportError where this torch has them under other names."""
        # Private names of torch: whatever is missing here raises here.
        profiler: Any = import_module("torch.autograd.profiler")
        core: Any = import_module("torch._C")
        self._module = profiler
        self._record_function = profiler.record_function
        self._enabled = core._autograd._profiler_enabled
        self._metadata = core._autograd._add_metadata_json
        self._prepare, self._enable, self._disable = (
            profiler._prepare_profiler,
            profiler._enable_profiler,
            profiler._disable_profiler,
        )
        experimental = core._profiler._ExperimentalConfig
        config, kineto = profiler.ProfilerConfig, profiler.ProfilerState.KINETO
        # Without shapes, memory, stacks, flops and modules.
        self._config: Callable[[], Any] = lambda: config(kineto, False, False, False, False, False, experimental())
        wanted = {"CPU", "CUDA", "XPU"}
        self._activities = {each for each in profiler._supported_activities() if each.name in wanted}
        self._activities |= {profiler.ProfilerActivity.CPU}
        self._rank = rank
        self._others = [name for name in _OTHER_TOOLS if environ.get(name)]
        self._annotation: Any = None
        self._replaced: dict[str, Any] = {}

    def warm_up(self) -> None:
        """Record nothing once, outside training: the first start in a process takes a second where there is a GPU."""
        if self.enabled():
            return
        before = os.environ.get(_LOG_LEVEL)
        if before is None:
            os.environ[_LOG_LEVEL] = _SILENT
        try:
            self.start(lambda: None)
            self.stop()
        finally:
            if before is None:
                os.environ.pop(_LOG_LEVEL, None)

    def enabled(self) -> bool:
        """Whether anybody is profiling, or another tool sits under the driver."""
        return bool(self._others or self._enabled())

    def start(self, before_another: Callable[[], None]) -> None:
        """Begin to record, and stand in front of the functions that another profiler in this process begins with."""
        self._prepare(self._config(), self._activities)
        self._enable(self._config(), self._activities)
        self._metadata("distributedInfo", json.dumps({"rank": self._rank}))
        for name in ("_prepare_profiler", "_enable_profiler"):
            original = getattr(self._module, name)

            def giving_way(*arguments: Any, _original: Any = original, **keywords: Any) -> Any:
                before_another()
                return _original(*arguments, **keywords)

            self._replaced[name] = (original, giving_way)
            setattr(self._module, name, giving_way)

    def step(self, name: str | None) -> None:
        """The annotation that tells a step's events in the trace."""
        annotation, self._annotation = self._annotation, None
        if annotation is not None:
            annotation.__exit__(None, None, None)
        if name is not None:
            self._annotation = self._record_function(name)
            self._annotation.__enter__()

    def stop(self) -> Any:
        """End the recording; kernels that still run are not waited for, and are missing in the trace."""
        for name, (original, replacement) in self._replaced.items():
            if getattr(self._module, name) is replacement:
                setattr(self._module, name, original)
        self._replaced.clear()
        return self._disable()


def make_window(ring: Path, rank: int, environ: Mapping[str, str]) -> Window | None:
    """The windows of a rank where `RANKSCOPE_WINDOWS` asks for them, warmed up; None where this torch has none."""
    if environ.get("RANKSCOPE_WINDOWS", "") not in ("1", "true", "yes") or "torch" not in sys.modules:
        return None
    try:
        profiler = KinetoProfiler(rank, environ)
        profiler.warm_up()
    except Exception:
        # Other names, a build without Kineto, a driver that refuses: a signal less, and nothing else.
        return None
    return Window(window_path(ring, rank), profiler, rank=rank)
