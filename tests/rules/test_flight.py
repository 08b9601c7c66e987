"""Flight-recorder dumps compared: the injected rank is among the first two suspects, whatever the fault and layout."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flight_dumps import Fault, Job, Step, dumps, parallel_job

from rankscope.rules.flight import DumpError, parse_dump
from rankscope.rules.flight_suspects import Comparison, compare

REAL = next(
    (at for above in Path(__file__).parents if (at := above / "shared/data/flight_recorder").is_dir()), Path("absent")
)


def compared(documents: dict[int, dict[str, Any]]) -> Comparison:
    """The comparison of documents by rank."""
    return compare([parse_dump(document, rank) for rank, document in documents.items()])


def first_two(comparison: Comparison) -> set[int]:
    """Ranks of the first two suspects."""
    return {suspect.rank for suspect in comparison.suspects[:2]}


def with_program(job: Job, rank: int, change: dict[int, Step | None]) -> Job:
    """The job with one rank's program changed at some places; None leaves a step out."""
    program = [change.get(place, step) for place, step in enumerate(job.programs[rank])]
    return replace(job, programs=job.programs | {rank: [step for step in program if step is not None]})


class TestSuspects:
    """Who holds up the job."""

    @pytest.mark.parametrize("only_active", [False, True], ids=["whole", "active"])
    @pytest.mark.parametrize("kind", ["host", "view", "gone"])
    @pytest.mark.parametrize(
        "shape", [(4, 1, 1), (8, 2, 1), (4, 4, 1), (2, 2, 4)], ids=lambda each: "x".join(map(str, each))
    )
    def test_injected_ranks_come_first(self, shape: tuple[int, int, int], kind: str, only_active: bool) -> None:
        """A stopped host, a device whose end is not seen, a rank that is gone: one or two at once, over layouts."""
        job = parallel_job(shape[0], shape[1], pipeline=shape[2])
        for seed in range(3):
            chosen = random.Random(f"{shape}{kind}{seed}")
            ranks = tuple(chosen.sample(range(len(job.programs)), 1 + seed % 2))
            fault = Fault(kind, ranks, at=chosen.randrange(3, 40))
            found = compared(dumps(job, fault, only_active=only_active, seed=seed))
            assert set(ranks) & first_two(found), (fault, found.summary)
            if len(ranks) == 1:
                assert found.suspects[0].rank == ranks[0], (fault, found.summary)

    @pytest.mark.parametrize("rank", [0, 5, 15])
    def test_device_that_does_not_start(self, rank: int) -> None:
        """With timing on, the device that has not started what the others have is the suspect."""
        found = compared(dumps(parallel_job(4, 4), Fault("device", (rank,), 16), timing=True))
        assert found.suspects[0].rank == rank
        assert "not-started" in found.suspects[0].kinds

    def test_device_without_timing_accuses_nobody_alone(self) -> None:
        """Where all are in and nothing differs, every member is as suspect as the next."""
        found = compared(dumps(parallel_job(8, 2), Fault("device", (6,), 9)))
        assert len({suspect.score for suspect in found.suspects}) <= 1
        assert not {suspect.rank for suspect in found.suspects} or 6 in {suspect.rank for suspect in found.suspects}

    def test_host_that_stopped_first(self) -> None:
        """Where all are in an operation that does not end, the host that enqueued least after it comes first."""
        documents = dumps(parallel_job(4, 4), Fault("device", (6,), 17), only_active=True)
        assert {suspect.rank for suspect in compared(documents).suspects[:4]} == {4, 5, 6, 7}
        del documents[6]["entries"][-2:]
        assert compared(documents).suspects[0].rank == 6

    def test_victims_wait_over_groups(self) -> None:
        """A rank stuck in its tensor group makes its data-parallel peers wait: it is told, and they are not."""
        found = compared(dumps(parallel_job(4, 4), Fault("host", (6,), 9)))
        assert [suspect.rank for suspect in found.suspects] == [6]
        assert found.suspects[0].waiting == frozenset(range(16)) - {6}

    @pytest.mark.parametrize("only_active", [False, True])
    def test_second_host_that_stopped(self, only_active: bool) -> None:
        """Two hosts stop, one a little later: it waits for the first as all do, and is told for what it lacks."""
        for first, second in ((6, 9), (0, 15), (5, 4)):
            fault = Fault("host", (first,), 16, {second: 19})
            found = compared(dumps(parallel_job(4, 4), fault, only_active=only_active))
            assert first_two(found) == {first, second}, found.summary
            assert found.suspects[0].rank == first
            assert len(found.suspects) == 2

    def test_stack_of_who_waits(self) -> None:
        """The operation that does not end comes with its stack, and the suspect with its own last one."""
        found = compared(dumps(parallel_job(4, 1), Fault("host", (2,), 9)))
        assert any(frame.file.endswith("train.py") for frame in found.stuck[0].operation.frames)
        assert found.stuck[0].absent == [2]
        assert found.suspects[0].last is not None

    def test_finished_job(self) -> None:
        """A job that came to its end has no suspect."""
        found = compared(dumps(parallel_job(4, 2), Fault()))
        assert (found.suspects, found.stuck, found.mismatches) == ((), (), ())

    def test_most_dumps_missing(self) -> None:
        """With the dumps of one host only, ranks of the others are not accused for that."""
        documents = dumps(parallel_job(8, 2), Fault("host", (1,), 9))
        found = compared({rank: documents[rank] for rank in range(4)})
        assert found.suspects[0].rank == 1
        assert all(suspect.rank < 4 for suspect in found.suspects)

    def test_rank_without_entries(self) -> None:
        """Of a rank with pg_status alone the order of creation tells which group is which."""
        documents = dumps(parallel_job(4, 4), Fault("host", (5,), 9), only_active=True)
        assert documents[5]["entries"] == []
        assert compared(documents).suspects[0].rank == 5

    @pytest.mark.parametrize("kind", ["host", "view"])
    def test_groups_named_by_hashes(self, kind: str) -> None:
        """Names that are no numbers leave pg_status untied where no entry names the group: entries are enough."""
        documents = dumps(parallel_job(4, 4), Fault(kind, (5,), 17), only_active=True)
        for document in documents.values():
            document["pg_config"] = {
                f"g{key}": each | {"name": f"g{key}"} for key, each in document["pg_config"].items()
            }
            for entry in document["entries"]:
                entry["process_group"] = (f"g{entry['process_group'][0]}", entry["process_group"][1])
        assert compared(documents).suspects[0].rank == 5

    def test_shuffled_pg_ids(self) -> None:
        """Groups are joined by name and members: what number a rank gives them does not matter."""
        documents = dumps(parallel_job(4, 2), Fault("host", (3,), 9))
        for rank, document in documents.items():
            for entry in document["entries"]:
                entry["pg_id"] += 100 * rank
            document["pg_status"] = {str(int(key) + 100 * rank): each for key, each in document["pg_status"].items()}
        assert compared(documents).suspects[0].rank == 3

    def test_groups_of_one_name_apart(self) -> None:
        """Two groups with one name and other members are two groups."""
        job = parallel_job(2, 2)
        groups = {"0": job.groups["0"]} | {"tp": (0, 1)}
        documents = dumps(
            replace(job, groups=groups, programs={r: [Step("tp", "all_reduce")] * 4 for r in (0, 1)}),
            Fault("host", (1,), 2),
        )
        other = dumps(
            replace(job, groups={"tp": (2, 3)}, programs={r: [Step("tp", "all_reduce")] * 9 for r in (2, 3)}), Fault()
        )
        found = compared(documents | other)
        assert [suspect.rank for suspect in found.suspects] == [1]


