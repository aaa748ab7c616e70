"""Frames that are made by hand: h2 at both ends agrees with them about every byte and every window."""

from __future__ import annotations

import random

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes

from fabrictap.grpc.connection import Connection
from fabrictap.grpc.message import request_headers
from fabrictap.grpc.waiting import Deadline


class Server:
    """h2 as the server, in the place of a transport: what is sent comes to it at once."""

    def __init__(self, *, gathers: bool, window: int, frame: int, takes: random.Random) -> None:
        self.gathers = gathers
        self.h2 = H2Connection(H2Configuration(client_side=False))
        self.h2.initiate_connection()
        self.h2.update_settings(
            {SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame}
        )
        self.body = bytearray()
        self.sizes: list[int] = []
        self.unacknowledged = 0
        self.ended = False
        self.client: Connection | None = None
        self._takes = takes
        self._stream = 0

    def receive(self, size: int) -> bytes | None:
        return self.h2.data_to_send(size) or None

    def send(self, pieces: list[memoryview]) -> int:
        data = b"".join(pieces if self.gathers else pieces[:1])
        data = data[: self._takes.randrange(1, len(data) + 1)]
        for event in self.h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self._stream = event.stream_id
            elif isinstance(event, DataReceived):
                self.body += event.data
                self.sizes.append(len(event.data))
                self.unacknowledged += event.flow_controlled_length
            elif isinstance(event, StreamEnded):
                self.ended = True
                self.h2.send_headers(
                    self._stream,
                    [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")],
                    end_stream=True,
                )
        return len(data)

    def wait(self, deadline: Deadline, *, to_send: bool) -> None:
        """The client has nothing to do: everything that it thinks it may send has been sent."""
        deadline.left()
        if not to_send and not self.ended and self.unacknowledged:
            assert self.client is not None
            # What h2 at this end still lets in is what h2 at the other end still lets out.
            ours = self.client._h2.local_flow_control_window(self._stream)
            assert ours == self.h2.remote_flow_control_window(self._stream)
            assert ours == 0
            self.h2.acknowledge_received_data(self.unacknowledged, self._stream)
            self.unacknowledged = 0

    def close(self) -> None:
        pass


@pytest.mark.parametrize("gathers", [True, False], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("window", "frame"), [(65_535, 16_384), (1_000, 16_384), (1 << 20, 100_000), (7, 16_384)]
)
@pytest.mark.parametrize("size", [6, 16_383, 16_384, 16_385, 65_535, 65_536, 300_000])
def test_both_ends_count_the_same_windows_and_bytes(gathers: bool, window: int, frame: int, size: int):
    if window < 100 < size // 100:
        size = 700  # byte by byte
    seed = random.Random(size * window)
    server = Server(gathers=gathers, window=window, frame=frame, takes=seed)
    client = server.client = Connection(server)  # type: ignore[arg-type]
    assert client.is_usable(), "the server's settings are known before the first call"
    headers = request_headers(
        "/a.B/C", "host", "http", "test", timeout=30.0, compression="identity", metadata=()
    )
    for call in range(3):
        server.ended, server.body = False, bytearray()
        message = seed.randbytes(size)
        client.exchange(headers, (message[:5], message[5:]) if call else (message,), Deadline(30.0), 1 << 20)
        assert bytes(server.body) == message, call
        assert max(server.sizes) <= min(frame, window)
        # What was not acknowledged is missing in the window of the connection, at both ends alike.
        assert client._h2.outbound_flow_control_window == server.h2.inbound_flow_control_window
    client.close()
