"""`rankscope trace` against Holistic Trace Analysis: the same figures, wall time and peak memory, run by run in turn.

    .venv/bin/python benchmarks/trace_analysis.py FOLDER --synthetic-mb 50 200 --write docs/trace.md

HolisticTraceAnalysis is installed from PyPI into a virtual environment of its own under --cache. Both are run as
processes on one trace file at a time, in random order, and measured from outside: wall time, and the peak resident size
that the kernel reports for the process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from document import Table, machine
from peer_environment import cache_directory, peer_python

from rankscope.simulator.traces import TraceJob, TracePlan

HTA = "HolisticTraceAnalysis==0.5.0"
#: Address space of either tool, so that a trace too large for one ends it and not the machine.
LIMIT_BYTES = 14 * 1024**3
#: Above this HTA takes minutes: one run.
LARGE_BYTES = 100_000_000
CAUSES = ("host_wait", "kernel_wait", "other")

HTA_SCRIPT = """
import json, logging, sys, warnings
logging.disable(logging.CRITICAL)
warnings.filterwarnings("ignore")
from hta.trace_analysis import TraceAnalysis
analysis = TraceAnalysis(trace_files={0: sys.argv[1]})
out = {}
for name, call in (
    ("idle", lambda: analysis.get_idle_time_breakdown(ranks=[0], visualize=False)[0].to_dict("records")),
    ("overlap", lambda: analysis.get_comm_comp_overlap(visualize=False).to_dict("records")),
):
    try:
        out[name] = call()
    except Exception as error:
        out[name] = f"{type(error).__name__}: {error}"
print(json.dumps(out))
"""


@dataclass
class Runs:
    """What a tool did with one trace."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    output: dict[str, Any] | None = None
    failure: str = ""


def run(command: list[str], runs: Runs, **environment: str) -> None:
    """Run once, timed and measured; the output of the last run is kept."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))

    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=errors, env={**os.environ, **environment}, preexec_fn=limit
        )
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            runs.failure = (last[0] if last else f"ended with {process.returncode}")[:120]
            return
        runs.seconds.append(took)
        runs.peak_mb.append(usage.ru_maxrss / 1024)
        runs.output = json.loads(output.read())


def differences(ours: dict[str, Any], theirs: dict[str, Any], block: str) -> tuple[float | None, str]:
    """The largest difference of an idle time as a share of what HTA says (at least 10 us), and the overlap's in points.

    `block` is "as_hta" for HTA's own rounding or "exact" for times as the trace has them.
    """
    rank = ours["ranks"][0]
    streams = rank["as_hta"]["streams"] if block == "as_hta" else rank["idle"]["streams"]
    whole = rank["as_hta"]["temporal"] if block == "as_hta" else rank["temporal"]
    mine = {(each["stream"], cause): each[f"{cause}_us"] for each in streams for cause in CAUSES}
    if isinstance(theirs["idle"], str):
        return None, "-"
    worst = 0.0
    for row in theirs["idle"]:
        other = mine.get((int(row["stream"]), row["idle_category"]))
        if other is None:
            return None, "HTA has a stream more"
        worst = max(worst, abs(other - row["idle_time"]) / max(abs(row["idle_time"]), 10.0))
    if isinstance(theirs["overlap"], str):
        return worst, theirs["overlap"][:60]
    share = theirs["overlap"][0]["comp_comm_overlap_pctg"]
    if share != share or whole["overlap_fraction"] is None:  # not a number: no communication
        return worst, "none" if (share != share) == (whole["overlap_fraction"] is None) else "differs"
    return worst, f"{abs(100 * whole['overlap_fraction'] - share):.2f}"


def line(trace: Path, python: Path, times: int) -> str:
    """A row of the table."""
    rankscope = [str(Path(sys.executable).with_name("rankscope")), "trace", "--json", str(trace)]
    holistic = [str(python), "-c", HTA_SCRIPT, str(trace)]
    ours, theirs, exact = Runs(), Runs(), Runs()
    large = trace.stat().st_size > LARGE_BYTES
    for _ in range(1 if large else times):
        for command, runs in random.sample([(rankscope, ours), (holistic, theirs)], 2):
            if not runs.failure:
                run(command, runs)
    if not large:
        run(holistic, exact, HTA_DISABLE_NS_ROUNDING="1")
    if ours.output is None:
        return f"| {trace.name} | | | | | | | {ours.failure} |"
    size = ours.output["ranks"][0]["text_bytes"] / 1e6
    head = f"| {trace.name.removesuffix('.gz').removesuffix('.json')} | {size:.1f}"
    mine = f"{statistics.median(ours.seconds):.2f} | {statistics.median(ours.peak_mb):.0f}"
    if theirs.output is None:
        return f"{head} | - | {mine} | - | - | - | - | HTA: {theirs.failure} |"
    slow = statistics.median(theirs.seconds)
    ratio = slow / statistics.median(ours.seconds)
    idle, overlap = differences(ours.output, theirs.output, "as_hta")
    unrounded = differences(ours.output, exact.output, "exact") if exact.output else (None, "-")
    told = [f"{value:.2%}" if value is not None else "-" for value in (idle, unrounded[0])]
    note = theirs.output["idle"] if isinstance(theirs.output["idle"], str) else ""
    return (
        f"{head} | {slow:.2f} | {mine} | {statistics.median(theirs.peak_mb):.0f} | {ratio:.1f}"
        f" | {told[0]} / {told[1]} | {overlap} / {unrounded[1]} | {f'HTA: {note[:60]}' if note else ''} |"
    )


def synthetic(megabytes: int, cache: Path) -> Path:
    """A trace of about this many megabytes of text, played and not recorded."""
    path = cache / f"played-{megabytes}-MB.json"
    if path.exists():
        return path
    job = TraceJob(TracePlan(ranks=1, steps=10**9, layers=400, python_frames=True))
    encode = json.JSONEncoder(separators=(", ", ": ")).encode
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        head = encode(job.metadata(0))
        file.write(f'{head[:-1]}, "traceEvents": [\n')
        separator = ""
        for (events,) in job.steps():
            file.write(separator + ",\n".join(map(encode, events)))
            separator = ",\n"
            if file.tell() > megabytes * 1_000_000:
                break
        file.write("\n]}\n")
    return partial.rename(path)


def table(traces: list[Path], cache: Path, times: int) -> Iterator[str]:
    """The table, a line at a time."""
    python = peer_python("hta", HTA, cache=cache)
    yield f"{machine()}, {HTA}"
    yield f"medians of {times} runs of each in turn (one run above 100 MB), whole processes:"
    yield ""
    yield (
        "| trace | MB of text | HTA, s | Rankscope, s | Rankscope, MB | HTA, MB | times as fast "
        "| idle, largest difference (rounded / exact) | overlap, points (rounded / exact) | |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for trace in traces:
        yield line(trace, python, times)


def main() -> None:
    """Compare on traces of a folder and on played ones, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, nargs="?", help="traces to compare on")
    parser.add_argument("--synthetic-mb", type=int, nargs="*", default=[], help="sizes of played traces")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=cache_directory())
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, "table") if arguments.write else None
    arguments.cache.mkdir(parents=True, exist_ok=True)
    traces = sorted(arguments.folder.glob("*.json*")) if arguments.folder else []
    traces += [synthetic(size, arguments.cache) for size in arguments.synthetic_mb]
    lines = []
    for text in table(traces, arguments.cache, arguments.times):
        print(text, flush=True)
        lines.append(text)
    if document is not None:
        document.write("\n".join(lines))


if __name__ == "__main__":
    main()
