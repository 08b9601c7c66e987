"""No text of /proc, /sys or the kernel log makes a parser raise, or say what no counter can be."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from host_tree import HOSTS, blocks, names
from hypothesis import given
from hypothesis import strategies as st

from rankscope.probes import (
    cgroup_files,
    cpu,
    disk,
    infiniband,
    kernel_log_lines,
    kernel_log_record,
    lustre,
    memory,
    mounts,
    network,
    nfs,
    numa,
    numbers,
    pcie,
    pressure,
    process_files,
)
from rankscope.probes.kernel_log_events import EventMaker
from rankscope.probes.kernel_log_record import KernelRecord

#: What each parser is called in a failure -> the parser.
PARSERS: dict[str, Callable[[str], Any]] = {
    "cgroup membership": cgroup_files.parse_membership,
    "cpu.stat": cgroup_files.parse_cpu_stat,
    "cpu.max": cgroup_files.parse_cpu_max,
    "quota": lambda text: cgroup_files.cores(text, "100000"),
    "memory limit": cgroup_files.parse_limit,
    "memory.stat v2": lambda text: cgroup_files.parse_memory_stat(text, version=2),
    "memory.stat v1": lambda text: cgroup_files.parse_memory_stat(text, version=1),
    "memory.events": cgroup_files.parse_memory_events,
    "stat": lambda text: cpu.parse(text, 100),
    "diskstats": disk.parse,
    "port state": infiniband.parse_state,
    "port rate": infiniband.parse_rate,
    "llite stats": lustre.parse_mount,
    "osc stats": lustre.parse_requests,
    "rpc_stats": lustre.parse_rpc_stats,
    "lustre target": lustre.target_name,
    "meminfo": memory.parse_meminfo,
    "vmstat": memory.parse_vmstat,
    "mountinfo": lambda text: mounts.parse(text, 32),
    "net/dev": network.parse,
    "net/snmp": network.parse_stack,
    "mountstats": nfs.parse,
    "numastat": numa.parse_numastat,
    "node meminfo": numa.parse_meminfo,
    "whole": numbers.whole,
    "cpu list": numbers.cpu_list,
    "aer": pcie.parse_aer,
    "link speed": pcie.parse_speed,
    "link width": pcie.parse_lanes,
    "pressure": pressure.parse,
    "process stat": process_files.parse_stat,
    "schedstat": process_files.parse_schedstat,
    "io": process_files.parse_io,
    "switches": process_files.parse_switches,
    "allowed": process_files.parse_allowed,
    "children": process_files.parse_children,
}
#: The same for the kernel log, of whose numbers some may be negative (link -1 is no link).
LOG_PARSERS: dict[str, Callable[[str], Any]] = {
    "record": lambda text: kernel_log_record.parse(text.encode("utf-8", "surrogatepass")),
    "line": kernel_log_lines.notice,
    "kill": kernel_log_lines.oom_context,
    "uuid": kernel_log_lines.uuid_announced,
    "address": kernel_log_record.function_address,
    "event": lambda text: EventMaker(lambda _: None).event(KernelRecord(4, 0, 0, text), 0, history=False),
}
CORPUS = tuple(
    content for name in names() for *_, content in blocks((HOSTS / f"{name}.tree").read_text()) if content.strip()
)
WORDS = sorted({word for content in CORPUS for word in content.replace("\n", " ").split(" ")})
NOISE = (
    "-1",
    "9" * 25,
    "18446744073709551616",
    "1e9",
    "nan",
    "\u0663",
    "\u00b2",
    "\x00",
    "\udc80",
    "/",
    ":",
    ",",
    "[",
    "\n",
)
#: Most files of /sys are a number: the long ones are drawn more often.
WEIGHTS = [len(content) ** 0.5 for content in CORPUS]
#: Mutated texts of the fuzzer; `-m verify` tries many more.
BUDGET, LONG_BUDGET = 3_000, 300_000


def numbers_in(value: object) -> Iterable[float]:
    """Every number that a parser said, however deep."""
    if isinstance(value, bool | str | None):
        return
    if isinstance(value, int | float):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from numbers_in(getattr(value, field.name))
    elif isinstance(value, dict):
        for each in value.values():
            yield from numbers_in(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from numbers_in(each)
    else:
        raise TypeError(type(value))


def try_all(text: str) -> None:
    """Give every parser a text: none raises, and every number is one that a counter or a size can have."""
    for name, parser in PARSERS.items():
        for number in numbers_in(parser(text)):
            assert math.isfinite(number), name
            assert number >= 0, name
    for parser in LOG_PARSERS.values():
        parser(text)


@given(st.one_of(st.text(), st.lists(st.sampled_from([*WORDS, *NOISE]), max_size=30).map(" ".join)))
def test_no_text_makes_a_parser_raise(text: str) -> None:
    """Arbitrary text, and arbitrary arrangements of the words of real files, raise nothing and give no nonsense."""
    try_all(text)


@given(st.sampled_from(CORPUS), st.lists(st.tuples(st.integers(0, 4000), st.sampled_from([*NOISE, ""])), max_size=4))
def test_no_damage_to_a_real_file_makes_a_parser_raise(text: str, damage: list[tuple[int, str]]) -> None:
    """Real files with a few places overwritten are read, as far as they can be."""
    for place, put in damage:
        at = place % (len(text) + 1)
        text = text[:at] + put + text[at + max(1, len(put)) :]
    try_all(text)


def mutated(draw: random.Random) -> str:
    """A real file, or two, with several kinds of damage."""
    (text,) = draw.choices(CORPUS, WEIGHTS)
    for _ in range(draw.randrange(1, 6)):
        at, other = draw.randrange(len(text) + 1), draw.choice(CORPUS)
        end = min(len(text), at + draw.randrange(40))
        match draw.randrange(6):
            case 0:
                text = text[:at]
            case 1:
                text = text[:at] + draw.choice(NOISE) + text[end:]
            case 2:
                text = text[:at] + other[: draw.randrange(200)] + text[at:]
            case 3:
                text = text[:at] + text[at:end] * draw.randrange(1, 8) + text[end:]
            case 4:
                text = text[:at] + draw.choice(WORDS) + text[end:]
            case _:
                text = text[:at] + "".join(chr(ord(c) ^ (1 << draw.randrange(7))) for c in text[at:end]) + text[end:]
    return text


def fuzz(budget: int) -> None:
    """Try so many mutated texts, the same ones each time."""
    draw = random.Random("parsers")
    for _ in range(budget):
        try_all(mutated(draw))


def test_mutated_files_make_no_parser_raise() -> None:
    """A fixed budget of mutations of real files: cuts, repeats, splices of other files, flipped bits."""
    fuzz(BUDGET)


@pytest.mark.verify
def test_many_mutated_files_make_no_parser_raise() -> None:
    """The same with a budget of minutes."""
    fuzz(LONG_BUDGET)
