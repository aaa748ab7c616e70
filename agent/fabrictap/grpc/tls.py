"""TLS under a connection. Imported only where an endpoint wants it."""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections.abc import Sequence

from fabrictap.grpc.transport import Transport
from fabrictap.grpc.waiting import Deadline, Interrupt


def context(
    roots: str | None = None, key: str | None = None, certificate: str | None = None
) -> ssl.SSLContext:
    """What gRPC asks of TLS: 1.2 or later, the server's certificate checked, HTTP/2 by ALPN.

    The arguments are PEM files; without ``roots`` the system's certificates count. Raises OSError that names
    the file which cannot be read or used.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["h2"])
    try:
        if roots is None:
            made.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            made.load_verify_locations(roots)
    except OSError as error:
        raise _naming(error, roots) from None
    if certificate is not None:
        try:
            # Without a password of ours OpenSSL would ask for an encrypted key's on the terminal.
            made.load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise _naming(error, f"{certificate}, {key}") from None
    return made


def _naming(error: OSError, file: str | None) -> OSError:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "unknown format").replace("_", " ").lower()
        return OSError(errno.EINVAL, f"not usable for TLS: {reason}", file)
    return OSError(error.errno or errno.EIO, error.strerror or str(error), error.filename or file)


class TlsTransport(Transport):
    """A connection with TLS on it."""

    # Each write is a record of its own, with a header and a tag.
    gathers = False

    def __init__(self, secured: ssl.SSLSocket, interrupt: Interrupt) -> None:
        super().__init__(secured, interrupt)
        # Reading may have to write first and the other way around, when keys are changed.
        self._read_wants_write = False
        self._write_wants_read = False

    def receive(self, size: int) -> bytes | None:
        self._read_wants_write = False
        try:
            return super().receive(size)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
            return None

    def send(self, pieces: Sequence[memoryview]) -> int:
        self._write_wants_read = False
        try:
            return self._socket.send(pieces[0])
        except ssl.SSLWantWriteError:
            return 0
        except ssl.SSLWantReadError:
            self._write_wants_read = True
            return 0

    def _events(self, to_send: bool) -> int:
        return super()._events(self._read_wants_write or (to_send and not self._write_wants_read))


def handshake(
    connected: socket.socket, settings: ssl.SSLContext, host: str, deadline: Deadline, interrupt: Interrupt
) -> TlsTransport:
    """Take over a connected socket, which is closed when this fails.

    Raises OSError, TimedOutError, InterruptedCallError.
    """
    try:
        secured = settings.wrap_socket(
            connected, server_hostname=host.partition("%")[0], do_handshake_on_connect=False
        )
    except BaseException:
        connected.close()
        raise
    try:
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                interrupt.poll(secured.fileno(), select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                interrupt.poll(secured.fileno(), select.POLLOUT, deadline)
        if secured.selected_alpn_protocol() != "h2":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the server does not offer HTTP/2 (ALPN h2)")
    except BaseException:
        secured.close()
        raise
    return TlsTransport(secured, interrupt)
