"""What the answer to an OTLP/gRPC export means: try again, and when, or never.

Source: OTLP specification 1.x, "OTLP/gRPC Response" and "OTLP/gRPC Throttling".
"""

from __future__ import annotations

import random

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from fabrictap.export import wire
from fabrictap.grpc.status import Code, Failure

RETRYABLE = frozenset(
    {
        Code.CANCELLED,
        Code.DEADLINE_EXCEEDED,
        Code.ABORTED,
        Code.OUT_OF_RANGE,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)

#: A server that asks for more than this is asked again all the same.
LONGEST_DELAY = 600.0


def retry_delay(error: Failure) -> float | None:
    """Seconds that the server asks to wait with RetryInfo, None where it does not.

    Zero means "as soon as you like".
    """
    for key, value in error.trailing_metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return _retry_info(value)
            except (ValueError, DecodeError):
                return None
    return None


def _retry_info(status: bytes) -> float | None:
    """The delay in a serialized google.rpc.Status.

    Read by hand: ``Status.details`` is field 3, ``RetryInfo.retry_delay`` field 1 (google/rpc/status.proto,
    error_details.proto), and their classes would be one more package to depend on.
    """
    for number, detail in wire.fields(status):
        if number != 3:
            continue
        packed = Any.FromString(detail)
        if packed.type_url.rpartition("/")[2] != "google.rpc.RetryInfo":
            continue
        delay = Duration()
        for inner, body in wire.fields(packed.value):
            if inner == 1:
                delay.MergeFromString(body)
        return min(max(delay.seconds + delay.nanos / 1e9, 0.0), LONGEST_DELAY)
    return None


def is_retryable(code: Code, delay: float | None) -> bool:
    """Whether a failed export may be tried again; ``delay`` is what :func:`retry_delay` said.

    RESOURCE_EXHAUSTED without RetryInfo means that the server cannot take the request at all, as when it
    is too large.
    """
    return code in RETRYABLE or (code is Code.RESOURCE_EXHAUSTED and delay is not None)


class Backoff:
    """Delays between tries: doubled each time up to ``longest`` seconds, each cut by up to a half at random
    so that the agents of a cluster do not all come back in the same moment."""

    def __init__(self, first: float = 1.0, longest: float = 30.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next(self) -> float:
        delay, self._next = self._next, min(self._next * 2, self._longest)
        return delay * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._next = self._first
