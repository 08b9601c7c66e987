"""Metrics of NVLinks: nvlink.* of one link, whose device is gpu_device.link_of(GPU UUID, link); gpu.nvlink_* of all.

Up to Hopper the data-link counters (replay, recovery, CRC) exist, from Blackwell on those of NVLink 5 in their place.
Sources of the meanings: nvml.h 13.5.
"""

from __future__ import annotations

from rankscope.metric import counter, gauge

#: Bins of the histogram of symbol errors that forward error correction repaired (fields 235-250).
FEC_BINS = 16

#: Name -> (unit, meaning) of the error counters of one link.
NVLINK_ERRORS = {
    "replay_errors": ("{replay}", "Packets sent again (up to Hopper)"),
    "recovery_errors": ("{recovery}", "Recoveries of the link (up to Hopper)"),
    "crc_errors": ("{error}", "CRC errors (up to Hopper)"),
    "malformed_packets": ("{packet}", "Malformed packets received"),
    "buffer_overruns": ("{packet}", "Packets received and discarded for lack of buffers"),
    "receive_errors": ("{packet}", "Packets received with errors"),
    "remote_errors": ("{packet}", "Packets received that the other end marked bad"),
    "general_errors": ("{packet}", "Packets received with a header that does not match"),
    "integrity_errors": ("{event}", "Times the local errors exceeded their threshold"),
    "discarded_packets": ("{packet}", "Packets in error that were not sent"),
    "recoveries": ("{recovery}", "Times the link left the up state for recovery"),
    "recoveries_successful": ("{recovery}", "Recoveries after which the link came back"),
    "recoveries_failed": ("{recovery}", "Recoveries after which the link was declared down"),
    "effective_errors": ("{error}", "Errors left after correction"),
    "symbol_errors": ("{error}", "Errors in received symbols"),
}

NVLINK_METRICS = (
    gauge(
        "nvlink.state", "1", "rankscope.nvlink.state", "State of the link: 0 off, 1 on, 2 asleep, 3 on without traffic"
    ),
    gauge("nvlink.speed_bytes_per_second", "By/s", "rankscope.nvlink.speed", "Speed the link runs at"),
    counter("nvlink.tx_bytes", "By", "rankscope.nvlink.tx", "Bytes sent over the link"),
    counter("nvlink.rx_bytes", "By", "rankscope.nvlink.rx", "Bytes received over the link"),
    *(
        counter(f"nvlink.{name}", unit, f"rankscope.nvlink.{name}", meaning)
        for name, (unit, meaning) in NVLINK_ERRORS.items()
    ),
    gauge(
        "nvlink.effective_bit_error_ratio",
        "1",
        "rankscope.nvlink.effective_bit_error",
        "Bit error rate left after correction",
    ),
    gauge("nvlink.symbol_bit_error_ratio", "1", "rankscope.nvlink.symbol_bit_error", "Error rate of received symbols"),
    *(
        counter(
            f"nvlink.fec_corrected_{n}",
            "{codeword}",
            f"rankscope.nvlink.fec_corrected.{n}",
            f"Code words in which forward error correction repaired symbols, bin {n}",
        )
        for n in range(FEC_BINS)
    ),
    counter("gpu.nvlink_tx_bytes", "By", "rankscope.gpu.nvlink.tx", "NVLink payload bytes sent over all links"),
    counter("gpu.nvlink_rx_bytes", "By", "rankscope.gpu.nvlink.rx", "NVLink payload bytes received over all links"),
    counter(
        "gpu.nvlink_raw_tx_bytes",
        "By",
        "rankscope.gpu.nvlink.raw.tx",
        "NVLink bytes sent over all links, protocol included",
    ),
    counter(
        "gpu.nvlink_raw_rx_bytes",
        "By",
        "rankscope.gpu.nvlink.raw.rx",
        "NVLink bytes received over all links, protocol included",
    ),
    counter(
        "gpu.nvlink_ecc_errors",
        "{error}",
        "rankscope.gpu.nvlink.ecc_errors",
        "ECC errors of NVLink data over all links",
    ),
    gauge("gpu.nvlink_links", "{link}", "rankscope.gpu.nvlink.links", "NVLinks on the device"),
    gauge("gpu.nvlink_links_active", "{link}", "rankscope.gpu.nvlink.links.active", "NVLinks that are not off"),
)
