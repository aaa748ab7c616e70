"""The standard ``OTEL_*`` variables, read as the OpenTelemetry specification says.

Source: "OpenTelemetry Environment Variable Specification" and "OTLP Exporter Configuration".
Timeouts and intervals are milliseconds; an empty variable counts as unset; ``none`` is a compression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

_SIGNALS = ("metrics", "traces", "logs")


class OtelVariableError(Exception):
    """A variable whose value cannot be used; the message names it."""


def parse_pairs(text: str) -> dict[str, str]:
    """``a=1,b=x%20y`` -> ``{"a": "1", "b": "x y"}`` (W3C Baggage, percent-decoded). Raises ValueError."""
    pairs: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"{part.strip()!r} has no key=value")
        pairs[unquote(key.strip())] = unquote(value.strip())
    return pairs


def read(environ: Mapping[str, str]) -> dict[str, Any]:
    """The variables as a raw configuration tree. Raises :class:`OtelVariableError`."""
    variables = {
        name: value.strip() for name, value in environ.items() if name.startswith("OTEL_") and value.strip()
    }
    resource: dict[str, Any] = {}
    if text := variables.get("OTEL_RESOURCE_ATTRIBUTES"):
        resource["attributes"] = _pairs("OTEL_RESOURCE_ATTRIBUTES", text)
        if name := resource["attributes"].pop("service.name", None):
            resource["service_name"] = name
    if text := variables.get("OTEL_SERVICE_NAME"):
        resource["service_name"] = text

    export: dict[str, Any] = {"otlp": {signal: _signal(variables, signal) for signal in _SIGNALS}}
    if text := variables.get("OTEL_METRIC_EXPORT_INTERVAL"):
        export["interval"] = _milliseconds("OTEL_METRIC_EXPORT_INTERVAL", text)
    return {"resource": resource, "export": export}


def _signal(variables: Mapping[str, str], signal: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}

    def find(name: str) -> tuple[str, str] | None:
        for key in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
            if key in variables:
                return key, variables[key]
        return None

    for name in ("ENDPOINT", "CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
        if found := find(name):
            settings[name.lower()] = found[1]
    if found := find("COMPRESSION"):
        if found[1] not in ("gzip", "none"):
            raise OtelVariableError(f"{found[0]}: expected gzip or none, got {found[1]!r}")
        settings["compression"] = found[1]
    if found := find("HEADERS"):
        settings["headers"] = _pairs(*found)
    if found := find("TIMEOUT"):
        settings["timeout"] = _milliseconds(*found)
    if found := find("INSECURE"):
        settings["insecure"] = _boolean(*found)
    if (found := find("PROTOCOL")) and found[1] != "grpc":
        raise OtelVariableError(
            f"{found[0]}: fabrictap speaks grpc only, got {found[1]!r}; point it at the receiver's gRPC port"
        )
    disabled = variables.get("OTEL_SDK_DISABLED")
    exporter = variables.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp")
    if exporter not in ("otlp", "none"):
        raise OtelVariableError(f"OTEL_{signal.upper()}_EXPORTER: expected otlp or none, got {exporter!r}")
    if exporter == "none" or (disabled and _boolean("OTEL_SDK_DISABLED", disabled)):
        settings["enabled"] = False
    return settings


def _pairs(name: str, text: str) -> dict[str, str]:
    try:
        return parse_pairs(text)
    except ValueError as error:
        raise OtelVariableError(f"{name}: expected key=value,key=value: {error}") from None


def _milliseconds(name: str, text: str) -> str:
    if not text.isdigit():
        raise OtelVariableError(f"{name}: expected milliseconds as a whole number, got {text!r}")
    return f"{text}ms"


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise OtelVariableError(f"{name}: expected true or false, got {text!r}")
    return text.lower() == "true"