class TestMismatch:
    """Collectives that are not the same on all ranks are the code's fault."""

    @pytest.mark.parametrize(
        ("change", "kind"),
        [
            ({"name": "broadcast"}, "type"),
            ({"size": 77}, "size"),
            ({"dtype": "Float"}, "dtype"),
        ],
    )
    def test_kinds(self, change: dict[str, Any], kind: str) -> None:
        """Another operation, size or type on one rank is named, with both sides and their calls."""
        job = parallel_job(4, 1)
        step = job.programs[2][7]
        found = compared(dumps(with_program(job, 2, {7: replace(step, line=99, **change)}), Fault()))
        mismatch = found.mismatches[0]
        assert (mismatch.kind, mismatch.ranks, mismatch.passed) == (kind, (2,), False)
        assert [side[0] for side in mismatch.sides] == [(0, 1, 3), (2,)]
        assert mismatch.sides[1][1].frames[-1].line == 99
        assert found.suspects[0].rank == 2
        assert found.summary.startswith("The code's fault")

    def test_left_out(self) -> None:
        """A rank that leaves a collective out is recognised by what follows."""
        job = parallel_job(8, 1)
        program = [
            Step("0", name, 64, line=line) for line, name in enumerate(["all_reduce", "broadcast", "all_gather"] * 6)
        ]
        job = replace(job, programs=dict.fromkeys(job.programs, program))
        found = compared(dumps(with_program(job, 5, {7: None}), Fault()))
        assert (found.mismatches[0].kind, found.suspects[0].rank) == ("order", 5)
        assert "rank 5 left out broadcast" in found.mismatches[0].text

    def test_order_of_groups(self) -> None:
        """Two groups used in another order by one rank: they wait for each other."""
        groups = {"0": (0, 1), "a": (0, 1), "b": (0, 1)}
        programs = {
            0: [Step("0", "all_reduce")] * 3 + [Step("a", "all_reduce"), Step("b", "all_reduce")],
            1: [Step("0", "all_reduce")] * 3 + [Step("b", "all_reduce"), Step("a", "all_reduce")],
        }
        found = compared(dumps(Job(groups, programs), Fault()))
        assert {suspect.rank for suspect in found.suspects} == {0, 1}
        assert "cycle" in found.suspects[0].kinds

    def test_order_that_only_one_rank_has(self) -> None:
        """Of ranks that wait for each other the one whose order of groups nobody else has comes first."""
        job = parallel_job(4, 2)
        place = next(place for place, step in enumerate(job.programs[5]) if step.group == "0")
        program = list(job.programs[5])
        program[place], program[place - 1] = program[place - 1], program[place]
        found = compared(dumps(replace(job, programs=job.programs | {5: program}), Fault()))
        assert found.suspects[0].rank == 5
        assert "no other rank calls" in found.suspects[0].reasons[0]

    def test_shapes_of_one_size(self) -> None:
        """Another shape with as many elements is no mismatch; nor are uneven all-to-alls that add up."""
        documents = dumps(parallel_job(4, 1), Fault("host", (1,), 9))
        for entry in documents[0]["entries"]:
            entry["input_sizes"], entry["output_sizes"] = (
                [[1, *sizes[0]]] for sizes in (entry["input_sizes"], entry["output_sizes"])
            )
        assert compared(documents).mismatches == ()

    def test_passed(self) -> None:
        """A mismatch that all ranks got past accuses nobody of the hang."""
        documents = dumps(parallel_job(4, 1), Fault("host", (1,), 9))
        documents[3]["entries"][3]["input_dtypes"] = ["Half"]
        found = compared(documents)
        assert found.mismatches[0].passed
        assert found.suspects[0].rank == 1


