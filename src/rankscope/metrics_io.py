"""Every metric of storage and of networks."""

from __future__ import annotations

from rankscope.metric import counter, gauge

#: By disk.
DISK_METRICS = (
    counter("disk.read_bytes", "By", "rankscope.disk.read", "Bytes read"),
    counter("disk.write_bytes", "By", "rankscope.disk.write", "Bytes written"),
    counter("disk.reads", "{operation}", "rankscope.disk.reads", "Reads completed"),
    counter("disk.writes", "{operation}", "rankscope.disk.writes", "Writes completed"),
    counter("disk.read_ns", "ns", "rankscope.disk.read.time", "Time spent by all reads"),
    counter("disk.write_ns", "ns", "rankscope.disk.write.time", "Time spent by all writes"),
    counter("disk.busy_ns", "ns", "rankscope.disk.busy", "Time with I/O in flight"),
    counter("disk.queue_ns", "ns", "rankscope.disk.queue.time", "Time requests spent in flight, summed over requests"),
    gauge("disk.in_flight", "{operation}", "rankscope.disk.in_flight", "Requests in flight now"),
    counter("disk.flushes", "{operation}", "rankscope.disk.flushes", "Flushes completed"),
    counter("disk.flush_ns", "ns", "rankscope.disk.flush.time", "Time spent by all flushes"),
)

#: By mount point.
FILESYSTEM_METRICS = (
    gauge("fs.total_bytes", "By", "rankscope.fs.total", "Size of a filesystem the job can reach"),
    gauge("fs.available_bytes", "By", "rankscope.fs.available", "Free space that an unprivileged user may fill"),
    gauge("fs.inodes", "{inode}", "rankscope.fs.inodes", "Inodes of the filesystem, where their number is fixed"),
    gauge(
        "fs.inodes_available",
        "{inode}",
        "rankscope.fs.inodes.available",
        "Inodes that an unprivileged user may still use",
    ),
    gauge("fs.answer_ns", "ns", "rankscope.fs.answer", "How long the filesystem took to say how full it is"),
)

#: By operation and mount point: "READ /data".
NFS_METRICS = (
    counter("nfs.operations", "{operation}", "rankscope.nfs.operations", "Requests of one operation on one mount"),
    counter(
        "nfs.transmissions",
        "{operation}",
        "rankscope.nfs.transmissions",
        "Times they were sent; what exceeds the requests was sent again",
    ),
    counter("nfs.timeouts", "{operation}", "rankscope.nfs.timeouts", "Requests that timed out and were tried again"),
    counter("nfs.sent_bytes", "By", "rankscope.nfs.sent", "Bytes sent with them"),
    counter("nfs.received_bytes", "By", "rankscope.nfs.received", "Bytes received with them"),
    counter("nfs.queue_ns", "ns", "rankscope.nfs.queue", "Time they waited in the client before they were sent"),
    counter("nfs.rtt_ns", "ns", "rankscope.nfs.rtt", "Time from sending them to the server's reply"),
    counter("nfs.execute_ns", "ns", "rankscope.nfs.execute", "Time from the client's begin to its end with them"),
    counter("nfs.errors", "{error}", "rankscope.nfs.errors", "Requests that ended with an error"),
)

#: By mount ("scratch-ffff8881") or, for what concerns requests, by target ("scratch-OST0003").
LUSTRE_METRICS = (
    counter("lustre.reads", "{operation}", "rankscope.lustre.reads", "Reads of one mount"),
    counter("lustre.read_bytes", "By", "rankscope.lustre.read", "Bytes read from one mount"),
    counter(
        "lustre.read_ns",
        "ns",
        "rankscope.lustre.read.time",
        "Time spent by all reads, where the client counts it",
    ),
    counter("lustre.writes", "{operation}", "rankscope.lustre.writes", "Writes to one mount"),
    counter("lustre.write_bytes", "By", "rankscope.lustre.write", "Bytes written to one mount"),
    counter(
        "lustre.write_ns",
        "ns",
        "rankscope.lustre.write.time",
        "Time spent by all writes, where the client counts it",
    ),
    counter(
        "lustre.metadata_operations",
        "{operation}",
        "rankscope.lustre.metadata",
        "Opens, look-ups and other operations on names and attributes of one mount",
    ),
    counter(
        "lustre.metadata_ns",
        "ns",
        "rankscope.lustre.metadata.time",
        "Time spent by them, where the client counts it",
    ),
    counter("lustre.rpcs", "{operation}", "rankscope.lustre.rpcs", "Requests to one target that were answered"),
    counter("lustre.rpc_wait_ns", "ns", "rankscope.lustre.rpc.wait", "Time they waited for the answer"),
    gauge(
        "lustre.rpcs_in_flight",
        "{operation}",
        "rankscope.lustre.rpcs.in_flight",
        "Reads and writes of one target in flight now",
    ),
    gauge(
        "lustre.pending_pages",
        "{page}",
        "rankscope.lustre.pending",
        "Pages that wait to be read from or written to one target",
    ),
)

