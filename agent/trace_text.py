"""The analysis of traces for a person at a terminal."""

from __future__ import annotations

from typing import Any


def trace_text(document: dict[str, Any]) -> str:
    """The document of `rankscope trace` in words and columns."""
    lines: list[str] = []
    if len(document["ranks"]) > 1:
        lines += _comparison(document)
    for rank in document["ranks"]:
        lines += ["", *_rank(rank)]
    return "\n".join(lines).lstrip("\n")


def _comparison(document: dict[str, Any]) -> list[str]:
    compared = document["comparison"]
    lines = [document["summary"]] if document["summary"] else []
    lines += [f"  note: {note}" for note in compared["notes"]]
    if compared["ranks"]:
        lines += ["", f"  a step of {len(compared['steps'])}     own time       compute     host wait  wait for others"]
    for rank in compared["ranks"]:
        values = [rank["own_us"], rank["compute_us"], rank["host_wait_us"], sum(rank["waits_us"].values())]
        mark = "  <- late" if rank["rank"] == compared["late_rank"] else ""
        lines.append(f"    rank {rank['rank']:<6} {' '.join(f'{_ms(value):>13}' for value in values)}{mark}")
    if compared["groups"]:
        lines += ["", "  collectives a step"]
    for group in compared["groups"]:
        last = max(group["last_fraction"].items(), key=lambda each: each[1] or 0)
        rate = f", {group['gigabytes_per_second']:.1f} GB/s" if group["gigabytes_per_second"] else ""
        lines.append(
            f"    {_ms(group['transfer_us']):>11} {group['collectives_per_step']:>4}x {group['name']}{rate}"
            f"; rank {last[0]} last in {last[1] or 0:.0%} of the steps"
        )
        for each in group["collectives"][:3]:
            if each["last_rank"] is not None:
                size = f" of {each['bytes'] / 1e6:.1f} MB" if each["bytes"] else ""
                wait = f"up to {_ms(each['waited_us'])} of waiting for rank {each['last_rank']}"
                lines.append(f"    {'':18}no. {each['number'] + 1} ({each['name']}{size}): {wait}")
    return lines


def _rank(rank: dict[str, Any]) -> list[str]:
    step = f", step {_ms(rank['step_us'])} (median of {len(rank['steps'])})" if rank["steps"] else ""
    lines = [f"rank {rank['rank']}  {rank['file']}", f"  {rank['summary']}{step}"]
    lines += [f"  note: {note}" for note in rank["notes"]]
    if rank["rank_from"] is None:
        lines.append("  note: neither the file nor its name says which rank this is: taken for rank 0")
    whole = rank["temporal"]
    if not whole["span_us"]:
        lines += ["", "  longest operators of the host (own time)"] if rank["operators"] else []
        for each in rank["operators"]:
            lines.append(f"    {_ms(each['own_us']):>11} {each['count']:>5}x {each['name']}")
        return lines
    scope = rank["scope"]
    rule = f" ({scope['rule']}; {scope['left_out']} later ones left out)" if scope["rule"] else ""
    overlap = f"{whole['overlap_fraction']:.1%} hidden" if whole["overlap_fraction"] is not None else "none"
    shares = "   ".join(
        f"{part.replace('_', '-')} {_share(whole, part)}" for part in ("idle", "compute", "non_compute")
    )
    lines += [
        f"  {scope['device_events']} device events over {_ms(whole['span_us'])}{rule}",
        f"  {shares}   communication {_ms(whole['communication_us'])}, {overlap}",
        "",
        "  idle by stream     host wait   kernel wait         other   queued (mean, most)",
    ]
    queues = {(queue["device"], queue["stream"]): queue for queue in rank["launches"]["queues"]}
    for idle in rank["idle"]["streams"]:
        queue = queues.get((idle["device"], idle["stream"]))
        queued = f"{queue['mean']:.1f}, {queue['most']}" if queue else "-"
        lines.append(f"    {'stream ' + str(idle['stream']):14} {_causes(idle)}   {queued}")
    lines += [
        f"    {'device ' + str(idle['device']):14} {_causes(idle)}   all streams idle"
        for idle in rank["idle"]["devices"]
    ]
    return lines + _lists(rank)


def _lists(rank: dict[str, Any]) -> list[str]:
    lines = []
    if rank["stalls"]:
        lines += ["", "  longest stalls of the device"]
    for stall in rank["stalls"]:
        place = " < ".join(each for each in (stall["source"], stall["operator"], stall["outer_operator"]) if each)
        doing = f"; meanwhile the host: {stall['host_doing']}" if stall["host_doing"] else ""
        cause = stall["cause"].replace("_", " ")
        lines.append(f"    {_ms(stall['us']):>11} {stall['count']:>5}x {cause:11} before {stall['kernel']}")
        if place or doing:
            lines.append(f"    {'':31}{f'launched from {place}' if place else 'launched'}{doing}")
    cores = rank["tensor_cores"]
    if rank["kernels"]:
        lines += ["", "  longest kernels"]
    for kernel in rank["kernels"]:
        mark = "  tensor cores" if kernel["tensor_cores"] else ""
        lines.append(
            f"    {_ms(kernel['us']):>11} {kernel['count']:>5}x {kernel['fraction'] or 0:6.1%} {kernel['name']}{mark}"
        )
    if cores["fraction_of_computation"] is not None:
        of_matrix = cores["fraction_of_matrix_kernels"]
        detail = f", {of_matrix:.0%} of matrix kernels" if of_matrix is not None else ""
        lines.append(f"    tensor cores: {cores['fraction_of_computation']:.0%} of computation{detail} (told by names)")
    if rank["copies"]:
        lines += ["", "  copies"]
    for copy in rank["copies"]:
        size = f" {copy['bytes'] / 1e6:10.1f} MB" if copy["bytes"] is not None else f" {'':>13}"
        pageable = "  host memory not pinned" if copy["pageable"] else ""
        lines.append(f"    {_ms(copy['us']):>11} {copy['count']:>5}x{size}  {copy['name']}{pageable}")
    launches = rank["launches"]
    if launches["count"]:
        lines += [
            "",
            f"  {launches['count']} launches, until begun {launches['delay_median_us']:.1f} us (median), "
            f"{launches['delay_p95_us']:.1f} us (95 %): "
            + ", ".join(f"{call['name']} {call['count']}" for call in launches["calls"][:5]),
        ]
    return lines


def _causes(idle: dict[str, Any]) -> str:
    return " ".join(f"{_ms(idle[f'{cause}_us']):>13}" for cause in ("host_wait", "kernel_wait", "other"))


def _share(whole: dict[str, Any], part: str) -> str:
    return f"{_ms(whole[f'{part}_us'])} ({whole[f'{part}_fraction']:.1%})"


def _ms(us: float) -> str:
    # Rounded first: a nanosecond below nothing is nothing.
    return f"{round(us / 1e3, 3) + 0.0:.3f} ms"
