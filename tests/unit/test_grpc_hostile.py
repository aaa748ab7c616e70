"""The gRPC client against servers that do what a server should not, byte by byte."""

import socket
import struct
import threading
import time

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from fabrictap.grpc.status import Code
from grpc_servers import METHOD, Took, failure_of

pytest_plugins = ["grpc_fixtures"]


def answers(*, then):
    """A script: read a request, do ``then(peer)``, wait until the client leaves."""

    def script(peer, number):
        peer.request()
        then(peer)
        peer.until_closed()

    return script


# --- answers that are no success ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400", Code.INTERNAL),
        ("401", Code.UNAUTHENTICATED),
        ("403", Code.PERMISSION_DENIED),
        ("404", Code.UNIMPLEMENTED),
        ("429", Code.UNAVAILABLE),
        ("502", Code.UNAVAILABLE),
        ("503", Code.UNAVAILABLE),
        ("504", Code.UNAVAILABLE),
        ("418", Code.UNKNOWN),
        ("999", Code.UNKNOWN),
    ],
)
def test_an_http_answer_without_grpc(scripted, channel_to, status, code):
    server = scripted(answers(then=lambda peer: peer.send(peer.headers((":status", status), end=True))))
    failure = failure_of(channel_to(server.target))
    assert (failure.code, failure.details) == (code, f"HTTP status {status}")


@pytest.mark.parametrize(
    ("pairs", "code", "says"),
    [
        ([(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "9"),
          ("grpc-message", "a%20b")], Code.FAILED_PRECONDITION, "a b"),
        ([(":status", "503"), ("grpc-status", "5")], Code.NOT_FOUND, ""),
        ([(":status", "200"), ("content-type", "text/html")], Code.UNKNOWN, "text/html"),
        ([(":status", "200"), ("content-type", "application/grpc")], Code.UNKNOWN, "without a grpc-status"),
        ([(":status", "200"), ("grpc-status", "17")], Code.UNKNOWN, ""),
        ([(":status", "200"), ("grpc-status", "-1")], Code.UNKNOWN, ""),
        ([(":status", "200"), ("grpc-status", "9" * 5000)], Code.UNKNOWN, ""),
        ([(":status", "200"), ("grpc-status", "\u00b2")], Code.UNKNOWN, ""),
        ([(":status", "200"), ("grpc-status", "0")], Code.INTERNAL, "not exactly one message"),
        ([(":status", "200"), ("grpc-status", "14"), ("grpc-message", "%ff%"),
          ("grpc-status-details-bin", "***"), ("a-bin", "AA,/w")], Code.UNAVAILABLE, "\ufffd%"),
    ],
)  # fmt: skip
def test_trailers_alone(scripted, channel_to, pairs, code, says):
    server = scripted(answers(then=lambda peer: peer.send(peer.headers(*pairs, end=True))))
    failure = failure_of(channel_to(server.target))
    assert failure.code is code
    assert says in failure.details
    if ("a-bin", "AA,/w") in pairs:
        assert [value for key, value in failure.trailing_metadata if key == "a-bin"] == [b"\x00", b"\xff"]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x00\x05abc",
        b"\x00\x00\x00\x00\x02abc",
        b"\x00\x00\x00\x00\x01a" * 2,
        b"\x01\x00\x00\x00\x03abc",
        b"\x02\x00\x00\x00\x03abc",
    ],
)
@pytest.mark.parametrize("encoding", ["gzip", "identity", "zstd"])
def test_a_message_that_is_none(scripted, channel_to, message, encoding):
    def send(peer):
        head = peer.headers(
            (":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", encoding)
        )
        peer.send(head, peer.data(message, prefixed=False), peer.trailers())

    assert failure_of(channel_to(scripted(answers(then=send)).target)).code is Code.INTERNAL


@pytest.mark.parametrize(
    ("reset", "code"),
    [
        (0x0, Code.UNAVAILABLE),
        (0x1, Code.INTERNAL),
        (0x2, Code.UNAVAILABLE),
        (0x8, Code.CANCELLED),
        (0xB, Code.UNAVAILABLE),
        (0xC, Code.PERMISSION_DENIED),
        (0x12345678, Code.UNAVAILABLE),
    ],
)
def test_a_stream_that_is_reset(scripted, channel_to, reset, code):
    def send(peer):
        peer.send(RstStreamFrame(peer.stream, error_code=reset))

    assert failure_of(channel_to(scripted(answers(then=send)).target)).code is code


# --- connections that end -------------------------------------------------------------------------


def test_a_refused_stream_is_tried_again_once(scripted, channel_to):
    def script(peer, number):
        peer.request()
        if number == 0:
            peer.send(RstStreamFrame(peer.stream, error_code=7))
        else:
            peer.answer()
        peer.until_closed()

    assert channel_to(scripted(script).target).call(METHOD, b"a", 5.0) == b"yes"
    refusing = scripted(answers(then=lambda peer: peer.send(RstStreamFrame(peer.stream, error_code=7))))
    assert failure_of(channel_to(refusing.target)).code is Code.UNAVAILABLE
    assert refusing.accepted == 2


