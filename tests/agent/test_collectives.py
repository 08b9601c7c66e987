"""`rankscope collectives`: what NCCL's Inspector wrote, in every version, and flight recorders of running jobs."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from flight_dumps import Fault, dumps, parallel_job
from inspector_dumps import Plan, documents, write

from rankscope.agent.cli import main
from rankscope.agent.inspector_text import VERSIONS, InspectorReader

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/collectives.schema.json").read_text())
PAIRS = {"0xd0": (0, 1), "0xd1": (2, 3), "0xd2": (4, 5), "0xd3": (6, 7)}
#: Operations as the format's own documentation prints them (NVIDIA/nccl, plugins/profiler/inspector/README.md).
DOCUMENTED = (
    '{"header": {"id": "0xe62dedaa97644a", "rank": 4, "n_ranks": 8, "nnodes": 1}, "metadata": '
    '{"inspector_output_format_version": "v4.0", "git_rev": "9019a1912-dirty", "rec_mechanism": '
    '"nccl_profiler_interface", '
    '"dump_timestamp_us": 1752867229276385, "hostname": "example-hostname", "pid": 438776}, "coll_perf": '
    '{"coll": "ReduceScatter", "coll_sn": 1231, "coll_msg_size_bytes": 2147483648, "coll_exec_time_us": 41057, '
    '"coll_timing_source": "kernel_gpu", "coll_algobw_gbs": 418.439467, "coll_busbw_gbs": 366.134533, '
    '"event_trace_ts": {"coll_start_ts": 1752867229235059, "coll_stop_ts": 1752867229235064, "kernel_events": []}}}\n'
)


def collectives(*words: object) -> Any:
    """Run the command; with --json the document, checked against its schema."""
    result = CliRunner().invoke(main, ["collectives", *map(str, words)])
    if "--json" in words and not result.exit_code:
        document = json.loads(result.output)
        jsonschema.validate(document, SCHEMA)
        return document
    return result


def test_documented_operation_is_read_to_the_last_field() -> None:
    """The example of the format's documentation gives its figures, its bus bandwidth by our own formula included."""
    from rankscope.rules.timed import bus_bandwidth

    (operation,) = InspectorReader().feed(DOCUMENTED.encode())
    assert (operation.communicator, operation.rank, operation.size, operation.pid) == ("0xe62dedaa97644a", 4, 8, 438776)
    assert (operation.operation, operation.sequence, operation.duration_us) == ("ReduceScatter", 1231, 41057)
    assert operation.on_device
    assert operation.enqueued_us == 1752867229235059
    assert bus_bandwidth("ReduceScatter", 8, operation.size_bytes, 41057) == pytest.approx(366.134533, rel=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_late_rank_is_named_in_every_version(tmp_path: Path, version: str) -> None:
    """The rank whose kernel is the shortest came last: it is named, on the device's basis, at its price."""
    document = collectives(write(tmp_path / "dumps", Plan(late=2, version=version)), "--json")
    assert document["late"] == {"rank": 2, "host": "node0", "pid": 1002}
    assert document["basis"] == "device-collective"
    row = document["ranks"][0]
    assert row["times_last"] == 20
    assert row["held_up_us"] == pytest.approx(20 * 5_000, rel=0.01)
    assert not document["slow_links"]
    assert "Rank 2 on node0 comes last in 20 of 20" in collectives(tmp_path / "dumps").output


def test_nobody_is_named_where_nobody_is_late(tmp_path: Path) -> None:
    """Differences of a few microseconds are the order of every day."""
    document = collectives(write(tmp_path / "dumps", Plan()), "--json")
    assert document["late"] is None
    assert "No rank stands out" in document["summary"]


def test_a_rank_that_waited_elsewhere_is_no_culprit(tmp_path: Path) -> None:
    """Rank 3 of a tensor-parallel pair is late; its peer, late in another group for that, is not named."""
    directory = tmp_path / "dumps"
    write(directory, Plan(communicators={"0x7": (2, 3), "0x8": (0, 1)}, late=3))
    for file in directory.iterdir():
        first = file.read_text()
        other = {"0xda": (0, 2), "0xdb": (1, 3)}
        # Both of the pair come late to their data-parallel groups.
        lines = [
            json.dumps(line) + "\n"
            for late in (2, 3)
            for rank, of in documents(
                Plan(communicators={k: v for k, v in other.items() if late in v}, late=late)
            ).items()
            if file.name.endswith(f"pid{1000 + rank}.log")
            for line in of
        ]
        file.write_text(first + "".join(lines))
    document = collectives(directory, "--json")
    assert document["late"] is not None
    assert document["late"]["pid"] == 1003
    # No communicator has all four: nobody's global rank is known, and none is guessed.
    assert document["late"]["rank"] is None


@pytest.mark.parametrize(("from_step", "against"), [(0, "peers"), (12, "past")])
def test_slow_link_is_told_from_its_kind_and_from_its_past(tmp_path: Path, from_step: int, against: str) -> None:
    """A communicator whose shortest kernels are long is slow, whoever comes late in it."""
    plan = Plan(
        communicators=PAIRS if not from_step else {"0xd0": (0, 1)}, slow="0xd0", late=5, from_step=from_step, per_host=2
    )
    document = collectives(write(tmp_path / "dumps", plan), "--json")
    (link,) = document["slow_links"]
    assert (link["communicator"], link["against"]) == ("0xd0", against)
    assert link["bus_gbs"] == pytest.approx(link["usual_gbs"] / 2, rel=0.05)
    assert {rank["host"] for rank in link["ranks"]} == {"node0"}


def test_pairs_of_point_to_point_are_links_too() -> None:
    """Of the two sides of a message the faster waited less: its rate is the link's."""
    from rankscope.rules.timed import slow_links

    found = []
    for pair in ((0, 1), (1, 2), (2, 3)):
        for number in range(8):
            for rank, operation in zip(pair, ("Send", "Recv"), strict=True):
                duration = (4_000 if pair == (1, 2) else 500) + (3_000 if operation == "Recv" else 0)
                body = {
                    "p2p": operation,
                    "p2p_sn": number,
                    "p2p_peer": pair[1 - pair.index(rank)],
                    "p2p_msg_size_bytes": 1 << 24,
                    "p2p_exec_time_us": duration,
                    "p2p_timing_source": "kernel_gpu",
                }
                line = json.loads(DOCUMENTED) | {"p2p_perf": body}
                del line["coll_perf"]
                line["header"] |= {"rank": rank, "n_ranks": 4}
                found += InspectorReader().feed(json.dumps(line).encode() + b"\n")
    (link,) = slow_links([], found)
    assert link.ranks == (1, 2)
    assert link.bus_gbs == pytest.approx((1 << 24) / 4_000 / 1e3)


def test_what_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    """Cut lines, nonsense, foreign versions, lost records: counted; a rank that is missing leaves nobody judged."""
    directory = write(tmp_path / "dumps", Plan(late=1))
    files = sorted(directory.iterdir())
    files[0].write_bytes(b"\xff\x00nonsense\n[]\n{}\n" + files[0].read_bytes()[:-40])
    packed = gzip.compress(files[1].read_bytes())
    files[1].unlink()
    (directory / "packed.log.gz").write_bytes(packed)
    document = collectives(directory, "--json")
    assert document["late"]["rank"] == 1
    assert any("3 lines are damaged" in note for note in document["notes"])
    files[2].unlink()
    document = collectives(directory, "--json")
    assert document["late"] is None
    assert any("not seen on all of their ranks" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DOCUMENTED.replace("v4.0", "v9.7"), "format v9.7, which is not known"),
        (DOCUMENTED.replace('"coll_sn"', '"other"'), "no operation"),
        ("", "not a flight"),
        ("[[[[", "damaged"),
    ],
)
def test_foreign_files_are_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    """An unknown version is refused and never guessed at; so is what is no record at all."""
    (tmp_path / "node-pid1.log").write_text(text or '{"not a flight": 1}')
    result = collectives(tmp_path)
    assert result.exit_code == 2
    assert says in result.output
    assert len(result.output.splitlines()) == 1


