"""`rankscope top`: what the ranks of a recording do now."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rankscope.agent.load import load_window

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STEPS = 20
_PERIOD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RankNow:
    """Medians over a rank's latest steps, in milliseconds."""

    rank: int
    host: str
    step: int | None
    step_ms: float | None
    data_ms: float | None
    own_ms: float | None
    wait_ms: float | None
    sm_clock_mhz: float | None
    power_watts: float | None


@dataclass(frozen=True, slots=True)
class Picture:
    """One look at a recording."""

    job: str
    job_status: int | None
    ranks: tuple[RankNow, ...]
    events: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def picture(recording: Path) -> Picture:
    """What the recording says of the latest steps. Raises RecordingError."""
    window = load_window([recording], max_steps=_STEPS)
    latest = {(key.metric, key.device): series.values[-1] for key, series in window.series.items()}
    ranks: list[RankNow] = []
    for number, rank in window.ranks.items():
        steps, device = rank.steps.columns, rank.device.columns
        durations = [end - start for start, end in zip(steps["start_ns"], steps["end_ns"], strict=True)]
        if len(rank.device):
            own, wait = list(device["backward_own_ns"])[-_STEPS:], list(device["backward_wait_ns"])[-_STEPS:]
        else:
            own = list(steps["backward_own_ns"])
            wait = [whole - part for whole, part in zip(steps["backward_ns"], own, strict=True)]
        gpu = rank.identity.gpu_uuid or ""
        ranks.append(
            RankNow(
                rank=number,
                host=rank.identity.host,
                step=int(steps["step"][-1]) if len(rank.steps) else None,
                step_ms=_ms(durations),
                data_ms=_ms(list(steps["data_wait_ns"])),
                own_ms=_ms(own),
                wait_ms=_ms(wait),
                sm_clock_mhz=latest.get(("gpu.sm_clock_mhz", gpu)),
                power_watts=latest.get(("gpu.power_watts", gpu)),
            )
        )
    told = [event.text for event in window.events if event.kind not in ("rank-attached", "rank-stacks", "rank-flight")]
    return Picture(window.job, window.job_status, tuple(ranks), tuple(told[-5:]))


def _ms(values: list[float]) -> float | None:
    seen = [value for value in values if not math.isnan(value)]
    return round(median(seen) / 1e6, 2) if seen else None


def watch(recording: Path, console: Console, *, once: bool = False) -> None:
    """Show pictures until the job is over or Ctrl-C. Raises RecordingError."""
    if once:
        console.print(picture_table(picture(recording)))
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                now = picture(recording)
                live.update(picture_table(now), refresh=True)
                if now.job_status is not None:
                    return
                time.sleep(_PERIOD_SECONDS)
        except KeyboardInterrupt:
            return


def picture_table(now: Picture) -> Table:
    """A picture for a terminal."""
    from rich.table import Table

    table = Table(title=now.job, caption="\n".join(now.events), box=None)
    for heading in ("rank", "host", "step", "step ms", "data ms", "own ms", "wait ms", "SM MHz", "W"):
        table.add_column(heading, justify="right")
    for rank in now.ranks:
        table.add_row(
            *(
                "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                for value in asdict(rank).values()
            )
        )
    return table
