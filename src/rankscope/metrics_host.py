"""Every metric of a host, of its processes, and of the agent itself."""

from __future__ import annotations

from rankscope.metric import counter, gauge

HOST_METRICS = (
    counter(
        "host.cpu_busy_ns",
        "ns",
        "rankscope.host.cpu.busy",
        "CPU time spent by all cores outside idle and I/O wait",
    ),
    counter("host.cpu_iowait_ns", "ns", "rankscope.host.cpu.iowait", "CPU time idle with I/O outstanding"),
    counter("host.cpu_steal_ns", "ns", "rankscope.host.cpu.steal", "CPU time taken by the hypervisor"),
    gauge("host.cpu_count", "{cpu}", "rankscope.host.cpu.count", "Cores online"),
    gauge("host.load_runnable", "{thread}", "rankscope.host.runnable", "Threads runnable now"),
    gauge(
        "host.memory_available_bytes",
        "By",
        "rankscope.host.memory.available",
        "Memory that could be given out without swapping",
    ),
    gauge("host.memory_total_bytes", "By", "rankscope.host.memory.total", "Memory there is"),
    counter("host.major_faults", "{fault}", "rankscope.host.major_faults", "Page faults that needed I/O"),
    counter("host.swap_in_pages", "{page}", "rankscope.host.swap.in", "Pages swapped in"),
    counter(
        "host.pressure_cpu_some_ns",
        "ns",
        "rankscope.host.pressure.cpu.some",
        "Time in which some task waited for a core",
    ),
    counter(
        "host.pressure_memory_some_ns",
        "ns",
        "rankscope.host.pressure.memory.some",
        "Time in which some task waited for memory",
    ),
    counter(
        "host.pressure_memory_full_ns",
        "ns",
        "rankscope.host.pressure.memory.full",
        "Time in which every task waited for memory",
    ),
    counter(
        "host.pressure_io_some_ns",
        "ns",
        "rankscope.host.pressure.io.some",
        "Time in which some task waited for I/O",
    ),
    counter(
        "host.pressure_io_full_ns",
        "ns",
        "rankscope.host.pressure.io.full",
        "Time in which every task waited for I/O",
    ),
    counter("disk.read_bytes", "By", "rankscope.disk.read", "Bytes read"),
    counter("disk.write_bytes", "By", "rankscope.disk.write", "Bytes written"),
    counter("disk.reads", "{operation}", "rankscope.disk.reads", "Reads completed"),
    counter("disk.writes", "{operation}", "rankscope.disk.writes", "Writes completed"),
    counter("disk.read_ns", "ns", "rankscope.disk.read.time", "Time spent by all reads"),
    counter("disk.write_ns", "ns", "rankscope.disk.write.time", "Time spent by all writes"),
    counter("disk.busy_ns", "ns", "rankscope.disk.busy", "Time with I/O in flight"),
    counter("net.rx_bytes", "By", "rankscope.net.rx", "Bytes received"),
    counter("net.tx_bytes", "By", "rankscope.net.tx", "Bytes sent"),
    counter("net.errors", "{error}", "rankscope.net.errors", "Packets lost to errors, both ways"),
    counter("net.drops", "{packet}", "rankscope.net.drops", "Packets dropped, both ways"),
    counter("process.cpu_ns", "ns", "rankscope.process.cpu", "CPU time of the rank's process, all threads"),
    counter(
        "process.runqueue_ns",
        "ns",
        "rankscope.process.runqueue",
        "Time the rank's main thread was runnable but waited for a core",
    ),
    counter(
        "process.read_bytes",
        "By",
        "rankscope.process.read",
        "Bytes the rank's process and its workers fetched from storage",
    ),
    counter(
        "process.write_bytes",
        "By",
        "rankscope.process.write",
        "Bytes the rank's process and its workers sent to storage",
    ),
    counter(
        "process.blkio_ns",
        "ns",
        "rankscope.process.blkio",
        "Time the rank's process and its workers were blocked on storage",
    ),
    counter(
        "process.worker_cpu_ns",
        "ns",
        "rankscope.process.worker.cpu",
        "CPU time of the rank's child processes (loader workers)",
    ),
    gauge(
        "process.workers_blocked",
        "{process}",
        "rankscope.process.workers.blocked",
        "Child processes in uninterruptible sleep (state D)",
    ),
    counter(
        "process.major_faults",
        "{fault}",
        "rankscope.process.major_faults",
        "Page faults of the rank's process that needed I/O",
    ),
    counter(
        "process.involuntary_switches",
        "{switch}",
        "rankscope.process.involuntary_switches",
        "Times the rank's main thread was preempted",
    ),
    gauge("process.resident_bytes", "By", "rankscope.process.resident", "Resident memory of the rank's process"),
)

AGENT_METRICS = (
    gauge("agent.cpu_ratio", "1", "rankscope.agent.cpu", "Share of one core used by the agent and its children"),
    gauge("agent.pss_bytes", "By", "rankscope.agent.memory", "Proportional memory of the agent and its children"),
    gauge("agent.probe_ns", "ns", "rankscope.agent.probe.duration", "How long the last read of a probe took"),
)
