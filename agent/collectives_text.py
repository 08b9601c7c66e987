"""The comparison of a job's collectives for a person at a terminal."""

from __future__ import annotations

from typing import Any

from rankscope.exporters.wording import visible


def collectives_text(document: dict[str, Any], top: int) -> str:
    """The document of `rankscope collectives` in words and columns."""
    counts = document["collectives"]
    lines = [
        document["summary"],
        f"  {document['source']}; basis {document['basis']}",
        f"  {counts['judged']} collectives joined, {counts['with_last']} of them held up by a last one",
        "",
        f"  {'rank':<24} {'last in':>12} {'typically late':>15} {'held others up':>15} {'waited':>12}",
    ]
    for rank in document["ranks"][:top]:
        mark = "  <- late" if document["late"] == {name: rank[name] for name in ("rank", "host", "pid")} else ""
        lines.append(
            f"  {_who(rank):<24} {rank['times_last']:>5} of {rank['collectives']:<5}"
            f"{rank['typical_lateness_us'] / 1e3:>12.2f} ms {rank['held_up_us'] / 1e3:>12.1f} ms "
            f"{rank['waited_us'] / 1e3:>9.1f} ms{mark}"
        )
    if len(document["ranks"]) > top:
        lines.append(f"  and {len(document['ranks']) - top} more ranks (--top)")
    if document["slow_links"]:
        lines += ["", "  slow links"]
    for link in document["slow_links"][:top]:
        who = ", ".join(_who(rank) for rank in link["ranks"][:8])
        usual = "others of its kind" if link["against"] == "peers" else "before"
        lines.append(
            f"    {link['operation']} of {link['size_bytes'] / 1e6:.1f} MB in {link['name'] or link['communicator']}: "
            f"{link['bus_gbs']:.1f} GB/s, {usual} {link['usual_gbs']:.1f} ({who})"
        )
    clock = document["clock"]
    if clock is not None and clock["error_us"] is not None:
        lines += ["", f"  clocks of the ranks compared to within {clock['error_us'] / 1e3:.3f} ms"]
    lines += ["", *(f"  note: {note}" for note in document["notes"])] if document["notes"] else []
    return "\n".join(visible(line) for line in lines)


def _who(rank: dict[str, Any]) -> str:
    name = f"rank {rank['rank']}" if rank["rank"] is not None else f"pid {rank['pid']}"
    return f"{name} on {rank['host']}" if rank["host"] else name
