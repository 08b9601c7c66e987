"""Operations of a made-up pipeline-parallel job, timed by a simulation of its own: never by the rules under test."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
#: What one computation takes: (data-parallel rank, stage, chunk of the model, microbatch, step, is backward) -> s.
Duration = Callable[[int, int, int, int, int, bool], float]

#: (chunk, microbatch, is backward) as a stage runs them.
Order = list[tuple[int, int, bool]]

MESSAGE_S = 0.001


def order_1f1b(stage: int, stages: int, microbatches: int) -> list[tuple[int, int, bool]]:
    """(chunk, microbatch, is backward) as a stage of a plain pipeline runs them."""
    warm = min(stages - 1 - stage, microbatches)
    order = [(stage, number, False) for number in range(warm)]
    for number in range(microbatches - warm):
        order += [(stage, warm + number, False), (stage, number, True)]
    return order + [(stage, number, True) for number in range(microbatches - warm, microbatches)]


def order_interleaved(stage: int, stages: int, microbatches: int, virtual: int) -> list[tuple[int, int, bool]]:
    """The interleaved schedule: `virtual` chunks a stage, `microbatches` a multiple of `stages`."""
    total = microbatches * virtual

    def place(index: int, backward: bool) -> tuple[int, int, bool]:
        group, within = divmod(index, stages * virtual)
        part = within // stages
        chunk = virtual - 1 - part if backward else part
        return chunk * stages + stage, group * stages + within % stages, backward

    warm = min(total, (stages - stage - 1) * 2 + (virtual - 1) * stages)
    order = [place(index, False) for index in range(warm)]
    for index in range(total - warm):
        order += [place(warm + index, False), place(index, True)]
    return order + [place(index, True) for index in range(total - warm, total)]


def job(
    duration: Duration,
    *,
    dp: int,
    stages: int,
    microbatches: int,
    steps: int = 3,
    virtual: int = 1,
    idle_messages: bool = False,
    gather_s: float = 0.02,
    transfer: Callable[[str, int, int], float] = lambda _name, _dp, _stage: 0.0,
    all_forwards_first: bool = False,
) -> list[Row]:
    """Rows of a job. `idle_messages` records sends and receives that have no peer too, as some profilers do."""
    rows: list[Row] = []
    for step in range(steps):
        lanes = [
            _pipeline(
                duration,
                rank,
                _orders(stages, microbatches, virtual, all_forwards_first),
                step,
                virtual,
                idle_messages,
                gather_s,
            )
            for rank in range(dp)
        ]
        _collectives(lanes, stages, gather_s, transfer)
        for rank, lane in enumerate(lanes):
            rows += [row | {"dp_rank": rank, "step": step, "rank": row["stage"] * dp + rank} for row in lane]
    return _numbered(rows)


def _orders(stages: int, microbatches: int, virtual: int, all_forwards_first: bool) -> list[Order]:
    """What each stage runs, in order."""
    if all_forwards_first:
        return [
            [(stage, number, backward) for backward in (False, True) for number in range(microbatches)]
            for stage in range(stages)
        ]
    if virtual == 1:
        return [order_1f1b(stage, stages, microbatches) for stage in range(stages)]
    return [order_interleaved(stage, stages, microbatches, virtual) for stage in range(stages)]


def _row(stage: int, optype: str, start: float, end: float, chunk: int = -1, microbatch: int = -1, mc: int = -1) -> Row:
    return {
        "stage": stage, "optype": optype, "start_ts": start, "duration": end - start, "gmc": chunk, "mb_id": microbatch,
        "mc": mc,
    }  # fmt: skip


def _pipeline(
    duration: Duration, rank: int, orders: list[Order], step: int, virtual: int, idle: bool, gather_s: float
) -> list[Row]:
    stages = len(orders)
    last = stages * virtual - 1
    done: dict[tuple[int, int, bool], float] = {}
    free = [gather_s] * stages
    next_place = [0] * stages
    rows: list[Row] = []
    while any(next_place[stage] < len(orders[stage]) for stage in range(stages)):
        moved = False
        for stage in range(stages):
            if next_place[stage] == len(orders[stage]):
                continue
            chunk, number, backward = work = orders[stage][next_place[stage]]
            feeder = (chunk + (1 if backward else -1), number, backward)
            first = chunk == (last if backward else 0)
            if (not first and feeder not in done) or (backward and (chunk, number, False) not in done):
                continue
            kind = "backward" if backward else "forward"
            begin = free[stage]
            if not first:
                arrived = max(free[stage], done[feeder]) + MESSAGE_S
                rows.append(_row(stage, f"{kind}-recv", free[stage], arrived))
                sender = feeder[0] % stages
                rows.append(_row(sender, f"{kind}-send", done[feeder], arrived))
                begin = arrived
            elif idle:
                rows.append(_row(stage, f"{kind}-recv", begin, begin))
            end = begin + duration(rank, stage, chunk, number, step, backward)
            rows.append(_row(stage, f"{kind}-compute", begin, end, chunk, number, chunk // stages))
            if idle and chunk == (0 if backward else last):
                rows.append(_row(stage, f"{kind}-send", end, end))
            done[work] = free[stage] = end
            next_place[stage] += 1
            moved = True
        assert moved, "the schedule stands still"
    return rows + [_row(stage, "params-all-gather", 0.0, gather_s, mc=0) for stage in range(stages)]


def _collectives(
    lanes: list[list[Row]], stages: int, gather_s: float, transfer: Callable[[str, int, int], float]
) -> None:
    """What follows the last backward: gradients over the ranks of a stage, clipping over all, the optimizer."""
    ends = [
        [max(row["start_ts"] + row["duration"] for row in lane if row["stage"] == stage and "compute" in row["optype"])
         for stage in range(stages)]
        for lane in lanes
    ]  # fmt: skip
    scattered = [
        max(lane[stage] for lane in ends)
        + gather_s
        + max(transfer("grads-reduce-scatter", rank, stage) for rank in range(len(lanes)))
        for stage in range(stages)
    ]
    clipped = max(scattered) + 0.002
    for rank, lane in enumerate(lanes):
        for stage in range(stages):
            lane.append(_row(stage, "grads-reduce-scatter", ends[rank][stage], scattered[stage], mc=0))
            lane.append(_row(stage, "optimizer-clip-main-grad", scattered[stage], clipped))
            lane.append(_row(stage, "optimizer", clipped, clipped + 0.01))


def _numbered(rows: list[Row]) -> list[Row]:
    """Give each operation its number within its type, by start."""
    count: dict[tuple[int, int, int, str], int] = {}
    for row in sorted(rows, key=lambda row: row["start_ts"]):
        key = (row["step"], row["dp_rank"], row["stage"], row["optype"])
        row["seq_id"] = count[key] = count.get(key, -1) + 1
    return rows


def noisy(seed: int, spread: float = 0.01) -> Callable[..., float]:
    """A factor near 1 for each computation, always the same one for the same computation."""

    def factor(*key: object) -> float:
        return max(0.5, random.Random(f"{seed} {key}").gauss(1.0, spread))

    return factor
