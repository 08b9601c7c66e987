"""How far the exported histograms count what was recorded, so that an agent that takes over counts the rest.

A histogram lives in the agent's memory between two batches: what was recorded since the last batch of an agent that
was killed is in no histogram. With each batch it is written down how far each rank's records are counted in it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator

from rankscope.agent.schema import DEVICE_FIELDS, GROUP_FIELDS, STEP_FIELDS
from rankscope.identity import RankIdentity
from rankscope.records import DeviceRecord, GroupRecord, PhaseRecord, RingRecord, StepRecord, believable

#: Key in the recording's meta table.
META_KEY = "exported_steps"
#: Rank processes kept in mind: of more, those heard longest ago are taken for counted.
_MAX_RANKS = 512


class Counted:
    """Call `note` with the records that were given to the encoder, `document` when it gave a batch."""

    def __init__(self) -> None:
        #: "rank/pid/start_ticks" -> kind of record -> step, or end of a phase (ns), of the last one.
        self._last: dict[str, dict[str, int]] = {}

    def note(self, identity: RankIdentity, records: Iterable[RingRecord]) -> None:
        """These are counted from now on; those of one rank come in order."""
        key = f"{identity.rank}/{identity.pid}/{identity.start_ticks}"
        last = self._last.pop(key, None) or {}
        self._last[key] = last
        for record in records:
            if isinstance(record, StepRecord):
                last["steps"] = record.step
            elif isinstance(record, DeviceRecord):
                last["device_steps"] = record.step
            elif isinstance(record, GroupRecord):
                last[f"groups/{record.on_device}/{record.group}"] = record.step
            elif isinstance(record, PhaseRecord):
                last["phases"] = record.end_ns
        while len(self._last) > _MAX_RANKS:
            del self._last[next(iter(self._last))]

    def document(self) -> str:
        """As JSON, for the recording."""
        return json.dumps(self._last, separators=(",", ":"))


def uncounted(connection: sqlite3.Connection) -> Iterator[tuple[RankIdentity, list[RingRecord]]]:
    """Records that no exported histogram counts yet, rank by rank; nothing where no batch ever was."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (META_KEY,)).fetchone()
    if row is None:
        return
    last: dict[str, dict[str, int]] = json.loads(row[0])
    ranks = connection.execute(
        "SELECT id, job, attempt, rank, world_size, local_rank, host, pid, start_ticks, boot_id, gpu_uuid, "
        "device_clock FROM ranks ORDER BY id"
    ).fetchall()
    identities = {number: RankIdentity(*fields) for number, *fields in ranks}
    keys = {number: f"{of.rank}/{of.pid}/{of.start_ticks}" for number, of in identities.items()}
    newest = max((number for number, key in keys.items() if key in last), default=0)
    for number, identity in identities.items():
        # One that attached after the last batch is counted from its begin.
        if keys[number] in last or number > newest:
            # A disk may have changed what was recorded.
            records = list(filter(believable, _after(connection, number, last.get(keys[number], {}))))
            if records:
                yield identity, records


def _after(connection: sqlite3.Connection, number: int, last: dict[str, int]) -> Iterator[RingRecord]:
    def rows(columns: str, table: str, order: str, key: str) -> Iterable[tuple[int, ...]]:
        return connection.execute(
            f"SELECT {columns} FROM {table} WHERE rank_id = ? AND {order} > ? ORDER BY {order}",
            (number, last.get(key, -1)),
        )

    make: Callable[..., RingRecord]
    for make, table, names in ((StepRecord, "steps", STEP_FIELDS), (DeviceRecord, "device_steps", DEVICE_FIELDS)):
        for values in rows(", ".join(names), table, "step", table):
            yield make(*values)
    for step, start_ns, end_ns, name in rows("step, start_ns, end_ns, name", "phases", "end_ns", "phases"):
        yield PhaseRecord(step, start_ns, end_ns, str(name))
    least = min((step for key, step in last.items() if key.startswith("groups/")), default=-1)
    found = connection.execute(
        f"SELECT name, members, {', '.join(GROUP_FIELDS)} FROM groups WHERE rank_id = ? AND step > ? ORDER BY step",
        (number, least),
    )
    for name, members, *values in found:
        record = GroupRecord(**dict(zip(GROUP_FIELDS, values, strict=True)), group=name, members=members)
        if record.step > last.get(f"groups/{record.on_device}/{name}", -1):
            yield record