#: By interface; of TCP and UDP for the host as a whole ("").
NETWORK_METRICS = (
    counter("net.rx_bytes", "By", "rankscope.net.rx", "Bytes received"),
    counter("net.tx_bytes", "By", "rankscope.net.tx", "Bytes sent"),
    counter("net.errors", "{error}", "rankscope.net.errors", "Packets lost to errors, both ways"),
    counter("net.drops", "{packet}", "rankscope.net.drops", "Packets dropped, both ways"),
    counter(
        "net.overruns",
        "{error}",
        "rankscope.net.overruns",
        "Packets lost because a queue of the interface was full, both ways",
    ),
    counter("net.frame_errors", "{error}", "rankscope.net.frame_errors", "Packets received damaged"),
    counter(
        "net.carrier_changes",
        "{event}",
        "rankscope.net.carrier_changes",
        "Times the interface's link went up or down",
    ),
    gauge("net.up", "1", "rankscope.net.up", "1 where the interface's link is up, else 0"),
    gauge("net.speed_bits_per_second", "bit/s", "rankscope.net.speed", "Negotiated speed of the interface"),
    counter(
        "net.pfc_pauses_received",
        "{frame}",
        "rankscope.net.pfc.received",
        "Pauses of priority flow control that the network asked of the interface: congestion ahead",
    ),
    counter(
        "net.pfc_pauses_sent",
        "{frame}",
        "rankscope.net.pfc.sent",
        "Pauses that the interface asked of the network: this host takes data too slowly",
    ),
    counter(
        "net.pfc_paused_ns",
        "ns",
        "rankscope.net.pfc.time",
        "Time in which a priority of the interface was not allowed to send, summed over priorities",
    ),
    counter("net.tcp_segments_sent", "{segment}", "rankscope.net.tcp.sent", "TCP segments sent by the host"),
    counter(
        "net.tcp_segments_retransmitted",
        "{segment}",
        "rankscope.net.tcp.retransmitted",
        "TCP segments the host sent again",
    ),
    counter(
        "net.tcp_timeouts",
        "{event}",
        "rankscope.net.tcp.timeouts",
        "Times a TCP retransmission timer of the host ran out",
    ),
    counter(
        "net.tcp_receive_prunes",
        "{event}",
        "rankscope.net.tcp.prunes",
        "Times TCP had to drop received data because an application did not read it",
    ),
    counter(
        "net.udp_buffer_errors",
        "{error}",
        "rankscope.net.udp.buffer_errors",
        "UDP datagrams lost because a socket's buffer was full",
    ),
)

#: By local and peer's address ("10.0.0.1|10.0.0.2"), of the connections that ranks have.
TCP_METRICS = (
    gauge(
        "tcp.rtt_ns",
        "ns",
        "rankscope.tcp.rtt",
        "Smoothed round-trip time to a peer, the least of the connections that it acknowledged within two seconds",
    ),
    counter("tcp.segments_sent", "{segment}", "rankscope.tcp.sent", "Segments sent to a peer by the ranks"),
    counter("tcp.segments_retransmitted", "{segment}", "rankscope.tcp.retransmitted", "Segments sent to a peer again"),
)

