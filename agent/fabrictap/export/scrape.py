"""The listener that a Prometheus server scrapes: HTTP/1.x, one thread, nothing but GET and HEAD of /metrics.

Off unless export.prometheus.listen says where. The standard library's server takes a thread and about a
millisecond for each request, and reads headers without limit of time; this one has a limit for everything
and closes every connection after its answer.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fabrictap.config import ConfigError

_log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_CONNECTIONS = 8
LARGEST_REQUEST = 8192
#: Seconds for a request to come in, and for its answer to go out.
REQUEST_TIME = 5.0
ANSWER_TIME = 30.0
_BACKLOG = 16
_LAST_READS = 8
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class ListenError(Exception):
    """The address cannot be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a unix socket, or an IP address and a port."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str, *, allow_remote: bool) -> Address:
    """``127.0.0.1:9435``, ``[::1]:9435``, ``localhost:9435``, ``unix:/path``. Raises ConfigError."""
    key = "export.prometheus.listen"
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        # sockaddr_un has room for 108 bytes with the final zero
        if not path.startswith("/") or len(path.encode()) > 107 or "\0" in path:
            raise ConfigError(
                f"{key}: expected unix: and an absolute path of at most 107 bytes, got {text!r}"
            )
        return Address(path)
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ConfigError(f"{key}: expected an address and a port as in 127.0.0.1:9435, got {text!r}")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"{key}: expected an IP address as in 127.0.0.1:9435, got {text!r}") from None
    if not address.is_loopback and not allow_remote:
        raise ConfigError(
            f"{key}: {host} can be reached from other machines, and whoever can may see the traffic of all "
            "tenants; set export.prometheus.allow_remote=true if that is meant"
        )
    return Address(None, str(address), int(port))


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    deadline: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class Scrape:
    """Listens at ``address`` from ``start`` to ``close``; its thread calls ``body`` for each answer."""

    def __init__(self, address: Address, body: Callable[[], bytes]) -> None:
        """Raises ListenError."""
        self._body = body
        self._connections: dict[int, _Connection] = {}
        self._stop = threading.Event()
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        try:
            self._listener = _listen(address)
        except OSError as error:
            os.close(self._wake)
            os.close(self._woken)
            self._selector.close()
            raise ListenError(f"cannot listen at {address}: {error.strerror or error}") from None
        self._path = address.path
        #: Where it listens; the port is the real one where 0 was asked for.
        self.address = address
        if address.path is None:
            self.address = Address(None, address.host, self._listener.getsockname()[1])
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._accepting = False
        self._accept(True)
        self._thread = threading.Thread(target=self._run, name="prometheus", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 1.0) -> None:
        """Stop; answers that are not out yet are cut off."""
        self._stop.set()
        os.write(self._woken, b"x")
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._path is not None:
            with contextlib.suppress(OSError):
                Path(self._path).unlink()
        if not self._thread.is_alive():
            for connection in list(self._connections.values()):
                self._drop(connection)
            self._listener.close()
            self._selector.close()
            os.close(self._wake)
            os.close(self._woken)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - nobody who connects may end the listener
                _log.error("scrape failed unexpectedly: %s: %s", type(error).__name__, error)
                for connection in list(self._connections.values()):
                    self._drop(connection)
                self._stop.wait(1.0)

    def _turn(self) -> None:
        now = time.monotonic()
        first = min((one.deadline for one in self._connections.values()), default=None)
        for key, events in self._selector.select(None if first is None else max(0.0, first - now)):
            if key.fileobj is self._listener:
                self._welcome()
            elif isinstance(key.data, _Connection):
                self._serve(key.data, events)
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.deadline <= now:
                if connection.answer is None:
                    self._reply(connection, 408)
                self._drop(connection)

    def _accept(self, wanted: bool) -> None:
        """While all connections are taken, others wait in the kernel."""
        if wanted != self._accepting:
            self._accepting = wanted
            if wanted:
                self._selector.register(self._listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._listener)

    def _welcome(self) -> None:
        try:
            made, _ = self._listener.accept()
        except OSError:
            return  # gone again, or no descriptor left: the kernel keeps those that wait
        made.setblocking(False)
        connection = _Connection(made, time.monotonic() + REQUEST_TIME)
        self._connections[made.fileno()] = connection
        self._selector.register(made, selectors.EVENT_READ, connection)
        self._accept(len(self._connections) < MOST_CONNECTIONS)

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if connection.answer is None and events & selectors.EVENT_READ:
                self._read(connection)
            elif events & selectors.EVENT_WRITE:
                self._write(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _read(self, connection: _Connection) -> None:
        piece = connection.socket.recv(LARGEST_REQUEST)
        if not piece:
            self._drop(connection)
            return
        connection.request += piece
        head, end, _ = connection.request.partition(b"\r\n\r\n")
        if end:
            self._reply(connection, *self._answer(bytes(head)))
        elif len(connection.request) > LARGEST_REQUEST:
            self._reply(connection, 431)

    def _answer(self, head: bytes) -> tuple[int, bytes, bool]:
        """(status, body, whether the body is sent)."""
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(head) > LARGEST_REQUEST:
            return 431, b"", True
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return 400, b"", True
        method, target, _ = parts
        if method not in (b"GET", b"HEAD"):
            return 405, b"", True
        if target.split(b"?", 1)[0] != b"/metrics":
            return 404, b"the metrics are at /metrics\n", method == b"GET"
        try:
            return 200, self._body(), method == b"GET"
        except Exception as error:  # noqa: BLE001 - one scrape fails, the listener stays
            _log.error("the metrics could not be written: %s: %s", type(error).__name__, error)
            return 500, b"", True

    def _reply(self, connection: _Connection, status: int, body: bytes = b"", send: bool = True) -> None:
        allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
            f"Content-Type: {CONTENT_TYPE if status == 200 else 'text/plain; charset=utf-8'}\r\n"
            f"Content-Length: {len(body)}\r\n{allow}"
            "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        ).encode()
        connection.answer = memoryview(head + body if send else head)
        connection.deadline = time.monotonic() + ANSWER_TIME
        try:
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
            self._write(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _write(self, connection: _Connection) -> None:
        assert connection.answer is not None
        connection.answer = connection.answer[connection.socket.send(connection.answer) :]
        if not connection.answer:
            # What the other side still sends would make the kernel throw the answer away with a reset.
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
                for _ in range(_LAST_READS):
                    if not connection.socket.recv(LARGEST_REQUEST):
                        break
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.socket.fileno(), None) is None:
            return
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._accept(True)


def _listen(address: Address) -> socket.socket:
    if address.path is not None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        made = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if address.path is not None:
            _clear(address.path)
            made.bind(address.path)
            # Before anybody can connect, which is from listen() on.
            Path(address.path).chmod(0o660)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address.host, address.port))
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _clear(path: str) -> None:
    """Remove the socket of an agent that is no more. Raises OSError where somebody listens there."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # bind says what is in the way
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            return
    raise OSError(0, "another process listens there")
