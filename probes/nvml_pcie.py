"""The PCIe link of one GPU judged under load: at idle a healthy link slows down, and its speed says nothing."""

from __future__ import annotations

from collections.abc import Mapping

#: Payload a lane carries in a second by generation, bytes: 2.5 and 5 GT/s with 8b/10b, 8 to 32 GT/s with 128b/130b,
#: 64 GT/s in FLIT mode.
LANE_BYTES_PER_SECOND = {1: 250e6, 2: 500e6, 3: 985e6, 4: 1969e6, 5: 3938e6, 6: 7563e6}
#: A GPU that computes for this share of the time keeps its link at full speed.
BUSY_RATIO = 0.5
#: So does one whose link carries this much, bytes a second: a hundredth of what the slowest full link can.
BUSY_BYTES_PER_SECOND = 64e6
#: Traffic is judged over two reads of the byte counters no further apart than this, ns.
_FRESH_NS = 10 * 10**9


class PcieJudge:
    """Remembers the byte counters, and says how fast the link is where it has to be."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._rate: tuple[int, float] | None = None

    def note(self, values: Mapping[str, float], now_ns: int) -> None:
        """Take the byte counters out of a read that holds them."""
        tx, rx = values.get("gpu.pcie_tx_bytes"), values.get("gpu.pcie_rx_bytes")
        if tx is None or rx is None:
            return
        if self._last is not None and 0 < now_ns - self._last[0] <= _FRESH_NS and tx + rx >= self._last[1]:
            self._rate = (now_ns, (tx + rx - self._last[1]) / (now_ns - self._last[0]) * 1e9)
        self._last = (now_ns, tx + rx)

    def loaded(self, utilization: float | None, now_ns: int) -> bool:
        """Whether the GPU computes, or the link carries something, now."""
        if utilization is not None and utilization >= BUSY_RATIO:
            return True
        return self._rate is not None and now_ns - self._rate[0] <= _FRESH_NS and self._rate[1] >= BUSY_BYTES_PER_SECOND

    def speed_ratio(self, values: Mapping[str, float], utilization: float | None, now_ns: int) -> float | None:
        """Speed of the link against its highest, or None at idle and where a part of it is not known."""
        if not self.loaded(utilization, now_ns):
            return None
        now = _speed(values.get("gpu.pcie_link_generation"), values.get("gpu.pcie_link_width"))
        most = _speed(values.get("gpu.pcie_link_generation_max"), values.get("gpu.pcie_link_width_max"))
        return None if now is None or not most else now / most


def _speed(generation: float | None, lanes: float | None) -> float | None:
    lane = None if generation is None else LANE_BYTES_PER_SECOND.get(int(generation))
    return None if lane is None or lanes is None else lane * lanes
