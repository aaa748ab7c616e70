"""The kubelet's own list of pods, ``GET /pods``: names of containers by id. Off unless a URL is configured.

It takes the right ``nodes/proxy`` in the cluster (kubernetes.io, kubelet authentication and authorization),
which is much more than this agent should have; the log directories say the same.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from fabrictap.ledger.workloads import Container, Pod
from fabrictap.ledger.workloads.podlogs import Listing
from fabrictap.ledger.workloads.text import CONTAINER_ID, LABEL, POD_UID, SUBDOMAIN, clean

#: A list of some hundred pods takes a few MiB.
MAX_ANSWER = 64 << 20
_MAX_TOKEN = 64 << 10


class PodListError(Exception):
    """The list did not come. ``word`` is for a metric, the message for the operator."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


class _Status(msgspec.Struct, rename="camel"):
    name: str = ""
    container_id: str = msgspec.field(name="containerID", default="")


class _PodStatus(msgspec.Struct, rename="camel"):
    container_statuses: list[_Status] = []
    init_container_statuses: list[_Status] = []
    ephemeral_container_statuses: list[_Status] = []


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""


class _Pod(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _PodList(msgspec.Struct):
    items: list[_Pod] | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where the list is. ``certificate``: PEM file of who vouches for the kubelet; the system's if None."""

    url: str
    token_file: str | None = None
    certificate: str | None = None
    insecure: bool = False


def fetch(address: Address, seconds: float) -> bytes:
    """The list, not decoded. Raises PodListError; takes no longer than ``seconds`` even if fed byte by byte.

    No proxy is used and no redirection followed. A token goes out over TLS only.
    """
    parts = urlsplit(address.url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (10250 if secure else 10255)
    deadline = time.monotonic() + seconds
    stop: threading.Timer | None = None
    guard: socket.socket | None = None
    try:
        headers = {"Accept": "application/json"}
        if address.token_file is not None and secure:
            headers["Authorization"] = f"Bearer {_token(address.token_file)}"
        raw = socket.create_connection((host, port), timeout=seconds)
        guard = raw.dup()
        stop = threading.Timer(seconds, _shut, (guard,))
        stop.daemon = True
        stop.start()
        connection = http.client.HTTPConnection(host, port, timeout=seconds)
        connection.sock = _context(address).wrap_socket(raw, server_hostname=host) if secure else raw
        try:
            connection.request("GET", parts.path or "/pods", headers=headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise PodListError(f"http_{response.status}", f"{address.url} answers {response.status}")
            answer = response.read(MAX_ANSWER + 1)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        word = "timeout" if time.monotonic() >= deadline else "unreachable"
        raise PodListError(word, f"{address.url} cannot be read: {clean(str(error) or word)}") from None
    finally:
        if stop is not None:
            stop.cancel()
        if guard is not None:
            guard.close()
    if time.monotonic() >= deadline:
        raise PodListError("timeout", f"{address.url} did not end within {seconds:g} s")
    if len(answer) > MAX_ANSWER:
        raise PodListError("too_large", f"{address.url} answers more than {MAX_ANSWER >> 20} MiB")
    return answer


def decode(answer: bytes, max_pods: int) -> Listing:
    """Pods and containers of a list. Raises PodListError where it is none."""
    try:
        found = msgspec.json.decode(answer, type=_PodList)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PodListError("malformed", f"what it answers is no list of pods: {clean(str(error))}") from None
    pods: dict[str, Pod] = {}
    containers: dict[str, Container] = {}
    rejected = dropped = 0
    for item in found.items or ():
        meta = item.metadata
        if not (
            LABEL.fullmatch(meta.namespace) and SUBDOMAIN.fullmatch(meta.name) and POD_UID.fullmatch(meta.uid)
        ):
            rejected += 1
            continue
        if len(pods) >= max_pods:
            dropped += 1
            continue
        pods[meta.uid] = Pod(meta.uid, meta.namespace, meta.name)
        statuses = item.status
        for status in (
            *statuses.container_statuses,
            *statuses.init_container_statuses,
            *statuses.ephemeral_container_statuses,
        ):
            container_id = status.container_id.rpartition("://")[2]  # containerd://ID
            if not container_id:
                continue  # it has not started
            if not (LABEL.fullmatch(status.name) and CONTAINER_ID.fullmatch(container_id)):
                rejected += 1
            elif len(containers) >= 4 * max_pods:
                dropped += 1
            else:
                containers[container_id] = Container(meta.namespace, meta.name, status.name, meta.uid)
    return Listing(pods, containers, rejected, dropped)


def _context(address: Address) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=address.certificate)
    if address.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _token(file: str) -> str:
    """Read anew each time: the kubelet replaces it."""
    with Path(file).open("rb") as stream:
        text = stream.read(_MAX_TOKEN).decode("ascii", errors="replace").strip()
    if not text or not text.isprintable() or not text.isascii():
        raise ValueError(f"{file} holds no token")
    return text


def _shut(guard: socket.socket) -> None:
    """End whatever waits on this connection."""
    with contextlib.suppress(OSError):  # it has just ended by itself
        guard.shutdown(socket.SHUT_RDWR)
