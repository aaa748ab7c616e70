"""Where an OTLP/gRPC endpoint is, and the gRPC channels to it.

Source: "OpenTelemetry Protocol Exporter", configuration options ``endpoint`` and ``insecure``; gRPC's
"Name Resolution" for the targets.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fabrictap.config import Signal
from fabrictap.grpc import target as targets
from fabrictap.grpc.client import Channel


class EndpointError(ValueError):
    """An endpoint or a header that cannot be used; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A gRPC target and how to secure it. The files are PEM; ``certificate`` None means the usual roots."""

    target: str
    secure: bool
    certificate: str | None = None
    client_key: str | None = None
    client_certificate: str | None = None

    @property
    def local(self) -> bool:
        """Whether the receiver is on this machine for certain."""
        return targets.parse(self.target).local

    @property
    def files(self) -> tuple[str, ...]:
        if not self.secure:
            return ()
        return tuple(file for file in (self.certificate, self.client_key, self.client_certificate) if file)


def parse(signal: Signal) -> Endpoint:
    """The endpoint of a signal's settings. Raises :class:`EndpointError`.

    ``http://`` is plain and ``https://`` is TLS whatever ``insecure`` says; without a port they mean 4317
    and 443. ``host:port`` and gRPC targets such as ``dns:///host:port`` go by ``insecure``. Unix sockets
    (``unix:/path``, ``unix:///path``, ``unix-abstract:name``) are always plain.
    """
    text = signal.endpoint.strip()
    scheme, separator, _ = text.partition("://")
    if scheme.lower() in ("http", "https") and separator:
        secure = scheme.lower() == "https"
        target = _target(text, 443 if secure else 4317)
    elif text.startswith(("unix:", "unix-abstract:")):
        secure, target = False, text
        if not text.partition(":")[2].strip("/"):
            raise EndpointError(f"{text!r} has no path; as in unix:/run/otelcol.sock")
    elif re.fullmatch(r"(dns|ipv4|ipv6):.+", text):
        secure, target = not signal.insecure, text
    elif separator:
        raise EndpointError(f"{text!r}: expected http, https, unix or host:port, not {scheme}")
    elif not text:
        raise EndpointError("is empty; as in http://localhost:4317")
    else:
        secure, target = not signal.insecure, _target(f"//{text}", 4317)
    if secure and bool(signal.client_key) != bool(signal.client_certificate):
        raise EndpointError("client_key and client_certificate only work together")
    try:
        targets.parse(target)
    except ValueError as error:
        raise EndpointError(str(error)) from None
    if not secure:
        return Endpoint(target, secure)
    return Endpoint(target, secure, signal.certificate, signal.client_key, signal.client_certificate)


def metadata(headers: dict[str, str]) -> tuple[tuple[str, str | bytes], ...]:
    """Headers as gRPC metadata, keys in lower case. Raises :class:`EndpointError`."""
    pairs: list[tuple[str, str | bytes]] = []
    for name, value in headers.items():
        key = name.lower()
        if not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
            raise EndpointError(f"header {name!r}: not a name that gRPC can send")
        if key.endswith("-bin"):
            pairs.append((key, value.encode()))
        elif not re.fullmatch(r"[\x20-\x7e]*", value):
            # The value may be a secret and stays out of the message.
            raise EndpointError(f"header {name!r}: the value has characters other than printable ASCII")
        else:
            pairs.append((key, value))
    return tuple(pairs)


def _target(text: str, default_port: int) -> str:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise EndpointError(f"{text!r}: {error}") from None
    if not host:
        raise EndpointError(f"{text!r} has no host; as in http://localhost:4317")
    if url.username is not None:
        raise EndpointError("a user or password in an endpoint is not sent; use headers")
    return f"{f'[{host}]' if ':' in host else host}:{port or default_port}"


#: Identity of the TLS files as last read: changes when one of them is replaced or rewritten.
_Fingerprint = tuple[tuple[int, int, int], ...]


class _Held:
    """A channel, closed once it has been replaced and nobody uses it."""

    def __init__(self, channel: Channel, fingerprint: _Fingerprint) -> None:
        self.channel = channel
        self.fingerprint = fingerprint
        self.users = 0
        self.replaced = False


class Channels:
    """One channel for each distinct endpoint, made anew when a TLS file changes. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[Endpoint, _Held] = {}
        self._closed = False

    @contextmanager
    def use(self, endpoint: Endpoint) -> Iterator[Channel]:
        """The channel to ``endpoint``. Raises OSError when a TLS file cannot be read, or after ``close``."""
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the channels are closed")
            held = self._current(endpoint)
            held.users += 1
        try:
            yield held.channel
        finally:
            with self._lock:
                held.users -= 1
                unused = held.replaced and not held.users
            if unused:
                held.channel.close()

    def close(self) -> None:
        """Close all channels; calls under way fail at once."""
        with self._lock:
            self._closed = True
            channels = list(self._channels.values())
            self._channels.clear()
        for held in channels:
            held.channel.close()

    def _current(self, endpoint: Endpoint) -> _Held:
        held = self._channels.get(endpoint)
        fingerprint = _fingerprint(endpoint)
        if held is not None and held.fingerprint == fingerprint:
            return held
        made = _Held(_open(endpoint), fingerprint)
        self._channels[endpoint] = made
        if held is not None:
            held.replaced = True
            if not held.users:
                held.channel.close()
        return made


def _fingerprint(endpoint: Endpoint) -> _Fingerprint:
    statuses = [Path(file).stat() for file in endpoint.files]
    return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in statuses)


def _open(endpoint: Endpoint) -> Channel:
    if not endpoint.secure:
        return Channel(endpoint.target)
    from fabrictap.grpc import tls  # noqa: PLC0415 - only what is secure pays for OpenSSL

    context = tls.context(endpoint.certificate, endpoint.client_key, endpoint.client_certificate)
    return Channel(endpoint.target, context)
