"""Generated recordings as other sources would have seen the same job: hidden waits, timed collectives."""

from __future__ import annotations

from array import array
from dataclasses import replace

import numpy as np

from rankscope.records import GroupKind
from rankscope.window import Columns, RankWindow, Window

#: Groups in which every member waits for the last one at the end of a step.
_AVERAGING = (GroupKind.DATA, GroupKind.SHARD)
_FORWARD_SHARE = 0.4


def hidden(window: Window) -> Window:
    """Ranks wait for each other inside forward and backward where no hook sees it: as compiled graphs with
    tensor-parallel layers do. Then every rank's "own" time is what the slowest one's is, and records say so.
    """
    return _changed(window, _hide)


def timed(window: Window) -> Window:
    """Each step's gradient exchange, timed by the communication library: from a rank's arrival to the common end."""
    return _changed(window, _time)


def without_device_clock(window: Window) -> Window:
    """Only the host's own times."""
    return _changed(window, lambda of: replace(of, device=Columns({}), groups={}))


def _changed(window: Window, change: object) -> Window:
    assert callable(change)
    return replace(window, ranks={rank: change(of) for rank, of in window.ranks.items()})


def _hide(of: RankWindow) -> RankWindow:
    columns = {name: np.array(values) for name, values in of.device.columns.items()}
    waits = columns["backward_wait_ns"] + np.nan_to_num(columns.get("inner_wait_ns", np.zeros(1)))
    columns["forward_ns"] = columns["forward_ns"] + _FORWARD_SHARE * waits
    columns["backward_own_ns"] = columns["backward_own_ns"] + (1 - _FORWARD_SHARE) * waits
    columns["backward_wait_ns"] = np.zeros_like(waits)
    columns.pop("inner_wait_ns", None)
    columns["contaminated"] = np.ones_like(waits)
    groups = {
        name: Columns({key: column for key, column in group.columns.items() if key != "wait_ns"})
        for name, group in of.groups.items()
    }
    return replace(of, device=Columns({name: array("d", values) for name, values in columns.items()}), groups=groups)


def _time(of: RankWindow) -> RankWindow:
    found = {}
    for name, group in of.groups.items():
        columns = group.columns
        if int(columns["group_kind"][0]) in _AVERAGING:
            count = len(columns["step"])
            found[name, "AllReduce"] = Columns(
                {
                    "step": array("d", columns["step"]),
                    "sequence": array("d", columns["step"]),
                    "size_bytes": array("d", [64 << 20]) * count,
                    "ranks": array("d", columns["size"]),
                    "duration_ns": array("d", columns["wait_ns"]),
                }
            )
    return replace(of, timed=found)
