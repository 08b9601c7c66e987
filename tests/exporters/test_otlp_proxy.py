"""The proxy that the environment names: what it is, and what cannot be one."""

from __future__ import annotations

import os

import pytest

from rankscope.clock import SystemClock
from rankscope.errors import ConfigurationError
from rankscope.exporters.otlp_proxy import proxy_for
from rankscope.exporters.otlp_settings import Target, otlp_targets
from rankscope.exporters.otlp_transport import check_target, open_transport
from rankscope.exporters.outbox import Signal


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def target(endpoint: str = "http://collector:4318", protocol: str = "http/protobuf") -> Target:
    """The receiver of metrics."""
    return otlp_targets({}, endpoint=endpoint, protocol=protocol)[Signal.METRICS]


@pytest.mark.parametrize(
    ("variable", "value", "host", "port"),
    [
        ("http_proxy", "http://proxy:3128", "proxy", 3128),
        ("HTTP_PROXY", "proxy:3128/", "proxy", 3128),
        ("ALL_PROXY", "http://[::1]:8080", "::1", 8080),
        ("http_proxy", "proxy", "proxy", 80),
    ],
)
def test_a_proxy_is_read(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, host: str, port: int) -> None:
    """With a scheme or without, in either case; of other schemes' proxies none is taken."""
    monkeypatch.setenv(variable, value)
    assert proxy_for(target()) == (host, port, {})
    assert (proxy_for(target("https://collector")) is None) == (variable.lower() == "http_proxy")


@pytest.mark.parametrize(
    "value",
    [
        "http://user:s3cret@proxy:notaport",
        "http://user:s3cret@proxy:99999",
        "http://user:s3cret@[::1",
        "socks5://user:s3cret@proxy:1080",
        "http://user:s3cret@:3128",
        "://s3cret",
    ],
)
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_what_is_no_proxy_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """Typed and told before anything is sent: which variable and what to do, and no password of it."""
    monkeypatch.setenv(variable, value)
    for use in (check_target, lambda each: open_transport(each, SystemClock())):
        with pytest.raises(ConfigurationError) as raised:
            use(target())
        line = str(raised.value)
        assert line.startswith(f"{variable}: the proxy cannot be used (")
        assert "no_proxy" in line
        assert "\n" not in line
        assert "s3cret" not in line
    # gRPC reads proxies itself.
    check_target(target(protocol="grpc"))


@pytest.mark.parametrize("exempt", ["collector", "*", "other, collector", ".x,,collector,]["])
def test_a_host_that_needs_no_proxy_does_not_mind_a_bad_one(monkeypatch: pytest.MonkeyPatch, exempt: str) -> None:
    """no_proxy goes before, whatever else it holds."""
    monkeypatch.setenv("http_proxy", "http://proxy:notaport")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert proxy_for(target()) is None
    monkeypatch.setenv("NO_PROXY", "][, ,:,x:y")
    with pytest.raises(ConfigurationError):
        proxy_for(target())