def test_batch_without_its_marker_belongs_to_nobody() -> None:
    """In v4.3 an operation takes its place from the marker before it: after a gap it has none and is left out."""
    reader = InspectorReader()
    lines = [json.dumps(line).encode() + b"\n" for line in documents(Plan(version="v4.3"))[0][:4]]
    assert len(list(reader.feed(lines[0] + lines[1]))) == 1
    reader.skipped()
    assert not list(reader.feed(lines[1]))
    assert reader.counts.damaged == 1


@pytest.fixture
def recorders() -> dict[int, dict[str, Any]]:
    """Flight recorders of four ranks that run, rank 1 of which enqueues every operation 5 ms late."""
    found = dumps(parallel_job(4, 1, steps=30), Fault())
    noise = random.Random(1)
    for rank, document in found.items():
        for place, entry in enumerate(document["entries"]):
            begin = 1_790_000_000_000_000_000 + place * 50_000_000
            entry["time_created_ns"] = begin + (5_000_000 if rank == 1 else rank * 1_000)
            entry["time_discovered_completed_ns"] = begin + 6_000_000 + noise.randrange(200_000)
    return found


def flight(directory: Path, documents: dict[int, dict[str, Any]]) -> Path:
    """Pickle every dump."""
    for rank, document in documents.items():
        (directory / f"trace_rank_{rank}").write_bytes(pickle.dumps(document, protocol=2))
    return directory


def test_flight_recorders_tell_whose_host_is_late(tmp_path: Path, recorders: dict[int, dict[str, Any]]) -> None:
    """Joined by group and number, the rank that enqueues last is named, on the host's basis, with the clocks' error."""
    for entry in recorders[3]["entries"]:
        # A clock that is 7 s ahead.
        entry["time_created_ns"] += 7 * 10**9
        entry["time_discovered_completed_ns"] += 7 * 10**9
    document = collectives(flight(tmp_path, recorders), "--json")
    assert document["late"] == {"rank": 1, "host": None, "pid": None}
    assert document["basis"] == "host"
    assert document["clock"]["offsets_us"]["3"] == pytest.approx(7e6, abs=document["clock"]["error_us"])
    assert any("slow device behind a host" in note for note in document["notes"])


def test_flight_recorders_without_ends_need_one_clock(tmp_path: Path, recorders: dict[int, dict[str, Any]]) -> None:
    """Where no end is known the clocks cannot be compared: nobody is named, unless one host ran all."""
    for document in recorders.values():
        for entry in document["entries"]:
            del entry["time_discovered_completed_ns"]
    directory = flight(tmp_path, recorders)
    document = collectives(directory, "--json")
    assert document["late"] is None
    assert document["clock"]["error_us"] is None
    assert collectives(directory, "--json", "--one-clock")["late"]["rank"] == 1
