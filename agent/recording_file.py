"""The file of a recording: where it lies, whether it is one, and the connection that writes it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from rankscope.agent.schema import APPLICATION_ID, SCHEMA_VERSION
from rankscope.errors import RecordingError
from rankscope.identity import safe_name

#: Gives None for None, without a frame of Python.
_NOTHING: dict[None, None] = {}


def state_directory(environ: os._Environ[str] | dict[str, str] | None = None) -> Path:
    """Where recordings lie: $RANKSCOPE_STATE, else rankscope/ under $XDG_STATE_HOME or ~/.local/state."""
    environ = os.environ if environ is None else environ
    if named := environ.get("RANKSCOPE_STATE"):
        return Path(named)
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "rankscope"


def new_recording_path(state: Path, job: str, host: str) -> Path:
    """Reserve STATE/JOB/HOST.db, or HOST.2.db and on where a run of this name was recorded before."""
    directory = state / safe_name(job)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(1, 100_000):
            path = directory / (f"{host}.db" if number == 1 else f"{host}.{number}.db")
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise RecordingError(
            f"cannot make a recording ({error.strerror})",
            where=str(directory),
            todo="set RANKSCOPE_STATE to a directory that you may write",
        ) from error
    raise RecordingError("too many recordings of this name", where=str(directory), todo="remove old ones")


def is_begun(path: Path) -> bool:
    """Whether there is anything in the file: no where it was only reserved, or its writer died before it began."""
    if not path.exists() or not path.stat().st_size:
        return False
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        try:
            return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError):
        # Whoever opens it says what is wrong with it.
        return True


def check_format(connection: sqlite3.Connection, path: Path) -> None:
    """Raise RecordingError where the file is not a recording of this schema version."""
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise RecordingError(f"not a recording ({error})", where=str(path)) from error
    if not (application or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]):
        raise RecordingError("empty: its agent has not begun, or never did", where=str(path))
    if application != APPLICATION_ID:
        raise RecordingError("not a Rankscope recording", where=str(path), todo="name a .db file that `run` wrote")
    if version != SCHEMA_VERSION:
        raise RecordingError(
            f"recording of schema version {version}, this release reads {SCHEMA_VERSION}",
            where=str(path),
            todo="use the release that wrote it",
        )


def connect(path: Path) -> sqlite3.Connection:
    """The writing connection. Raises RecordingError."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        connection.execute("PRAGMA journal_mode = WAL")
        # A commit survives the agent's death; a power cut may cost the last seconds, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 8388608")
        # Rows come in the order in which they lie: what was written is hardly ever asked for again.
        connection.execute("PRAGMA cache_size = -1024")
        # Python looks for an adapter of each None it binds, and where it finds none that costs more than to write it:
        # a step has twenty.
        sqlite3.register_adapter(type(None), _NOTHING.get)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise RecordingError(f"cannot open the recording ({error})", where=str(path)) from error
    return connection


def limit(connection: sqlite3.Connection, size: int) -> None:
    """Let the file grow to so many bytes, and no further."""
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {max(64, size // page)}")
