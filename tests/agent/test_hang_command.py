"""`rankscope hang`: files in all shapes, hostile ones among them; its JSON keeps to its schema."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from flight_dumps import Fault, dumps, parallel_job

from rankscope.agent.cli import main
from rankscope.agent.flight_files import rank_of, read_dump, read_dumps
from rankscope.rules.flight import DumpError

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/hang.schema.json").read_text())


@pytest.fixture
def documents() -> dict[int, dict[str, Any]]:
    """Dumps of eight ranks, of which rank 5 stopped."""
    return dumps(parallel_job(4, 2), Fault("host", (5,), 9))


def written(directory: Path, documents: dict[int, dict[str, Any]], name: str = "nccl_trace_rank_{}") -> Path:
    """Pickle every dump into a file of its own."""
    for rank, document in documents.items():
        (directory / name.format(rank)).write_bytes(pickle.dumps(document, protocol=2))
    return directory


def hang(*words: object) -> Any:
    """Run the command."""
    return CliRunner().invoke(main, ["hang", *map(str, words)])


def test_directory(tmp_path: Path, documents: dict[int, dict[str, Any]]) -> None:
    """A directory of pickles gives the rank that stopped, who waits, and where that was called."""
    result = hang(written(tmp_path, documents))
    assert result.exit_code == 0
    assert "Rank 5 holds up the job" in result.output
    assert "train.py" in result.output


def test_json_keeps_to_its_schema(tmp_path: Path, documents: dict[int, dict[str, Any]]) -> None:
    """The document of --json is one the schema knows, with suspects, with a mismatch and without anything."""
    odd = dumps(parallel_job(4, 2), Fault())
    odd[3]["entries"][-1]["profiling_name"], odd[3]["entries"][-1]["state"] = "nccl:broadcast", "scheduled"
    for place, each in enumerate((documents, odd, dumps(parallel_job(2, 1), Fault()))):
        (tmp_path / str(place)).mkdir()
        result = hang(written(tmp_path / str(place), each), "--json")
        document = json.loads(result.output)
        jsonschema.validate(document, SCHEMA)
        assert bool(document["suspects"]) == (place < 2)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("rank_7", 7),
        ("nccl_trace_rank_12", 12),
        ("comm_lib_trace_rank_3.json.gz", 3),
        ("_dump_0", 0),
        ("trace-4.pickle", 4),
        ("rank3_of_job_2024", 3),
        ("host17.rank-2.pkl", 2),
        ("dump", None),
    ],
)
def test_names(name: str, rank: int | None) -> None:
    """The rank is in the name, in one way or another."""
    assert rank_of(name) == rank


def test_formats_mix(tmp_path: Path, documents: dict[int, dict[str, Any]]) -> None:
    """Pickle, JSON and gzip, several directories and single files make one comparison."""
    (tmp_path / "a").mkdir()
    written(tmp_path / "a", {rank: documents[rank] for rank in (0, 1, 2)}, "rank_{}")
    for rank in (3, 4):
        (tmp_path / f"rank_{rank}.json").write_text(json.dumps(documents[rank]))
    for rank in (5, 6, 7):
        (tmp_path / f"rank_{rank}.pkl.gz").write_bytes(gzip.compress(pickle.dumps(documents[rank])))
    result = hang(tmp_path / "a", *sorted(tmp_path.glob("rank_*")), "--json")
    found = json.loads(result.output)
    assert (found["ranks"], found["suspects"][0]["rank"]) == (list(range(8)), 5)


def test_rank_from_groups(tmp_path: Path, documents: dict[int, dict[str, Any]]) -> None:
    """A file whose name says nothing is of the one rank that all its groups have in common."""
    (tmp_path / "dump").write_bytes(pickle.dumps(documents[6]))
    assert read_dump(tmp_path / "dump").rank == 6


def test_truncated_dump_counts_as_none(tmp_path: Path, documents: dict[int, dict[str, Any]]) -> None:
    """A dump that was cut off is said, and its rank is as one that left none."""
    written(tmp_path, documents)
    cut = tmp_path / "nccl_trace_rank_5"
    cut.write_bytes(cut.read_bytes()[:200])
    found = json.loads(hang(tmp_path, "--json").output)
    assert found["missing"] == [5]
    assert "no-dump" in found["suspects"][0]["kinds"]
    assert any("damaged or cut off" in note for note in found["notes"])


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo owned > owned",)


def test_hostile_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that names anything but plain types is refused before anything of it runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rank_0").write_bytes(pickle.dumps({"entries": [_Hostile()]}))
    result = hang(tmp_path / "rank_0")
    assert result.exit_code == 2
    assert "refused" in result.output
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x80",
        b"\x80\x02",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"{",
        b"[" * 100_000,
        b"\x1f\x8b\x08\x00broken",
        b"null",
        b"\x80\x02]q\x00(" + b"]q\x00(" * 5000 + b".",
        b'{"entries": "x"}',
        b"\x80\x02Vx\np0\n0g7\n.",
    ],
    ids=range(12),
)
def test_nonsense_files(tmp_path: Path, data: bytes) -> None:
    """Whatever lies in a file that is named, the answer is one line and status 2."""
    file = tmp_path / "rank_0"
    file.write_bytes(data)
    result = hang(file)
    assert result.exit_code == 2
    assert result.output.startswith("rankscope: ")
    assert result.output.count("\n") == 1


def test_flipped_bytes(tmp_path: Path, documents: dict[int, dict[str, Any]]) -> None:
    """A damaged pickle gives an answer or one line, whichever byte it is."""
    whole = pickle.dumps(documents[0] | {"entries": documents[0]["entries"][:2]}, protocol=2)
    for place in range(0, len(whole), 7):
        (tmp_path / "rank_0").write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        result = hang(tmp_path / "rank_0")
        assert result.exit_code in (0, 2)
        assert result.exit_code == 0 or result.output.count("\n") == 1, result.output


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe, a missing file, an empty directory: one line each, and no waiting for a writer."""
    os.mkfifo(tmp_path / "rank_1")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "rank_1", tmp_path / "absent", tmp_path / "empty"):
        assert hang(path).exit_code == 2
    with pytest.raises(DumpError, match="no flight-recorder dump"):
        read_dumps([tmp_path / "empty"])


def test_name_without_a_rank(tmp_path: Path, documents: dict[int, dict[str, Any]]) -> None:
    """Another JSON file is called that, a dump of no known rank is asked for its rank."""
    (tmp_path / "verdict.json").write_text('{"schema": "rankscope.verdict/1"}')
    assert "not a flight-recorder dump" in hang(tmp_path / "verdict.json").output
    del documents[0]["pg_config"]
    (tmp_path / "dump").write_bytes(pickle.dumps(documents[0]))
    assert "which rank it is of" in hang(tmp_path / "dump").output


def test_two_sets_of_dumps(tmp_path: Path, documents: dict[int, dict[str, Any]]) -> None:
    """A directory with the dumps of two jobs in it is not one job: the person is asked which."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, documents)
    result = hang(tmp_path)
    assert result.exit_code == 2
    assert "several directories" in result.output
    assert hang(tmp_path / "first").exit_code == 0
