"""Words and numbers as every surface shows them: one wording for the terminal and the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rankscope.finding import Evidence, Finding, Impact, Verdict, Where
from rankscope.reading import Event, Severity

#: Bits of NVML's clock event reasons (nvml.h 13.x, nvmlClocksEventReason*): short name, and whether the bit
#: holds clocks down for a fault's sake (the others are normal at idle or at full load).
CLOCK_EVENT_REASONS: dict[int, tuple[str, bool]] = {
    0x001: ("idle", False),
    0x002: ("application clocks", False),
    0x004: ("software power cap", False),
    0x008: ("hardware slowdown", True),
    0x010: ("sync boost", False),
    0x020: ("software thermal slowdown", True),
    0x040: ("hardware thermal slowdown", True),
    0x080: ("hardware power brake", True),
    0x100: ("display clock setting", False),
    0x200: ("board limit", False),
    0x400: ("reliability policy", False),
}

#: Characters of a sentence of evidence in which its figure is looked for: it may end in a stranger's words.
_SENTENCE = 400
#: A figure with its unit, in a sentence.
_QUANTITY = re.compile(r"(?<![\w.,])(-?\d[\d,]*(?:\.\d+)?) ?(%|ms|us|s|°C|W|MHz|[kMG]B|[KMG]iB)(?!\w)")

#: What a localisation rests on, in words.
BASIS_MEANING = {
    "device-collective": "collectives timed on the device",
    "device-compute": "own compute timed on the device",
    "host": "host times only: where the host waits, not what the GPU does",
    "counters": "counters and logs only",
}


def visible(text: str) -> str:
    r"""Foreign text made safe to show on one line: what does not print (control characters, escape sequences,
    marks that turn the direction of writing, line breaks) becomes its escape, such as `\u202e`.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )


def visible_lines(text: str, limit: int = 400) -> list[str]:
    """Foreign text of several lines, each made safe; what exceeds `limit` lines is counted."""
    lines = [visible(line.expandtabs(4)) for line in text.splitlines()]
    rest = len(lines) - limit
    return lines if rest <= 0 else [*lines[:limit], f"... {rest} more lines"]


def milliseconds(value: float | None) -> str:
    """A duration given in milliseconds, with three significant digits at most."""
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    if size >= 60_000:
        return f"{value / 60_000:.1f} min"
    if size >= 1_000:
        return f"{value / 1_000:.2f} s"
    if size < 0.01 and size:
        return f"{value * 1_000:.2g} us"
    return f"{number(value, 3)} ms"


def number(value: float, digits: int = 4) -> str:
    """A plain number with a few significant digits and no exponent where people would not write one."""
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.3g}"
    text = f"{value:.{digits}g}" if size < 1_000 else f"{value:,.0f}"
    return f"{value:.0f}" if "e" in text else text


def percent(fraction: float | None) -> str:
    """A fraction as percent; below 10 % with two digits, so that a small cost does not read as none."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    hundredths = fraction * 100
    if 99.5 <= hundredths < 100:
        # Rounded down: what is not certain must not read "100 %".
        return f"{math.floor(hundredths * 10) / 10:.1f} %"
    return f"{hundredths:.2g} %" if 0 < abs(hundredths) < 10 else f"{hundredths:.0f} %"


def byte_size(value: float | None) -> str:
    """Bytes in decimal megabytes or gigabytes."""
    if value is None:
        return "-"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def duration(nanoseconds: int) -> str:
    """A stretch of time as people say it."""
    seconds = nanoseconds / 1e9
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole:02d} s"


def wall_time(wall_ns: int) -> str:
    """Wall time for people, in UTC so that pages from several places compare."""
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def value_text(value: float | str | None) -> str:
    """A value of a piece of evidence; missing is not zero."""
    if value is None:
        return "not seen"
    if isinstance(value, str):
        return visible(value)
    return number(value) if math.isfinite(value) else "not seen"


def evidence_values(piece: Evidence) -> tuple[str, str | None]:
    """The value and the peers', in the unit that the sentence gives the value there; None where there are no peers."""
    unit = _unit(piece)

    def told(value: float | str | None) -> str:
        if isinstance(value, str) or value is None or not math.isfinite(value):
            return value_text(value)
        return percent(value) if unit == "%" else f"{number(value)} {unit}".rstrip()

    return told(piece.value), None if piece.peers is None else told(piece.peers)


def _unit(piece: Evidence) -> str:
    if isinstance(piece.value, str) or piece.value is None or not math.isfinite(piece.value):
        return ""
    for figure, unit in _QUANTITY.findall(piece.what[:_SENTENCE]):
        decimals = len(figure.partition(".")[2])
        value = piece.value * 100 if unit == "%" else piece.value
        if math.isclose(float(figure.replace(",", "")), value, abs_tol=0.6 * 10**-decimals, rel_tol=0):
            return str(unit)
    return ""


def short_uuid(uuid: str) -> str:
    """A GPU's UUID cut to what tells it apart on a node ("GPU-3f2a91c0...")."""
    return f"{visible(uuid)[:12]}..." if len(uuid) > 15 else visible(uuid)


def runbook_text(runbook: str) -> str:
    """A runbook as a person reaches it: a page of ours by a command, since an installation holds no docs."""
    directory, _, page = runbook.rpartition("/")
    if directory != "docs/runbooks":
        return visible(runbook)
    return f"rankscope runbook {visible(page.removesuffix('.md'))}"


