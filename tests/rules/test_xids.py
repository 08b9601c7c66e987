"""The catalogue of Xids: complete over what NVIDIA publishes, consistent, and refused where it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rankscope.errors import ConfigurationError
from rankscope.rules import xids
from rankscope.rules.gpu_trouble import CLASSED
from rankscope.rules.verdict import CLASSES
from rankscope.rules.xids import CATALOGUE, XIDS

HEAD = """
source = "somewhere"
[meanings]
code = "the application"
[causes]
application = "the job"
device = "the GPU"
[buckets]
IGNORE = "nothing"
"""
GOOD = (
    HEAD
    + """
[xid.7]
mnemonic = "M"
name = "x"
means = ["code"]
causes = { application = 0.75, device = 0.25 }
action = "IGNORE"
"""
)


def test_the_catalogue_is_complete() -> None:
    """Every number NVIDIA lists is there once: reported, or retired."""
    assert set(XIDS) | set(CATALOGUE.retired) == set(range(1, 173))
    assert not set(XIDS) & set(CATALOGUE.retired)
    assert all(xid.source.startswith("https://docs.nvidia.com/") for xid in XIDS.values())
    assert len({xid.mnemonic for xid in XIDS.values()} | set(CATALOGUE.retired.values())) == 172


def test_causes_are_weights_that_add_up() -> None:
    """An Xid is a likelihood: several causes each with a weight, none certain where NVIDIA names several."""
    for xid in XIDS.values():
        assert xid.derivative or sum(xid.causes.values()) == pytest.approx(1), xid.number
    assert XIDS[79].causes["pcie"] < 1
    assert {"application", "device"} <= set(XIDS[13].causes)
    used = {cause for xid in XIDS.values() for cause in xid.causes}
    assert used == set(CATALOGUE.causes), "a cause that no Xid has"
    assert {meaning for xid in XIDS.values() for meaning in xid.means} == set(CATALOGUE.meanings)
    buckets = {bucket for xid in XIDS.values() for bucket in (xid.action, xid.investigate) if bucket}
    assert buckets == set(CATALOGUE.buckets)


def test_derivative_xids_are_no_root() -> None:
    """Xids that only follow another are marked, and those that name a fault are not."""
    assert all(XIDS[number].derivative for number in (43, 45, 154))
    assert XIDS[79].means == {"off-bus"}
    assert all("ecc" in XIDS[number].means and not XIDS[number].derivative for number in (48, 94, 95))
    assert "ecc" not in XIDS[92].means, "errors that were corrected are no fault by themselves"


def test_every_class_of_an_xid_is_one_and_says_so() -> None:
    """An Xid is evidence for one class at most, is no derivative, and its class names it as its source."""
    seen: set[int] = set()
    for slug, numbers in CLASSED.items():
        assert numbers <= set(XIDS)
        assert not numbers & seen
        seen |= numbers
        assert not any(XIDS[number].derivative for number in numbers)
        named = " ".join(CLASSES[slug].sources)
        spans = [range(int(low), int(high or low) + 1) for low, high in re.findall(r"(\d+)(?: to (\d+))?", named)]
        assert numbers <= {number for span in spans for number in span}, slug


def test_a_small_catalogue_is_read(tmp_path: Path) -> None:
    """What the file says comes back whole."""
    path = tmp_path / "xids.toml"
    path.write_text(GOOD)
    assert xids.load(path)[7] == xids.Xid(
        7, "x", frozenset({"code"}), False, "M", {"application": 0.75, "device": 0.25}, "IGNORE", source="somewhere"
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[xid.7]", "[xid.a]", "an Xid is a number"),
        ("[xid.7]", "[xid.\u0667]", "not TOML"),
        ('["code"]', '["bad luck"]', "means must be some of"),
        ('["code"]', '"code"', "means must be some of"),
        ('["code"]', "[[1]]", "means must be some of"),
        ('name = "x"', "", "needs name"),
        ('mnemonic = "M"', "mnemonic = 3", "needs mnemonic"),
        ("application = 0.75", "application = 0.5", "add up to 0.75"),
        ("application = 0.75", "application = -0.75", "must be a weight"),
        ("application = 0.75", "application = nan", "must be a weight"),
        ("application = 0.75", "application = true", "must be a weight"),
        ("application = 0.75", "luck = 0.75", "causes must be a table"),
        ("causes = { application = 0.75, device = 0.25 }", "causes = {}", "only where it is derivative"),
        ('action = "IGNORE"', 'action = "PRAY"', "action must be one of"),
        ('action = "IGNORE"', 'soure = "x"', "unknown field"),
        ('action = "IGNORE"', "derivative = 1", "derivative must be"),
        ("[buckets]", "[bucket]", "buckets: needs to be a table"),
        ('IGNORE = "nothing"', "IGNORE = 1", "buckets: needs to be a table"),
        ("[xid.7]", '[retired]\n7 = "M"\n[xid.7]', "under [retired] too"),
        ("[xid.7]", "[xis.7]", "holds no Xid"),
        ("[xid.7]", "[xid", "not TOML"),
    ],
)  # fmt: skip
def test_a_bad_catalogue_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    """A catalogue with an entry that makes no sense is refused by one line that names the place."""
    path = tmp_path / "xids.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        xids.load(path)
    assert says in str(caught.value)
    assert "xids.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_catalogue_is_a_typed_error(tmp_path: Path) -> None:
    """So is one that is no text."""
    with pytest.raises(ConfigurationError, match="cannot read"):
        xids.load(tmp_path / "none.toml")
    (tmp_path / "noise.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="not TOML"):
        xids.load(tmp_path / "noise.toml")
