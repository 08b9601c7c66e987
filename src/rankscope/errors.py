"""Every error Rankscope raises on purpose: one clear line that says what, where and what to do."""

from __future__ import annotations


class RankscopeError(Exception):
    """Base of all typed errors.

    `what` is the fault, `where` the file, key, endpoint or device it was met at, `todo` the next step for a person.
    `str()` of the error is the one line a command line prints before it ends with status 2.
    """

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what = what
        self.where = where
        self.todo = todo
        line = f"{where}: {what}" if where else what
        super().__init__(f"{line}; {todo}" if todo else line)


class ConfigurationError(RankscopeError):
    """A configuration file, environment variable or option that cannot be used."""


class ScenarioError(RankscopeError):
    """A scenario that is malformed or contradicts itself."""


class RingError(RankscopeError):
    """A ring file that cannot be created or read: foreign, of another version, damaged, or no space."""


class RecordingError(RankscopeError):
    """A recording that cannot be opened, read or written."""


class TraceError(RankscopeError):
    """A profiler trace that cannot be read or is none."""


class ProbeError(RankscopeError):
    """A source that failed. `Unsupported` and `PermissionDenied` are the kinds that will not pass by themselves."""


class Unsupported(ProbeError):
    """This machine, device or driver does not offer the source: never will until something is replaced."""


class Absent(Unsupported):
    """This machine has no such thing (no InfiniBand adapter, no Lustre client): there is nothing to be missed."""


class PermissionDenied(ProbeError):
    """The source is there but this user may not read it."""


class ExportError(RankscopeError):
    """A batch could not be delivered."""


class StoreError(RankscopeError):
    """A metric store that cannot be reached, refuses, answers something else, or does not hold what was asked for."""


class SimulatorError(RankscopeError):
    """The simulated node could not be built or driven (no compiler, no header, no state file)."""
