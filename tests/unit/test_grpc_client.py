"""The gRPC client against grpcio's server, which shares no code with it."""

import os
import socket
import threading
import time
import zlib

import grpc
import pytest

from fabrictap.grpc.status import Code
from grpc_servers import METHOD, EchoServer, Took, failure_of
from support import eventually

pytest_plugins = ["grpc_fixtures"]


# --- requests and answers -------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("compression", ["identity", "gzip"])
def test_bytes_of_every_size_go_there_and_back(echo, channel_to, compression, answered):
    server = echo(compression=answered)
    channel = channel_to(server.target, max_response=16 << 20)
    for size in (0, 1, 4, 5, 16_383, 16_384, 65_530, 65_535, 65_536, 1 << 20, 8 << 20):
        random = os.urandom(min(size, 100_000))
        body = (random + bytes(size))[:size]
        assert channel.call(METHOD, body, 20.0, compression=compression) == body, size
    assert len({peer for _, _, peer in server.seen}) == 1, "one connection serves all calls"


def test_the_server_sees_method_metadata_and_who_calls(echo, channel_to):
    server = echo()
    sent = (("x-tenant", "blue"), ("key-bin", b"\x00\xff\x01"), ("authorization", "Bearer t"))
    channel_to(server.target).call(METHOD, b"", 5.0, sent, "gzip")
    ((method, metadata, _),) = server.seen
    assert method == METHOD
    assert metadata.items() >= dict(sent).items()
    assert metadata["user-agent"].startswith("fabrictap/")


def test_the_server_knows_the_deadline(echo, channel_to):
    server = echo()
    server.behave = lambda context, body: b"%f" % context.time_remaining()
    assert 50 < float(channel_to(server.target).call(METHOD, b"", 60.0)) <= 60.1


def test_metadata_that_cannot_be_sent_is_refused(echo, channel_to):
    channel = channel_to(echo().target)
    for pair, says in (
        (("a", b"bytes"), "-bin"),
        (("a-bin", "text"), "-bin"),
        (("A", "x"), "not a name"),
        (("a b", "x"), "not a name"),
        ((":path", "x"), "not a name"),
        (("grpc-timeout", "1S"), "not a name"),
        (("a", "x\r\nb: y"), "printable ASCII"),
    ):
        with pytest.raises(ValueError, match=says):
            channel.call(METHOD, b"", 5.0, [pair])
    with pytest.raises(ValueError, match="compression"):
        channel.call(METHOD, b"", 5.0, compression="zstd")


def test_unix_sockets_with_a_path_and_abstract(tmp_path, echo, channel_to):
    echo(f"unix:{tmp_path}/s")
    echo(f"unix-abstract:{tmp_path}")
    for target in (f"unix:{tmp_path}/s", f"unix://{tmp_path}/s", f"unix-abstract:{tmp_path}"):
        assert channel_to(target).call("/v1.PodResourcesLister/List", b"abc", 5.0) == b"abc"


def test_a_name_is_looked_up_and_the_next_address_is_tried(echo, channel_to):
    server = echo()
    # The server listens on 127.0.0.1 only; localhost is ::1 first on many machines.
    assert channel_to(f"localhost:{server.port}").call(METHOD, b"a", 5.0) == b"a"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    both = f"ipv4:127.0.0.1:{port},127.0.0.1:{server.port}"
    assert channel_to(both).call(METHOD, b"b", 5.0) == b"b"
    assert channel_to(f"dns:///127.0.0.1:{server.port}").call(METHOD, b"c", 5.0) == b"c"


def test_ipv6(echo, channel_to):
    server = echo("[::1]:0")
    assert channel_to(f"[::1]:{server.port}").call(METHOD, b"a", 5.0) == b"a"
    assert channel_to(f"ipv6:[::1]:{server.port}").call(METHOD, b"b", 5.0) == b"b"


def test_a_name_that_does_not_exist(channel_to):
    failure = failure_of(channel_to("no-such-host.invalid:1"), timeout=30.0)
    assert failure.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_code_with_details_and_metadata(echo, channel_to, code):
    server = echo()
    said = "50% of \u00fcber-Gr\u00f6\u00dfe \u2603\n\ttail%zz"

    def refuse(context, body):
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x0e\xff"), ("why", "because")))
        context.abort(code, said)

    server.behave = refuse
    failure = failure_of(channel_to(server.target))
    assert failure.code.name == code.name
    assert failure.code.value == code.value[0]
    assert failure.details == said
    assert ("grpc-status-details-bin", b"\x08\x0e\xff") in failure.trailing_metadata
    assert ("why", "because") in failure.trailing_metadata


def test_a_failed_call_leaves_the_connection_to_the_next(echo, channel_to):
    server = echo()
    server.behave = lambda context, body: context.abort(grpc.StatusCode.NOT_FOUND, "no")
    channel = channel_to(server.target)
    assert failure_of(channel).code is Code.NOT_FOUND
    server.behave = lambda context, body: None
    assert channel.call(METHOD, b"a", 5.0) == b"a"
    assert len({peer for _, _, peer in server.seen}) == 1


def test_a_request_that_is_too_large_is_refused_by_the_server(echo, channel_to):
    server = echo(options=[("grpc.max_receive_message_length", 1000)])
    channel = channel_to(server.target)
    assert failure_of(channel, bytes(4 << 20)).code is Code.RESOURCE_EXHAUSTED
    assert channel.call(METHOD, b"small", 5.0) == b"small"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_an_answer_that_is_too_large_is_not_taken(echo, channel_to, compression):
    server = echo(compression=compression)
    server.behave = lambda context, body: bytes(2000) if body == b"long" else body
    channel = channel_to(server.target, max_response=1000)
    assert failure_of(channel, b"long").code is Code.RESOURCE_EXHAUSTED
    assert channel.call(METHOD, bytes(1000), 5.0) == bytes(1000)


