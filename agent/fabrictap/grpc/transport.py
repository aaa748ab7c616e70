"""The byte stream to a server: a socket that does not block."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fabrictap.grpc.target import Address, Resolver
from fabrictap.grpc.waiting import Deadline, Interrupt, TimedOutError

if TYPE_CHECKING:
    import ssl

#: A connection that lies idle is probed by the kernel, so that one whose other end vanished without a word
#: is found out (and does not vanish from the tables of a NAT on the way): seconds, seconds, probes.
_KEEPALIVE = (300, 20, 3)

#: The kernel takes 1024 in one call (UIO_MAXIOV).
_MOST_PIECES = 1024


class Transport:
    """A connected socket. Owned by one thread at a time."""

    #: Whether ``send`` takes many pieces for as little as one.
    gathers = True

    def __init__(self, connected: socket.socket, interrupt: Interrupt) -> None:
        self._socket = connected
        self._interrupt = interrupt

    def receive(self, size: int) -> bytes | None:
        """What is there, at most ``size`` bytes; None when nothing is, b"" at the end. Raises OSError."""
        try:
            return self._socket.recv(size)
        except BlockingIOError:
            return None

    def send(self, pieces: Sequence[memoryview]) -> int:
        """How many bytes of the pieces the socket took, 0 when it is full. Raises OSError."""
        try:
            return self._socket.sendmsg(pieces[:_MOST_PIECES])
        except BlockingIOError:
            return 0

    def wait(self, deadline: Deadline, *, to_send: bool) -> None:
        """Until there is something to receive or, with ``to_send``, room to send.

        Raises TimedOutError, InterruptedCallError.
        """
        self._interrupt.poll(self._socket.fileno(), self._events(to_send), deadline)

    def _events(self, to_send: bool) -> int:
        return select.POLLIN | (select.POLLOUT if to_send else 0)

    def close(self) -> None:
        self._socket.close()


def connect(
    resolver: Resolver, tls: ssl.SSLContext | None, host: str, deadline: Deadline, interrupt: Interrupt
) -> Transport:
    """A stream to the first address that answers. Raises OSError, TimedOutError, InterruptedCallError.

    Each address may take its share of the time that is left, so that one behind which nobody answers, as an
    IPv6 address where only IPv4 is routed, does not cost all of it.
    """
    addresses = resolver.addresses(deadline)
    error: OSError | None = None
    for number, address in enumerate(addresses):
        share = deadline.share(len(addresses) - number)
        try:
            connected = _connect(address, share, interrupt)
        except TimedOutError:
            if number == len(addresses) - 1:
                raise
            continue
        except OSError as failed:
            error = failed
            continue
        if tls is None:
            return Transport(connected, interrupt)
        from fabrictap.grpc import tls as secured  # noqa: PLC0415 - ssl costs 2 MiB where nobody wants it

        return secured.handshake(connected, tls, host, deadline, interrupt)
    raise error or OSError(errno.EADDRNOTAVAIL, "the name has no address")


def _connect(address: Address, deadline: Deadline, interrupt: Interrupt) -> socket.socket:
    family, place = address
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            idle, every, probes = _KEEPALIVE
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
        failed = made.connect_ex(place)
        if failed == errno.EINPROGRESS:
            interrupt.poll(made.fileno(), select.POLLOUT, deadline)
            failed = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # EAGAIN is a unix socket whose backlog is full.
        if failed:
            raise OSError(failed, os.strerror(failed))
    except BaseException:
        made.close()
        raise
    return made
