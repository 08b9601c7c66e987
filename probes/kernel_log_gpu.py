"""What kernel log lines say about NVIDIA's GPUs, switches and links.

The forms of Xid lines are those the open GPU kernel modules print (595.45) and older ones found in published reports;
the registers of Xid 74 and of 144 to 150 are as NVIDIA's Xid catalogue describes them.
"""

from __future__ import annotations

import re

from rankscope.probes.kernel_log_record import PCI, Attributes, Notice, address, bounded, joined
from rankscope.reading import Severity

_XID = re.compile(
    r"NVRM:(?: GPU ?\d{1,3}:?)? Xid \((?:PCI:)?(?P<where>[^)]*)\): (?P<number>\d{1,9})(?:, (?P<rest>.*))?", re.DOTALL
)
_PROCESS = re.compile(
    r"pid=(?:'?<unknown>'?|(?P<pid>\d{1,10}))(?:, name=(?P<name>.*?))?(?:, (?P<message>.*))?\Z", re.DOTALL
)
_PREVIOUS = re.compile(r"caused by previous Xid (\d{1,9})")
_INSTANCE = re.compile(r"GPU-I:(\d{1,4})(?: GPU-CI:(\d{1,4}))?")
_CHANNEL = re.compile(r"\b(?:Ch|Channel|channel|Channel ID|CH) (?:ID )?(?:0x)?([0-9a-fA-F]{1,8})\b")
# "Graphics SM Warp Exception on (GPC 0, TPC 1, SM 0): ...", and where an address faulted.
_UNIT = re.compile(r"\((GPC \d{1,3}, TPC \d{1,3}(?:, SM \d{1,3})?)\)")
_FAULT = re.compile(r"faulted @ (0x[0-9a-fA-F_]{1,24})")
# Xid 144 to 150: UNIT (Nonfatal|Fatal) XCn in Link nn (intrInfo errorStatus ...).
_LINK5 = re.compile(
    r"(?P<unit>[A-Z][A-Z0-9_]{1,31}) (?P<severity>Nonfatal|Fatal|Link Fatal) XC\d{1,3} i(?P<injected>\d{1,3}) "
    r"Link (?P<link>-?\d{1,5}) \((?P<info>0x[0-9a-fA-F]{1,8}) (?P<status>0x[0-9a-fA-F]{1,8})"
)
# Xid 74: "NVLink: fatal error detected on link 6(0x10000, 0x0, ...)".
_LINK4 = re.compile(
    r"(?i:nvlink): (?:(?P<severity>fatal|non-?fatal) )?error detected on link (?P<link>\d{1,3})"
    r"(?:\((?P<registers>[0-9a-fx, ]{3,120})\))?"
)
_RECOVERY = re.compile(
    r"recovery action changed from 0x(?P<before>[0-9a-fA-F]{1,4}) \([^)]*\) to 0x(?P<now>[0-9a-fA-F]{1,4}) "
    r"\((?P<text>[^)]*)\)"
)
_RESET = re.compile(r"\bRST: (Yes|No), D-RST: (Yes|No)")
_SWITCH = re.compile(
    r"nvidia-(?P<switch>nvswitch\d{1,3}):? SXid \((?:PCI:)?(?P<where>[^)]*)\): (?P<number>\d{1,9}), "
    r"(?:(?P<fatal>Fatal|Non-fatal), )?(?:Link (?P<link>\d{1,3}) )?(?P<message>.*)",
    re.DOTALL,
)
# Lines that follow a switch's error: its registers, and where in the switch it was.
_SWITCH_MORE = ("Data {", "Severity ")
_UUID = re.compile(rf"NVRM: GPU at (?:PCI:)?{PCI}: (?P<uuid>GPU-[0-9a-fA-F-]{{36}})(?![0-9a-fA-F-])")
_INIT = re.compile(r"NVRM: GPU (?:PCI:)?(?P<where>[0-9a-fA-F:.]{7,20}): RmInitAdapter failed! \((?P<code>[^)]{0,40})\)")
_LINK_LINE = re.compile(r"(?:NVRM: |nvidia-nvlink: ?)(?P<message>.*nvlink.*)", re.IGNORECASE | re.DOTALL)
_TROUBLE = re.compile(r"fail|error|fault|down|degraded|unable", re.IGNORECASE)
_LINK_NUMBER = re.compile(r"\blink ?#?(\d{1,3})\b", re.IGNORECASE)


