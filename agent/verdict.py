"""From recordings to the verdict, and from the verdict to whatever a person or a program wants to read."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.agent.load import load_window, open_reader, recordings
from rankscope.agent.schema import INSERTS
from rankscope.errors import RankscopeError, RecordingError
from rankscope.finding import Overhead, Verdict
from rankscope.reading import Event
from rankscope.window import Window

if TYPE_CHECKING:
    from rich.console import Console

    from rankscope.rules.history import PastRun


#: No agent takes as many: what says so was damaged.
_MOST_CORES = 10_000


def conclude(
    paths: Sequence[Path], classes_file: str = "", past: Callable[[Window], Sequence[PastRun]] = lambda _window: ()
) -> tuple[Verdict, Window]:
    """The verdict over recordings of one run, and the window that it rests on.

    `classes_file` is a site's own part of the evidence table; `past` looks up what earlier jobs say of the window's
    GPUs. Raises RecordingError, ConfigurationError.
    """
    from rankscope.agent.site_table import site_table
    from rankscope.rules import judge

    table = site_table(classes_file)
    window = load_window(paths)
    return judge(window, overhead_of(paths, window), table, past(window)), window


def overhead_of(paths: Sequence[Path], window: Window) -> Overhead:
    """What watching cost: the dearest agent, and the mean of the hooks' own time over all steps."""
    ratios: list[float] = []
    sizes: list[int] = []
    for path in recordings(paths):
        connection = open_reader(path)
        try:
            meta = dict(connection.execute("SELECT key, value FROM meta"))
        except (sqlite3.Error, ValueError) as error:
            raise RecordingError(f"damaged beyond reading ({error})", where=str(path)) from error
        finally:
            connection.close()
        if isinstance(ratio := meta.get("agent_cpu_ratio"), int | float) and 0 <= ratio < _MOST_CORES:
            ratios.append(float(ratio))
        if isinstance(size := meta.get("agent_pss_bytes"), int):
            sizes.append(size)
    hooks = [ns for rank in window.ranks.values() for ns in rank.steps.columns["hook_ns"] if not math.isnan(ns)]
    return Overhead(max(ratios, default=None), max(sizes, default=None), sum(hooks) / len(hooks) if hooks else None)


def json_text(verdict: Verdict, window: Window) -> str:
    """The verdict as its contract spells it."""
    from rankscope.exporters.verdict_json import verdict_document

    return json.dumps(verdict_document(verdict, window.anchors), indent=2) + "\n"


def show(verdict: Verdict, window: Window, console: Console) -> None:
    """The verdict for a person at a terminal."""
    from rankscope.exporters.terminal import print_verdict

    print_verdict(verdict, window, console)


def write_outputs(
    verdict: Verdict, window: Window, *, json_file: str = "", html: Path | None = None, perfetto: Path | None = None
) -> None:
    """Write what was asked for; `json_file` "-" is standard output. Raises RankscopeError."""
    if json_file == "-":
        sys.stdout.write(json_text(verdict, window))
    elif json_file:
        write_text(Path(json_file), json_text(verdict, window))
    if html is not None:
        from rankscope.exporters.html import html_page

        write_text(html, html_page(verdict, window))
    if perfetto is not None:
        from rankscope.exporters.perfetto import write_trace

        try:
            write_trace(window, perfetto, verdict.findings)
        except OSError as error:
            raise RankscopeError(f"cannot write ({error.strerror})", where=str(perfetto)) from error


def write_text(path: Path, text: str) -> None:
    """Raises RankscopeError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RankscopeError(f"cannot write ({error.strerror})", where=str(path)) from error


def keep_verdict(path: Path, verdict: Verdict, window: Window) -> None:
    """Leave the verdict in the recording beside what it rests on. Raises RecordingError."""
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        connection.execute("DELETE FROM verdict")
        connection.execute("INSERT INTO verdict VALUES (?, ?)", (window.end_ns, json_text(verdict, window)))
    except sqlite3.Error as error:
        raise RecordingError(f"cannot keep the verdict ({error})", where=str(path)) from error
    finally:
        connection.close()


def keep_events(path: Path, events: Sequence[Event]) -> None:
    """Add events that the agent did not see to the recording. Raises RecordingError."""
    import sqlite3

    if not events:
        return
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        for event in events:
            row = (event.kind, event.time_ns, event.text, str(event.severity), event.device, event.rank)
            connection.execute(INSERTS["events"], (*row, json.dumps(event.attributes)))
    except sqlite3.Error as error:
        raise RecordingError(f"cannot keep what happened ({error})", where=str(path)) from error
    finally:
        connection.close()


def keep_status(path: Path, job_status: int) -> None:
    """Leave the job's exit status in the recording. Raises RecordingError."""
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('job_status', ?)", (job_status,))
    except sqlite3.Error as error:
        raise RecordingError(f"cannot keep the job's status ({error})", where=str(path)) from error
    finally:
        connection.close()
