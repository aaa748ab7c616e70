"""A request as gRPC puts it on an HTTP/2 stream, and the answer read back.

Source: grpc/grpc ``doc/PROTOCOL-HTTP2.md``: a message is a byte that says whether it is compressed, its
length as 4 bytes in network order, and the message.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Iterable, Sequence

from fabrictap.grpc import status
from fabrictap.grpc.status import Code, Failure, Metadata

GZIP = "gzip"
IDENTITY = "identity"

_PREFIX = 5
_LONGEST = (1 << 32) - 1

#: zlib's number for a gzip header around a window of 32 KiB.
_GZIP_WINDOW = 31

#: As in the outbox: metrics of successive points differ little from zeros, and more effort gains little.
_LEVEL = 1


def pack(body: bytes, compression: str) -> tuple[bytes, bytes]:
    """The prefix of a message, and the message, compressed if that makes it smaller; megabytes not copied."""
    packed, compressed = body, 0
    if compression == GZIP:
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        shorter = packer.compress(body) + packer.flush()
        if len(shorter) < len(body):
            packed, compressed = shorter, 1
    elif compression != IDENTITY:
        raise ValueError(f"unknown compression {compression!r}")
    if len(packed) > _LONGEST:
        raise ValueError("a gRPC message has less than 4 GiB")
    return bytes([compressed]) + len(packed).to_bytes(4, "big"), packed


def request_headers(
    method: str,
    authority: str,
    scheme: str,
    user_agent: str,
    *,
    timeout: float,
    compression: str,
    metadata: Metadata,
) -> list[tuple[str, str]]:
    """The headers of a call, in the order that gRPC asks for. ``timeout`` in seconds."""
    headers = [
        (":method", "POST"),
        (":scheme", scheme),
        (":path", method),
        (":authority", authority),
        ("te", "trailers"),
        ("grpc-timeout", _timeout(timeout)),
        ("content-type", "application/grpc"),
        ("user-agent", user_agent),
        ("grpc-accept-encoding", "identity,gzip"),
    ]
    if compression != IDENTITY:
        headers.append(("grpc-encoding", compression))
    for key, value in metadata:
        text = base64.b64encode(value).rstrip(b"=").decode() if isinstance(value, bytes) else value
        headers.append((key, text))
    return headers


def _timeout(seconds: float) -> str:
    """A grpc-timeout: at most 8 digits and a unit."""
    milliseconds = max(math.ceil(seconds * 1000), 1)
    return f"{milliseconds}m" if milliseconds < 10**8 else f"{min(math.ceil(seconds), 10**8 - 1)}S"


class Response:
    """The answer to one call, as far as it has come. Its message may have ``limit`` bytes at most."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._headers: dict[str, str] | None = None
        self._trailers: list[tuple[str, str]] = []
        self._data = bytearray()
        #: Nothing more will come.
        self.ended = False
        #: HTTP/2's error code, where the server reset the stream.
        self.reset: int | None = None

    @property
    def has_begun(self) -> bool:
        return self._headers is not None

    def put_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        pairs = _text(headers)
        self._headers = dict(pairs)
        self._trailers = pairs  # where the headers are all there is, they are the trailers

    def put_trailers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._trailers = _text(headers)

    def put_data(self, data: bytes) -> None:
        """Raises Failure as soon as the message is known to be longer than the limit."""
        self._data += data
        size = int.from_bytes(self._data[1:_PREFIX], "big") if len(self._data) >= _PREFIX else 0
        if max(size, len(self._data) - _PREFIX) > self._limit:
            raise Failure(
                Code.RESOURCE_EXHAUSTED, f"the answer is longer than the {self._limit} bytes that are allowed"
            )

    def message(self) -> bytes:
        """The message of a call that succeeded. Raises Failure of one that did not."""
        headers = self._headers or {}
        trailers = dict(self._trailers)
        if "grpc-status" not in trailers:
            raise self._without_status(headers)
        code = status.code_of(trailers["grpc-status"])
        if code is not Code.OK:
            raise Failure(
                code, status.message_of(trailers.get("grpc-message", "")), status.metadata_of(self._trailers)
            )
        return self._unpack(headers.get("grpc-encoding", IDENTITY))

    def _without_status(self, headers: dict[str, str]) -> Failure:
        if self.reset is not None:
            return Failure(
                status.of_reset(self.reset), f"the server reset the stream (HTTP/2 error {self.reset})"
            )
        if headers.get(":status") != "200":
            text = headers.get(":status", "")
            code = status.of_http(int(text)) if text.isascii() and text.isdecimal() else Code.UNKNOWN
            return Failure(code, f"HTTP status {text}")
        kind = headers.get("content-type", "none")
        if not kind.startswith("application/grpc"):
            return Failure(Code.UNKNOWN, f"the answer is not gRPC: its content-type is {kind}")
        return Failure(Code.UNKNOWN, "the answer ended without a grpc-status")

    def _unpack(self, encoding: str) -> bytes:
        data = bytes(self._data)
        if len(data) < _PREFIX or len(data) - _PREFIX != int.from_bytes(data[1:_PREFIX], "big"):
            raise Failure(Code.INTERNAL, "the answer is not exactly one message")
        body = data[_PREFIX:]
        if data[0] == 0:
            return body
        if data[0] != 1 or encoding != GZIP:
            raise Failure(Code.INTERNAL, f"the answer's compression {encoding} is not one that was offered")
        unpacker = zlib.decompressobj(_GZIP_WINDOW)
        try:
            unpacked = unpacker.decompress(body, self._limit + 1)
        except zlib.error as error:
            raise Failure(Code.INTERNAL, f"the answer is not gzip: {error}") from None
        if len(unpacked) > self._limit:
            raise Failure(
                Code.RESOURCE_EXHAUSTED, f"the answer is longer than the {self._limit} bytes that are allowed"
            )
        if not unpacker.eof:
            raise Failure(Code.INTERNAL, "the answer's gzip is cut off")
        return unpacked


def _text(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers]


def check_metadata(metadata: Sequence[tuple[str, str | bytes]]) -> Metadata:
    """Raises ValueError for what cannot be sent, without the value, which may be a secret."""
    for key, value in metadata:
        if not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
            raise ValueError(f"metadata {key!r}: not a name that gRPC can send")
        if isinstance(value, bytes) != key.endswith("-bin"):
            raise ValueError(f"metadata {key!r}: bytes belong to keys that end in -bin, and only they")
        if isinstance(value, str) and not re.fullmatch(r"[\x20-\x7e]*", value):
            raise ValueError(f"metadata {key!r}: the value has characters other than printable ASCII")
    return tuple(metadata)
