"""Where a process runs, read from the kernel's files; and rings of containers with a /dev/shm of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.agent.containers import ContainerDirectories
from rankscope.agent.places import (
    Place,
    find_process,
    parse_cgroup,
    parse_environment,
    parse_namespace_pids,
    place_of,
    sees_every_process,
)
from rankscope.agent.processes import process_stat
from rankscope.clock import SystemClock
from rankscope.ring import SUFFIX, RingReader

ID = "3f" * 32
POD = "0b2d5a6c-1234-4abc-9def-0123456789ab"
_POD = POD.replace("-", "_")
FAKE_RANK = Path(__file__).with_name("fake_rank.py")

#: What each writes, after the names in its own source (agent/places.py names them).
CGROUPS = {
    "docker, v1": (f"12:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}", Place(ID, "docker")),
    "docker with systemd, v2": (f"0::/system.slice/docker-{ID}.scope", Place(ID, "docker")),
    "podman, rootless": (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
        Place(ID, "podman"),
    ),
    "nerdctl": (f"0::/system.slice/nerdctl-{ID}.scope", Place(ID, "containerd")),
    "kubelet with systemd, containerd": (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_POD}.slice/cri-containerd-{ID}.scope",
        Place(ID, "containerd", POD),
    ),
    "kubelet with systemd, guaranteed, cri-o": (
        f"0::/kubepods.slice/kubepods-pod{_POD}.slice/crio-{ID}.scope/container",
        Place(ID, "cri-o", POD),
    ),
    "kubelet with cgroupfs, v1": (f"4:cpu,cpuacct:/kubepods/besteffort/pod{POD}/{ID}", Place(ID, None, POD)),
    "kubelet in a node container": (
        f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{_POD}.slice/cri-containerd-{ID}.scope",
        Place(ID, "containerd", POD),
    ),
    "static pod": (f"0::/kubepods/burstable/pod{'ab' * 16}/{ID}", Place(ID, None, "ab" * 16)),
    "seen from another cgroup namespace": (
        f"0::/../../kubepods-burstable-pod{_POD}.slice/cri-containerd-{ID}.scope",
        Place(ID, "containerd", POD),
    ),
    "Slurm, v1": (
        "9:devices:/slurm/uid_1000/job_4711/step_0/task_3\n3:cpuset:/slurm/uid_1000/job_4711/step_0",
        Place(slurm_job="4711", slurm_step="0", slurm_task="3"),
    ),
    "Slurm, v2": (
        "0::/system.slice/slurmstepd.scope/job_4711/step_batch/user/task_0",
        Place(slurm_job="4711", slurm_step="batch", slurm_task="0"),
    ),
    "Slurm, v2, several daemons a host": (
        "0::/system.slice/node7_slurmstepd.scope/job_12/step_extern/user",
        Place(slurm_job="12", slurm_step="extern"),
    ),
    "none": ("0::/user.slice/user-0.slice/session-1.scope", Place()),
    "a cgroup namespace of its own": ("0::/", Place()),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_a_cgroup_names_the_place(name: str) -> None:
    """Every runtime and launcher by the path it makes."""
    text, place = CGROUPS[name]
    assert parse_cgroup(text) == place


@given(st.text(max_size=300))
def test_no_text_breaks_the_parsers(text: str) -> None:
    """Whatever a file holds, there is an answer."""
    assert isinstance(parse_cgroup(text), Place)
    assert isinstance(parse_environment(text.encode("utf-8", "replace")), dict)
    assert all(number >= 0 for number in parse_namespace_pids(text))


def test_the_environment_gives_only_what_names_the_place() -> None:
    """Five variables are looked at; a secret beside them is not taken."""
    data = (
        b"SLURM_JOB_ID=4711\0AWS_SECRET_ACCESS_KEY=hush\0POD_NAME=train-0\0SLURM_STEP_ID=\0POD_NAMESPACE=\x1b[2J\0junk"
    )
    assert parse_environment(data) == {"slurm_job": "4711", "pod_name": "train-0"}


def test_numbers_by_namespace() -> None:
    """From the reader's namespace inwards; an old kernel says nothing."""
    assert parse_namespace_pids("Name:\tx\nNSpid:\t4711\t23\t7\n") == (4711, 23, 7)
    assert parse_namespace_pids("NSpid:\t4711\tx\n") == ()
    assert parse_namespace_pids("Name:\tx\n") == ()