class TestFormats:
    """What other versions and backends write."""

    def test_json_spelling(self) -> None:
        """JSON has lists for tuples, text for the numbers of pg_status, 0 for no time, and no stacks."""
        documents = dumps(parallel_job(4, 2), Fault("host", (6,), 9), stacks=False)
        spelled = json.loads(json.dumps(documents, default=str))
        for document in spelled.values():
            for status in document["pg_status"].values():
                status |= {key: str(value) for key, value in status.items()}
        assert compared({int(rank): each for rank, each in spelled.items()}).suspects[0].rank == 6

    def test_version_1(self) -> None:
        """The first versions knew seq_id, no groups and no status."""
        job = Job({"0": tuple(range(4))}, dict.fromkeys(range(4), [Step("0", "all_reduce")] * 9))
        documents = dumps(job, Fault("host", (2,), 5))
        for document in documents.values():
            del document["pg_config"], document["pg_status"]
            document["version"] = "1.0"
            for entry in document["entries"]:
                entry["seq_id"] = entry.pop("collective_seq_id")
                for key in ("process_group", "p2p_seq_id", "op_id", "is_p2p", "output_dtypes", "retired", "timeout_ms"):
                    del entry[key]
        assert compared(documents).suspects[0].rank == 2

    def test_gloo(self) -> None:
        """gloo leaves every entry scheduled, retires those that are done and lists no groups."""
        documents = dumps(parallel_job(4, 1), Fault("host", (3,), 9))
        for document in documents.values():
            document["pg_config"] = {"": {"name": "", "desc": "", "ranks": "[]"}}
            for entry in document["entries"]:
                entry["profiling_name"] = entry["profiling_name"].replace("nccl", "gloo")
                entry["state"] = "scheduled"
                entry["time_discovered_started_ns"] = entry["time_discovered_completed_ns"] = None
        assert compared(documents).suspects[0].rank == 3

    @pytest.mark.parametrize("coalesced", [False, True])
    def test_pipeline_messages(self, coalesced: bool) -> None:
        """Sends and receives are matched by pair: who did not post the other side is waited for."""
        documents = {rank: _stage(rank, stuck=rank == 2, coalesced=coalesced) for rank in range(4)}
        found = compared(documents)
        assert found.suspects[0].rank == 2
        assert set(found.suspects[0].waiting) == ({1, 3} if coalesced else {0, 1, 3})
        assert len(found.suspects) == 1

    @pytest.mark.parametrize(
        ("change", "kind"), [({"output_sizes": [[9]]}, "size"), ({"output_dtypes": ["Half"]}, "dtype")]
    )
    def test_message_that_does_not_fit(self, change: dict[str, Any], kind: str) -> None:
        """A send that meets a receive of another size or type: both sides are named."""
        documents = {rank: _stage(rank, stuck=False, coalesced=False) for rank in range(2)}
        for document in documents.values():
            for entry in document["entries"]:
                if "send 0->1" in entry["profiling_name"] or "recv 1<-0" in entry["profiling_name"]:
                    entry["state"] = "completed" if entry["p2p_seq_id"] < 3 else "scheduled"
        documents[1]["entries"] = [entry for entry in documents[1]["entries"] if "recv" in entry["profiling_name"]]
        for entry in documents[1]["entries"]:
            entry["state"] = "completed" if entry["time_created_ns"] < 4000 else "scheduled"
            entry |= change
        found = compared(documents)
        assert [(each.kind, each.ranks) for each in found.mismatches] == [(kind, (0, 1))]
        assert first_two(found) == {0, 1}

    @pytest.mark.parametrize(
        "document", [None, 7, "text", {}, {"entries": 3}, {"entries": [1, 2]}, [1], {"version": "2.9"}, b"bytes"]
    )
    def test_no_dump(self, document: object) -> None:
        """What is no dump raises one typed error."""
        with pytest.raises(DumpError):
            parse_dump(document, 0, "file")

    def test_nonsense_fields(self) -> None:
        """Fields of any other type are passed over, one by one and without a word of Python's."""
        chosen = random.Random(1)
        junk = [None, "x", -1, 2**80, [], {}, [[["deep"]]], True, 1.5, b"\xff", {"a": object()}]
        for _ in range(300):
            documents = pickle.loads(pickle.dumps(dumps(parallel_job(2, 2, steps=2), Fault("host", (1,), 3))))
            for document in documents.values():
                for _ in range(4):
                    target = chosen.choice(_parts(document))
                    target[chosen.choice(list(target))] = chosen.choice(junk)
            try:
                assert compared(documents).summary
            except DumpError:
                pass


