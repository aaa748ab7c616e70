"""The parts of the protobuf wire format that are needed without a message class.

Source: protobuf "Encoding": a length-delimited field is the tag ``number << 3 | 2``, the length and the
bytes; a repeated message field is that, once for each element, in any order with the other fields.
"""

from __future__ import annotations

from collections.abc import Iterator

#: The Collector takes 4 MiB a message by default; the margin is for what stands around the items.
REQUEST_LIMIT = (4 << 20) - (64 << 10)


def varint(number: int) -> bytes:
    """A number as base-128 varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def head(number: int, size: int) -> bytes:
    """What stands before the ``size`` bytes of a length-delimited field."""
    return varint(number << 3 | 2) + varint(size)


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field: a message, a string or bytes."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def fields(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message, others left out. Raises ValueError when it is malformed."""
    at = 0
    while at < len(body):
        tag, at = _read_varint(body, at)
        kind = tag & 7
        if kind == 0:
            _, at = _read_varint(body, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, at = _read_varint(body, at)
            if at + size > len(body):
                raise ValueError("a field is longer than its message")
            yield tag >> 3, body[at : at + size]
            at += size
        else:
            raise ValueError(f"unknown wire type {kind}")


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(body):
            break
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number has no end")