def test_this_process_has_a_place(tmp_path: Path) -> None:
    """Of a live process, and of a tree that is none."""
    assert isinstance(place_of(os.getpid()), Place)
    assert place_of(1, tmp_path) == Place()
    assert sees_every_process(tmp_path) is False


def test_a_process_is_known_by_its_start_and_not_by_its_number_alone() -> None:
    """The same number with another start time is another process."""
    stat = process_stat(os.getpid())
    assert stat is not None
    assert find_process(os.getpid(), stat.start_ticks) == os.getpid()
    assert find_process(os.getpid(), stat.start_ticks + 1) is None


@pytest.fixture(name="container")
def start_container(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A rank in PID and mount namespaces of its own, with a /dev/shm that nobody else sees."""
    unshare = shutil.which("unshare")
    command = [str(unshare), "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if unshare is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no new namespaces here (unshare is missing or forbidden)")
    inner = f"mount -t tmpfs tmpfs /dev/shm && exec {sys.executable} {FAKE_RANK} steps=1000000 then=spin"
    environ = os.environ | {"RANKSCOPE_DIR": "/dev/shm/rankscope-private", "RANKSCOPE_JOB": "boxed"}
    process = subprocess.Popen([*command, "sh", "-c", inner], env=environ)
    yield process
    process.kill()
    process.wait()


def test_a_ring_in_a_private_shm_is_found_and_its_process_known(
    container: subprocess.Popen[bytes], wait_until: Callable[..., None]
) -> None:
    """Through /proc/PID/root the ring is read as any other, and the number it announces is turned into ours."""
    private = Path("/dev/shm/rankscope-private")
    directories = ContainerDirectories(private, SystemClock())
    found: list[Path] = []

    def look() -> bool:
        directories._due_ns = 0
        found[:] = [path for place in directories.paths() for path in place.glob(f"*{SUFFIX}")]
        return bool(found)

    wait_until(look)
    assert not private.exists()
    reader = RingReader(found[0])
    identity = reader.header.identity
    wait_until(lambda: reader.read().records)
    reader.close()
    pid = find_process(identity.pid, identity.start_ticks)
    assert pid is not None
    assert pid != identity.pid
    assert b"fake_rank.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        look()
    assert len(os.listdir("/proc/self/fd")) == open_before
    directories.close()
    assert directories._held == {}


def test_a_link_that_a_container_made_is_not_followed(tmp_path: Path) -> None:
    """A directory that is a link would lead a privileged agent out of the container."""
    root, secret = tmp_path / "proc/7/root/dev", tmp_path / "secret"
    root.mkdir(parents=True)
    secret.mkdir()
    (root / "shm").symlink_to(secret)
    directories = ContainerDirectories(Path("/dev/shm"), SystemClock(), tmp_path / "proc")
    assert directories._open(7) == -1
    (root / "shm").unlink()
    (root / "shm").mkdir()
    descriptor = directories._open(7)
    assert descriptor >= 0
    os.close(descriptor)


def test_the_node_agent_watches_a_rank_in_a_container(
    container: subprocess.Popen[bytes], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """Through the command: the job is found, the rank counted as alive, and its end told when its container ends."""
    from rankscope.agent.load import load_window

    (tmp_path / "agent.toml").write_text("[probes]\ndisabled = ['nvml']\n[rules]\nlive = false\n")
    environ = os.environ | {"RANKSCOPE_STATE": str(tmp_path), "RANKSCOPE_DIR": "/dev/shm/rankscope-private"}
    command = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "agent", "--once"]
    time.sleep(1.0)
    agent = subprocess.Popen([*command, "--config", str(tmp_path / "agent.toml")], env=environ)
    try:
        wait_until(lambda: any((tmp_path / "boxed").glob("*.db")))
        time.sleep(1.5)
        container.kill()
        assert agent.wait(60) == 0
    finally:
        agent.kill()
        agent.wait()
    window = load_window([next((tmp_path / "boxed").glob("*.db"))])
    assert len(window.ranks[0].steps) > 20
    assert [event.kind for event in window.events if event.kind.startswith("rank-")] == ["rank-attached", "rank-exited"]