def test_a_goaway_that_leaves_the_request_out_moves_it_to_another_connection(scripted, channel_to):
    def script(peer, number):
        peer.request()
        if number == 0:
            peer.send(peer.goaway(0, said=b"later"))
        else:
            peer.answer()
        peer.until_closed()

    server = scripted(script)
    assert channel_to(server.target).call(METHOD, b"a", 5.0) == b"yes"
    assert server.accepted == 2


def test_a_goaway_that_includes_the_request_lets_it_be_finished(scripted, channel_to):
    def script(peer, number):
        peer.request()
        peer.send(peer.goaway((1 << 31) - 1), PingFrame(0, opaque_data=b"12345678"))
        peer.send(peer.begin(), peer.data(b"%d" % number), peer.goaway(peer.stream), peer.trailers())
        peer.until_closed()

    server = scripted(script)
    channel = channel_to(server.target)
    assert [channel.call(METHOD, b"a", 5.0) for _ in range(3)] == [b"0", b"1", b"2"]
    assert server.accepted == 3


def test_a_goaway_and_then_silence_is_unavailable_and_says_why(scripted, channel_to):
    def send(peer):
        peer.send(peer.goaway(peer.stream, 11, b"too_many_pings"))
        peer.socket.shutdown(socket.SHUT_WR)

    failure = failure_of(channel_to(scripted(answers(then=send)).target))
    assert failure.code is Code.UNAVAILABLE
    assert "ENHANCE_YOUR_CALM: too_many_pings" in failure.details


@pytest.mark.parametrize("how", ["end", "reset", "goaway"])
def test_a_connection_that_ended_while_it_was_idle_costs_no_call(scripted, channel_to, how):
    answered, ended = threading.Semaphore(0), threading.Semaphore(0)

    def script(peer, number):
        peer.request()
        peer.answer(b"%d" % number)
        assert answered.acquire(timeout=5)
        if how == "goaway":
            peer.send(peer.goaway(peer.stream))
            ended.release()
            peer.until_closed()
        elif how == "reset":
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.socket.close()
        ended.release()

    server = scripted(script)
    channel = channel_to(server.target)
    for number in range(5):
        assert channel.call(METHOD, b"a", 5.0) == b"%d" % number
        answered.release()
        assert ended.acquire(timeout=5)
    assert server.accepted == 5


def test_a_connection_that_dies_under_the_next_request_is_replaced_once(scripted, channel_to):
    def script(peer, number):
        peer.request()
        if number < 2:
            peer.answer(b"first")
            peer.request()  # and the connection ends without a word
        else:
            peer.answer(b"second")
            peer.until_closed()

    server = scripted(script)
    channel = channel_to(server.target)
    assert channel.call(METHOD, b"a", 5.0) == b"first"
    assert channel.call(METHOD, b"a", 5.0) == b"first"
    assert server.accepted == 2


def test_a_new_connection_that_ends_without_a_word_is_not_tried_again(scripted, channel_to):
    def script(peer, number):
        peer.request()
        # Closed outright it would be reset where something had not been read yet.
        peer.socket.shutdown(socket.SHUT_WR)
        peer.until_closed()

    server = scripted(script)
    failure = failure_of(channel_to(server.target))
    assert (failure.code, failure.details) == (Code.UNAVAILABLE, "the server closed the connection")
    assert server.accepted == 1


def test_a_connection_that_ends_in_the_middle_of_an_answer_is_not_tried_again(scripted, channel_to):
    def script(peer, number):
        peer.request()
        peer.answer(b"whole")
        peer.request()
        peer.send(peer.begin(), peer.data(b"half"))

    server = scripted(script)
    channel = channel_to(server.target)
    assert channel.call(METHOD, b"a", 5.0) == b"whole"
    assert failure_of(channel).code is Code.UNAVAILABLE
    assert server.accepted == 1


def test_an_answer_before_the_whole_request_was_sent(scripted, channel_to):
    def script(peer, number):
        peer.exactly(24)
        peer.send(SettingsFrame(0))
        peer.stream = 1
        peer.send(peer.headers((":status", "200"), ("grpc-status", "8"), ("grpc-message", "full"), end=True))
        peer.until_closed()

    failure = failure_of(channel_to(scripted(script).target), bytes(1 << 20))
    assert (failure.code, failure.details) == (Code.RESOURCE_EXHAUSTED, "full")


def test_a_server_that_never_opens_the_window_costs_the_deadline(scripted, channel_to):
    def script(peer, number):
        peer.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
        peer.until_closed()

    with Took() as took:
        failure = failure_of(channel_to(scripted(script).target), bytes(1 << 20), 0.4)
    assert failure.code is Code.DEADLINE_EXCEEDED
    assert took.seconds < 2


