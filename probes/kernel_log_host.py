"""What kernel log lines say about the host: memory, processors, buses, disks, networks, storage servers, processes.

Forms: Linux sources from 3.10 on (mm/oom_kill.c, kernel/hung_task.c, kernel/watchdog.c, drivers/pci/pcie/aer.c,
drivers/edac, arch/x86/kernel/cpu/mce, arch/x86/mm/fault.c, block/blk-core.c, net/sunrpc/clnt.c), Lustre 2.x.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rankscope.probes.kernel_log_record import Attributes, Notice, address, bounded, function_address
from rankscope.reading import Severity

_KILLED = re.compile(
    r"(?:(?P<scope>Memory cgroup out of memory|Out of memory)[^:]{0,60}: )?Killed process (?P<pid>\d{1,10}) "
    r"\((?P<process>.{1,64}?)\)(?:,| total-vm)(?:.*?anon-rss:(?P<anon>\d{1,15})kB)?"
)
_CONTEXT = re.compile(
    r"oom-kill:constraint=CONSTRAINT_(?P<constraint>[A-Z_]{1,24}),.*?"
    r"(?:oom_memcg=(?P<memcg>[^,]{1,400}),|global_oom,)task_memcg=(?P<task_memcg>[^,]{1,400}),"
    r"task=.{1,64},pid=(?P<pid>\d{1,10}),uid="
)
_SCOPES = {"NONE": "host", "MEMCG": "cgroup", "CPUSET": "cpuset", "MEMORY_POLICY": "policy"}
_BLOCKED = re.compile(
    r"task (?P<process>.{1,64}):(?P<pid>\d{1,10}) blocked(?: in I/O wait)? for more than (?P<seconds>\d{1,9}) seconds"
)
_SOFT = re.compile(
    r"BUG: soft lockup - CPU#(?P<cpu>\d{1,5}) stuck for (?P<seconds>\d{1,6})s! "
    r"\[(?P<process>.{1,64}):(?P<pid>\d{1,10})\]"
)
_HARD = re.compile(r"Watchdog detected hard LOCKUP on cpu (?P<cpu>\d{1,5})")
_RCU = re.compile(r"rcu: INFO: \w{1,32} (?:self-detected stall on CPU|detected (?:expedited )?stalls on CPUs/tasks)")
_SEGFAULT = re.compile(
    r"(?P<process>[^\s\[\]][^\[\]]{0,63})\[(?P<pid>\d{1,10})\]:? (?P<fault>segfault) at (?P<at>[0-9a-f]{1,16}) .*?"
    r"(?:in (?P<where>[^\[\s]{1,200})|\Z)"
)
_TRAP = re.compile(
    r"traps: (?P<process>[^\[\]]{1,64})\[(?P<pid>\d{1,10})\] (?:trap )?(?P<fault>[a-z][a-z ]{2,40}?)(?: fault)? ip:.*?"
    r"(?:in (?P<where>[^\[\s]{1,200})|\Z)"
)
_AER = re.compile(
    r"PCIe Bus Error: severity=(?P<severity>[A-Za-z]{1,16}(?: \([A-Za-z-]{1,16}\))?), type=(?P<layer>[A-Za-z ]{1,40}), "
    r"(?:id=[0-9a-f]{1,4})?\((?P<agent>[A-Za-z ]{1,40})\)"
)
_RECOVERY_FAILED = re.compile(r"AER: (?:.{0,40} )?device recovery failed")
_SLOT = re.compile(r"pciehp: Slot\((?P<slot>[^)]{1,32})\): (?P<what>Link Down|Link Up|Card not present|Card present)")
_EDAC = re.compile(
    r"EDAC (?P<controller>MC\d{1,3}): (?P<count>\d{1,9}) (?P<kind>CE|UE) .{0,120}?(?: on (?P<dimm>\S{1,80})|\Z| \()"
)
_MCE = re.compile(
    r"CPU (?P<cpu>\d{1,5}): Machine Check(?P<fatal> Exception)?: \S{1,18} Bank (?P<bank>\d{1,4}): "
    r"(?P<status>[0-9a-f]{1,16})"
)
_AMD_MCE = re.compile(
    r"CPU:(?P<cpu>\d{1,5}) \([0-9a-f:]{1,12}\) MC(?P<bank>\d{1,3})_STATUS\[[^\]]{0,120}\]: "
    r"(?P<status>0x[0-9a-f]{1,16})"
)
_GHES = re.compile(r"\[Hardware Error\]: event severity: (?P<severity>[a-z]{1,16})")
#: Bit 61 of IA32_MCi_STATUS (UC): not corrected (Intel SDM volume 3, chapter "Machine-Check Architecture").
_UNCORRECTED_BIT = 1 << 61
_HOT = re.compile(
    r"CPU(?P<cpu>\d{1,5}): (?P<scope>Core|Package) temperature (?:is )?above threshold, cpu clock (?:is )?throttled "
    r"\(total events = (?P<count>\d{1,18})\)"
)
_LINK = re.compile(
    r"[a-z0-9_]{2,20} (?P<where>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) (?P<interface>[A-Za-z0-9_.-]{1,32}): "
    r"(?:[a-z0-9_]{1,20}: [A-Za-z0-9_.-]{1,32} )?(?:NIC )?[Ll]ink (?:is )?(?P<state>[Uu]p|[Dd]own)"
)
_NFS = re.compile(
    r"nfs: server (?P<server>\S{1,255}) (?P<state>not responding, still trying|not responding, timed out|OK)"
)
_NFS_STATES = {"not responding, still trying": "silent", "not responding, timed out": "timed-out", "OK": "ok"}
_LUSTRE_LOST = re.compile(r"Connection to (?P<server>\S{1,128}) \(at [^)]{1,128}\) was lost")
_LUSTRE_BACK = re.compile(
    r"(?P<target>\S{1,128}): Connection restored to (?P<server>\S{1,128})(?: \(at (?P<at>[^)]{1,128})\))?"
)
_LUSTRE_EVICTED = re.compile(r"This client was evicted by (?P<server>[^\s;]{1,128})")
_DISK = re.compile(
    r"(?P<error>[A-Za-z][A-Za-z/ ]{0,30}error), dev (?P<disk>[A-Za-z0-9_!-]{1,32}), sector \d|"
    r"(?:Buffer I/O error on dev(?:ice)?) (?P<buffer>[A-Za-z0-9_!-]{1,32}),|"
    r"nvme (?P<nvme>nvme\d{1,4}): (?P<what>I/O .{0,80}timeout|controller is down.{0,60}|Device not ready.{0,60})"
)


def host_notice(text: str) -> Notice | None:
    """What a line about the host reports, or None."""
    for needle, read in _READERS:
        if needle in text and (found := read(text)) is not None:
            return found
    return None


def oom_context(text: str) -> tuple[int, Attributes] | None:
    """(process id, scope and control groups) of the line that precedes the one that names the killed process."""
    if "oom-kill:" not in text or (match := _CONTEXT.search(text)) is None:
        return None
    attributes: Attributes = {
        "scope": _SCOPES.get(match["constraint"], match["constraint"].lower()),
        "cgroup": match["memcg"],
        "task_cgroup": match["task_memcg"],
    }
    return int(match["pid"]), attributes


def _killed(text: str) -> Notice | None:
    if (match := _KILLED.search(text)) is None or (match["scope"] is None and "total-vm:" not in text):
        return None
    attributes: Attributes = {"pid": int(match["pid"]), "process": match["process"]}
    if match["scope"] is not None:
        attributes["scope"] = "cgroup" if match["scope"].startswith("Memory") else "host"
    if match["anon"] is not None:
        attributes["resident_bytes"] = int(match["anon"]) * 1024
    return Notice("oom-kill", Severity.WARNING, None, attributes)


def _blocked(text: str) -> Notice | None:
    if (match := _BLOCKED.search(text)) is None:
        return None
    attributes: Attributes = {"pid": int(match["pid"]), "process": match["process"], "seconds": int(match["seconds"])}
    return Notice("hung-task", Severity.WARNING, None, attributes)


def _lockup(text: str) -> Notice | None:
    if (soft := _SOFT.search(text)) is not None:
        attributes: Attributes = {"lockup": "soft", "cpu": int(soft["cpu"]), "seconds": int(soft["seconds"])}
        return Notice(
            "cpu-lockup", Severity.CRITICAL, None, attributes | {"pid": int(soft["pid"]), "process": soft["process"]}
        )
    if (hard := _HARD.search(text)) is not None:
        return Notice("cpu-lockup", Severity.CRITICAL, None, {"lockup": "hard", "cpu": int(hard["cpu"])})
    return Notice("cpu-lockup", Severity.WARNING, None, {"lockup": "rcu"}) if _RCU.search(text) else None


def _process_fault(text: str) -> Notice | None:
    if (match := _SEGFAULT.search(text) or _TRAP.search(text)) is None:
        return None
    attributes: Attributes = {
        "pid": int(match["pid"]),
        "process": bounded(match["process"]),
        "fault": match["fault"],
        "where": match["where"],
    }
    return Notice("process-fault", Severity.WARNING, None, attributes)


def _pcie_error(text: str) -> Notice | None:
    if (match := _AER.search(text)) is None:
        if _RECOVERY_FAILED.search(text) is None:
            return None
        return Notice("pcie-error", Severity.CRITICAL, function_address(text), {"severity": "fatal", "recovered": 0})
    word = match["severity"].lower()
    severity = "nonfatal" if "non" in word else "fatal" if "fatal" in word else "correctable"
    attributes: Attributes = {"severity": severity, "layer": match["layer"], "agent": match["agent"]}
    bad = Severity.INFO if severity == "correctable" else Severity.WARNING
    return Notice("pcie-error", Severity.CRITICAL if severity == "fatal" else bad, function_address(text), attributes)


def _pcie_link(text: str) -> Notice | None:
    if (match := _SLOT.search(text)) is None:
        return None
    down = match["what"] in ("Link Down", "Card not present")
    attributes: Attributes = {"slot": match["slot"], "state": "down" if down else "up"}
    return Notice("pcie-link", Severity.CRITICAL if down else Severity.INFO, function_address(text), attributes)


def _edac(text: str) -> Notice | None:
    if (match := _EDAC.search(text)) is None:
        return None
    corrected = match["kind"] == "CE"
    attributes: Attributes = {
        "severity": "corrected" if corrected else "uncorrected",
        "controller": match["controller"].lower(),
        "count": int(match["count"]),
        "dimm": match["dimm"],
    }
    return Notice("memory-error", Severity.WARNING if corrected else Severity.CRITICAL, None, attributes)


def _machine_check(text: str) -> Notice | None:
    if (firmware := _GHES.search(text)) is not None:
        word = firmware["severity"]
        if word in ("info", "informational"):
            return None
        severity = {"corrected": "corrected", "fatal": "fatal"}.get(word, "uncorrected")
        return Notice("machine-check", _badness(severity), None, {"severity": severity})
    if (match := _MCE.search(text)) is not None:
        uncorrected = int(match["status"], 16) & _UNCORRECTED_BIT
        severity = "fatal" if match["fatal"] and uncorrected else "uncorrected" if uncorrected else "corrected"
    elif (match := _AMD_MCE.search(text)) is not None:
        uncorrected = int(match["status"], 16) & _UNCORRECTED_BIT
        severity = "uncorrected" if uncorrected else "corrected"
    else:
        return None
    status = match["status"]
    attributes: Attributes = {
        "severity": severity,
        "cpu": int(match["cpu"]),
        "bank": int(match["bank"]),
        "status": status if status.startswith("0x") else f"0x{status}",
    }
    return Notice("machine-check", _badness(severity), None, attributes)


def _badness(severity: str) -> Severity:
    return Severity.WARNING if severity == "corrected" else Severity.CRITICAL


def _hot(text: str) -> Notice | None:
    if (match := _HOT.search(text)) is None:
        return None
    attributes: Attributes = {"cpu": int(match["cpu"]), "scope": match["scope"].lower(), "count": int(match["count"])}
    return Notice("cpu-throttled", Severity.WARNING, None, attributes)


def _network_link(text: str) -> Notice | None:
    if (match := _LINK.search(text)) is None:
        return None
    state = match["state"].lower()
    attributes: Attributes = {"state": state, "interface": match["interface"], "source": "kernel-log"}
    return Notice(
        "network-link", Severity.WARNING if state == "down" else Severity.INFO, address(match["where"]), attributes
    )


def _nfs(text: str) -> Notice | None:
    if (match := _NFS.search(text)) is None:
        return None
    state = _NFS_STATES[match["state"]]
    attributes: Attributes = {"filesystem": "nfs", "server": match["server"], "state": state}
    return Notice("storage-server", Severity.INFO if state == "ok" else Severity.WARNING, None, attributes)


def _lustre(text: str) -> Notice | None:
    for pattern, state in ((_LUSTRE_LOST, "lost"), (_LUSTRE_EVICTED, "lost"), (_LUSTRE_BACK, "ok")):
        if (match := pattern.search(text)) is not None:
            attributes: Attributes = {"filesystem": "lustre", "server": match["server"], "state": state}
            return Notice("storage-server", Severity.INFO if state == "ok" else Severity.WARNING, None, attributes)
    return None


def _disk(text: str) -> Notice | None:
    if (match := _DISK.search(text)) is None:
        return None
    disk = match["disk"] or match["buffer"] or match["nvme"]
    error = bounded(match["error"] or match["what"]) or "buffer I/O error"
    return Notice("disk-error", Severity.WARNING, None, {"disk": disk, "error": error})


#: What a line must hold before its pattern is tried: nearly every line of a log says nothing.
_READERS: tuple[tuple[str, Callable[[str], Notice | None]], ...] = (
    ("Killed process", _killed),
    ("for more than", _blocked),
    ("lockup", _lockup),
    ("LOCKUP", _lockup),
    ("rcu: INFO", _lockup),
    ("segfault at", _process_fault),
    ("traps: ", _process_fault),
    ("PCIe Bus Error", _pcie_error),
    ("recovery failed", _pcie_error),
    ("pciehp: Slot", _pcie_link),
    ("EDAC MC", _edac),
    ("Machine Check", _machine_check),
    ("_STATUS[", _machine_check),
    ("event severity: ", _machine_check),
    ("temperature ", _hot),
    ("ink ", _network_link),
    ("nfs: server ", _nfs),
    ("Connection ", _lustre),
    ("evicted by", _lustre),
    ("rror", _disk),
    ("nvme", _disk),
)
