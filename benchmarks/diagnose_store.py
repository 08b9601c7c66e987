"""How `rankscope diagnose` over a store grows with the job: queries, bytes, seconds and memory.

    python benchmarks/diagnose_store.py 64 512 4096 16384

Ten minutes at 15 s, 8 GPUs a host, on a VictoriaMetrics of its own; one GPU gets hot after a third of the time.
Series are imported and not exported, and without buckets, which no query of ours reads: the asking is measured.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import components  # noqa: E402

from rankscope.agent.diagnose import judge_store  # noqa: E402
from rankscope.agent.store import Store  # noqa: E402
from rankscope.exporters.prometheus_names import spellings  # noqa: E402
from rankscope.metrics import METRICS  # noqa: E402

POINTS, STEP_S, STEPS_EACH = 41, 15, 25
MEMORY = "-memory.allowedBytes=2GB"
PHASES = {
    "forward": 0.15,
    "backward_own": 0.3,
    "backward_wait": 0.1,
    "optimizer": 0.02,
    "data_wait": 0.01,
    "other": 0.02,
}
_noise = np.random.default_rng(1)


def spelled(metric: str) -> str:
    return spellings(METRICS[metric])[-1]


def series(job: str, ranks: int, begin_s: int) -> Iterator[str]:
    """Every series as a line of VictoriaMetrics' JSON import."""
    times = [(begin_s + place * STEP_S) * 1000 for place in range(POINTS)]
    hot, late = ranks // 2 + 3, np.arange(POINTS) > POINTS // 3
    counts = np.arange(POINTS) * float(STEPS_EACH)

    def line(name: str, labels: dict[str, str], values: np.ndarray) -> str:
        metric = {"__name__": name, "rankscope_job": job, **labels}
        return json.dumps({"metric": metric, "values": [round(float(each), 5) for each in values], "timestamps": times})

    step_s = 0.6 + 0.105 * late
    for rank in range(ranks):
        who = {"host_name": f"node{rank // 8:05d}", "rankscope_rank": str(rank)}
        gpu = {"host_name": who["host_name"], "hw_id": f"GPU-{rank:08d}", "hw_type": "gpu"}
        info = {
            **who,
            "rankscope_attempt": "0",
            "rankscope_local_rank": str(rank % 8),
            "rankscope_world_size": str(ranks),
            "process_pid": str(1000 + rank),
            "hw_id": gpu["hw_id"],
        }
        yield line("rankscope_rank_info", info, np.ones(POINTS))
        yield line("rankscope_rank_step", who, counts)
        for clock in ("host", "device"):
            on = {**who, "rankscope_clock": clock}
            yield line("rankscope_step_duration_seconds_sum", on, np.cumsum(step_s * STEPS_EACH))
            yield line("rankscope_step_duration_seconds_count", on, counts)
            for phase, share in PHASES.items():
                mean = np.full(POINTS, share) * _noise.normal(1, 0.003, POINTS)
                if phase == "backward_own" and rank == hot:
                    mean = mean + 0.105 * late
                if phase == "backward_wait" and rank != hot:
                    mean = mean + 0.105 * late
                labels = {**on, "rankscope_phase": phase}
                yield line("rankscope_step_phase_duration_seconds_sum", labels, np.cumsum(mean * STEPS_EACH))
        is_hot = late if rank == hot else np.zeros(POINTS)
        yield line(spelled("gpu.temperature_celsius"), gpu, 60 + 30 * is_hot)
        yield line(spelled("gpu.sm_clock_mhz"), gpu, 1900 - 500 * is_hot)
        yield line(spelled("gpu.sm_clock_max_mhz"), gpu, np.full(POINTS, 1980.0))
        yield line(spelled("gpu.throttle_hw_thermal_ns"), gpu, np.cumsum(is_hot) * 12e9)
        yield line(spelled("gpu.clock_event_reasons"), gpu, 64 * is_hot)


def send(address: str, lines: Iterator[str]) -> int:
    """Import them; gives how many."""
    count, batch = 0, []
    for text in lines:
        batch.append(text)
        count += 1
        if len(batch) >= 20_000:
            urllib.request.urlopen(f"{address}/api/v1/import", data="\n".join(batch).encode(), timeout=120).read()
            batch = []
    urllib.request.urlopen(f"{address}/api/v1/import", data="\n".join(batch).encode(), timeout=120).read()
    urllib.request.urlopen(f"{address}/internal/force_flush", timeout=60).read()
    return count


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or [64, 512]
    begin_s = int(time.time()) // STEP_S * STEP_S - POINTS * STEP_S
    end_s = begin_s + (POINTS - 1) * STEP_S
    print("| ranks | series | queries | MB | seconds | ranks fetched | peak MiB | first finding |")
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as folder, components.victoria_metrics(Path(folder), memory=MEMORY) as address:
        for ranks in sizes:
            count = send(address, series(f"job-{ranks}", ranks, begin_s))
            time.sleep(2)
            store, begun = Store(address, {}, timeout_seconds=120), time.monotonic()
            verdict, window = judge_store(store, f"job-{ranks}", since_s=None, until_s=end_s, now_s=end_s)
            seconds = time.monotonic() - begun
            first = verdict.findings[0]
            assert first.where.rank == ranks // 2 + 3, first.summary
            figures = (
                ranks,
                count,
                store.queries,
                f"{store.bytes / 1e6:.2f}",
                f"{seconds:.1f}",
                len(window.ranks),
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                f"{first.class_slug}, rank {first.where.rank}",
            )
            print("| " + " | ".join(map(str, figures)) + " |", flush=True)


if __name__ == "__main__":
    main()
