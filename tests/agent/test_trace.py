"""`rankscope trace` on traces of a played job and on files that are none."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from rankscope.agent import kineto_text
from rankscope.agent.cli import main
from rankscope.agent.kineto import read_trace
from rankscope.agent.trace import trace_document
from rankscope.agent.trace_text import trace_text
from rankscope.errors import TraceError
from rankscope.simulator.traces import TraceJob, TracePlan

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/trace.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
HOST_SLOW = TracePlan(ranks=2, slow="host", culprit=1, python_frames=True)


@pytest.fixture(scope="module")
def played() -> list[dict[str, Any]]:
    """Traces of two ranks, the second with a slow host."""
    return TraceJob(HOST_SLOW).traces()


def write(path: Path, document: Any, **form: Any) -> Path:
    """A trace on disk, packed where its name says so."""
    text = json.dumps(document, **form).encode()
    path.write_bytes(gzip.compress(text, 1) if path.name.endswith(".gz") else text)
    return path


def run(*arguments: object) -> tuple[int, str]:
    """Status and output of the command."""
    result = CliRunner().invoke(main, ["trace", *map(str, arguments)])
    return result.exit_code, result.output


def test_json_fits_its_schema(played: list[dict[str, Any]], tmp_path: Path) -> None:
    """The document of several files fits the published schema, and so does that of a trace without a GPU."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for rank, document in enumerate(played):
        write(tmp_path / f"trace_{rank}.json.gz", document)
    host_only = [event for event in played[0]["traceEvents"] if event["cat"] != "kernel"]
    write(tmp_path / "cpu.json", {"traceEvents": host_only})
    status, output = run("--json", tmp_path)
    assert status == 0
    found = json.loads(output)
    VALIDATOR.validate(found)
    assert [rank["rank"] for rank in found["ranks"]] == [0, 0, 1]


def test_the_longest_stall_names_kernel_operator_source_and_host(played: list[dict[str, Any]], tmp_path: Path) -> None:
    """5 ms of host time in backward come back with what was launched after them, from where, and what held the host."""
    (rank,) = trace_document([write(tmp_path / "rank1.json", played[1])])["ranks"]
    stall = rank["stalls"][0]
    assert rank["bound"] == "host"
    assert (stall["kernel"], stall["cause"], stall["operator"]) == ("cutlass::Kernel", "host_wait", "aten::mm")
    assert (stall["source"], stall["host_doing"]) == ("train.py(40): train_step", "aten::item")
    # The device still had work queued when the host stopped; four of the five steps are in scope.
    assert stall["count"] == HOST_SLOW.steps - 1
    assert 0.3 * HOST_SLOW.host_delay_us < stall["longest_us"] < HOST_SLOW.host_delay_us


def test_a_stall_in_backward_names_the_line_of_forward(tmp_path: Path) -> None:
    """Autograd's thread runs no Python: its operators lead by their number to the forward pass and its frame."""

    def event(category: str, name: str, thread: int, start: float, took: float, **args: Any) -> dict[str, Any]:
        return {
            "ph": "X",
            "cat": category,
            "name": name,
            "pid": 1,
            "tid": thread,
            "ts": start,
            "dur": took,
            "args": args,
        }

    number = {"Sequence number": 41}
    events = [
        event("python_function", "model.py(12): forward", 1, 0, 50),
        event("python_function", "torch/nn/functional.py(9): linear", 1, 5, 40),
        event("cpu_op", "aten::addmm", 1, 10, 20, **number),
        event("cuda_runtime", "cudaLaunchKernel", 1, 12, 2, correlation=1),
        event("kernel", "gemm", 7, 20, 10, stream=7, correlation=1),
        event("python_function", "model.py(99): later", 1, 60, 900),
        event("cpu_op", "autograd::engine::evaluate_function: AddmmBackward0", 2, 600, 90, **number),
        event("cpu_op", "aten::mm", 2, 620, 40),
        event("cuda_runtime", "cudaLaunchKernel", 2, 640, 2, correlation=2),
        event("kernel", "gemm_backward", 7, 650, 10, stream=7, correlation=2),
    ]
    (rank,) = trace_document([write(tmp_path / "t.json", {"traceEvents": events})])["ranks"]
    (stall,) = rank["stalls"]
    assert (stall["kernel"], stall["operator"], stall["source"]) == (
        "gemm_backward",
        "aten::mm",
        "model.py(12): forward",
    )


