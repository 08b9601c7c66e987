"""What drivers of network interfaces count, and the pauses among it."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.errors import Absent, ProbeError, Unsupported
from rankscope.probes.ethtool import counters_of, parse_names, pauses
from rankscope.probes.network import NetworkProbe


@pytest.mark.parametrize(
    ("driver", "counters", "told"),
    [
        ("mlx5", {"rx_prio3_pause": 5, "rx_prio4_pause": 2, "tx_prio3_pause": 1, "rx_prio3_pause_duration": 3,
                  "tx_prio3_pause_duration": 9, "rx_prio3_pause_transition": 8, "rx_packets": 7}, (7, 1, 3000)),
        ("mlx5, global pauses", {"rx_global_pause": 4, "tx_global_pause": 0}, (4, 0, None)),
        ("bnxt_en", {"rx_pfc_ena_frames_pri0": 1, "rx_pfc_ena_frames_pri5": 2, "tx_pfc_ena_frames_pri0": 0},
         (3, 0, None)),
        ("ice", {"rx_priority_3_xoff.nic": 6, "tx_priority_3_xoff.nic": 1, "rx_priority_3_xon.nic": 9}, (6, 1, None)),
        ("i40e", {"port.rx_priority_3_xoff": 6, "port.tx_priority_3_xoff": 0}, (6, 0, None)),
        ("virtio_net", {"rx_queue_0_packets": 6, "rx_drops": 1}, (None, None, None)),
    ],
)  # fmt: skip
def test_pauses_are_summed_over_priorities(
    driver: str, counters: dict[str, int], told: tuple[int | None, int | None, int | None]
) -> None:
    """By the names that each driver has; microseconds become nanoseconds; nothing is made up."""
    values = pauses(counters)
    metrics = ("net.pfc_pauses_received", "net.pfc_pauses_sent", "net.pfc_paused_ns")
    assert tuple(values.get(metric) for metric in metrics) == told, driver


@given(st.binary(max_size=200))
def test_no_bytes_make_the_names_raise(data: bytes) -> None:
    """Whatever a driver answers, there is a name for each 32 bytes of it."""
    assert len(parse_names(data)) == len(data) // 32


def test_a_real_driver_is_asked() -> None:
    """The kernel's own answer is taken apart; interfaces that count nothing or are not there are typed errors."""
    answers = {}
    for _, interface in socket.if_nameindex():
        with contextlib.suppress(Unsupported):
            answers[interface] = counters_of(interface)
    for counters in answers.values():
        assert counters
        assert all(name.isprintable() and name for name in counters)
        assert all(value >= 0 for value in counters.values())
    with pytest.raises(Unsupported, match="nope"):
        counters_of("nope")
    with pytest.raises(ProbeError):
        counters_of("\x00" * 40)


def test_a_driver_that_counts_no_pauses_is_asked_once(tmp_path: Path) -> None:
    """What is not counted is absent; bonds and bridges, which repeat what is under them, are not asked."""
    (tmp_path / "class/net/eth0/device").mkdir(parents=True)
    (tmp_path / "class/net/bond0").mkdir()
    asked: list[str] = []

    def count(interface: str) -> dict[str, int]:
        asked.append(interface)
        return {"rx_packets": 1}

    probe = NetworkProbe(tmp_path, tmp_path, counters_of=count)
    for _ in range(3):
        with pytest.raises(Absent, match="no interface here counts pauses"):
            probe.read("pauses", 1)
    assert asked == ["eth0"]
    probe.close()
