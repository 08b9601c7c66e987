"""OTEL_EXPORTER_OTLP_* as the specification reads them, and what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.errors import ConfigurationError
from rankscope.exporters.otlp_settings import OtlpProtocol, otlp_targets, resource_attributes
from rankscope.exporters.outbox import Signal


def test_nothing_is_exported_unasked() -> None:
    """Without an endpoint there is no target; the SDK's own switches turn signals off."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert otlp_targets({}) == {}
    assert otlp_targets({**endpoint, "OTEL_SDK_DISABLED": "true"}) == {}
    assert set(otlp_targets({**endpoint, "OTEL_LOGS_EXPORTER": "none"})) == {Signal.METRICS}


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"ENDPOINT": "http://collector:4318"}, "http://collector:4318/v1/metrics"),
        ({"ENDPOINT": "http://collector:4318/"}, "http://collector:4318/v1/metrics"),
        ({"ENDPOINT": "http://vm:8428/opentelemetry"}, "http://vm:8428/opentelemetry/v1/metrics"),
        ({"ENDPOINT": "https://collector"}, "https://collector:443/v1/metrics"),
        ({"ENDPOINT": "http://a:1", "METRICS_ENDPOINT": "http://b:2/own"}, "http://b:2/own"),
        ({"METRICS_ENDPOINT": "http://b:2"}, "http://b:2/"),
        ({"ENDPOINT": "http://[::1]:4318"}, "http://[::1]:4318/v1/metrics"),
        ({"ENDPOINT": "http://collector", "PROTOCOL": "grpc"}, "grpc://collector:4317"),
        ({"ENDPOINT": "https://collector:1", "PROTOCOL": "grpc"}, "grpcs://collector:1"),
        ({"ENDPOINT": "collector:4317", "PROTOCOL": "grpc"}, "grpcs://collector:4317"),
        ({"ENDPOINT": "collector:4317", "PROTOCOL": "grpc", "INSECURE": "true"}, "grpc://collector:4317"),
        ({"ENDPOINT": "http://c:1", "PROTOCOL": "grpc", "METRICS_PROTOCOL": "http/protobuf"}, "http://c:1/v1/metrics"),
    ],
)
def test_endpoints(environ: dict[str, str], name: str) -> None:
    """Base endpoints get the signal's path, a signal's own is taken as it is, and the scheme decides on TLS."""
    targets = otlp_targets({f"OTEL_EXPORTER_OTLP_{key}": value for key, value in environ.items()})
    assert targets[Signal.METRICS].name == name


def test_explicit_settings_go_before_the_environment() -> None:
    """A setting that was named wins over every variable of its kind; the rest stays as the environment says."""
    environ = {
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://other/v1/metrics",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20s3cret, x-tenant=a=b",
    }
    targets = otlp_targets(environ, endpoint="http://named:1", logs_timeout="500")
    assert targets[Signal.METRICS].name == "http://named:1/v1/metrics"
    assert (targets[Signal.METRICS].timeout_s, targets[Signal.LOGS].timeout_s) == (2.5, 0.5)
    assert targets[Signal.LOGS].gzip
    assert targets[Signal.LOGS].headers == (("Authorization", "Bearer s3cret"), ("x-tenant", "a=b"))
    assert targets[Signal.LOGS].protocol is OtlpProtocol.HTTP


def test_secrets_are_not_shown() -> None:
    """Neither a target's text nor an error about headers holds their values."""
    target = otlp_targets({}, endpoint="http://c:1", headers="token=s3cret")[Signal.METRICS]
    assert "s3cret" not in f"{target!r} {target.name}"
    with pytest.raises(ConfigurationError) as caught:
        otlp_targets({}, endpoint="http://c:1", headers="token=s3cret,s3cret")
    assert "s3cret" not in str(caught.value)
    assert "headers: item 2 is not key=value" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": "collector:4318"}, "endpoint"),
        ({"endpoint": "ftp://collector"}, "not a URL"),
        ({"endpoint": "http://collector:port"}, "cannot be used"),
        ({"endpoint": "http://"}, "not a URL"),
        ({"endpoint": "http://user:pass@collector"}, "no user or password"),
        ({"endpoint": "http://c", "protocol": "http/json"}, "'http/json' is not supported; choose one of grpc"),
        ({"endpoint": "http://c", "compression": "zstd"}, "choose one of none, gzip"),
        ({"endpoint": "http://c", "timeout": "soon"}, "give milliseconds"),
        ({"endpoint": "http://c", "timeout": "0"}, "give milliseconds"),
        ({"endpoint": "http://c", "certificate": "/nowhere/ca.pem"}, "no file /nowhere/ca.pem"),
        ({"endpoint": "http://c", "headers": "key=snowman\u2603"}, "ASCII"),
        ({"endpoint": "http://c", "headers": "key=line%0abreak"}, "item 1"),
        ({"endpoint": "http://c", "headers": "a=1,two words=pass@"}, "the name of item 2 is none"),
        ({"endpoint": "http://c", "headers": "Content-Length=5"}, "the name of item 1 is none"),
        ({"endpoint": "http://c", "protocol": "grpc", "headers": "key-bin=1"}, "the name of item 1 is none"),
        ({"endpoint": "http://c", "protocol": "grpc", "headers": "grpc-timeout=1"}, "the name of item 1 is none"),
        ({"endpoint": "http://c", "timeout": "1e-9"}, "give milliseconds"),
        ({"endpoint": "http://c", "timeout": "nan"}, "give milliseconds"),
        ({"endpoint": "http://c", "client_key": "/etc/hostname"}, "a key without its certificate"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(settings: dict[str, str], message: str) -> None:
    """Each bad setting is refused with what is wrong, naming the setting and never the password."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        otlp_targets({}, **settings)
    assert "\n" not in str(caught.value)
    assert "pass@" not in str(caught.value)
    assert str(caught.value).startswith(list(settings)[-1])


def test_variables_are_named_in_errors() -> None:
    """An error about a variable names that variable."""
    environ = {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TIMEOUT": "x"}
    with pytest.raises(ConfigurationError, match=r"^OTEL_EXPORTER_OTLP_TIMEOUT: "):
        otlp_targets(environ)


def test_resource_attributes_come_from_the_environment(tmp_path: Path) -> None:
    """OTEL_RESOURCE_ATTRIBUTES adds to the resource; OTEL_SERVICE_NAME wins over the name in it."""
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=a%2Cb,service.name=x", "OTEL_SERVICE_NAME": "train"}
    assert dict(resource_attributes(environ)) == {"k8s.pod.name": "a,b", "service.name": "train"}
    assert resource_attributes({}) == ()
