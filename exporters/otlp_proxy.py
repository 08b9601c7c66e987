"""The proxy that the environment names for a receiver: http_proxy, https_proxy, all_proxy, no_proxy, as everywhere."""

from __future__ import annotations

import base64
import os
from urllib.parse import unquote, urlsplit

from rankscope.errors import ConfigurationError
from rankscope.exporters.otlp_settings import Target

_SCHEMES = ("http", "https")


def proxy_for(target: Target) -> tuple[str, int, dict[str, str]] | None:
    """(host, port, headers) of the target's proxy, None for a direct way.

    Raises ConfigurationError that names the variable, and never its value: a proxy's URL may hold a password.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    scheme = "https" if target.tls else "http"
    kind = next((kind for kind in (scheme, "all") if proxies.get(kind)), None)
    if kind is None or proxy_bypass(target.host):
        return None
    named = proxies[kind]
    try:
        url = urlsplit(named if "://" in named else f"http://{named}")
        host, port = url.hostname, url.port
    except ValueError as error:
        # The text of urllib holds the port, or what it takes for one.
        raise _unusable(kind, "its address or port makes no sense") from error
    if url.scheme not in _SCHEMES:
        raise _unusable(kind, f"proxies of {url.scheme} are not supported")
    if not host:
        raise _unusable(kind, "it names no host")
    headers: dict[str, str] = {}
    if url.username is not None:
        secret = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    return host, port or 80, headers


def _unusable(kind: str, why: str) -> ConfigurationError:
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    variable = next((name for name in names if os.environ.get(name)), names[0])
    todo = "give http://HOST:PORT, or name the receiver's host in no_proxy"
    return ConfigurationError(f"the proxy cannot be used ({why})", where=variable, todo=todo)