#: By device and port ("mlx5_0/1"), RoCE ports too. The description begins with what growth means.
INFINIBAND_METRICS = (
    gauge(
        "ib.port_state",
        "1",
        "rankscope.ib.port.state",
        "State of a port: 1 down, 2 initialising, 3 armed, 4 active, 5 active but deferred",
    ),
    gauge(
        "ib.physical_state",
        "1",
        "rankscope.ib.port.physical_state",
        "State of a port's cable: 2 polling, 3 disabled, 4 training, 5 up, 6 recovering from errors",
    ),
    gauge("ib.rate_bits_per_second", "bit/s", "rankscope.ib.rate", "Negotiated rate of a port"),
    counter("ib.rx_bytes", "By", "rankscope.ib.rx", "Bytes received by a port"),
    counter("ib.tx_bytes", "By", "rankscope.ib.tx", "Bytes sent by a port"),
    counter("ib.symbol_errors", "{error}", "rankscope.ib.fault.symbol", "Fault: minor link errors on a physical lane"),
    counter(
        "ib.link_error_recoveries",
        "{event}",
        "rankscope.ib.fault.recoveries",
        "Fault: times the link recovered from errors by retraining",
    ),
    counter(
        "ib.link_downed",
        "{event}",
        "rankscope.ib.fault.downed",
        "Fault: times the link could not recover and went down",
    ),
    counter("ib.receive_errors", "{error}", "rankscope.ib.fault.receive", "Fault: packets received damaged"),
    counter(
        "ib.remote_physical_errors",
        "{error}",
        "rankscope.ib.fault.remote_physical",
        "Fault: packets received that a switch before had marked damaged",
    ),
    counter(
        "ib.local_link_integrity_errors",
        "{error}",
        "rankscope.ib.fault.integrity",
        "Fault: times the rate of local physical errors went over its threshold",
    ),
    counter(
        "ib.buffer_overrun_errors",
        "{error}",
        "rankscope.ib.fault.overruns",
        "Fault: times the receive buffer overflowed for long",
    ),
    counter(
        "ib.out_of_sequence",
        "{packet}",
        "rankscope.ib.fault.out_of_sequence",
        "Fault: packets received out of order: some were lost on the way",
    ),
    counter(
        "ib.packet_sequence_errors",
        "{error}",
        "rankscope.ib.fault.packet_sequence",
        "Fault: negative acknowledgements received for packets the peer missed",
    ),
    counter(
        "ib.ack_timeouts",
        "{event}",
        "rankscope.ib.fault.ack_timeouts",
        "Fault: times an acknowledgement did not come in time",
    ),
    counter(
        "ib.retries_exceeded",
        "{error}",
        "rankscope.ib.fault.retries_exceeded",
        "Fault: connections that gave up sending again",
    ),
    counter(
        "ib.retransmitted_packets",
        "{packet}",
        "rankscope.ib.fault.retransmitted",
        "Fault: packets sent again (Elastic Fabric Adapters)",
    ),
    counter(
        "ib.icrc_errors",
        "{error}",
        "rankscope.ib.fault.icrc",
        "Fault: RoCE packets received with a wrong checksum",
    ),
    counter(
        "ib.transmit_wait_ticks",
        "{tick}",
        "rankscope.ib.congestion.transmit_wait",
        "Congestion: ticks in which the port had data to send and no credit",
    ),
    counter(
        "ib.transmit_discards",
        "{packet}",
        "rankscope.ib.congestion.transmit_discards",
        "Congestion: packets given up because they could not be sent for long, or the port was down",
    ),
    counter(
        "ib.ecn_marked_packets",
        "{packet}",
        "rankscope.ib.congestion.ecn_marked",
        "Congestion: RoCE packets received that a switch marked",
    ),
    counter(
        "ib.cnps_sent",
        "{packet}",
        "rankscope.ib.congestion.cnp_sent",
        "Congestion: notifications sent to peers that send too fast",
    ),
    counter(
        "ib.cnps_handled",
        "{packet}",
        "rankscope.ib.congestion.cnp_handled",
        "Congestion: notifications received that slowed this port down",
    ),
    counter(
        "ib.out_of_buffer",
        "{packet}",
        "rankscope.ib.receiver.out_of_buffer",
        "Slow receiver: packets dropped because no receive was posted",
    ),
    counter(
        "ib.rnr_naks",
        "{packet}",
        "rankscope.ib.receiver.rnr_naks",
        "Slow receiver: times a peer said that it was not ready to receive",
    ),
)

#: By PCI address ("0000:1b:00.0").
PCIE_METRICS = (
    counter(
        "pcie.correctable_errors",
        "{error}",
        "rankscope.pcie.correctable",
        "Errors of a PCIe device that hardware corrected",
    ),
    counter(
        "pcie.nonfatal_errors",
        "{error}",
        "rankscope.pcie.nonfatal",
        "Errors of a PCIe device that lost a transaction",
    ),
    counter("pcie.fatal_errors", "{error}", "rankscope.pcie.fatal", "Errors of a PCIe device that broke its link"),
    gauge("pcie.link_gt_per_second", "GT/s", "rankscope.pcie.link.speed", "Speed of a device's link now"),
    gauge(
        "pcie.link_gt_per_second_max",
        "GT/s",
        "rankscope.pcie.link.speed.max",
        "Speed the device's link is made for",
    ),
    gauge("pcie.link_lanes", "{lane}", "rankscope.pcie.link.lanes", "Lanes of a device's link now"),
    gauge("pcie.link_lanes_max", "{lane}", "rankscope.pcie.link.lanes.max", "Lanes the device's link is made for"),
)
