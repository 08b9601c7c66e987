"""A Prometheus-compatible store over HTTP: queries, what they cost, and one clear line for whatever goes wrong."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import msgspec

from rankscope.errors import ConfigurationError, StoreError

TIMEOUT_SECONDS = 30.0
#: An answer larger than this is none to keep in memory: a window of a few hundred series is a few megabytes.
MOST_BYTES = 256 * 1024 * 1024
_TOKEN = "RANKSCOPE_PROMETHEUS_TOKEN"
_USER = "RANKSCOPE_PROMETHEUS_USER"
_PASSWORD = "RANKSCOPE_PROMETHEUS_PASSWORD"
#: Of a store that many share (Mimir, Cortex).
_TENANT = "RANKSCOPE_PROMETHEUS_TENANT"
_LOGIN = f"set {_TOKEN}, or {_USER} and {_PASSWORD}"


class Sampled(msgspec.Struct):
    """One series of an answer: its labels, and (seconds since the epoch, value as text) in order."""

    metric: dict[str, str]
    values: list[tuple[float, str]] = []
    value: tuple[float, str] | None = None


class _Data(msgspec.Struct):
    result: list[Sampled] = []


class _Answer(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""


class _Names(msgspec.Struct):
    status: str
    data: list[str] = []


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the credentials to whoever it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Store:
    """One store at a base address (what stands before /api/v1). Counts queries and bytes."""

    def __init__(self, url: str, environ: Mapping[str, str], timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Raises ConfigurationError for an address or credentials that cannot be used."""
        try:
            parts = urllib.parse.urlsplit(url)
            parts.port  # noqa: B018 - raises for a port that is none
        except ValueError as error:
            raise ConfigurationError(f"no address of a store ({error})", where="--prometheus") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"{parts.scheme or 'it'} is no address of a store", where="--prometheus", todo="give http://HOST:PORT"
            )
        # Many copy the address with the API's path.
        path = parts.path.rstrip("/").removesuffix("/api/v1")
        self._base = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
        self._headers = _credentials(parts, environ)
        self._timeout_seconds = timeout_seconds
        self._opener = urllib.request.build_opener(_NoRedirects)
        self.queries = 0
        self.bytes = 0

    @property
    def address(self) -> str:
        """Where it is, without credentials."""
        return self._base

    def instant(self, expression: str, at_s: float) -> list[Sampled]:
        """The series of an expression at one time; of a range selector, its raw samples. Raises StoreError."""
        return self._query("query", {"query": expression, "time": f"{at_s:.3f}"})

    def over(self, expression: str, begin_s: float, end_s: float, step_s: float, back_s: float) -> list[Sampled]:
        """The series of an expression on a grid; samples older than `back_s` do not stand in. Raises StoreError.

        Stores call the last one differently and pass over what they do not know.
        """
        grid = {"start": f"{begin_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:.3f}", "nocache": "1"}
        back = {"lookback_delta": f"{back_s:.3f}", "max_lookback": f"{back_s:.3f}s"}
        return self._query("query_range", {"query": expression, **grid, **back})

    def label_values(self, label: str, begin_s: float, end_s: float) -> list[str]:
        """Every value that a label had in a time. Raises StoreError."""
        path = f"label/{label}/values?start={begin_s:.0f}&end={end_s:.0f}"
        names: _Names = self._decode(self._get(path, None), _Names)
        return names.data

    def _query(self, path: str, form: Mapping[str, str]) -> list[Sampled]:
        answer: _Answer = self._decode(self._get(path, urllib.parse.urlencode(form).encode()), _Answer)
        if answer.status != "success" or answer.data is None:
            raise StoreError(f"refused a query ({_short(answer.error)})", where=self._base)
        return answer.data.result

    def _decode(self, body: bytes, kind: type[Any]) -> Any:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise StoreError(
                "answers, but not as a Prometheus API does",
                where=self._base,
                todo="give the address that stands before /api/v1",
            ) from error

    def _get(self, path: str, form: bytes | None) -> bytes:
        self.queries += 1
        request = urllib.request.Request(f"{self._base}/api/v1/{path}", data=form, headers=self._headers)
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as response:
                body: bytes = response.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error
        except TimeoutError as error:
            raise self._silent() from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._silent() from error
            what = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise StoreError(
                f"cannot be reached ({_short(what)})", where=self._base, todo="is the address right?"
            ) from error
        if len(body) > MOST_BYTES:
            raise StoreError(f"gave more than {MOST_BYTES >> 20} MiB", where=self._base, todo="ask for less time")
        self.bytes += len(body)
        return body

    def _silent(self) -> StoreError:
        return StoreError(
            f"gave no answer within {self._timeout_seconds:g} s", where=self._base, todo="ask for less time"
        )

    def _refused(self, error: urllib.error.HTTPError) -> StoreError:
        if error.code in (401, 403):
            return StoreError(f"does not let us in (HTTP {error.code})", where=self._base, todo=_LOGIN)
        if 300 <= error.code < 400:
            to = _short(error.headers.get("Location", "elsewhere"))
            return StoreError(f"points to {to} (HTTP {error.code})", where=self._base, todo="give that address")
        try:
            told = msgspec.json.decode(error.read(65536), type=_Answer)
        except (msgspec.MsgspecError, OSError, http.client.HTTPException):
            todo = "give the address that stands before /api/v1" if error.code in (400, 404, 405) else ""
            return StoreError(f"answered with HTTP {error.code}", where=self._base, todo=todo)
        return StoreError(f"refused a query (HTTP {error.code}: {_short(told.error)})", where=self._base)


def _short(text: str) -> str:
    return " ".join(text.split())[:200] or "no reason given"


def _credentials(parts: urllib.parse.SplitResult, environ: Mapping[str, str]) -> dict[str, str]:
    token, tenant = environ.get(_TOKEN, ""), environ.get(_TENANT, "")
    user, password = environ.get(_USER, ""), environ.get(_PASSWORD, "")
    for name, value in ((_TOKEN, token), (_TENANT, tenant)):
        if value and not (value.isascii() and value.isprintable()):
            raise ConfigurationError("holds what no header can", where=name)
    if not user and parts.username:
        user, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
    headers = {"X-Scope-OrgID": tenant} if tenant else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    elif user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return headers
