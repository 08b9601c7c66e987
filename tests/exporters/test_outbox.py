"""The outbox: accounts that add up whatever happens, and batches that wait in order."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from rankscope.exporters.outbox import LARGER_THAN_QUOTA, OVER_QUOTA, Drop, Outbox, Tally


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


def _add(connection: sqlite3.Connection, outbox: Outbox, signal_name: str, payload: bytes, points: int) -> int | None:
    connection.execute("BEGIN IMMEDIATE")
    batch_id = outbox.add(signal_name, payload, points, 1)
    connection.execute("COMMIT")
    return batch_id


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    """A recording of its own for each test."""
    return _open(tmp_path / "recording.db")


def test_batches_come_back_in_order_and_byte_by_byte(connection: sqlite3.Connection) -> None:
    """The oldest batch of a signal is handed out, the same bytes each time, until it is acknowledged."""
    outbox = Outbox(connection)
    ids = [_add(connection, outbox, "metrics", payload, 1) for payload in (b"first", b"second")]
    log_id = _add(connection, outbox, "logs", b"line", 1)
    for _ in range(2):
        batch = outbox.oldest("metrics")
        assert batch is not None
        assert (batch.id, batch.payload()) == (ids[0], b"first")
    assert outbox.acknowledge(batch.id)
    later, line = outbox.oldest("metrics"), outbox.oldest("logs")
    assert later is not None
    assert line is not None
    assert (later.payload(), line.id) == (b"second", log_id)
    assert batch.compressed == _recompress(outbox, connection, b"first")


def _recompress(outbox: Outbox, connection: sqlite3.Connection, payload: bytes) -> bytes:
    _add(connection, outbox, "again", payload, 1)
    batch = outbox.oldest("again")
    assert batch is not None
    return batch.compressed


def test_a_batch_lives_and_dies_with_the_callers_transaction(connection: sqlite3.Connection) -> None:
    """add and take_drops commit nothing: a rollback leaves neither the batch nor its booking, and no drop as told."""
    outbox = Outbox(connection)
    connection.execute("BEGIN")
    outbox.add("metrics", b"x", 3, 1)
    connection.execute("ROLLBACK")
    assert outbox.oldest("metrics") is None
    assert outbox.balance().produced == Tally()
    batch_id = _add(connection, outbox, "metrics", b"x", 3)
    assert batch_id is not None
    outbox.drop(batch_id, "HTTP 400")
    connection.execute("BEGIN")
    assert outbox.take_drops()
    connection.execute("ROLLBACK")
    assert outbox.take_drops()
    assert not outbox.take_drops()


def test_tables_made_inside_the_callers_transaction_are_the_callers_to_commit(tmp_path: Path) -> None:
    """Creating the outbox does not commit what the caller has open."""
    connection = _open(tmp_path / "recording.db")
    connection.execute("CREATE TABLE other (value)")
    connection.execute("BEGIN")
    connection.execute("INSERT INTO other VALUES (1)")
    Outbox(connection)
    connection.execute("ROLLBACK")
    assert connection.execute("SELECT count(*) FROM other").fetchone() == (0,)


def test_quota_drops_the_oldest_and_says_so_once(connection: sqlite3.Connection) -> None:
    """Beyond the quota the oldest go, of whatever signal; the accounts and the drops to report name them."""
    payloads = [random.Random(seed).randbytes(1000) for seed in range(6)]
    outbox = Outbox(connection, quota_bytes=3500)
    for number, payload in enumerate(payloads):
        _add(connection, outbox, "logs" if number == 0 else "metrics", payload, 10 + number)
    balance = outbox.balance()
    assert balance.holds
    assert (balance.waiting.batches, balance.dropped.batches, balance.dropped.points) == (3, 3, 10 + 11 + 12)
    oldest = outbox.oldest("metrics")
    assert oldest is not None
    assert oldest.payload() == payloads[3]
    drops = outbox.take_drops()
    assert {(drop.signal, drop.reason, drop.batches, drop.points) for drop in drops} == {
        ("logs", OVER_QUOTA, 1, 10),
        ("metrics", OVER_QUOTA, 2, 23),
    }
    assert outbox.take_drops() == ()
    _add(connection, outbox, "metrics", payloads[0], 7)
    assert json.loads(json.dumps(asdict(outbox.balance())))["drops"][0]["reason"] == OVER_QUOTA
    (drop,) = outbox.take_drops()
    event = drop.event(5)
    assert (event.kind, event.time_ns, event.attributes["batches"], event.attributes["points"]) == (
        "export-dropped",
        5,
        1,
        13,
    )


def test_a_batch_larger_than_the_quota_costs_no_other(connection: sqlite3.Connection) -> None:
    """What could never be kept is dropped by itself, with its reason."""
    outbox = Outbox(connection, quota_bytes=500)
    kept = _add(connection, outbox, "metrics", b"small", 1)
    assert _add(connection, outbox, "metrics", random.Random(1).randbytes(1000), 9) is None
    batch = outbox.oldest("metrics")
    assert batch is not None
    assert batch.id == kept
    balance = outbox.balance()
    assert balance.holds
    assert balance.drops == (Drop("metrics", LARGER_THAN_QUOTA, 1, 9),)


def test_rejected_points_are_dropped_and_the_rest_acknowledged(connection: sqlite3.Connection) -> None:
    """A partial success splits the points of a batch; a receiver that rejects more than it got changes nothing."""
    outbox = Outbox(connection)
    for rejected in (3, 99):
        batch_id = _add(connection, outbox, "metrics", b"x", 10)
        assert batch_id is not None
        assert outbox.acknowledge(batch_id, rejected, "rejected")
    balance = outbox.balance()
    assert balance.holds
    assert (balance.acknowledged.batches, balance.acknowledged.points, balance.dropped.points) == (2, 7, 13)


def test_a_batch_that_the_quota_took_under_way_stays_dropped(connection: sqlite3.Connection) -> None:
    """An acknowledgement of what is gone is told apart and books nothing twice."""
    outbox = Outbox(connection)
    batch_id = _add(connection, outbox, "metrics", b"x", 10)
    assert batch_id is not None
    assert outbox.drop(batch_id, OVER_QUOTA)
    assert not outbox.acknowledge(batch_id)
    assert not outbox.drop(batch_id, "HTTP 400")
    assert outbox.balance().holds
    assert outbox.balance().acknowledged == Tally()


# A process that produces beside a sender, as the agent does: each transaction records what its batch reports.
_WORKER = """
import random, sqlite3, sys, threading, time
from rankscope.exporters.outbox import Outbox
path, chance, sent = sys.argv[1], random.Random(int(sys.argv[2])), threading.Event()
def connect():
    return sqlite3.connect(path, timeout=10, isolation_level=None)