def place(where: Where, gpus: Mapping[str, Sequence[str]] | None = None) -> list[tuple[str, str]]:
    """The parts of a place that apply, as (name, value); `gpus` are the UUIDs of each host, by their index there."""
    known = list((gpus or {}).get(where.host or "", ()))
    gpu = where.gpu_uuid
    if gpu in known:
        gpu = f"{known.index(gpu)} ({gpu})"
    pairs = (
        ("rank", where.rank),
        ("local rank", where.local_rank),
        ("host", where.host),
        ("GPU", gpu),
        ("link", where.link),
        ("device", where.device),
        ("phase", None if where.phase is None else where.phase.replace("_", " ")),
    )
    return [(name, visible(str(value))) for name, value in pairs if value is not None]


def impact_texts(impact: Impact) -> list[str]:
    """What a fault costs, part by part; nothing where it cannot be told."""
    texts = []
    if impact.ms_per_step is not None:
        share = "" if impact.fraction_of_step is None else f" ({percent(impact.fraction_of_step)})"
        texts.append(f"{milliseconds(impact.ms_per_step)} a step{share}")
    elif impact.fraction_of_step is not None:
        texts.append(f"{percent(impact.fraction_of_step)} of each step")
    if impact.gpu_hours_per_day is not None:
        texts.append(f"{number(impact.gpu_hours_per_day, 3)} GPU-hours a day")
    return texts


def headline(verdict: Verdict) -> tuple[str, str]:
    """The verdict's word and its one sentence, which does not repeat the word."""
    word = visible(verdict.verdict)
    summary = visible(verdict.summary)
    if summary.lower().startswith(f"{word.lower()}:"):
        summary = summary[len(word) + 1 :].strip()
        summary = summary[:1].upper() + summary[1:]
    return word.upper(), summary


def deciding(verdict: Verdict) -> Finding | None:
    """The finding that the verdict rests on: the only one whose advice may stand beside the verdict.

    A finding below the threshold makes the verdict "unknown"; acting on it would be acting on a guess.
    """
    first = next(iter(verdict.findings), None)
    return first if first is not None and first.side == verdict.verdict else None


def leading(verdict: Verdict) -> Finding | None:
    """The finding whose numbers stand beside the verdict: the first one that is more than something to watch."""
    return next((finding for finding in verdict.findings if finding.severity is not Severity.INFO), None)


def class_title(finding: Finding) -> str:
    """A class slug as a title: "gpu-thermal-slowdown" reads "GPU thermal slowdown"."""
    words = finding.class_slug.replace("-", " ")
    title = words[:1].upper() + words[1:]
    for word, spelt in (("Gpu", "GPU"), ("gpu", "GPU"), ("ecc", "ECC"), ("cpu", "CPU"), ("Cpu", "CPU"), ("Gc ", "GC ")):
        title = title.replace(word, spelt)
    return visible(title)


def reason_names(mask: int) -> list[str]:
    """Names of the bits in a mask of clock event reasons; bits without a name are shown as numbers."""
    known = [name for bit, (name, _) in CLOCK_EVENT_REASONS.items() if mask & bit]
    unknown = mask & ~sum(CLOCK_EVENT_REASONS)
    return [*known, hex(unknown)] if unknown else known


def progress_texts(verdict: Verdict) -> list[str]:
    """How training itself got on, as far as the training loop said: rates first, then what went wrong."""
    told = verdict.job.get("progress")
    if not isinstance(told, dict):
        return []
    texts = []
    for name, unit in (("tokens_per_second", "tokens"), ("samples_per_second", "samples")):
        if told[name] is not None:
            texts.append(f"{number(told[name], 4)} {unit}/s")
    if told["mfu"] is not None:
        texts.append(f"MFU {percent(told['mfu'])}")
    if told["last_loss"] is not None:
        texts.append(f"last loss {number(told['last_loss'], 4)}")
    for jump in told["jumps"]:
        what = f"{jump['signal'].replace('_', ' ')} of rank {jump['rank']}"
        if jump["value"] is None:
            texts.append(f"{what} not finite from step {jump['step']} on")
        else:
            texts.append(
                f"{what} {number(jump['value'], 4)} at step {jump['step']}, usually {number(jump['usual'], 4)}"
            )
    for growth in told["growth"]:
        left = "" if growth["steps_left"] is None else f", full in {growth['steps_left']} steps"
        low, high = byte_size(growth["low"]), byte_size(growth["high"])
        texts.append(f"memory of rank {growth['rank']} grows by {low} to {high} a step{left}")
    return texts


#: Events whose text is data, with what is shown instead.
_TAKEN = {"rank-stacks": "stacks were taken", "rank-flight": "its flight recorder was read"}


def event_text(event: Event) -> str:
    """What an event says to a person."""
    return _TAKEN.get(event.kind, event.text)


def overhead_texts(verdict: Verdict) -> list[str]:
    """What the watching cost, as far as it was measured."""
    overhead = verdict.overhead
    texts = []
    if overhead.agent_cpu_fraction is not None:
        texts.append(f"agent {percent(overhead.agent_cpu_fraction)} of one core")
    if overhead.agent_pss_bytes is not None:
        texts.append(f"{byte_size(overhead.agent_pss_bytes)} of memory")
    if overhead.hook_ns_per_step is not None:
        us = overhead.hook_ns_per_step / 1e3
        texts.append(f"hooks {f'{number(us, 3)} us' if us < 1_000 else milliseconds(us / 1e3)} a step")
    return texts or ["not measured"]
