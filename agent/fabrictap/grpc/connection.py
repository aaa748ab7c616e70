"""One HTTP/2 connection that carries one gRPC call at a time.

h2 keeps the protocol's state; here is what moves bytes between it and the socket, and what h2 leaves open:
it takes any GOAWAY as the end, where RFC 9113 section 6.8 lets the streams up to its last one be finished
(how servers with a maximum connection age say good-bye). So frames are handed to h2 one by one and GOAWAY is
kept from it. And h2 copies what it sends several times, frame by frame: of a request only the last frame goes
through it, the others are a header and a piece of the caller's memory that the socket gathers, and h2 is told
how much of its windows they took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hpack import HeaderTuple, NeverIndexedHeaderTuple

from fabrictap.grpc import status
from fabrictap.grpc.message import Response
from fabrictap.grpc.transport import Transport
from fabrictap.grpc.waiting import Deadline

_FRAME_HEADER = 9
_GOAWAY = 0x7
_LONGEST_FRAME = 1 << 14
_READ_SIZE = 1 << 16

#: Of one block of headers, unpacked. Four times what gRPC servers send at most by default.
_HEADERS_LIMIT = 1 << 15

#: What a server may send in a call beyond the answer itself: acknowledgements, pings, headers.
_OVERHEAD = 1 << 20

#: What a frame counts for besides its bytes: small ones cost time rather than memory.
_FRAME_COST = 512

#: Given to the socket at once.
_SEND_SIZE = 1 << 18


class ConnectionLostError(Exception):
    """The connection is of no more use. ``unprocessed``: the server has not seen the request, as far as can
    be told, so that it may be made again on another connection."""

    def __init__(self, why: str, *, unprocessed: bool = False) -> None:
        super().__init__(why)
        self.unprocessed = unprocessed


class _H2(H2Connection):
    #: h2 remembers 65,536 closed streams, which a connection that lives for days would fill up.
    MAX_CLOSED_STREAMS = 8

    def spend_windows(self, stream: int, size: int) -> None:
        """Account for ``size`` bytes in DATA frames of an open stream that did not go through ``send_data``.

        No more than ``local_flow_control_window``, and without END_STREAM.
        """
        self.outbound_flow_control_window -= size
        self.streams[stream].outbound_flow_control_window -= size


@dataclass(frozen=True, slots=True)
class _GoAway:
    last_stream: int
    error_code: int
    said: str


class Connection:
    """See the module's docstring. Of one thread at a time; after any exception from it, ``close`` it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._h2 = _H2(H2Configuration(client_side=True, header_encoding=None))
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_FRAME_SIZE: _LONGEST_FRAME,
                SettingCodes.MAX_HEADER_LIST_SIZE: _HEADERS_LIMIT,
            },
        )
        self._h2.decoder.max_header_list_size = _HEADERS_LIMIT
        self._h2.initiate_connection()
        self._incoming = bytearray()
        #: What is to be sent, in pieces.
        self._outgoing: list[memoryview] = []
        self._cannot_send = False
        self._goaway: _GoAway | None = None
        self._stream = 0
        self._response = Response(0)
        self._budget = _OVERHEAD
        self._calls = 0

    def is_usable(self) -> bool:
        """Whether another call can be made, after a look at what came meanwhile. Does not wait."""
        self._budget = _OVERHEAD
        try:
            while self._receive():
                pass
        except ConnectionLostError:
            return False
        return self._goaway is None and not self._cannot_send

    def exchange(
        self, headers: list[tuple[str, str]], message: Sequence[bytes], deadline: Deadline, limit: int
    ) -> Response:
        """Make a call and return the whole answer, of at most ``limit`` bytes.

        ``message`` is what is sent, in pieces of which only the last may be empty.
        Raises ConnectionLostError, Failure (the answer is too long), TimedOutError, InterruptedCallError.
        """
        self._response = Response(limit)
        self._budget = untouched = limit + _OVERHEAD + sum(map(len, message)) // 8
        try:
            self._begin(headers)
            self._transfer([memoryview(piece) for piece in message], deadline)
        except ConnectionLostError as lost:
            # A connection that lay idle and ends without a byte was dead already.
            if self._calls and self._budget == untouched:
                lost.unprocessed = True
            raise
        self._calls += 1
        self._stream = 0
        return self._response

    def close(self) -> None:
        """Does not wait."""
        try:
            if not self._cannot_send and not self._outgoing:
                self._h2.close_connection()
                self._send()
        except (H2Error, ConnectionLostError):
            pass  # The server was only to be told that it is over.
        self._transport.close()

    def _begin(self, headers: list[tuple[str, str]]) -> None:
        # A timeout differs from call to call: it would fill the header table that both sides keep.
        named = [
            (NeverIndexedHeaderTuple if name == "grpc-timeout" else HeaderTuple)(name, value)
            for name, value in headers
        ]
        try:
            self._stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(self._stream, named)
        except H2Error as error:  # as when the server allows no streams at all
            raise ConnectionLostError(_said(error), unprocessed=True) from None

    def _transfer(self, left: list[memoryview], deadline: Deadline) -> None:
        """Send and receive at the same time, for a server may answer before it has heard all."""
        unsent = True
        while not self._response.ended:
            deadline.left()
            if unsent and not self._outgoing and not self._cannot_send:
                unsent = self._put(left)
            moved = self._send()
            moved |= self._receive()
            self._heed_goaway()
            if not moved and not self._response.ended:
                self._transport.wait(deadline, to_send=bool(self._outgoing) and not self._cannot_send)
        if unsent:
            # Answered early. The stream would have to be reset; a new connection is as good.
            self._cannot_send = True
        else:
            self._send()  # acknowledgements; what the socket does not take goes with the next call

    def _put(self, left: list[memoryview]) -> bool:
        """Queue what flow control lets through, and take it off ``left``. Whether the end is still unsent."""
        h2 = self._h2
        try:
            pieces: list[bytes | memoryview] = [h2.data_to_send()]  # the headers first
            room = min(h2.local_flow_control_window(self._stream), _SEND_SIZE)
            longest = h2.max_outbound_frame_size
            by_hand = 0
            while (size := min(longest, room)) > 0 and (len(left) > 1 or len(left[0]) > size):
                piece = left[0][:size]
                pieces += (_data_header(self._stream, len(piece)), piece)
                room -= len(piece)
                by_hand += len(piece)
                left[0] = left[0][len(piece) :]
                if not left[0]:
                    del left[0]
            h2.spend_windows(self._stream, by_hand)
            unsent = len(left) > 1 or len(left[0]) > size
            if not unsent:
                h2.send_data(self._stream, bytes(left[0]), end_stream=True)
                pieces.append(h2.data_to_send())
        except H2Error as error:
            raise ConnectionLostError(_said(error)) from None
        self._queue(pieces)
        return unsent

    def _queue(self, pieces: Sequence[bytes | memoryview]) -> None:
        if self._transport.gathers:
            self._outgoing += [memoryview(piece) for piece in pieces if piece]
        elif joined := b"".join(pieces):
            self._outgoing.append(memoryview(joined))

    def _send(self) -> bool:
        """Whether something was sent."""
        if not self._outgoing:
            self._queue([self._h2.data_to_send()])
        if self._cannot_send or not self._outgoing:
            return False
        try:
            sent = left = self._transport.send(self._outgoing)
        except OSError:
            # The server is gone, maybe with a last word that is still to be read: reading says what is up.
            self._cannot_send = True
            self._outgoing.clear()
            return False
        done = 0
        while done < len(self._outgoing) and left >= len(self._outgoing[done]):
            left -= len(self._outgoing[done])
            done += 1
        del self._outgoing[:done]
        if left:
            self._outgoing[0] = self._outgoing[0][left:]
        return sent > 0

    def _receive(self) -> bool:
        """Whether something was received."""
        try:
            data = self._transport.receive(_READ_SIZE)
        except OSError as error:
            raise ConnectionLostError(reason(error)) from None
        if data is None:
            return False
        if not data:
            raise ConnectionLostError(self._farewell())
        self._spend(len(data))
        self._incoming += data
        while (frame := self._take_frame()) is not None:
            if frame[3] == _GOAWAY:
                self._note_goaway(frame)
            else:
                self._feed(frame)
        return True

    def _spend(self, cost: int) -> None:
        self._budget -= cost
        if self._budget < 0:
            raise ConnectionLostError("the server sends far more than an answer")

    def _take_frame(self) -> bytes | None:
        if len(self._incoming) < _FRAME_HEADER:
            return None
        size = int.from_bytes(self._incoming[:3], "big")
        if size > _LONGEST_FRAME:
            http1 = self._incoming.startswith(b"HTTP/")
            raise ConnectionLostError(
                "the server speaks HTTP/1, not gRPC" if http1 else f"an HTTP/2 frame of {size} bytes"
            )
        end = _FRAME_HEADER + size
        if len(self._incoming) < end:
            return None
        self._spend(_FRAME_COST)
        frame = bytes(self._incoming[:end])
        del self._incoming[:end]
        return frame

    def _feed(self, frame: bytes) -> None:
        try:
            for event in self._h2.receive_data(frame):
                self._handle(event)
        except H2Error as error:
            raise ConnectionLostError(_said(error)) from None

    def _handle(self, event: events.Event) -> None:
        response = self._response
        if getattr(event, "stream_id", None) != self._stream:
            return
        if isinstance(event, events.ResponseReceived):
            response.put_headers(event.headers)
        elif isinstance(event, events.TrailersReceived):
            response.put_trailers(event.headers)
        elif isinstance(event, events.DataReceived):
            response.put_data(event.data)
            if event.flow_controlled_length and event.stream_ended is None:
                self._h2.acknowledge_received_data(event.flow_controlled_length, self._stream)
        elif isinstance(event, events.StreamEnded):
            response.ended = True
        elif isinstance(event, events.StreamReset) and not response.ended:
            if event.error_code == status.REFUSED_STREAM:
                raise ConnectionLostError("the server refuses the stream", unprocessed=True)
            response.reset = int(event.error_code)
            response.ended = True

    def _note_goaway(self, frame: bytes) -> None:
        body = frame[_FRAME_HEADER:]
        if len(body) < 8:
            raise ConnectionLostError("an HTTP/2 GOAWAY that is cut off")
        self._goaway = _GoAway(
            int.from_bytes(body[:4], "big") & 0x7FFFFFFF,
            int.from_bytes(body[4:8], "big"),
            body[8:108].decode("ascii", "replace"),
        )

    def _heed_goaway(self) -> None:
        if self._goaway is not None and self._goaway.last_stream < self._stream and not self._response.ended:
            raise ConnectionLostError(self._farewell(), unprocessed=not self._response.has_begun)

    def _farewell(self) -> str:
        if self._goaway is None:
            return "the server closed the connection"
        try:
            name = ErrorCodes(self._goaway.error_code).name
        except ValueError:
            name = str(self._goaway.error_code)
        said = f": {self._goaway.said}" if self._goaway.said else ""
        return f"the server closed the connection (GOAWAY {name}{said})"


def _data_header(stream: int, size: int) -> bytes:
    """Of a DATA frame without flags or padding (RFC 9113 section 6.1)."""
    return size.to_bytes(3, "big") + b"\0\0" + stream.to_bytes(4, "big")


def reason(error: OSError) -> str:
    """What the system or TLS says is wrong."""
    verify = getattr(error, "verify_message", "")
    if verify:
        return f"the server's certificate is not accepted: {verify}"
    return str(getattr(error, "reason", None) or error.strerror or error)


def _said(error: H2Error) -> str:
    return f"HTTP/2: {error or type(error).__name__}"
