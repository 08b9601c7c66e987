"""docs/scenarios.md, generated from the tables scenario files are checked by."""

from __future__ import annotations

from dataclasses import fields

from rankscope.simulator.scenario import Node, Workload
from rankscope.simulator.scenario_classes import CONFOUNDERS, FAULT_CLASSES, FaultClass

_MEANINGS = {
    "kind": "`ddp`, `fsdp`, `pipeline` or `single`",
    "ranks": "ranks; rank k runs on GPU k, `node.gpus` of them on each host",
    "steps": "steps, counted from 0",
    "step_ms": "device time of a healthy step",
    "data_ms": "time to prepare a batch in a loader worker",
    "workers": "loader workers of each rank",
    "host_ms": "processor time the host needs to launch a step",
    "layers": "layers of the model (real jobs)",
    "batch": "samples in a batch",
    "tensor": "ranks that share a layer; neighbours",
    "stages": 'pipeline stages (`kind = "pipeline"`)',
    "microbatches": "microbatches of a pipeline",
    "experts": "data-parallel ranks that exchange experts' tokens",
    "transfer_ms": "part of a collective that computing does not hide; 0: a twentieth of the step",
    "copy_ms": "copy of a batch to the device; 0: a fiftieth of the step",
    "noise": "factor on the noise of generated recordings",
    "gpu": "a profile: `H100-SXM5-80GB`, `B200`, ...",
    "gpus": "GPUs of a host",
    "driver": "driver version",
    "hosts": "hosts",
}


def scenarios_markdown() -> str:
    """The text of docs/scenarios.md."""
    lines = [
        "# Scenarios",
        "",
        "A scenario is a TOML file: the job, the machine it seems to run on, what is wrong, and what is odd but",
        "innocent. `rankscope score` and `rankscope demo` run them ([scoring](scoring.md)). This page comes from",
        "the tables the files are checked by. Unknown keys and contradictions are refused with one line.",
        "",
        "```toml",
        'name = "thermal-in-backward"',
        "seed = 1",
        "[workload]",
        'kind = "ddp"',
        "ranks = 16",
        "steps = 400",
        "step_ms = 200",
        "[node]",
        "gpus = 8",
        "hosts = 2",
        "[[fault]]                # none for a healthy run; several for several faults",
        'class = "gpu-thermal-slowdown"',
        "gpu = 11",
        "severity = 1.25",
        "from_step = 150          # absent: 0",
        "to_step = 300            # absent: to the end",
        "counters = true          # false: the slowness without its counters",
        "slowdown = true          # false: the counters without their slowness",
        "[[confounder]]",
        'kind = "variable-length"',
        "```",
        "",
    ]
    for title, kind in (("workload", Workload), ("node", Node)):
        lines += [f"## [{title}]", "", "| key | default | meaning |", "|---|---|---|"]
        lines += [f"| `{each.name}` | `{each.default}` | {_MEANINGS[each.name]} |" for each in fields(kind)]
        lines.append("")
    lines += [
        "## [[fault]]",
        "",
        "`real`: can strike a real job too (`--mode real`); the others are generated. `every = N`: every N steps.",
        "",
        "| class | side | place | severity (default) | more | real |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_fault(slug, of) for slug, of in FAULT_CLASSES.items()]
    lines += [
        "",
        "## [[confounder]]",
        "",
        "| kind | place | severity (default) | what | real |",
        "|---|---|---|---|---|",
    ]
    for kind_name, of in CONFOUNDERS.items():
        severity = f"{of.severity} ({of.default_severity:g})" if of.severity else "-"
        every = "; `every`" if of.periodic else ""
        real = "yes" if of.real else ""
        lines.append(f"| `{kind_name}` | {of.place or 'everywhere'} | {severity} | {of.what}{every} | {real} |")
    return "\n".join(lines) + "\n"


def _fault(slug: str, of: FaultClass) -> str:
    places = " or ".join(f"`{place}`" for place in of.places)
    place = f"{places}; none: everywhere" if of.everywhere and places else places or "everywhere"
    severity = f"{of.severity} ({of.default_severity:g})" if of.severity else "-"
    more = [
        text
        for text, there in (
            ("`counters`, `slowdown`", of.twins),
            ("`every`", of.periodic),
            ("`xid`", of.xid),
            ("ends the job", of.fatal),
            (f"only {', '.join(of.workloads)}", bool(of.workloads)),
        )
        if there
    ]
    return f"| `{slug}` | {of.side} | {place} | {severity} | {'; '.join(more)} | {'yes' if of.real else ''} |"
