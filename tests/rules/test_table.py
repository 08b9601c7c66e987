"""The evidence table and the Xid catalogue are checked when they are loaded; the pages made of them are up to date."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import rankscope.rules
from rankscope.errors import ConfigurationError
from rankscope.finding import Side
from rankscope.rules import CLASSES, families, table
from rankscope.rules.faults import FAULTS
from rankscope.rules.table import Symptom, load

ROOT = Path(__file__).parents[2]

SIDES = {
    "gpu-thermal-slowdown": Side.HARDWARE,
    "gpu-off-bus": Side.HARDWARE,
    "gpu-ecc-uncorrectable": Side.HARDWARE,
    "gpu-clocks-locked": Side.ENVIRONMENT,
    "cpu-contention": Side.ENVIRONMENT,
    "slow-storage": Side.ENVIRONMENT,
    "rank-killed": Side.ENVIRONMENT,
    "input-bound": Side.CODE,
    "host-sync": Side.CODE,
    "gc-pause": Side.CODE,
    "checkpoint-stall": Side.CODE,
    "rank-hang": Side.CODE,
    "rank-exception": Side.CODE,
    "work-imbalance": Side.CODE,
    "network-delay": Side.ENVIRONMENT,
    "slow-rank-unexplained": Side.UNKNOWN,
}


def test_classes_and_sides() -> None:
    """Every class has the one side that was agreed; every class of the list that can be told is told."""
    assert {slug: CLASSES[slug].side for slug in SIDES} == SIDES
    assert {slug for slug, fault in FAULTS.items() if fault.told} <= set(CLASSES)
    assert set(CLASSES) <= {*FAULTS, *SIDES}
    assert rankscope.rules.CLASSES is CLASSES


def test_every_family_is_looked_at() -> None:
    """The families of the table are those that some function looks at, neither more nor fewer."""
    assert set(load().families) == {*families.SLOWNESS, *families.ANYWHERE, *families.INCIDENT, *families.PAST}


def test_every_class_can_win_and_lose() -> None:
    """Each class but the unknown has a family that speaks for it, and its absence against it."""
    for slug, of in CLASSES.items():
        if of.side is not Side.UNKNOWN:
            best = max(of.evidence.values(), key=lambda odds: odds.present)
            assert best.present >= 3, slug
            assert best.absent < 0, slug


def test_no_hardware_without_its_own_evidence() -> None:
    """What only says that a rank is slow, summed up, never carries a hardware class over the threshold."""
    loaded = load()
    place = ("compute", "arrival", "starved", "clocks")
    for of in CLASSES.values():
        if of.side is Side.HARDWARE and Symptom.ONE_RANK_SLOW in of.priors:
            gain = sum(
                max(of.evidence[name].present, of.evidence[name].absent) for name in place if name in of.evidence
            )
            odds = of.priors[Symptom.ONE_RANK_SLOW] * 2.72**gain / loaded.unknown.priors[Symptom.ONE_RANK_SLOW]
            assert odds < loaded.threshold / (1 - loaded.threshold)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('side = "hardware"', 'side = "gremlins"', 1), "unknown side"),
        (lambda text: text.replace('side = "hardware"', 'side = ["hardware", "code"]', 1), "must be a text"),
        (lambda text: text.replace('side = "code"', 'side = "unknown"', 1), "classes have the side unknown"),
        (lambda text: text.replace('side = "hardware"', 'side = "code"', 1), "the list of faults says hardware"),
        (lambda text: text.replace('side = "unknown"', 'side = "code"', 1), "classes have the side unknown"),
        (lambda text: text.replace("thermal = [6.5, -6.0]", "termal = [6.5, -6.0]"), "unknown family"),
        (lambda text: text.replace("thermal = [6.5, -6.0]", "thermal = [6.5, 6.0]"), "same way"),
        (lambda text: text.replace("thermal = [6.5, -6.0]", "thermal = 6.5"), "present"),
        (lambda text: text.replace("thermal = [6.5, -6.0]", "thermal = [65, -6.0]"), "outside"),
        (lambda text: text.replace("thermal = [6.5, -6.0]", 'thermal = ["a", 0]'), "must be a number"),
        (lambda text: text.replace("one-rank-slow = 0.12", "one-rank-fast = 0.12"), "unknown symptom"),
        (lambda text: text.replace("one-rank-slow = 0.12", "one-rank-slow = 0"), "outside"),
        (lambda text: text.replace('place = "gpu"', 'place = "moon"', 1), "unknown place"),
        (lambda text: text.replace("threshold = 0.8", "threshold = 80"), "outside"),
        (lambda text: text.replace("threshold = 0.8", "threshhold = 0.8"), "unknown key"),
        (lambda text: text.replace('title = "GPU clocks are set low"', ""), "missing"),
        (lambda text: text.replace("[class.host-sync]", "[class.Host_Sync]"), "slug"),
        (lambda text: text.replace("periodic = 0.1, crash", "crash"), "needs a prior everywhere"),
        (lambda text: text + "[", "not TOML"),
    ],
)
def test_bad_table(tmp_path: Path, change: Callable[[str], str], says: str) -> None:
    """A table that contradicts itself is refused by one line that names the place."""
    good = table.TABLE.read_text(encoding="utf-8")
    bad = tmp_path / "classes.toml"
    bad.write_text(change(good), encoding="utf-8")
    assert bad.read_text(encoding="utf-8") != good
    with pytest.raises(ConfigurationError, match=says) as caught:
        load(bad)
    assert "classes.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_table(tmp_path: Path) -> None:
    """A table that is not there is a typed error too."""
    with pytest.raises(ConfigurationError, match="cannot read"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize("slug", sorted(CLASSES))
def test_runbook(slug: str) -> None:
    """Each class has a page that says what it is, how it is told, what to check, what to do, when to escalate."""
    runbook = ROOT / CLASSES[slug].runbook
    assert runbook.name == f"{slug}.md"
    text = runbook.read_text(encoding="utf-8")
    for heading in ("## What it is", "## How it was told", "## Check by hand", "## What to do", "## When to escalate"):
        assert f"\n{heading}\n" in text, heading
    assert text.startswith(f"# {slug}\n")
    assert "```" in text
    others = set(CLASSES) - {slug}
    assert any(f"({other}.md)" in text for other in others), "names no neighbour"


def test_every_runbook_has_a_class() -> None:
    """No page is left over from a class that is gone."""
    assert {path.stem for path in (ROOT / "docs/runbooks").glob("*.md")} == set(CLASSES)


def test_table_is_valid_toml_on_its_own() -> None:
    """The table can be read by anything that reads TOML."""
    assert tomllib.loads(table.TABLE.read_text(encoding="utf-8"))["class"].keys() == CLASSES.keys()


def test_a_site_puts_its_own_numbers_in_their_places(tmp_path: Path) -> None:
    """What the file names changes, and nothing else does."""
    site = tmp_path / "site.toml"
    site.write_text(
        "threshold = 0.9\n[class.noisy-neighbour]\naction = 'Call the desk.'\n[class.noisy-neighbour.priors]\n"
        "one-rank-slow = 0.5\n[class.noisy-neighbour.evidence]\ngc = [-9.0, 0.0]\n",
        encoding="utf-8",
    )
    ours, theirs = load(), load(overrides=site)
    changed = theirs.classes["noisy-neighbour"]
    assert (theirs.threshold, changed.action) == (0.9, "Call the desk.")
    assert changed.priors[Symptom.ONE_RANK_SLOW] == 0.5
    assert changed.evidence["gc"].present == -9
    assert changed.evidence["foreign"] == ours.classes["noisy-neighbour"].evidence["foreign"]
    assert theirs.classes["gpu-off-bus"] == ours.classes["gpu-off-bus"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[class.noisy-neighbor]\naction = 'x'", "did you mean noisy-neighbour"),
        ("[class.gpu-off-bus]\nside = 'code'", "side is not a site's to change"),
        ("[class.gpu-off-bus.evidence]\noff-bis = [1.0, 0.0]", "unknown family"),
        ("[class.gpu-off-bus.priors]\ncrash = 'often'", "must be a number"),
        ("[class.gpu-off-bus]\nevidence = 3", "another form"),
        ("treshold = 0.9", "did you mean threshold"),
        ("[", "not TOML"),
    ],
)
def test_a_site_file_that_contradicts_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    """The line names the site's own file and the key."""
    site = tmp_path / "site.toml"
    site.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says) as caught:
        load(overrides=site)
    assert "site.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