def gpu_notice(text: str) -> Notice | None:
    """What a line of NVIDIA's drivers reports, or None."""
    if "Xid" in text:
        return _switch_error(text) or _xid(text)
    if "NVRM" in text and "fallen off the bus" in text:
        return Notice("gpu-fallen-off", Severity.CRITICAL, address(text))
    if (failed := _INIT.search(text)) is not None:
        return Notice("gpu-init-failed", Severity.CRITICAL, address(failed["where"]), {"code": bounded(failed["code"])})
    if (link := _LINK_LINE.search(text)) is not None and _TROUBLE.search(text) is not None:
        number = _LINK_NUMBER.search(text)
        attributes: Attributes = {
            "link": None if number is None else int(number[1]),
            "message": bounded(link["message"]),
        }
        return Notice("nvlink-error", Severity.WARNING, address(text), attributes)
    return None


def uuid_announced(text: str) -> tuple[str, str] | None:
    """(PCI address, UUID) where the driver names a GPU, as it does before that GPU's first Xid."""
    match = _UUID.search(text)
    return None if match is None else (joined(match[1], match[2], match[3]), match["uuid"])


def _xid(text: str) -> Notice | None:
    match = _XID.search(text)
    if match is None:
        return None
    rest = match["rest"] or ""
    pid: int | None = None
    name: str | None = None
    message: str | None = rest
    if (process := _PROCESS.match(rest)) is not None:
        pid = int(process["pid"]) if process["pid"] else None
        name = None if process["name"] in (None, "<unknown>") else process["name"]
        message = process["message"]
    attributes: Attributes = {
        "number": int(match["number"]),
        "message": bounded(message),
        "pid": pid,
        "process": bounded(name),
    }
    if (previous := _PREVIOUS.search(rest)) is not None:
        attributes["previous"] = int(previous[1])
    if (instance := _INSTANCE.search(match["where"])) is not None:
        attributes["gpu_instance"] = int(instance[1])
        if instance[2] is not None:
            attributes["compute_instance"] = int(instance[2])
    if message:
        attributes |= _details(message)
    return Notice("xid", Severity.WARNING, address(match["where"]), attributes)


def _details(message: str) -> Attributes:
    """What the message of an Xid says besides, where it has one of the known forms."""
    found: Attributes = {}
    if (channel := _CHANNEL.search(message)) is not None:
        found["channel"] = int(channel[1], 16)
    if (unit := _UNIT.search(message)) is not None:
        found["unit"] = unit[1]
    if (fault := _FAULT.search(message)) is not None:
        found["address"] = fault[1]
    if (link := _LINK5.search(message)) is not None:
        found |= {
            "unit": link["unit"],
            "severity": link["severity"].lower().replace(" ", "-"),
            "link": int(link["link"]),
            "injected": int(link["injected"]),
            "intr_info": link["info"],
            "error_status": link["status"],
        }
    elif (old := _LINK4.search(message)) is not None:
        found["link"] = int(old["link"])
        if old["severity"] is not None:
            found["severity"] = old["severity"].lower().replace("-", "")
        if old["registers"] is not None:
            found["registers"] = old["registers"]
    if (recovery := _RECOVERY.search(message)) is not None:
        found |= {
            "action_before": int(recovery["before"], 16),
            "action": int(recovery["now"], 16),
            "action_text": bounded(recovery["text"]),
        }
    if (reset := _RESET.search(message)) is not None:
        found["reset"] = int("Yes" in (reset[1], reset[2]))
    return found


def _switch_error(text: str) -> Notice | None:
    """An error of an NVSwitch: its own kind, never an error of a GPU."""
    match = _SWITCH.search(text)
    if match is None or match["message"].startswith(_SWITCH_MORE):
        return None
    attributes: Attributes = {
        "number": int(match["number"]),
        "message": bounded(match["message"]),
        "switch": match["switch"],
        "fatal": None if match["fatal"] is None else int(match["fatal"] == "Fatal"),
        "link": None if match["link"] is None else int(match["link"]),
    }
    severity = Severity.CRITICAL if match["fatal"] == "Fatal" else Severity.WARNING
    return Notice("sxid", severity, address(match["where"]), attributes)