@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"separators": (",", ":")}, {"separators": (" , ", " : ")}])
@pytest.mark.parametrize("piece", [700, 5_000, 10**9])
def test_every_layout_and_cut_reads_the_same(
    played: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any], piece: int
) -> None:
    """Where the text is cut, how it is spaced, what follows the events and what stands in strings changes nothing."""
    document = {
        "before": [{"deep": [{}, {"text": '}, {"ph": '}]}],
        **played[0],
        "INFO": ["}, {", {"traceEvents": [1]}],
        "traceName": 'C:\\tmp\\"a"',
    }
    nested = {
        "ph": "X",
        "cat": "cpu_op",
        "name": 'od{d "na]me',
        "ts": 1,
        "dur": 1,
        "args": {"x": [{"y": {}}, {"z": 1}]},
    }
    document["traceEvents"] = [nested, *document["traceEvents"][:150], nested]
    monkeypatch.setattr(kineto_text, "PIECE_BYTES", piece)
    monkeypatch.setattr(kineto_text, "_READ_BYTES", 512)
    read = read_trace(write(tmp_path / "t.json", document, **form))
    assert (read.events, read.skipped, read.notes) == (152, 0, [])
    assert read.metadata["INFO"][0] == "}, {"
    assert max(read.trace.names) == "void cutlass::Kernel<cutlass_80_tensorop_bf16_s16816gemm_relu>(Params)"
    trace = read.trace
    assert sum(map(len, (trace.operators, trace.frames, trace.calls, trace.device))) == 152


def test_what_profilers_get_wrong_is_mended_or_left_out_and_counted(tmp_path: Path) -> None:
    """Numbers that are none, raw paths in strings, odd types and foreign events cost at most themselves."""
    good = '{"ph":"X","cat":"kernel","name":"k","pid":0,"tid":7,"ts":10.5,"dur":2,"args":{"stream":7,"correlation":3}}'
    events = [
        good,
        good.replace('"dur":2', '"dur":2,"bandwidth":inf').replace("10.5", "20.5"),
        good.replace('"name":"k"', '"name":"C:\\Users\\x"').replace("10.5", "30.5"),
        good.replace('"stream":7', '"stream":"7"').replace("10.5", "40.5"),
        good.replace('"ts":10.5', '"ts":"50.5"'),
        good.replace('"ts":10.5', '"ts":"when"'),
        good.replace('"dur":2', '"dur":-5e3'),
        good.replace('"dur":2', '"dur":1e300'),
        '{"ph":"X","cat":7}',
        '{"ph":"M","name":"process_name","args":{"name":null}}',
        "3",
        "[[]]",
    ]
    path = tmp_path / "rank_12.json"
    path.write_text('{"traceEvents": [' + ",\n".join(events) + "]}")
    read = read_trace(path)
    assert (read.trace.rank, read.rank_from) == (12, "file name")
    assert (len(read.trace.device), read.skipped) == (5, 5)
    assert set(read.trace.names) == {"k", "C:\\Users\\x"}
    assert read.notes == ["5 events could not be understood and were left out"]


def test_other_accelerators_and_old_profilers_are_read(tmp_path: Path) -> None:
    """ROCm, an accelerator that launches by operators, one of another name, and the categories of 2021."""
    launches = [
        ("hip_runtime", "hipLaunchKernel"),
        ("cpu_op", "runFunction"),
        ("some_runtime", "go"),
        ("Runtime", "cudaX"),
    ]
    devices = [
        ("kernel", "Cijk_MI16x16"),
        ("mtia_ccp_events", "dma"),
        ("kernel", "k"),
        ("Memcpy", "Memcpy HtoD (Pageable -> Device)"),
    ]
    events = []
    for number, ((launch, call), (device, name)) in enumerate(zip(launches, devices, strict=True), 1):
        link = {"correlation": number}
        at = {"ts": 10 * number, "dur": 1, "pid": 1, "tid": 1}
        events.append({"ph": "X", "cat": launch, "name": call, **at, "args": link})
        events.append(
            {"ph": "X", "cat": device, "name": name, **at, "ts": 10 * number + 3, "args": {**link, "stream": 2}}
        )
    trace = read_trace(write(tmp_path / "t.json", {"traceEvents": events})).trace
    assert [trace.names[trace.calls.name[row]] for row in trace.launch] == [name for _, name in launches]
    assert trace.device.kind.tolist() == [0, 0, 0, 1]


