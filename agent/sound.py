"""Whether what a probe returned is what a probe may return: junk must not reach the recording."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rankscope.errors import ProbeError
from rankscope.reading import EVENT_KINDS, Event, Outcome, ProbeResult, Reading, Severity

#: Of one read; a probe that returns more is at fault.
MAX_ITEMS = 10_000
MAX_TEXT = 65_536
#: Series of one probe over its life: each costs the recording and every store behind it.
MAX_SERIES = 5_000
_LARGEST = 2**63 - 1


def checked(result: object, probe: str, series: set[tuple[str, str]]) -> ProbeResult:
    """The result as it is. Raises ProbeError, which names the first thing in it that no probe may return.

    `series` holds what the probe called its series so far, and grows.
    """
    if not isinstance(result, ProbeResult):
        raise ProbeError(f"returned {type(result).__name__} and not ProbeResult", where=probe)
    parts: tuple[tuple[object, Callable[[object], bool]], ...] = (
        (result.readings, _is_reading),
        (result.events, _is_event),
        (result.outcomes, _is_outcome),
        ((result.helper_cpu_ns, result.driver_ns), _is_time),
    )
    for items, is_sound in parts:
        if not isinstance(items, Sequence) or isinstance(items, str) or len(items) > MAX_ITEMS:
            raise ProbeError(f"returned {items!r:.80} where a list of at most {MAX_ITEMS} belongs", where=probe)
        for item in items:
            if not is_sound(item):
                raise ProbeError(f"returned what no probe may: {item!r:.200}", where=probe)
    series |= {(reading.metric, reading.device) for reading in result.readings}
    if len(series) > MAX_SERIES:
        raise ProbeError(f"returned more than {MAX_SERIES} series (metrics of devices)", where=probe)
    return result


def _is_reading(item: object) -> bool:
    return (
        isinstance(item, Reading)
        and _is_number(item.value)
        and _is_time(item.time_ns)
        and _is_text(item.metric)
        and _is_text(item.device)
        and item.metric != ""
    )


def _is_event(item: object) -> bool:
    return (
        isinstance(item, Event)
        and item.kind in EVENT_KINDS
        and _is_kind(item.severity, Severity)
        and (item.rank is None or _is_time(item.rank))
        and _is_time(item.time_ns)
        and _is_text(item.text)
        and _is_text(item.device)
        and _is_kind(item.attributes, dict)
        and all(_is_text(key) and _is_attribute(value) for key, value in item.attributes.items())
    )


def _is_outcome(item: object) -> bool:
    if not (isinstance(item, tuple) and len(item) == 3):
        return False
    return _is_text(item[0]) and isinstance(item[1], Outcome) and _is_text(item[2])


def _is_kind(value: object, kind: type) -> bool:
    return isinstance(value, kind)


def _is_attribute(value: object) -> bool:
    return value is None or _is_text(value) or _is_number(value)


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and -_LARGEST <= value <= _LARGEST


def _is_time(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= _LARGEST


def _is_text(value: object) -> bool:
    # A lone surrogate cannot be written down.
    return isinstance(value, str) and len(value) <= MAX_TEXT and not any("\ud800" <= c <= "\udfff" for c in value)
