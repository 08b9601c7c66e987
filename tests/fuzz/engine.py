"""Runs a target over mutated inputs in a process of its own, within bounded time and memory, and keeps what breaks it.

An input whose outcome is new - another error, another shape of what was read - joins those that are mutated next, so
that later inputs reach further. No instrument is needed, and the same seed gives the same inputs.
"""

from __future__ import annotations

import hashlib
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fuzz.mutate import mutated

from rankscope.errors import RankscopeError

CORPUS = Path(__file__).parent / "corpus"
#: Processor time that one input may take, s, and memory that the process may take beyond what it has, bytes.
LONGEST_S = 10.0
MOST_BYTES = 1 << 30
#: Inputs with an outcome of their own that are kept to be mutated.
MOST_KEPT = 400


@dataclass(frozen=True)
class Target:
    """Something that reads what others wrote."""

    name: str
    #: Reads the input, a file in a directory of its own, and says in a word or two what came out. May raise
    #: RankscopeError and nothing else.
    read: Callable[[Path], str]
    mutate: Callable[[random.Random, bytes, Sequence[bytes]], bytes] = mutated
    file_name: str = "input"

    def corpus(self) -> dict[str, bytes]:
        """The committed inputs, by file name."""
        return {path.name: path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())}


@dataclass
class Fuzzed:
    """What came of it: inputs tried, different outcomes seen, and the first input of each way in which it broke."""

    tried: int = 0
    outcomes: set[str] = field(default_factory=set)
    broken: dict[str, tuple[bytes, str]] = field(default_factory=dict)


class TooLong(BaseException):
    """One input took longer than any may."""


def confine() -> None:
    """Bound this process for good: memory by the kernel, time by a signal that `tried` arms."""
    size = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (size + MOST_BYTES, resource.RLIM_INFINITY))

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TooLong

    signal.signal(signal.SIGPROF, give_up)


def tried(target: Target, data: bytes, place: Path) -> tuple[str, str, str]:
    """(outcome, where it broke, how it broke) of one input; the last two are "" where only a typed error left."""
    directory = Path(tempfile.mkdtemp(dir=place))
    path = directory / target.file_name
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        return target.read(path), "", ""
    except RankscopeError as error:
        where, _ = _place(error)
        return f"{type(error).__name__} {where}", "", ""
    except (Exception, TooLong) as error:
        where, text = _place(error)
        kind = f"{type(error).__name__} at {where}"
        return kind, kind, text
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        # A thread of what was tried may still be closing its file.
        shutil.rmtree(directory, ignore_errors=True)


def _place(error: BaseException) -> tuple[str, str]:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/fuzz/" not in frame.filename]
    own = [frame for frame in frames if "rankscope" in frame.filename] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "the target itself"
    return where, "".join(traceback.format_exception(error))


def fuzz(target: Target, place: Path, going: Iterator[int], seed: int) -> Fuzzed:
    """Try the corpus as it is, then an input for each of `going`."""
    told = Fuzzed()
    draw = random.Random(f"{target.name} {seed}")
    pool = list(target.corpus().values())
    for data in pool:
        _try(told, target, data, place)
    for _ in going:
        data = target.mutate(draw, draw.choice(pool), pool)
        if _try(told, target, data, place) and len(pool) < MOST_KEPT:
            pool.append(data)
    return told


def _try(told: Fuzzed, target: Target, data: bytes, place: Path) -> bool:
    """Whether the outcome is new."""
    outcome, where, how = tried(target, data, place)
    told.tried += 1
    if where and where not in told.broken:
        told.broken[where] = (data, how)
    if outcome in told.outcomes:
        return False
    told.outcomes.add(outcome)
    return True


def for_seconds(seconds: float) -> Iterator[int]:
    """Goes on for so long."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        yield number
        number += 1


def name_of(data: bytes) -> str:
    """What a found input is called in the corpus."""
    return f"found-{hashlib.sha256(data).hexdigest()[:12]}"
