"""gRPC servers in the test process: grpcio's real one, and sockets that follow a script."""

import concurrent.futures
import socket
import threading
import time

import grpc
import hpack
import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, SettingsFrame

from fabrictap.grpc.status import Failure

ANY_SIZE = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)
METHOD = "/test.Service/Echo"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class EchoServer(grpc.GenericRpcHandler):
    """grpcio's server: answers with the request, after what ``behave(context, body)`` does or returns."""

    def __init__(self, address="127.0.0.1:0", credentials=None, options=(), compression=None):
        self.behave = lambda context, body: None
        self.seen = []
        pool = concurrent.futures.ThreadPoolExecutor(4)
        self.server = grpc.server(
            pool, handlers=[self], options=(*options, *ANY_SIZE), compression=compression
        )
        self.port = (
            self.server.add_secure_port(address, credentials)
            if credentials
            else self.server.add_insecure_port(address)
        )
        self.server.start()

    @property
    def target(self):
        return f"127.0.0.1:{self.port}"

    def service(self, details):
        def answer(body, context):
            self.seen.append((details.method, dict(context.invocation_metadata()), context.peer()))
            answered = self.behave(context, body)
            return body if answered is None else answered

        return grpc.unary_unary_rpc_method_handler(answer)

    def stop(self):
        self.server.stop(0).wait(10)


class ScriptedServer:
    """Listens, and gives each connection with its number, from 0, to ``script`` in a thread of its own."""

    def __init__(self, script):
        self.script = script
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.accepted = 0
        self.errors = []
        self.open = []
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while True:
            try:
                connected, _ = self.listening.accept()
            except OSError:
                return
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.open.append(connected)
            number, self.accepted = self.accepted, self.accepted + 1
            threading.Thread(target=self._run, args=(connected, number), daemon=True).start()

    def _run(self, connected, number):
        try:
            with connected:
                self.script(Peer(connected), number)
        except (OSError, EOFError):
            pass  # the client left, as most scripts make it
        except Exception as error:  # noqa: BLE001 - told by stop
            self.errors.append(error)

    def stop(self):
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for connected in self.open:
            try:
                connected.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self.thread.join(5)
        assert not self.errors


class Peer:
    """A script's end of a connection."""

    def __init__(self, connected):
        self.socket = connected
        self.encoder = hpack.Encoder()
        self.stream = 0
        self._greeted = False

    def exactly(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def frame(self):
        """(type, flags, stream, body) of the next frame."""
        head = self.exactly(9)
        return (
            head[3],
            head[4],
            int.from_bytes(head[5:9], "big"),
            self.exactly(int.from_bytes(head[:3], "big")),
        )

    def request(self):
        """Read a whole small request and greet; remembers its stream."""
        if not self._greeted:
            self._greeted = True
            assert self.exactly(len(PREFACE)) == PREFACE
            self.send(SettingsFrame(0))
        while True:
            kind, flags, stream, _ = self.frame()
            if kind == DataFrame.type:
                self.stream = stream
                if flags & 1:
                    return

    def send(self, *frames):
        for frame in frames:
            self.socket.sendall(frame.serialize() if isinstance(frame, Frame) else frame)

    def headers(self, *pairs, end=False, stream=None):
        made = HeadersFrame(stream or self.stream, self.encoder.encode(pairs))
        made.flags.add("END_HEADERS")
        if end:
            made.flags.add("END_STREAM")
        return made

    def begin(self):
        return self.headers((":status", "200"), ("content-type", "application/grpc"))

    def data(self, body, prefixed=True):
        head = b"\0" + len(body).to_bytes(4, "big") if prefixed else b""
        return DataFrame(self.stream, head + body)

    def trailers(self, code="0", *pairs):
        return self.headers(("grpc-status", code), *pairs, end=True)

    def answer(self, body=b"yes"):
        self.send(self.begin(), self.data(body), self.trailers())

    def goaway(self, last_stream, code=0, said=b""):
        return GoAwayFrame(0, last_stream_id=last_stream, error_code=code, additional_data=said)

    def until_closed(self):
        while self.socket.recv(1 << 16):
            pass


class Took:
    """How long a block took: ``with Took() as took: ...; assert took.seconds < 1``."""

    def __enter__(self):
        self._started = time.monotonic()
        return self

    def __exit__(self, *error):
        self.seconds = time.monotonic() - self._started


def failure_of(channel, body=b"x", timeout=5.0, **named):
    """The Failure with which a call ends."""
    with pytest.raises(Failure) as caught:
        channel.call(METHOD, body, timeout, **named)
    return caught.value
