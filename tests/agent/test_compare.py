"""`rankscope compare` over recordings: the schema, the exit status, and ranks that left facts or none."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from rankscope.agent.cli import main
from rankscope.agent.fingerprint import HOST_KEY, RANK_KEY, read_facts
from rankscope.agent.recording import Recording
from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.reading import Event
from rankscope.records import StepRecord
from rankscope.ring import RingHeader
from rankscope.torch_hooks.fingerprint import SUFFIX

VALIDATOR = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "docs/schemas/compare.schema.json").read_text())
)
MS = 1_000_000


def call(*words: str | Path) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, ["compare", *map(str, words)], catch_exceptions=False)


def recorded(
    path: Path, forward_ms: int, facts: dict | None, *, host: str = "a", steps: int = 80, batch: int = 32
) -> Path:
    """A recording of two ranks that leave `facts`."""
    made = Recording.create(path, job=path.stem, host=host)
    for rank in (0, 1):
        identity = RankIdentity("job", 0, rank, 2, rank, host, 4242 + rank, 77, "boot")
        row, _ = made.add_rank(f"{rank}.ring", RingHeader(identity, ClockAnchor(5, 6), 1024, 1))
        step_ms = forward_ms + 60
        records = [
            StepRecord(
                step=number,
                start_ns=number * step_ms * MS,
                end_ns=(number + 1) * step_ms * MS,
                data_wait_ns=MS,
                forward_ns=forward_ms * MS,
                backward_ns=50 * MS,
                optimizer_ns=9 * MS,
                checkpoint_ns=0,
                evaluation_ns=0,
                other_ns=0,
                work=batch,
            )
            for number in range(steps)
        ]
        made.add_records(row, records, len(records))
        if facts is not None:
            made.set_meta(f"{RANK_KEY}{row}", json.dumps(facts))
    if facts is not None:
        made.set_meta(HOST_KEY, json.dumps({"gpu_driver": "580.95.05"}))
    assert made.commit()
    made.close()
    return path


def test_phases_that_changed_stand_beside_what_differs(tmp_path: Path) -> None:
    """A slower forward, another torch and a moved job: in the JSON, in the text, and in the status if asked for."""
    was = {"python": "3.11.7", "torch": "2.12.0", "packages": {"numpy": "2.3.0"}, "environment": {}}
    now = was | {"torch": "2.13.0", "environment": {"NCCL_ALGO": "Ring"}}
    good, bad = recorded(tmp_path / "good.db", 40, was), recorded(tmp_path / "bad.db", 55, now, host="b", batch=48)
    result = call(good, bad, "--json", "--fail-on-slower")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    VALIDATOR.validate(found)
    assert [phase["phase"] for phase in found["phases"] if phase["changed"]] == ["step", "forward"]
    drift = {row["name"]: (row["topic"], row["good"], row["bad"]) for row in found["drift"]}
    assert drift["torch"] == ("packages", "2.12.0", "2.13.0")
    assert drift["NCCL_ALGO"] == ("nccl", None, "Ring")
    assert drift["rank 0 host"] == ("placement", "a", "b")
    batch = "batch, in the loader's units"
    assert drift[batch] == ("data", "32", "48")
    assert set(drift) == {"torch", "NCCL_ALGO", "rank 0 host", "rank 1 host", batch}
    text = call(good, bad)
    assert text.exit_code == 0
    assert text.stdout.startswith("slower: 100.0 ms a step in GOOD, 115.0 ms in BAD")


def test_a_gpus_own_facts_are_compared_by_its_place(tmp_path: Path) -> None:
    """VBIOS, path and driver as the driver described them: another firmware on GPU 1 alone is one line."""
    paths = []
    for name, vbios in (("good", "96.00.74"), ("bad", "96.00.89")):
        path = recorded(tmp_path / f"{name}.db", 40, {"python": "3.11.7"})
        made = Recording.open(path)
        for index in (0, 1):
            told = {"index": index, "name": "H100", "driver": "580.95.05", "topology": f"{1 - index}=node"}
            told["vbios"] = vbios if index else "96.00.74"
            made.add_events([Event("gpu-described", 5, "a GPU", device=f"GPU-{index}", attributes=told)])
        made.close()
        paths.append(path)
    found = json.loads(call(*paths, "--json").stdout)
    VALIDATOR.validate(found)
    assert [(row["topic"], row["name"], row["good"], row["bad"], row["where"]) for row in found["drift"]] == [
        ("firmware", "GPU vbios", "96.00.74", "96.00.89", ["GPU 1 of a"])
    ]


def test_the_same_run_twice_differs_in_nothing(tmp_path: Path) -> None:
    """Nothing changed and nothing differs, and the status is 0 even where slowness was asked for."""
    good = recorded(tmp_path / "good.db", 40, {"python": "3.11.7"})
    result = call(good, good, "--fail-on-slower")
    assert result.exit_code == 0
    assert "nothing that was recorded" in result.stdout
    assert "unchanged within noise" in result.stdout


def test_a_recording_without_a_fingerprint_says_so(tmp_path: Path) -> None:
    """Recordings of earlier releases still compare by their phases."""
    old, new = recorded(tmp_path / "old.db", 40, None), recorded(tmp_path / "new.db", 55, None)
    assert call(old, new).stdout.count("has no fingerprint") == 2


@pytest.mark.parametrize("steps", [0, None])
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, steps: int | None) -> None:
    """No step, or no recording: status 2 and one line."""
    good = recorded(tmp_path / "good.db", 40, None)
    bad = tmp_path / "none.db" if steps is None else recorded(tmp_path / "empty.db", 40, None, steps=steps)
    result = call(good, bad)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


def test_facts_of_a_rank_are_read_with_care(tmp_path: Path) -> None:
    """Links, foreign text and files that are too large give nothing; what a rank writes is taken as it is."""
    ring = tmp_path / "r.ring"
    ring.write_bytes(b"")
    facts = ring.with_name(ring.name + SUFFIX)
    assert read_facts(ring) is None
    facts.write_text('{"python": "3.11"}')
    assert read_facts(ring) == '{"python": "3.11"}'
    for bad in ("[1]", "nonsense", "{" + " " * 100_000 + "}"):
        facts.write_text(bad)
        assert read_facts(ring) is None
    facts.unlink()
    facts.symlink_to("/etc/hostname")
    assert read_facts(ring) is None