def test_gzip_that_unpacks_to_more_than_the_limit_is_not_unpacked(echo, channel_to):
    server = echo(compression=grpc.Compression.Gzip)
    server.behave = lambda context, body: bytes(64 << 20)
    assert len(zlib.compress(bytes(64 << 20))) < 100_000
    assert failure_of(channel_to(server.target), timeout=20.0).code is Code.RESOURCE_EXHAUSTED


def test_the_deadline_ends_a_call_and_the_server_hears_of_it(echo, channel_to):
    server = echo()
    cancelled = threading.Event()

    def wait(context, body):
        context.add_callback(cancelled.set)
        cancelled.wait(20)

    server.behave = wait
    with Took() as took:
        assert failure_of(channel_to(server.target), timeout=0.3).code is Code.DEADLINE_EXCEEDED
    assert 0.3 <= took.seconds < 2
    assert cancelled.wait(5)


def test_nobody_listens(channel_to):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    failure = failure_of(channel_to(f"127.0.0.1:{port}"))
    assert (failure.code, failure.details) == (Code.UNAVAILABLE, "Connection refused")


def test_a_full_backlog_costs_the_deadline(tmp_path, channel_to):
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.connect(full.getsockname())
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        with Took() as took:
            failure = failure_of(channel_to(f"127.0.0.1:{full.getsockname()[1]}"), timeout=0.3)
        for other in others:
            other.close()
    assert (failure.code, failure.details) == (Code.DEADLINE_EXCEEDED, "no connection within 0.3 s")
    assert took.seconds < 2


# --- connections ----------------------------------------------------------------------------------


def test_a_server_that_was_restarted_meanwhile_costs_nothing(channel_to):
    server = EchoServer()
    port = server.port
    channel = channel_to(server.target)
    assert channel.call(METHOD, b"1", 5.0) == b"1"
    server.stop()
    server = EchoServer(f"127.0.0.1:{port}")
    assert channel.call(METHOD, b"2", 5.0) == b"2"
    assert [peer for _, _, peer in server.seen]
    server.stop()


def test_a_server_that_ends_connections_of_a_certain_age_loses_no_call(echo, channel_to):
    server = echo(options=[("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 2000)])
    server.behave = lambda context, body: time.sleep(0.03)
    channel = channel_to(server.target)
    for number in range(50):
        assert channel.call(METHOD, b"%d" % number, 5.0) == b"%d" % number
    assert len(server.seen) == 50
    assert len({peer for _, _, peer in server.seen}) > 3


def test_close_ends_a_call_under_way_and_all_later_ones(echo, channel_to):
    server = echo()
    entered, leave = threading.Event(), threading.Event()
    server.behave = lambda context, body: (entered.set(), leave.wait(20))[2:] or None
    channel = channel_to(server.target)
    failures = []
    calls = [
        threading.Thread(target=lambda: failures.append(failure_of(channel, timeout=60.0))) for _ in range(2)
    ]
    for call in calls:
        call.start()
    assert entered.wait(5)
    with Took() as took:
        channel.close()
        for call in calls:
            call.join(5)
    leave.set()
    assert took.seconds < 1
    assert [failure.code for failure in failures] == [Code.CANCELLED] * 2
    assert failure_of(channel).code is Code.CANCELLED
    channel.close()


def test_close_ends_a_look_up_and_a_connecting_call(channel_to, monkeypatch):
    looking, answer = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def slow(host, port, *arguments, flags=0, **named):
        if flags & socket.AI_NUMERICHOST:
            return real(host, port, *arguments, flags=flags, **named)
        looking.set()
        answer.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "try later")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    channel = channel_to("slow.example:1")
    with Took() as took:
        assert failure_of(channel, timeout=0.2).code is Code.DEADLINE_EXCEEDED
        assert failure_of(channel, timeout=0.2).code is Code.DEADLINE_EXCEEDED
    assert took.seconds < 2
    assert len([one for one in threading.enumerate() if one.name == "fabrictap-resolve"]) == 1
    failures = []
    call = threading.Thread(target=lambda: failures.append(failure_of(channel, timeout=60.0)))
    call.start()
    assert looking.wait(5)
    channel.close()
    call.join(5)
    assert [failure.code for failure in failures] == [Code.CANCELLED]
    answer.set()
    eventually(
        lambda: not [one for one in threading.enumerate() if one.name == "fabrictap-resolve"],
        "the look-up's thread ends",
    )


def test_calls_of_several_threads_take_turns_on_one_connection(echo, channel_to):
    server = echo()
    channel = channel_to(server.target)
    wrong = []

    def run(name):
        for number in range(50):
            body = b"%s %d" % (name, number) * 100
            if channel.call(METHOD, body, 20.0) != body:
                wrong.append(body)

    threads = [threading.Thread(target=run, args=(b"%d" % number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert len(server.seen) == 200
    assert len({peer for _, _, peer in server.seen}) == 1


def test_no_thread_is_started(echo, channel_to):
    server = echo()
    channel = channel_to(server.target)
    names = {thread.name for thread in threading.enumerate()}
    channel.call(METHOD, b"", 5.0)
    new = {thread.name for thread in threading.enumerate()} - names
    assert not [name for name in new if name.startswith("fabrictap")]
