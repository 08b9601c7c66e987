"""What reading a large host costs: the share of a core that each group of each host probe takes at its steady period.

    .venv/bin/python benchmarks/host_probes.py

The host is a tree of files: 192 cores, 8 InfiniBand ports, 8 GPUs among 160 PCI devices, 10 NFS mounts, 2 Lustre mounts
with 100 targets, 8 ranks with 8 loader workers each in one group. Real /proc and /sys answer more slowly than files do
where the kernel has to ask a device or to walk a list: this is what the agent itself adds. CPU time, not wall time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from host_tree import HOSTS, probes, unpack  # noqa: E402 - behind the path to the tests

from rankscope.errors import ProbeError  # noqa: E402
from rankscope.probes.registry import FollowsRanks  # noqa: E402

READS = 30
CORES, PORTS, BRIDGES, GPUS, MOUNTS, TARGETS, RANKS, WORKERS = 192, 8, 144, 8, 10, 100, 8, 8


def copy(source: Path, target: Path) -> None:
    """Copy a directory's files."""
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


def grow(root: Path) -> None:
    """Make the host of el9-h100 a large one."""
    cpu, pci = root / "sys/devices/system/cpu", root / "sys/bus/pci/devices"
    for core in range(3, CORES):
        copy(cpu / "cpu0", cpu / f"cpu{core}")
        (cpu / f"cpu{core}/topology/core_id").write_text(f"{core}\n")
        copy(cpu / "cpufreq/policy0", cpu / f"cpufreq/policy{core}")
    for port in range(2, PORTS):
        copy(root / "sys/class/infiniband/mlx5_0", root / f"sys/class/infiniband/mlx5_{port}")
    for bridge in range(BRIDGES):
        copy(pci / "0000:16:02.0", pci / f"0000:{bridge:02x}:1f.0")
    for gpu in range(1, GPUS):
        copy(pci / "0000:1b:00.0", pci / f"0001:{gpu:02x}:00.0")
    stats = (root / "proc/100/mountstats").read_text()
    block = stats[stats.index("device nas-3") :].partition("\ndevice nas-3")[0]
    blocks = [
        block.replace("nas-3", f"nas-{n}").replace("/data mounted on /data", f"/data mounted on /d{n}")
        for n in range(MOUNTS)
    ]
    (root / "proc/100/mountstats").write_text("\n".join(blocks))
    lustre = root / "sys/kernel/debug/lustre"
    copy(lustre / "llite/scratch-ffff9a31c0b2d000", lustre / "llite/home-ffff9a31c0b2d001")
    for target in range(1, TARGETS):
        name = "osc/scratch-OST{:04x}-osc-ffff9a31c0b2d000"
        copy(lustre / name.format(0), lustre / name.format(target))
    for rank in range(1, RANKS):
        copy(root / "proc/100", root / f"proc/{1000 * rank}")
        copy(root / "proc/100/task/100", root / f"proc/{1000 * rank}/task/{1000 * rank}")
    for rank in range(RANKS):
        pid = 1000 * rank or 100
        children = [pid + 1 + worker for worker in range(WORKERS)]
        for child in children:
            copy(root / "proc/131", root / f"proc/{child}")
        (root / f"proc/{pid}/task/{pid}/children").write_text("".join(f"{child} " for child in children))


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        unpack((HOSTS / "el9-h100.tree").read_text(), root)
        grow(root)
        ranks = {rank: 1000 * rank or 100 for rank in range(RANKS)}
        print("| probe | group | a read | every | share of a core |")
        print("|---|---|---|---|---|")
        whole = 0.0
        for probe in probes(root):
            for group in probe.groups:
                taken = []
                for number in range(READS):
                    if isinstance(probe, FollowsRanks):
                        probe.set_ranks(ranks)
                    began = time.thread_time_ns()
                    try:
                        probe.read(group.name, 10**12 + number * group.steady_ns)
                    except ProbeError:
                        break
                    taken.append(time.thread_time_ns() - began)
                if not taken:
                    continue
                share = statistics.mean(taken[1:]) / group.steady_ns
                whole += share
                read = f"{statistics.mean(taken[1:]) / 1e3:.0f} us"
                print(f"| {probe.name} | {group.name} | {read} | {group.steady_ns / 1e9:g} s | {share:.4%} |")
            probe.close()
        print(f"| all | | | | {whole:.3%} |")


if __name__ == "__main__":
    main()