def _parts(document: dict[str, Any]) -> list[dict[Any, Any]]:
    """A document and every mapping in it that is still one."""
    inside = [
        each
        for value in document.values()
        for each in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    ]
    return [each for each in (document, *inside) if isinstance(each, dict) and each]


def _stage(rank: int, *, stuck: bool, coalesced: bool) -> dict[str, Any]:
    """A pipeline stage: receives from before, sends on, nine times; the stuck one stops after the fourth."""
    entries: list[dict[str, Any]] = []

    def add(name: str, number: int, done: bool) -> None:
        entries.append(
            {
                "record_id": len(entries),
                "pg_id": 0,
                "process_group": ("0", "default_pg"),
                "collective_seq_id": 0,
                # Only a batch shares a number.
                "p2p_seq_id": number if coalesced else len(entries) + 1,
                "op_id": len(entries),
                "profiling_name": f"nccl:{name}",
                "time_created_ns": 1000 * len(entries),
                "input_sizes": [[8]],
                "input_dtypes": ["Float"],
                "output_sizes": [[8]],
                "output_dtypes": ["Float"],
                # In a batch only its last entry is kept up to date.
                "state": "completed" if done and (not coalesced or name == "coalesced") else "scheduled",
                "is_p2p": True,
            }
        )

    for number in range(1, 10):
        if stuck and number > 4:
            break
        names = [f"recv {rank}<-{rank - 1}"] * (rank > 0) + [f"send {rank}->{rank + 1}"] * (rank < 3)
        for name in names + ["coalesced"] * coalesced:
            # The first two go on until the second has to hand on its fifth.
            add(name, number, number <= 4 or (number == 5 and not coalesced and name in ("send 0->1", "recv 1<-0")))
        if number == 6:
            break
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1, 2, 3]"}}
    return {"version": "2.7", "pg_config": config, "pg_status": {}, "entries": entries}


@pytest.mark.skipif(not REAL.is_dir(), reason="no recorded dumps on this machine")
@pytest.mark.parametrize(("name", "injected"), [("gpu_error", {12, 14}), ("lock_gil", {9, 14})])
def test_real_dumps(name: str, injected: set[int]) -> None:
    """Dumps of real NCCL jobs: the injected ranks are the first two suspects, and there is no third."""
    from rankscope.agent.flight_files import read_dumps

    files = read_dumps([REAL / name])
    found = compare(files.dumps, files.notes)
    assert first_two(found) == injected
    assert len(found.suspects) == 2
