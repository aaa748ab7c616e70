"""Where a gRPC server is, as gRPC's "Name Resolution" writes it, and the socket addresses behind a name."""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass

from fabrictap.grpc.waiting import Deadline, Interrupt

#: Of a target without a port, as in gRPC.
DEFAULT_PORT = 443

#: Address family and what socket.connect takes.
Address = tuple[int, str | tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Target:
    """``authority`` is what the server is told, ``host`` what its certificate must be for. The addresses are
    those of ``path`` (a unix socket, an abstract one with a zero byte in front) or of ``places``."""

    authority: str
    host: str
    places: tuple[tuple[str, int], ...] = ()
    path: str = ""

    @property
    def local(self) -> bool:
        """Whether it is on this machine for certain: a unix socket, or loopback by name or address."""
        return bool(self.path) or all(_loopback(host) for host, _ in self.places)


def parse(text: str) -> Target:
    """``host:port``, ``dns:[///]host:port``, ``ipv4:`` and ``ipv6:`` with one address or several,
    ``unix:path``, ``unix:///path``, ``unix-abstract:name``. Raises ValueError."""
    scheme, separator, rest = text.partition(":")
    if separator and scheme == "unix":
        path = rest[2:] if rest.startswith("//") else rest
        return Target("localhost", "localhost", path=_checked_path(path, text))
    if separator and scheme == "unix-abstract":
        return Target("localhost", "localhost", path="\0" + _checked_path(rest, text))
    if separator and scheme in ("ipv4", "ipv6"):
        places = tuple(_place(one, text) for one in rest.split(","))
        return Target(_authority(places[0]), places[0][0], places)
    if separator and scheme == "dns":
        if rest.startswith("//"):
            server, _, rest = rest[2:].partition("/")
            if server:
                raise ValueError(f"{text!r}: a DNS server of one's own is not supported; dns:///host:port")
        text = rest
    place = _place(text, text)
    return Target(_authority(place), place[0], (place,))


def _place(part: str, text: str) -> tuple[str, int]:
    """Host and port of ``host``, ``host:port``, ``[v6]``, ``[v6]:port`` and a bare IPv6 address."""
    found = re.fullmatch(
        r"\[([^\[\]]+)\](?::(\d{1,5}))?|([^:\[\]/]+)(?::(\d{1,5}))?|([\da-fA-F.]*:[\da-fA-F.]*:[\da-fA-F:.]*)",
        part,
    )
    if found is None:
        raise ValueError(f"{text!r} is not host:port")
    host = found[1] or found[3] or found[5]
    port = int(found[2] or found[4] or DEFAULT_PORT)
    if not 0 < port < 65536:
        raise ValueError(f"{text!r}: there is no port {port}")
    return host, port


def _checked_path(path: str, text: str) -> str:
    if not path.strip("/") or "\0" in path:
        raise ValueError(f"{text!r} has no path")
    if len(path.encode(errors="surrogateescape")) > 107:  # struct sockaddr_un, less a zero byte
        raise ValueError(f"{text!r}: a unix socket's path has at most 107 bytes")
    return path


def _loopback(host: str) -> bool:
    try:
        return socket.inet_pton(socket.AF_INET, host)[0] == 127
    except OSError:
        return host.lower() in ("localhost", "::1")


def _authority(place: tuple[str, int]) -> str:
    host, port = place
    return f"[{host.partition('%')[0]}]:{port}" if ":" in host else f"{host}:{port}"


class _Lookup:
    """A name's look-up in a thread of its own, for getaddrinfo can neither be given a deadline nor ended."""

    def __init__(self, host: str, port: int, interrupt: Interrupt) -> None:
        self.place = (host, port)
        self.found: list[Address] | OSError | None = None
        self._interrupt = interrupt
        threading.Thread(target=self._run, name="fabrictap-resolve", daemon=True).start()

    def _run(self) -> None:
        host, port = self.place
        try:
            found: list[Address] | OSError = _addresses(host, port, 0)
        except OSError as error:
            found = error
        except UnicodeError as error:  # a label too long for IDNA
            found = OSError(socket.EAI_NONAME, str(error))
        with self._interrupt.changed:
            self.found = found
            self._interrupt.changed.notify_all()


class Resolver:
    """Finds the addresses of a channel's target. For one call at a time.

    A look-up that outlived its call is waited for by the next: there is never more than one thread.
    """

    def __init__(self, target: Target, interrupt: Interrupt) -> None:
        self._target = target
        self._interrupt = interrupt
        self._lookup: _Lookup | None = None

    def addresses(self, deadline: Deadline) -> list[Address]:
        """In the order in which to try them. Raises OSError, TimedOutError, InterruptedCallError."""
        if self._target.path:
            return [(socket.AF_UNIX, self._target.path)]
        every: list[Address] = []
        for host, port in self._target.places:
            try:
                every += _addresses(host, port, socket.AI_NUMERICHOST)
            except OSError:
                every += self._named(host, port, deadline)
        return every

    def _named(self, host: str, port: int, deadline: Deadline) -> list[Address]:
        if self._lookup is None or self._lookup.place != (host, port):
            self._lookup = _Lookup(host, port, self._interrupt)
        lookup = self._lookup
        self._interrupt.wait_for(lambda: lookup.found is not None, deadline)
        self._lookup = None
        if isinstance(lookup.found, OSError):
            raise lookup.found
        return lookup.found or []


def _addresses(host: str, port: int, flags: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]
