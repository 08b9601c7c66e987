"""What a site's GPUs were found with in past jobs: a small SQLite database, one row a job, rank and GPU.

The same slowness over jobs answers what one job cannot: it follows the GPU (hardware), or the rank (the job's own).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from rankscope.errors import RecordingError
from rankscope.finding import Finding, Side, Verdict
from rankscope.reading import Severity
from rankscope.rules import THRESHOLD
from rankscope.rules.history import PastRun
from rankscope.window import Window

#: "RKSH": tells this database from any other SQLite file.
_APPLICATION_ID = 0x524B5348
_VERSION = 1
#: Runs of each GPU that are kept: older ones say little about the board as it is today.
_KEPT = 200
_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    gpu_uuid TEXT NOT NULL, job TEXT NOT NULL, attempt INTEGER NOT NULL, rank INTEGER NOT NULL, host TEXT NOT NULL,
    ended_ns INTEGER NOT NULL, class TEXT, side TEXT, fraction REAL,
    PRIMARY KEY (gpu_uuid, job, attempt, rank)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_job ON runs (job, rank);
"""


class History:
    """One database file, made where it is missing. Raises RecordingError where it is not ours or cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=5.0, isolation_level=None)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise RecordingError(f"cannot be used as a history ({error})", where=str(path)) from error

    def _prepare(self) -> None:
        found = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        empty = not self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not empty and (found, version) != (_APPLICATION_ID, _VERSION):
            raise RecordingError("not a history of this version", where=str(self._path), todo="name another file")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(
            f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION}; {_TABLES}"
        )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def keep(self, window: Window, verdict: Verdict) -> int:
        """Write down how every GPU of a run fared; the number of rows. The same run twice is one row."""
        anchor = next(iter(window.anchors.values()), None)
        ended = anchor.to_wall_ns(window.end_ns) if anchor is not None else 0
        rows = []
        for rank, of in window.ranks.items():
            identity = of.identity
            if identity.gpu_uuid is None:
                continue
            worst = _worst(verdict.findings, rank)
            told: tuple[str | None, str | None, float | None] = (None, None, None)
            if worst is not None:
                told = (worst.class_slug, str(worst.side), worst.impact.fraction_of_step)
            rows.append((identity.gpu_uuid, window.job, identity.attempt, rank, identity.host, ended, *told))
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            for uuid in {row[0] for row in rows}:
                self._connection.execute(
                    "DELETE FROM runs WHERE gpu_uuid = ? AND ended_ns < (SELECT min(ended_ns) FROM (SELECT ended_ns "
                    "FROM runs WHERE gpu_uuid = ? ORDER BY ended_ns DESC LIMIT ?))",
                    (uuid, uuid, _KEPT),
                )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise RecordingError(f"cannot be written ({error})", where=str(self._path)) from error
        return len(rows)

    def of(self, window: Window) -> list[PastRun]:
        """Past runs of the window's GPUs, and past attempts of its job, the latest first; not the run itself."""
        uuids = [of.identity.gpu_uuid for of in window.ranks.values() if of.identity.gpu_uuid is not None]
        attempt = max((of.identity.attempt for of in window.ranks.values()), default=0)
        found: dict[tuple[object, ...], PastRun] = {}
        try:
            for uuid in uuids:
                for row in self._connection.execute(f"{_SELECT} WHERE gpu_uuid = ?", (uuid,)):
                    found[row[:4]] = PastRun(*row)
            for row in self._connection.execute(f"{_SELECT} WHERE job = ?", (window.job,)):
                found[row[:4]] = PastRun(*row)
        except sqlite3.Error as error:
            raise RecordingError(f"cannot be read ({error})", where=str(self._path)) from error
        past = [run for run in found.values() if (run.job, run.attempt) != (window.job, attempt)]
        return sorted(past, key=lambda run: -run.ended_ns)


def past_runs(history_file: str, window: Window) -> list[PastRun]:
    """What a site's history says of a window's GPUs and ranks; nothing for "". Raises RecordingError."""
    if not history_file:
        return []
    history = History(Path(history_file).expanduser())
    try:
        return history.of(window)
    finally:
        history.close()


def keep_run(history_file: str, window: Window, verdict: Verdict) -> None:
    """Write a run down for those to come; nothing for "". Raises RecordingError."""
    if not history_file:
        return
    history = History(Path(history_file).expanduser())
    try:
        history.keep(window, verdict)
    finally:
        history.close()


_SELECT = "SELECT gpu_uuid, job, attempt, rank, host, ended_ns, class, side, fraction FROM runs"


def _worst(findings: Iterable[Finding], rank: int) -> Finding | None:
    """The first finding at a rank; what was only watched does not count."""
    for finding in findings:
        sure = finding.severity is not Severity.INFO and (
            finding.side is Side.UNKNOWN or finding.confidence >= THRESHOLD
        )
        if sure and finding.where.rank == rank:
            return finding
    return None
