"""Every metric of a host's processors and memory, of control groups, of processes, and of the agent itself."""

from __future__ import annotations

from rankscope.metric import counter, gauge

#: Of the whole host; `numa.*` by node ("node0"), `edac.*` by memory controller ("mc0").
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
    gauge("host.threads_blocked", "{thread}", "rankscope.host.blocked", "Threads blocked on I/O now"),
    counter("host.context_switches", "{switch}", "rankscope.host.context_switches", "Context switches of all cores"),
    gauge("host.cpu_frequency_mhz", "MHz", "rankscope.host.cpu.frequency", "Mean frequency of the cores now"),
    gauge(
        "host.cpu_frequency_min_mhz",
        "MHz",
        "rankscope.host.cpu.frequency.lowest",
        "Frequency of the slowest core now",
    ),
    gauge(
        "host.cpu_frequency_limit_mhz",
        "MHz",
        "rankscope.host.cpu.frequency.limit",
        "Highest frequency the configuration lets the most restricted core run at",
    ),
    gauge(
        "host.cpu_frequency_max_mhz",
        "MHz",
        "rankscope.host.cpu.frequency.max",
        "Highest frequency the fastest core can run at",
    ),
    gauge(
        "host.cpu_governor_performance_ratio",
        "1",
        "rankscope.host.cpu.governor.performance",
        "Share of the cores under the performance governor",
    ),
    counter(
        "host.cpu_core_throttles",
        "{event}",
        "rankscope.host.cpu.throttle.core.events",
        "Times a core was slowed down because it was too hot, all cores",
    ),
    counter(
        "host.cpu_core_throttled_ns",
        "ns",
        "rankscope.host.cpu.throttle.core.time",
        "Time cores were slowed down by heat, summed over cores",
    ),
    counter(
        "host.cpu_package_throttles",
        "{event}",
        "rankscope.host.cpu.throttle.package.events",
        "Times a package was slowed down because it was too hot, all packages",
    ),
    counter(
        "host.cpu_package_throttled_ns",
        "ns",
        "rankscope.host.cpu.throttle.package.time",
        "Time packages were slowed down by heat, summed over packages",
    ),
    gauge(
        "host.memory_available_bytes",
        "By",
        "rankscope.host.memory.available",
        "Memory that could be given out without swapping",
    ),
    gauge("host.memory_total_bytes", "By", "rankscope.host.memory.total", "Memory there is"),
    gauge(
        "host.memory_dirty_bytes",
        "By",
        "rankscope.host.memory.dirty",
        "Page cache that waits to be written to storage",
    ),
    gauge(
        "host.memory_writeback_bytes",
        "By",
        "rankscope.host.memory.writeback",
        "Page cache being written to storage",
    ),
    counter("host.major_faults", "{fault}", "rankscope.host.major_faults", "Page faults that needed I/O"),
    counter("host.swap_in_pages", "{page}", "rankscope.host.swap.in", "Pages swapped in"),
    counter("host.swap_out_pages", "{page}", "rankscope.host.swap.out", "Pages swapped out"),
    counter(
        "host.refaulted_pages",
        "{page}",
        "rankscope.host.refaults",
        "Pages of files read again soon after they were evicted from the page cache",
    ),
    counter(
        "host.reclaim_stalls",
        "{event}",
        "rankscope.host.reclaim_stalls",
        "Times an allocation had to free memory itself first",
    ),
    counter("host.oom_kills", "{process}", "rankscope.host.oom_kills", "Processes killed for memory"),
    counter(
        "host.numa_hint_faults",
        "{fault}",
        "rankscope.host.numa.hint_faults",
        "Page faults taken by automatic NUMA balancing",
    ),
    counter(
        "host.numa_hint_faults_local",
        "{fault}",
        "rankscope.host.numa.hint_faults.local",
        "Those of them whose page was on the thread's own node",
    ),
    counter(
        "host.numa_migrated_pages",
        "{page}",
        "rankscope.host.numa.migrated",
        "Pages moved between nodes by automatic NUMA balancing",
    ),
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
    gauge("numa.memory_total_bytes", "By", "rankscope.numa.memory.total", "Memory of a NUMA node"),
    gauge("numa.memory_free_bytes", "By", "rankscope.numa.memory.free", "Unused memory of a NUMA node"),
    counter("numa.local_pages", "{page}", "rankscope.numa.local", "Pages given out on a node to tasks that ran on it"),
    counter(
        "numa.remote_pages",
        "{page}",
        "rankscope.numa.remote",
        "Pages given out on a node to tasks that ran on another",
    ),
    counter(
        "numa.missed_pages",
        "{page}",
        "rankscope.numa.missed",
        "Pages given out on a node because the one that was wanted had none left",
    ),
    counter(
        "edac.corrected_errors",
        "{error}",
        "rankscope.edac.corrected",
        "Errors of host memory that were corrected",
    ),
    counter(
        "edac.uncorrected_errors",
        "{error}",
        "rankscope.edac.uncorrected",
        "Errors of host memory that could not be corrected",
    ),
)

