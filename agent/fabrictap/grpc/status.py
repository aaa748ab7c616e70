"""The outcome of a gRPC call.

Source: grpc/grpc ``doc/statuscodes.md``, ``doc/http-grpc-status-mapping.md`` and ``doc/PROTOCOL-HTTP2.md``,
"Errors" and "Responses".
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Iterable
from urllib.parse import unquote


class Code(enum.IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


#: Keys in lower case; values are str, or bytes where the key ends in -bin.
Metadata = tuple[tuple[str, str | bytes], ...]


class Failure(Exception):  # noqa: N818 - the field's word for it
    """A call that did not end with OK. ``details`` and ``trailing_metadata`` are the server's, if it said
    something; they are as it sent them, so that a log needs them cleaned."""

    def __init__(self, code: Code, details: str = "", trailing_metadata: Metadata = ()) -> None:
        super().__init__(code, details, trailing_metadata)
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}"


_OF_HTTP = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}

# RST_STREAM. gRPC's table makes INTERNAL of everything that is not named in it. Here only codes by which the
# server blames our bytes are INTERNAL: the others come from a proxy or server that lost its footing, and the
# same request may pass at the next try.
_OF_RESET = {
    0x1: Code.INTERNAL,  # PROTOCOL_ERROR
    0x3: Code.INTERNAL,  # FLOW_CONTROL_ERROR
    0x6: Code.INTERNAL,  # FRAME_SIZE_ERROR
    0x8: Code.CANCELLED,  # CANCEL
    0x9: Code.INTERNAL,  # COMPRESSION_ERROR
    0xC: Code.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}

#: HTTP/2's error code of a request that the server has not begun to process.
REFUSED_STREAM = 0x7


def of_http(status: int) -> Code:
    """What an HTTP status without a grpc-status means."""
    return _OF_HTTP.get(status, Code.UNKNOWN)


def of_reset(error_code: int) -> Code:
    """What a stream that the server reset with an HTTP/2 error code means."""
    return _OF_RESET.get(error_code, Code.UNAVAILABLE)


def code_of(text: str) -> Code:
    """The code in a grpc-status header; UNKNOWN for what is none."""
    try:
        return Code(int(text)) if text.isascii() and text.isdecimal() and len(text) < 4 else Code.UNKNOWN
    except ValueError:
        return Code.UNKNOWN


def message_of(text: str) -> str:
    """The text in a grpc-message header, which is percent-encoded UTF-8. Broken parts are replaced."""
    return unquote(text, errors="replace")


def metadata_of(headers: Iterable[tuple[str, str]]) -> Metadata:
    """The custom metadata among headers; a -bin value that is not base64 is left out."""
    found: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name.startswith(":") or name in ("content-type", "grpc-status", "grpc-message"):
            continue
        if not name.endswith("-bin"):
            found.append((name, value))
            continue
        for one in value.split(","):  # several values of a key may be joined
            try:
                found.append((name, base64.b64decode(one.strip() + "=" * (-len(one.strip()) % 4))))
            except (binascii.Error, ValueError):
                continue
    return tuple(found)
