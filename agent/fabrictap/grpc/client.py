"""The channel: unary calls to one server, over one connection that is made when a call needs it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from fabrictap.grpc import message, target
from fabrictap.grpc.connection import Connection, ConnectionLostError, reason
from fabrictap.grpc.status import Code, Failure
from fabrictap.grpc.transport import connect
from fabrictap.grpc.waiting import Deadline, Interrupt, InterruptedCallError, TimedOutError
from fabrictap.version import VERSION

if TYPE_CHECKING:
    import ssl

#: gRPC's default for the size of a message that is received.
MAX_RESPONSE = 4 << 20


class Channel:
    """Calls to the server at a target, see ``target.parse``. Safe between threads; calls take turns.

    ``tls`` is ``tls.context(...)``, or None for a plain connection. HTTP proxies are not used. Between calls
    nothing runs; what the server sent meanwhile, and whether it went away, is noticed at the next call.
    Call ``close`` at the end. Raises ValueError for a target that is none.
    """

    def __init__(
        self,
        where: str,
        tls: ssl.SSLContext | None = None,
        user_agent: str = f"fabrictap/{VERSION}",
        max_response: int = MAX_RESPONSE,
    ) -> None:
        self._target = target.parse(where)
        self._tls = tls
        self._user_agent = user_agent
        self._max_response = max_response
        self._interrupt = Interrupt()
        self._resolver = target.Resolver(self._target, self._interrupt)
        self._turn = threading.Lock()
        self._connection: Connection | None = None
        self._guard = threading.Lock()
        self._users = 0
        self._closed = False

    def call(
        self,
        method: str,
        body: bytes,
        timeout: float,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        compression: str = message.IDENTITY,
    ) -> bytes:
        """The answer to one request, both serialized. Raises Failure.

        ``method`` is ``/package.Service/Method``, ``compression`` identity or gzip. ``timeout`` bounds all of
        it in seconds, from looking up the name to the last byte; only a call of another thread that is under
        way may take its own timeout first. A request is made a second time, on a new connection, where the
        first had died while it lay idle, or where the server says that it did not process it.
        """
        packed = message.pack(body, compression)
        checked = message.check_metadata(metadata)
        with self._guard:
            if self._closed:
                raise Failure(Code.CANCELLED, "the channel is closed")
            self._users += 1
        try:
            with self._turn:
                deadline = Deadline(timeout)
                headers = message.request_headers(
                    method,
                    self._target.authority,
                    "https" if self._tls else "http",
                    self._user_agent,
                    timeout=timeout,
                    compression=compression,
                    metadata=checked,
                )
                return self._call(headers, packed, deadline)
        except TimedOutError as error:
            what = str(error) or "no answer"
            raise Failure(Code.DEADLINE_EXCEEDED, f"{what} within {timeout:g} s") from None
        except InterruptedCallError:
            raise Failure(Code.CANCELLED, "the channel was closed") from None
        except ConnectionLostError as lost:
            raise Failure(Code.UNAVAILABLE, str(lost)) from None
        except OSError as error:
            raise Failure(Code.UNAVAILABLE, reason(error)) from None
        finally:
            with self._guard:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                self._release()

    def close(self) -> None:
        """End the connection; calls under way fail at once, as do all later ones."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._interrupt.set()
            unused = not self._users
        if unused:
            self._release()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, headers: list[tuple[str, str]], packed: tuple[bytes, ...], deadline: Deadline) -> bytes:
        self._interrupt.check()
        if self._connection is not None and not self._connection.is_usable():
            self._drop()
        try:
            return self._exchange(headers, packed, deadline)
        except ConnectionLostError as lost:
            if not lost.unprocessed:
                raise
            return self._exchange(headers, packed, deadline)

    def _exchange(
        self, headers: list[tuple[str, str]], packed: tuple[bytes, ...], deadline: Deadline
    ) -> bytes:
        if self._connection is None:
            try:
                transport = connect(self._resolver, self._tls, self._target.host, deadline, self._interrupt)
            except TimedOutError:
                raise TimedOutError("no connection") from None
            self._connection = Connection(transport)
        try:
            response = self._connection.exchange(headers, packed, deadline, self._max_response)
        except BaseException:
            self._drop()
            raise
        return response.message()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _release(self) -> None:
        """Nobody uses the channel any more."""
        self._drop()
        self._interrupt.release()
