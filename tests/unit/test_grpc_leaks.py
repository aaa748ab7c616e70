"""What the gRPC client keeps after many calls and many connections."""

import gc
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import grpc

from fabrictap.grpc import tls
from fabrictap.grpc.client import Channel
from fabrictap.grpc.status import Code
from grpc_servers import METHOD, failure_of
from support import eventually

pytest_plugins = ["grpc_fixtures", "pki"]


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def growth(act, times):
    """Bytes that Python code keeps more after ``act`` was done ``times`` times than after the first few."""
    for _ in range(times // 10):
        act()
    gc.collect()
    tracemalloc.start()
    try:
        act()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(times):
            act()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_a_thousand_calls_on_one_connection_keep_nothing(scripted):
    def script(peer, number):
        while True:
            peer.request()
            peer.answer()

    server = scripted(script)
    with Channel(server.target) as channel:
        channel.call(METHOD, b"a", 5.0)
        gc.collect()  # what other tests have left
        before = descriptors()
        # The server's threads are measured as well; they keep nothing between calls.
        grown = growth(lambda: channel.call(METHOD, bytes(2000), 5.0, compression="gzip"), 1000)
        assert descriptors() == before
    assert server.accepted == 1
    assert grown < 50_000


def test_a_hundred_connections_keep_nothing(scripted, channel_to):
    """Each of three ends: a good answer and GOAWAY, a connection cut off, garbage."""

    def script(peer, number):
        peer.request()
        if number % 3 == 0:
            peer.answer()
            peer.send(peer.goaway(peer.stream))
            peer.until_closed()
        elif number % 3 == 1:
            peer.send(b"\xff" * 100)
            peer.until_closed()

    server = scripted(script)

    def act():
        with Channel(server.target) as channel:
            channel.call(METHOD, b"a", 5.0)
            failure_of(channel)
            failure_of(channel)
        for connected in server.open:
            connected.close()
        server.open.clear()

    act()
    before = descriptors()
    grown = growth(act, 100)
    assert server.accepted == 3 * (1 + 10 + 1 + 100)
    assert descriptors() <= before + 1  # the server's last thread may not be done yet
    assert grown < 200_000


def test_tls_connections_and_calls_that_are_cut_short_keep_nothing(pki, echo, channel_to):
    pair = ((pki / "a-server.key").read_bytes(), (pki / "a-server.pem").read_bytes())
    server = echo("localhost:0", grpc.ssl_server_credentials([pair]))
    never = threading.Event()

    def behave(context, body):
        if body == b"slow":
            never.wait(0.05)

    server.behave = behave

    def act():
        with Channel(f"localhost:{server.port}", tls.context(str(pki / "a.pem"))) as channel:
            assert channel.call(METHOD, b"a", 5.0) == b"a"
            assert failure_of(channel, b"slow", 0.01).code is Code.DEADLINE_EXCEEDED
            assert channel.call(METHOD, b"b", 5.0) == b"b"

    act()
    before, threads = descriptors(), threading.active_count()
    grown = growth(act, 30)
    eventually(lambda: descriptors() <= before, "the server has closed its ends as well")
    eventually(lambda: threading.active_count() <= threads + 4, "look-ups and the server's pool are all")
    assert grown < 100_000


def test_the_exporter_imports_only_what_every_node_needs():
    """Not grpcio at all, OpenSSL for a secure endpoint, the SDK's spans at the first span."""
    unwanted = ("grpc", "ssl", "opentelemetry.sdk.trace", "opentelemetry.exporter")
    code = f"import sys, fabrictap.export.exporter; print([m for m in {unwanted} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