def send():
    connection = connect()
    outbox = Outbox(connection)
    while True:
        batch = outbox.oldest("metrics")
        if batch is None:
            continue
        if chance.random() < 0.2:
            outbox.drop(batch.id, "refused")
        else:
            outbox.acknowledge(batch.id, rejected=chance.randrange(2), reason="rejected")
        sent.set()
connection = connect()
outbox = Outbox(connection, quota_bytes=20000)
threading.Thread(target=send, daemon=True).start()
told_ready = False
while True:
    time.sleep(0.001)  # between transactions, as the agent: or the sender hardly ever gets the database
    if sent.is_set() and not told_ready:
        told_ready = True
        print("ready", flush=True)
    points = chance.randrange(1, 5)
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO readings VALUES (?)", [(chance.random(),) for _ in range(points)])
    outbox.add("metrics", chance.randbytes(chance.randrange(10, 4000)), points, 1)
    for drop in outbox.take_drops():
        connection.execute("INSERT INTO events VALUES (?, ?)", (drop.batches, drop.points))
    connection.execute("COMMIT")
"""


def test_accounts_add_up_after_every_kill(tmp_path: Path) -> None:
    """Killed at 30 chance moments while it produces and sends, the books balance, agree with what was recorded, and
    no drop is missing from the events or told twice."""
    path = tmp_path / "recording.db"
    connection = _open(path)
    connection.executescript("CREATE TABLE readings (value); CREATE TABLE events (batches, points);")
    outbox = Outbox(connection)
    chance = random.Random(5)
    produced = 0
    for round_number in range(30):
        worker = subprocess.Popen([sys.executable, "-c", _WORKER, str(path), str(round_number)], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        # The moment is what is random here; nothing depends on what the worker has got to by then.
        time.sleep(chance.random() * 0.05)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        balance = outbox.balance()
        assert balance.holds
        assert connection.execute("SELECT count(*) FROM readings").fetchone() == (balance.produced.points,)
        told = connection.execute("SELECT coalesce(sum(batches), 0), coalesce(sum(points), 0) FROM events").fetchone()
        connection.execute("BEGIN")
        untold = outbox.take_drops()
        connection.execute("ROLLBACK")
        assert told[0] + sum(drop.batches for drop in untold) == balance.dropped.batches
        assert told[1] + sum(drop.points for drop in untold) == balance.dropped.points
        produced = balance.produced.batches
    assert produced > 30
    assert balance.acknowledged.batches
    assert {drop.reason for drop in balance.drops} >= {"refused", "rejected"}
