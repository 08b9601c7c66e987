"""Fingerprints in recordings: what each host and rank was made of, kept when a rank attaches, read to compare runs."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankscope.agent.load import open_reader, recordings
from rankscope.agent.plausible import plausible
from rankscope.errors import RecordingError
from rankscope.torch_hooks.fingerprint import MAX_BYTES, SUFFIX
from rankscope.window import Window

#: Keys of the recording's meta table: the host's facts, and each rank row's.
HOST_KEY, RANK_KEY = "host_facts", "rank_facts."


@dataclass(slots=True)
class Fingerprints:
    """Facts by host, and by rank with the host and GPU it ran on. Empty where a recording has none."""

    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    ranks: dict[int, dict[str, Any]] = field(default_factory=dict)


def read_facts(ring: Path) -> str | None:
    """What a rank left beside its ring, as JSON text; None where it left nothing that can be used."""
    try:
        descriptor = os.open(ring.with_name(ring.name + SUFFIX), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES or found.st_uid != ring.stat().st_uid:
            return None
        text = os.pread(descriptor, MAX_BYTES, 0).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return text if _object(text) else None


def load_fingerprints(paths: Sequence[Path]) -> Fingerprints:
    """What these recordings know of their hosts and ranks; of a rank that was restarted, the last."""
    found = Fingerprints()
    for path in recordings(paths):
        connection = open_reader(path)
        try:
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            rows = connection.execute("SELECT id, rank, host, local_rank, gpu_uuid FROM ranks ORDER BY id").fetchall()
        except (sqlite3.Error, ValueError) as error:
            raise RecordingError(f"damaged beyond reading ({error})", where=str(path)) from error
        finally:
            connection.close()
        host = str(meta.get("host", ""))
        facts = _object(meta.get(HOST_KEY))
        if facts:
            found.hosts[host] = facts
        for row, rank, rank_host, local_rank, gpu in plausible(("id", "rank", "host", "local_rank", "gpu_uuid"), rows):
            placed = {"host": rank_host, "local_rank": local_rank, "gpu_uuid": gpu}
            found.ranks[int(rank)] = _object(meta.get(f"{RANK_KEY}{row}")) | {"placed": placed}
    return found


def described_gpus(window: Window) -> list[tuple[str, Mapping[str, Any]]]:
    """(host, what its driver said last) of each GPU that NVML described in this window."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for event in window.events:
        if event.kind == "gpu-described":
            found[event.device] = (event.host, event.attributes)
    return list(found.values())


def _object(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
