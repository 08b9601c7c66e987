"""Where and how to export: the OTEL_EXPORTER_OTLP_* variables, and explicit settings that go before them.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/ defines the variables. As it says, a timeout is in
milliseconds (the Python SDK reads seconds). Nothing is exported unless an endpoint is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from rankscope.errors import ConfigurationError
from rankscope.exporters.outbox import Signal

_Chosen = TypeVar("_Chosen")

_PREFIX = "OTEL_EXPORTER_OTLP_"
_DEFAULT_TIMEOUT_MS = "10000"
#: Headers that say where a request ends: the transport's own.
_FRAMING = frozenset({"content-length", "transfer-encoding"})


class OtlpProtocol(StrEnum):
    """How OTLP travels."""

    GRPC = "grpc"
    HTTP = "http/protobuf"


#: RFC 9110, 5.6.2 (token); https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md: "-bin" holds bytes, no text.
_HEADER_NAMES = {
    OtlpProtocol.HTTP: re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"),
    OtlpProtocol.GRPC: re.compile(r"(?!grpc-)(?!.*-bin$)[0-9a-z_.-]+", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Target:
    """One receiver of one signal."""

    signal: Signal
    protocol: OtlpProtocol
    #: For HTTP the path of the signal included; "" for gRPC.
    path: str
    host: str
    port: int
    tls: bool
    timeout_s: float
    gzip: bool
    #: May hold secrets: never shown.
    headers: tuple[tuple[str, str], ...] = field(repr=False, default=())
    #: Certificates that the server is checked by, and what the client shows of itself.
    certificate: Path | None = None
    client_key: Path | None = None
    client_certificate: Path | None = None

    @property
    def authority(self) -> str:
        """host:port, with the brackets of an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """The target as messages show it."""
        scheme = "grpc" if self.protocol is OtlpProtocol.GRPC else "http"
        return f"{scheme}{'s' if self.tls else ''}://{self.authority}{self.path}"


def otlp_targets(
    environ: Mapping[str, str], signals: Sequence[Signal] = (Signal.METRICS, Signal.LOGS), **explicit: str
) -> dict[Signal, Target]:
    """The receivers by signal; {} where no endpoint is named.

    `explicit` holds settings by the variables' names without their prefix, in lower case (endpoint, logs_endpoint,
    protocol, headers, timeout, compression, certificate, client_key, client_certificate, insecure); each goes before
    every variable of that setting. OTEL_METRICS_EXPORTER=none, and so for the others, switches a signal off. Raises
    ConfigurationError.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {}
    targets = (
        _target(signal, environ, explicit)
        for signal in signals
        if environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").lower() != "none"
    )
    return {target.signal: target for target in targets if target is not None}


def resource_attributes(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Attributes that the environment adds to the resource: OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME.

    Raises ConfigurationError.
    """
    pairs = _pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES")
    name = environ.get("OTEL_SERVICE_NAME", "")
    return (*pairs, ("service.name", name)) if name else pairs


def _target(signal: Signal, environ: Mapping[str, str], explicit: Mapping[str, str]) -> Target | None:
    def setting(name: str) -> tuple[str, str]:
        """(value, where it was said), the most particular one first."""
        for key in (f"{signal}_{name}", name):
            if explicit.get(key):
                return explicit[key], key
        for key in (f"{_PREFIX}{signal.upper()}_{name.upper()}", f"{_PREFIX}{name.upper()}"):
            # An empty variable counts as one that is not set.
            if environ.get(key):
                return environ[key], key
        return "", ""

    endpoint, where = setting("endpoint")
    if not endpoint:
        return None
    protocol = _choice(*setting("protocol"), {"": OtlpProtocol.HTTP} | {str(each): each for each in OtlpProtocol})
    try:
        url = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        host, port = url.hostname, url.port
    except ValueError as error:
        raise _unusable(endpoint, where, str(error)) from error
    if url.username is not None:
        raise ConfigurationError("an endpoint holds no user or password", where=where, todo="send them as a header")
    schemes = ("http", "https", "") if protocol is OtlpProtocol.GRPC else ("http", "https")
    if not host or url.scheme not in schemes or url.query or url.fragment:
        raise _unusable(endpoint, where, "not a URL such as http://collector:4318")
    insecure = _choice(*setting("insecure"), {"": False, "false": False, "true": True})
    tls = url.scheme == "https" or (not url.scheme and not insecure)
    client_certificate = setting("client_certificate")
    if setting("client_key")[0] and not client_certificate[0]:
        todo = "give the client certificate too"
        raise ConfigurationError("a key without its certificate", where=setting("client_key")[1], todo=todo)
    path = ""
    if protocol is OtlpProtocol.HTTP:
        own = where in (f"{signal}_endpoint", f"{_PREFIX}{signal.upper()}_ENDPOINT")
        path = (url.path or "/") if own else f"{url.path.rstrip('/')}/v1/{signal}"
    default_port = 4317 if protocol is OtlpProtocol.GRPC else (443 if tls else 80)
    return Target(
        signal=signal,
        protocol=protocol,
        path=path,
        host=host,
        port=port or default_port,
        tls=tls,
        timeout_s=_timeout_s(*setting("timeout")),
        gzip=_choice(*setting("compression"), {"": False, "none": False, "gzip": True}),
        headers=_headers(*setting("headers"), protocol),
        certificate=_file(*setting("certificate")),
        client_key=_file(*setting("client_key")),
        client_certificate=_file(*client_certificate),
    )


def _unusable(endpoint: str, where: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"endpoint {endpoint!r} cannot be used ({why})", where=where)


def _choice(value: str, where: str, choices: Mapping[str, _Chosen]) -> _Chosen:
    if value.lower() not in choices:
        known = ", ".join(choice for choice in choices if choice)
        raise ConfigurationError(f"{value!r} is not supported", where=where, todo=f"choose one of {known}")
    return choices[value.lower()]


def _timeout_s(value: str, where: str) -> float:
    try:
        milliseconds = float(value or _DEFAULT_TIMEOUT_MS)
    except ValueError:
        milliseconds = 0
    if not 1 <= milliseconds < 1e9:
        raise ConfigurationError(f"{value!r} is no time", where=where, todo="give milliseconds, such as 10000")
    return milliseconds / 1000


def _headers(value: str, where: str, protocol: OtlpProtocol) -> tuple[tuple[str, str], ...]:
    pairs = _pairs(value, where)
    for position, (key, _) in enumerate(pairs, 1):
        if not _HEADER_NAMES[protocol].fullmatch(key) or key.lower() in _FRAMING:
            raise ConfigurationError(f"the name of item {position} is none that a header may have", where=where)
    if not all((key + text).isascii() for key, text in pairs):
        raise ConfigurationError("a header holds a character outside ASCII", where=where)
    return pairs


def _pairs(value: str, where: str) -> tuple[tuple[str, str], ...]:
    """`key=value,key=value` with percent escapes, as in W3C Baggage. A message never holds the value."""
    pairs: list[tuple[str, str]] = []
    for position, item in enumerate(filter(str.strip, value.split(",")), 1):
        key, equals, text = item.partition("=")
        pair = (unquote(key.strip()), unquote(text.strip()))
        if not equals or not pair[0] or not (pair[0] + pair[1]).isprintable():
            raise ConfigurationError(f"item {position} is not key=value", where=where)
        pairs.append(pair)
    return tuple(pairs)


def _file(value: str, where: str) -> Path | None:
    if not value:
        return None
    path = Path(value)
    if not path.is_file():
        raise ConfigurationError(f"no file {value}", where=where)
    return path