def test_a_file_cut_off_is_read_as_far_as_it_goes(played: list[dict[str, Any]], tmp_path: Path) -> None:
    """A rank killed while it wrote leaves most of its trace, plain or packed."""
    text = json.dumps(played[0]).encode()
    (tmp_path / "plain.json").write_bytes(text[: len(text) // 2])
    packed = gzip.compress(text)
    (tmp_path / "packed.json.gz").write_bytes(packed[: len(packed) // 2])
    for read in map(read_trace, (tmp_path / "plain.json", tmp_path / "packed.json.gz")):
        assert 0 < read.events < len(played[0]["traceEvents"])
        assert any("ends in the middle" in note for note in read.notes)


def test_damage_never_ends_in_a_traceback(tmp_path: Path) -> None:
    """Bytes changed, lost and put in at random: what is left is analysed and fits the schema, or one line is said."""
    chance = random.Random(4)
    text = json.dumps(TraceJob(TracePlan(ranks=2, steps=2, layers=2)).traces()[1]).encode()
    path = tmp_path / "rank_1.json"
    read, said = 0, []
    for _ in range(120):
        damaged = bytearray(text)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(damaged))
            damaged[place : place + chance.choice((0, 0, 1, 60))] = bytes(
                chance.choice(b'{}[]",:\\0eE-nan\xff\x94') for _ in range(chance.randint(0, 3))
            )
        path.write_bytes(damaged)
        try:
            found = trace_document([path])
        except TraceError as error:
            said.append(str(error))
            continue
        VALIDATOR.validate(json.loads(json.dumps(found, allow_nan=False)))
        assert trace_text(found)
        read += 1
    assert read > 90
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b" \n ", "it is empty"),
        (b"hello", "traceEvents"),
        (b"{}", "traceEvents"),
        (b'{"traceEvents": 5}', "traceEvents"),
        (b"\x1f\x8b\x00broken", "unpack"),
        (os.urandom(4000), ""),
    ],
)
def test_what_is_no_trace_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    """Foreign files end with status 2 and one line that names them."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    status, output = run(path)
    assert status == 2
    assert output.startswith(f"rankscope: {path}: ")
    assert says in output
    assert output.count("\n") == 1


def test_missing_files_and_empty_directories_are_one_line(tmp_path: Path) -> None:
    """What is not there is said, with its name."""
    assert run(tmp_path / "none.json") == (2, f"rankscope: {tmp_path}/none.json: No such file or directory\n")
    status, output = run(tmp_path)
    assert (status, output.count("\n")) == (2, 1)


def test_a_bomb_is_refused_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that unpacks without end is given up, and an event that never ends too."""
    monkeypatch.setattr(kineto_text, "BOMB_FLOOR_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(b'{"traceEvents": [' + b" " * (64 << 20)))
    with pytest.raises(TraceError, match="times its size"):
        read_trace(bomb)
    monkeypatch.setattr(kineto_text, "EVENT_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(kineto_text, "PIECE_BYTES", 1 << 16)
    endless = tmp_path / "endless.json"
    endless.write_bytes(b'{"traceEvents": [{"name": "' + b"x" * (2 << 20))
    with pytest.raises(TraceError, match="an event is larger"):
        read_trace(endless)


def test_ranks_come_from_names_where_nothing_else_tells(played: list[dict[str, Any]], tmp_path: Path) -> None:
    """Numbers that tell files apart are ranks; process numbers and times are not, and one file alone is rank 0."""
    for document, name in zip(played, ("trace_0.json", "trace_7.json"), strict=True):
        write(tmp_path / name, {"traceEvents": document["traceEvents"]})
    found = trace_document([tmp_path])
    assert [(rank["rank"], rank["rank_from"]) for rank in found["ranks"]] == [(0, "file name"), (7, "file name")]
    assert found["comparison"]["late_rank"] == 7
    assert trace_document([tmp_path / "trace_7.json"])["ranks"][0]["rank_from"] is None
    (tmp_path / "trace_7.json").rename(tmp_path / "host_48213.1690000000.pt.trace.json")
    assert [rank["rank_from"] for rank in trace_document([tmp_path])["ranks"]] == [None, None]


def test_each_collective_says_whom_it_waited_for(played: list[dict[str, Any]], tmp_path: Path) -> None:
    """Four all-reduces a step: size, transfer, and the 5 ms that the first after the slow host waited for it."""
    for rank, document in enumerate(played):
        write(tmp_path / f"trace_{rank}.json", document)
    (group,) = trace_document([tmp_path])["comparison"]["groups"]
    assert [each["bytes"] for each in group["collectives"]] == [8_000_000] * HOST_SLOW.buckets
    worst = group["collectives"][0]
    assert (worst["number"], worst["name"], worst["last_rank"]) == (2, "allreduce", 1)
    assert 0.3 * HOST_SLOW.host_delay_us < worst["waited_us"] < HOST_SLOW.host_delay_us


def test_text_names_what_a_person_looks_for(played: list[dict[str, Any]], tmp_path: Path) -> None:
    """The page for the terminal says the bound, the idle times, the stalls and the kernels."""
    status, output = run(write(tmp_path / "rank1.json", played[1]))
    assert status == 0
    for words in (
        "host-bound",
        "host wait",
        "launched from train.py(40)",
        "tensor cores",
        "stream 7",
        "cudaLaunchKernel",
    ):
        assert words in output
