"""The gRPC client with servers whose bytes are a valid answer that went wrong, and with random ones."""

import random
import socket

import pytest
from hyperframe.frame import PingFrame, SettingsFrame, WindowUpdateFrame

from fabrictap.grpc.client import Channel
from fabrictap.grpc.status import Code, Failure
from grpc_servers import METHOD, Peer, Took

pytest_plugins = ["grpc_fixtures"]

ROUNDS = 400


def valid_answer():
    """Everything that a well-behaved server sends in the first call on a connection."""
    peer = Peer(None)
    peer.stream = 1
    frames = (
        SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 20}),
        SettingsFrame(0, flags=["ACK"]),
        WindowUpdateFrame(0, window_increment=1 << 20),
        PingFrame(0, opaque_data=b"12345678"),
        peer.begin(),
        peer.data(b"answer" * 50),
        peer.trailers("0", ("grpc-status-details-bin", "CA4"), ("grpc-message", "a%20b")),
        peer.goaway(1),
    )
    return b"".join(frame.serialize() for frame in frames)


def spoiled(source, data):
    """``data`` with some bits turned, bytes lost, doubled or moved."""
    out = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 5, 20))):
        at, size = source.randrange(len(out)), source.randrange(1, 20)
        match source.randrange(5):
            case 0:
                out[at] ^= 1 << source.randrange(8)
            case 1:
                out[at] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = out[at : at + size]
            case 4:
                out[at : at + size] = source.randbytes(size)
        out = out or bytearray(b"\0")
    return bytes(out)


def whole_frames(source, _):
    """Frames of any type, with lengths that are right and the rest by chance."""
    out = b""
    for _ in range(source.randrange(1, 12)):
        body = source.randbytes(source.choice((0, 1, 4, 5, 6, 8, 9, 40)))
        head = bytes([source.randrange(12), source.choice((0, 1, 4, 5, 8, 0x20, 0xFF))])
        stream = source.choice((0, 0, 1, 1, 2, 3)).to_bytes(4, "big")
        out += len(body).to_bytes(3, "big") + head + stream + body
    return out


@pytest.mark.parametrize("make", [spoiled, whole_frames])
def test_whatever_a_server_sends_ends_in_an_answer_or_a_failure(scripted, make):
    source = random.Random(20)
    answer = valid_answer()
    sent = [answer, *(make(source, answer) for _ in range(ROUNDS))]

    def script(peer, number):
        # A retry takes the next; both must end well.
        peer.exactly(24)
        peer.send(sent[number % len(sent)])
        peer.socket.shutdown(socket.SHUT_WR)
        peer.until_closed()

    server = scripted(script)
    results, codes = [], set()
    with Took() as took:
        while server.accepted < len(sent):
            with Channel(server.target) as channel:
                for _ in range(2):
                    try:
                        results.append(channel.call(METHOD, b"x" * 100, 5.0))
                    except Failure as failure:
                        codes.add(failure.code)
    assert results[0] == b"answer" * 50
    assert Code.UNAVAILABLE in codes
    assert Code.DEADLINE_EXCEEDED not in codes
    assert took.seconds < 60
