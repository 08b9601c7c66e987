"""Configuration of the agent: one TOML file, every field with a default, unknown keys refused.

docs/configuration.md is generated from the descriptions here by `python -m rankscope.agent.config_docs`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from rankscope.errors import ConfigurationError

Text = Annotated[str, Meta(max_length=4096)]
#: Seconds, bytes and shares beyond any that mean something (31 years, a petabyte), where whole numbers still are exact.
_MOST = 1e9
_MOST_BYTES = 10**15
Positive = Annotated[float, Meta(gt=0, le=_MOST)]
#: Of a core: what the rules take of the budget at most, unless told otherwise.
LARGEST_SHARE = 0.005


def _say(text: str) -> Meta:
    return Meta(description=text)


class RecordingSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """Where a run is recorded and how large that may become."""

    state_directory: Annotated[
        Text, _say("Directory of all recordings. Empty: `$RANKSCOPE_STATE`, else `~/.local/state/rankscope`.")
    ] = ""
    max_bytes: Annotated[
        int,
        Meta(ge=1_000_000, le=_MOST_BYTES),
        _say("Size at which older readings are thinned, then device times, then steps."),
    ] = 2_000_000_000
    commit_seconds: Annotated[Positive, _say("Longest time what was seen stays in memory.")] = 2.0


class RingSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """Where ranks write and how they are read."""

    directory: Annotated[
        Text, _say("Directory in memory for rings. Empty: `$RANKSCOPE_DIR`, else `/dev/shm/rankscope-UID`.")
    ] = ""
    poll_seconds: Annotated[float, Meta(ge=0.02, le=5.0), _say("Time between two reads of a ring.")] = 1.0


class HangSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """When a rank counts as hung, and how its stacks are had."""

    floor_seconds: Annotated[
        Positive, _say("A rank hangs when it makes no progress for this long and for ten of its slowest (p99) steps.")
    ] = 30.0
    start_seconds: Annotated[
        Positive, _say("The same before the first step ended and where no rank waits for another (loading, saving).")
    ] = 600.0
    stack_signal: Annotated[
        Text,
        _say("Signal on which a rank writes its stacks, only where it has no handler of its own. Empty: never."),
    ] = "SIGUSR2"
    pyspy: Annotated[
        bool, _say("Whether py-spy, where it is installed and permitted, takes the stacks, and no signal is sent.")
    ] = True
    flight_recorder: Annotated[
        bool,
        _say(
            "Whether ranks answer for their flight recorder on a Unix socket in the run's own directory, by a "
            "thread of torch's."
        ),
    ] = True


class ProbeSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """Which sources are read."""

    disabled: Annotated[
        tuple[Text, ...],
        _say(
            "Probes that are not read, or groups of one: `nvml`, `nvml/gpm` (docs/rates.md lists them); of `nvml` "
            "single metrics too: `gpu.performance_state`."
        ),
    ] = ()
    period_seconds: Annotated[
        dict[str, Positive],
        _say('Steady periods in place of those in docs/rates.md, by group: `{"nvml/slow" = 1.0}`.'),
    ] = {}
    deadline_seconds: Annotated[
        Positive, _say("A read that takes longer counts as stalled; the other probes go on without it.")
    ] = 2.0
    burst_seconds: Annotated[Positive, _say("How long a trigger (Xid, throttling, slow step) raises the rates.")] = 30.0
    replace_stuck_seconds: Annotated[
        float,
        Meta(ge=0, le=_MOST),
        _say(
            "Age of an NVML call that does not return at which its helper is killed and started anew. 0: never, it is "
            "waited for: monitors killed inside the driver have been followed by firmware faults."
        ),
    ] = 0.0


class RootSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """Where the host's own files lie. Other than the defaults in containers and simulations."""

    proc: Annotated[Text, _say("Root of procfs.")] = "/proc"
    sys: Annotated[Text, _say("Root of sysfs.")] = "/sys"
    kernel_log: Annotated[
        Text,
        _say("Kernel log: `/dev/kmsg` (or journald, where that may not be read), or a plain file that is followed."),
    ] = "/dev/kmsg"
    nvml_library: Annotated[Text, _say("NVML library. Empty: the one the loader finds.")] = ""


class ExportSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """OTLP. What is not set here is taken from the `OTEL_EXPORTER_OTLP_*` variables."""

    endpoint: Annotated[
        Text,
        _say("URL of an OTLP receiver. Empty: `$OTEL_EXPORTER_OTLP_ENDPOINT`; without either nothing is exported."),
    ] = ""
    protocol: Annotated[
        Literal["", "grpc", "http/protobuf"], _say("Empty: `$OTEL_EXPORTER_OTLP_PROTOCOL`, else `http/protobuf`.")
    ] = ""
    period_seconds: Annotated[Positive, _say("Time between two batches.")] = 15.0
    interval_seconds: Annotated[
        float,
        Meta(ge=0, le=600),
        _say(
            "Of each series of readings the first in every such interval is exported (of NVLinks and processes on a "
            "GPU in every fourth); the recording keeps all. 0: every reading."
        ),
    ] = 15.0
    level: Annotated[
        Literal["node", "gpu", "rank", "link"],
        _say(
            "How finely a node is told apart: `node` (ranks merged), and each `gpu`, and each `rank`, and each NVLink "
            "(`link`). See docs/otlp.md for the number of series."
        ),
    ] = "link"
    traces: Annotated[
        bool, _say("Whether slow steps, and no others, are sent as traces too; the receiver has to take traces.")
    ] = False
    temporality: Annotated[
        Literal["cumulative", "delta"],
        _say("Of counters and histograms. `delta` is for receivers that ask for it; most stores drop it."),
    ] = "cumulative"
    outbox_max_bytes: Annotated[
        int,
        Meta(ge=100_000, le=_MOST_BYTES),
        _say("Quota of batches that wait for the receiver; the oldest go first, and it is said."),
    ] = 512_000_000
    drain_seconds: Annotated[
        float, Meta(ge=0, le=_MOST), _say("How long the end of a run waits for what is still in the outbox.")
    ] = 5.0


class PrometheusSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """An endpoint that Prometheus may scrape, off unless a port is given (docs/prometheus.md)."""

    port: Annotated[int, Meta(ge=0, le=65535), _say("Port of `/metrics`. 0: no endpoint.")] = 0
    address: Annotated[Text, _say("Address to listen on.")] = "127.0.0.1"
    certificate: Annotated[Text, _say("Certificate chain (PEM). Empty: no TLS.")] = ""
    key: Annotated[Text, _say("Its key, where it is not in the same file.")] = ""
    client_authority: Annotated[Text, _say("Certificates (PEM) that a client has to be signed by. Empty: none.")] = ""
    token_file: Annotated[Text, _say("File with a bearer token that a client has to send. Empty: none.")] = ""
    user: Annotated[Text, _say("User that a client has to name, with a password. Empty: none.")] = ""
    password_file: Annotated[
        Text, _say("File with the hash of that password (`python -m rankscope.exporters.prometheus_auth`).")
    ] = ""


class BudgetSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """What watching may cost. The governor lowers rates to hold it."""

    cpu_ratio: Annotated[Positive, _say("Share of one core for the agent and its children, over a minute.")] = 0.01
    burst_cpu_ratio: Annotated[Positive, _say("The same while a trigger raises the rates.")] = 0.05
    pss_bytes: Annotated[
        int, Meta(ge=10_000_000, le=_MOST_BYTES), _say("Proportional memory of the agent and its children.")
    ] = 100_000_000
    hook_ratio: Annotated[
        Positive, _say("Share of a step that the hooks in a rank may take; beyond it the rank stops watching itself.")
    ] = 0.05

    def ratio(self, *, bursting: bool) -> float:
        """Share of a core that watching may take now."""
        return max(self.cpu_ratio, self.burst_cpu_ratio) if bursting else self.cpu_ratio


class WindowSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """Windows of the profiler inside the ranks: three steps of one rank at a time, within 0.2 % of the job's time."""

    period_seconds: Annotated[
        float,
        Meta(ge=0, le=_MOST),
        _say("Least time between two windows on this host; longer where they cost more. 0: none, ranks load nothing."),
    ] = 0.0


class RuleSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """Rules while the job runs, and the table they and the verdict at its end go by."""

    live: Annotated[bool, _say("Whether rules run while the job does.")] = True
    period_seconds: Annotated[
        Positive, _say("Least time between two runs of the rules; longer where they cost much.")
    ] = 5.0
    cpu_ratio: Annotated[
        Positive, _say("Most of a core that they may take; the budget may leave less. More tells a finding sooner.")
    ] = LARGEST_SHARE
    window_seconds: Annotated[Positive, _say("Stretch of the recording that they look at.")] = 600.0
    history_file: Annotated[
        str,
        _say("Database (SQLite) of how a site's GPUs fared in past jobs, to tell what follows a GPU or a rank."),
    ] = ""
    classes_file: Annotated[
        str, _say("A site's own priors, log-odds and texts (TOML), in place of those in docs/classes.md; empty: none.")
    ] = ""


class Settings(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file: one table a section."""

    recording: RecordingSettings = RecordingSettings()
    rings: RingSettings = RingSettings()
    hang: HangSettings = HangSettings()
    probes: ProbeSettings = ProbeSettings()
    roots: RootSettings = RootSettings()
    export: ExportSettings = ExportSettings()
    prometheus: PrometheusSettings = PrometheusSettings()
    budget: BudgetSettings = BudgetSettings()
    rules: RuleSettings = RuleSettings()
    windows: WindowSettings = WindowSettings()


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `path`, else from the file that $RANKSCOPE_CONFIG names, else the defaults.

    Raises ConfigurationError: no such file, not TOML, a key that is not known (with the nearest that is), a wrong type.
    """
    environ = os.environ if environ is None else environ
    if path is None and (named := environ.get("RANKSCOPE_CONFIG")):
        path = Path(named)
    if path is None:
        return Settings()
    try:
        return parse_settings(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration ({error})", where=str(path)) from error


def parse_settings(text: str, where: str = "configuration") -> Settings:
    """Settings from TOML text. Raises ConfigurationError."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"not TOML: {error}", where=where) from error
    except RecursionError:
        raise ConfigurationError("nested too deeply", where=where, todo="name a configuration file") from None
    _refuse_unknown(tree, Settings, where, "")
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        # "... - at `$.rings.poll_seconds`"
        raise ConfigurationError(str(error).replace("`$.", "`"), where=where) from error


def _refuse_unknown(tree: dict[str, Any], kind: type[Struct], where: str, prefix: str) -> None:
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            todo = f'did you mean "{prefix}{near[0]}"?' if near else f"known here: {', '.join(known)}"
            raise ConfigurationError(f'unknown key "{prefix}{key}"', where=where, todo=todo)
        section = known[key]
        if isinstance(section, type) and issubclass(section, Struct) and isinstance(value, dict):
            _refuse_unknown(value, section, where, f"{prefix}{key}.")


def ring_root(settings: Settings, environ: Mapping[str, str] | None = None) -> Path:
    """The directory under which runs have their own ring directories."""
    environ = os.environ if environ is None else environ
    named = settings.rings.directory or environ.get("RANKSCOPE_DIR", "")
    return Path(named) if named else Path(f"/dev/shm/rankscope-{os.getuid()}")