#: By path of the control group of a rank.
CGROUP_METRICS = (
    counter("cgroup.cpu_ns", "ns", "rankscope.cgroup.cpu", "CPU time of a rank's control group"),
    counter(
        "cgroup.cpu_periods",
        "{period}",
        "rankscope.cgroup.cpu.periods",
        "Enforcement periods of the CPU quota in which the group ran",
    ),
    counter(
        "cgroup.cpu_throttled_periods",
        "{period}",
        "rankscope.cgroup.cpu.throttled.periods",
        "Those of them in which the group used up its quota and was stopped",
    ),
    counter(
        "cgroup.cpu_throttled_ns",
        "ns",
        "rankscope.cgroup.cpu.throttled.time",
        "Time the group's threads were stopped by its CPU quota, summed over cores",
    ),
    gauge("cgroup.cpu_limit", "{cpu}", "rankscope.cgroup.cpu.limit", "Cores the CPU quota amounts to"),
    gauge("cgroup.memory_bytes", "By", "rankscope.cgroup.memory", "Memory the group uses, its page cache included"),
    gauge("cgroup.memory_limit_bytes", "By", "rankscope.cgroup.memory.limit", "Memory the group may use"),
    gauge("cgroup.memory_file_bytes", "By", "rankscope.cgroup.memory.file", "Page cache in the group's memory"),
    counter(
        "cgroup.memory_limit_hits",
        "{event}",
        "rankscope.cgroup.memory.limit_hits",
        "Times the group's memory was about to go over its limit",
    ),
    counter("cgroup.oom_kills", "{process}", "rankscope.cgroup.oom_kills", "Processes of the group killed for memory"),
    counter(
        "cgroup.major_faults",
        "{fault}",
        "rankscope.cgroup.major_faults",
        "Page faults of the group that needed I/O",
    ),
    counter(
        "cgroup.refaulted_pages",
        "{page}",
        "rankscope.cgroup.refaults",
        "Pages of files the group read again soon after they were evicted",
    ),
    counter(
        "cgroup.pressure_cpu_some_ns",
        "ns",
        "rankscope.cgroup.pressure.cpu.some",
        "Time in which some task of the group waited for a core",
    ),
    counter(
        "cgroup.pressure_cpu_full_ns",
        "ns",
        "rankscope.cgroup.pressure.cpu.full",
        "Time in which every task of the group waited for a core",
    ),
    counter(
        "cgroup.pressure_memory_some_ns",
        "ns",
        "rankscope.cgroup.pressure.memory.some",
        "Time in which some task of the group waited for memory",
    ),
    counter(
        "cgroup.pressure_memory_full_ns",
        "ns",
        "rankscope.cgroup.pressure.memory.full",
        "Time in which every task of the group waited for memory",
    ),
    counter(
        "cgroup.pressure_io_some_ns",
        "ns",
        "rankscope.cgroup.pressure.io.some",
        "Time in which some task of the group waited for I/O",
    ),
    counter(
        "cgroup.pressure_io_full_ns",
        "ns",
        "rankscope.cgroup.pressure.io.full",
        "Time in which every task of the group waited for I/O",
    ),
)

#: By rank ("rank:3").
PROCESS_METRICS = (
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
    counter(
        "process.voluntary_switches",
        "{switch}",
        "rankscope.process.voluntary_switches",
        "Times the rank's main thread gave up its core to wait",
    ),
    gauge("process.cpus_allowed", "{cpu}", "rankscope.process.cpus_allowed", "Cores the rank's main thread may run on"),
    gauge(
        "process.numa_node",
        "1",
        "rankscope.process.numa_node",
        "NUMA node of all cores the rank's main thread may run on; absent where they span several",
    ),
)

AGENT_METRICS = (
    gauge("agent.cpu_ratio", "1", "rankscope.agent.cpu", "Share of one core used by the agent and its children"),
    gauge("agent.pss_bytes", "By", "rankscope.agent.memory", "Proportional memory of the agent and its children"),
    gauge("agent.probe_ns", "ns", "rankscope.agent.probe.duration", "Longest read of a group of a probe lately"),
    gauge("agent.probe_cpu_ratio", "1", "rankscope.agent.probe.cpu", "Share of one core used by a group of a probe"),
    counter(
        "agent.probe_driver_ns",
        "ns",
        "rankscope.agent.probe.driver",
        "Time that a group's calls into a driver took by its own account (NVML: latencyUsec)",
    ),
    gauge(
        "agent.series_left_out",
        "{series}",
        "rankscope.agent.series_left_out",
        "Series that are not exported because this host has too many",
    ),
)