def test_a_window_that_is_opened_byte_by_byte(scripted, channel_to):
    """300 bytes of the message pass one after the other, each let through by an update of its own."""

    def script(peer, number):
        peer.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
        peer.exactly(24)
        got = 0
        while True:
            kind, flags, stream, body = peer.frame()
            if kind == HeadersFrame.type:
                peer.stream = stream
            got += len(body) if kind == DataFrame.type else 0
            if kind == DataFrame.type and flags & 1:
                break
            if peer.stream and kind in (DataFrame.type, SettingsFrame.type):
                peer.send(WindowUpdateFrame(peer.stream, window_increment=1))
        peer.answer(b"%d" % got)
        peer.until_closed()

    assert channel_to(scripted(script).target).call(METHOD, bytes(295), 20.0) == b"300"


def test_a_server_that_allows_no_streams(scripted, channel_to):
    def script(peer, number):
        peer.request()
        # Before the answer, so that the next call knows of it.
        peer.send(SettingsFrame(0, settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 0}))
        peer.answer()
        peer.until_closed()

    server = scripted(script)
    channel = channel_to(server.target)
    for _ in range(3):
        assert channel.call(METHOD, b"a", 5.0) == b"yes"


# --- floods and garbage ---------------------------------------------------------------------------


def forever(*frames):
    """A script: a request is followed by these frames for as long as the client takes them."""

    def script(peer, number):
        peer.request()
        data = b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames)
        peer.send(peer.begin())
        while True:
            peer.send(data)

    return script


def endless_headers(peer, number):
    peer.request()
    peer.send(HeadersFrame(peer.stream, peer.encoder.encode([(":status", "200")])))
    while True:
        peer.send(ContinuationFrame(peer.stream, peer.encoder.encode([("a", "b" * 1000)])))


def unpacking_headers(peer, number):
    """4 KiB in the header table, and then a byte each time it is repeated."""
    peer.request()
    block = peer.encoder.encode([(":status", "200"), ("a", "b" * 4000)]) + b"\xbe" * 12_000
    frame = HeadersFrame(peer.stream, block)
    frame.flags.add("END_HEADERS")
    peer.send(frame)
    peer.until_closed()


def informational(peer, number):
    peer.request()
    while True:
        peer.send(peer.headers((":status", "103"), ("a", "b")))


@pytest.mark.parametrize(
    "script",
    [
        forever(PingFrame(0, opaque_data=b"12345678")),
        forever(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1000})),
        forever(DataFrame(1, b"")),
        forever(DataFrame(1, b"\0\0\0\xff\xff" + bytes(16_000))),
        forever(b"\x00\x10\x00\xbb\x00\x00\x00\x00\x00" + bytes(4096)),  # a frame of an unknown type
        forever(WindowUpdateFrame(0, window_increment=1)),
        forever(RstStreamFrame(1)),
        endless_headers,
        unpacking_headers,
        informational,
    ],
    ids=["pings", "settings", "empty data", "data", "unknown", "updates", "resets", "headers",
         "unpacking", "informational"],
)  # fmt: skip
def test_a_flood_is_bounded_in_time_and_memory(scripted, channel_to, script):
    server = scripted(script)
    channel = channel_to(server.target, max_response=1 << 20)
    with Took() as took:
        failure = failure_of(channel, timeout=30.0)
    assert failure.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED), failure
    assert took.seconds < 15, "ended by the amount, not by the deadline"


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1"),
        (b"220 mail.example ESMTP\r\n", "frame of"),
        (b"\xff" * 100, "frame of"),
        (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", "frame of 16385 bytes"),
        (b"\x00\x00\x04\x07\x00\x00\x00\x00\x00abcd", "GOAWAY that is cut off"),
        (b"\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde", "HTTP/2"),
        (b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", "HTTP/2"),
        (b"\x00\x00\x04\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff", "HTTP/2"),
        (b"", "closed the connection"),
    ],
)
def test_garbage_is_unavailable_and_named(scripted, channel_to, sent, says):
    def script(peer, number):
        peer.send(sent)
        peer.socket.shutdown(socket.SHUT_WR)
        peer.until_closed()

    failure = failure_of(channel_to(scripted(script).target))
    assert failure.code is Code.UNAVAILABLE
    assert says in failure.details


def test_an_answer_that_drips_costs_the_deadline(scripted, channel_to):
    stop = threading.Event()

    def script(peer, number):
        peer.request()
        peer.send(peer.begin())
        while not stop.wait(0.01):
            peer.send(DataFrame(peer.stream, b"\0"))

    with Took() as took:
        failure = failure_of(channel_to(scripted(script).target), timeout=0.4)
    stop.set()
    assert failure.code is Code.DEADLINE_EXCEEDED
    assert took.seconds < 2


def test_a_server_that_reads_nothing_costs_the_deadline(scripted, channel_to):
    stop = threading.Event()
    server = scripted(lambda peer, number: stop.wait(20))
    with Took() as took:
        assert failure_of(channel_to(server.target), bytes(32 << 20), 0.4).code is Code.DEADLINE_EXCEEDED
    stop.set()
    assert took.seconds < 2


def test_waiting_costs_no_cpu_time(scripted, channel_to):
    server = scripted(lambda peer, number: peer.until_closed())
    channel = channel_to(server.target)
    before = time.thread_time()
    assert failure_of(channel, timeout=1.0).code is Code.DEADLINE_EXCEEDED
    assert time.thread_time() - before < 0.1
