"""OTLP endpoints and headers as they are written in the configuration."""

import pytest

from fabrictap.config import ConfigError, Otlp
from fabrictap.config import Signal as Settings
from fabrictap.export import endpoint
from fabrictap.export.uplink import Uplink


@pytest.mark.parametrize(
    ("text", "insecure", "target", "secure"),
    [
        ("http://localhost:4317", False, "localhost:4317", False),
        ("https://localhost:4317", True, "localhost:4317", True),
        ("HTTPS://collector", False, "collector:443", True),
        ("http://collector/", True, "collector:4317", False),
        ("http://[::1]:4317", False, "[::1]:4317", False),
        ("localhost:4317", False, "localhost:4317", True),
        ("localhost:4317", True, "localhost:4317", False),
        ("10.0.0.1:1", True, "10.0.0.1:1", False),
        ("[fe80::1]:1", True, "[fe80::1]:1", False),
        ("collector", True, "collector:4317", False),
        ("unix:/run/otelcol.sock", False, "unix:/run/otelcol.sock", False),
        ("unix:///run/otelcol.sock", False, "unix:///run/otelcol.sock", False),
        ("dns:///collector:4317", True, "dns:///collector:4317", False),
    ],
)
def test_every_form_of_endpoint(text, insecure, target, secure):
    found = endpoint.parse(Settings(endpoint=text, insecure=insecure))
    assert (found.target, found.secure) == (target, secure)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"endpoint": "ftp://host:1"}, "endpoint: 'ftp://host:1': expected http"),
        ({"endpoint": ""}, "endpoint: is empty"),
        ({"endpoint": "unix:"}, "has no path"),
        ({"endpoint": "http://host:99999"}, "endpoint: 'http://host:99999'"),
        ({"endpoint": "http://me:secret@host:1"}, "use headers"),
        ({"endpoint": "https://host", "client_key": "/k"}, "only work together"),
        ({"headers": {"a b": "c"}}, "headers: header 'a b'"),
        ({"headers": {"key": "s\u00e9cret"}}, "printable ASCII"),
    ],
)
def test_what_cannot_be_used_is_said_at_the_start_without_secrets(settings, says):
    with pytest.raises(ConfigError) as caught:
        Uplink(Otlp(metrics=Settings(**settings)))
    assert str(caught.value).startswith("export.otlp.metrics.")
    assert says in str(caught.value)
    assert "cret" not in str(caught.value)
