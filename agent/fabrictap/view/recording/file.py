"""A ring file, opened with care: its header is checked against itself and against the file's real size."""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
import zlib
from collections.abc import Collection
from struct import Struct
from typing import Any

from fabrictap.ext import layout, ring


class RecordingError(Exception):
    """A file that cannot be read as a recording; the message is for the operator and names the file."""


class AbsentError(RecordingError):
    """There is no such file."""


def record(structure: str) -> tuple[Struct, dict[str, int]]:
    """How a structure of the ring is unpacked: (struct, field -> index in the tuple).

    A field of several numbers takes as many places; the index is that of the first.
    """
    form, at, index = "=", 0, 0
    places: dict[str, int] = {}
    for name, (offset, piece) in layout.FIELDS[structure].items():
        form += f"{offset - at}x" if offset > at else ""
        form += piece
        at = offset + Struct("=" + piece).size
        places[name] = index
        index += 1 if piece.endswith("s") else int(piece[:-1] or 1)
    form += f"{layout.SIZES[structure] - at}x"
    return Struct(form), places


_HEADER, _HEADER_AT = record("header")
_CHUNK = 1 << 22


class RingFile:
    """An open ring file: ``fixed`` are the header's fields above its checksum."""

    def __init__(self, path: str, owners: Collection[int]) -> None:
        """``owners``: the users whose files are believed. Raises RecordingError."""
        self.path = path
        self._descriptor = -1
        try:
            # Not through a link, and not waiting for the other end of a pipe.
            self._descriptor = os.open(
                path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            )
            self._check_file(os.fstat(self._descriptor), owners)
            self.fixed: dict[str, Any] = {}
            self.fixed = self._check_header()
        except OSError as error:
            self.close()
            kind = AbsentError if isinstance(error, FileNotFoundError) else RecordingError
            raise kind(f"{path}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def allocated(self) -> int:
        """Bytes of memory or disk that the file takes; its apparent size is far larger."""
        return os.fstat(self._descriptor).st_blocks * 512

    @property
    def locked(self) -> bool:
        """Whether a writer holds the file. Ours is a shared lock, held for a moment, that hinders nobody."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return False

    def read(self, at: int, size: int) -> bytes:
        """Exactly ``size`` bytes from offset ``at``. Raises RecordingError where the file ends before."""
        parts: list[bytes] = []
        while size:
            try:
                part = os.pread(self._descriptor, min(size, _CHUNK), at)
            except OSError as error:
                raise RecordingError(f"{self.path}: {error.strerror}") from None
            if not part:
                raise RecordingError(f"{self.path}: ends at byte {at}: it was cut short")
            parts.append(part)
            at += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def header(self) -> dict[str, Any]:
        """The header as it is now, its live part included."""
        values = _HEADER.unpack(self.read(0, _HEADER.size))
        return {name: values[index] for name, index in _HEADER_AT.items()}

    def error(self, message: str) -> RecordingError:
        return RecordingError(f"{self.path}: {message}")

    def _check_file(self, status: os.stat_result, owners: Collection[int]) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self.error("not a regular file")
        if status.st_uid not in owners:
            raise self.error(
                f"belongs to {_user(status.st_uid)}, and only files of "
                f"{', '.join(sorted(map(_user, owners)))} are read; see --owner"
            )
        self._size = status.st_size

    def _check_header(self) -> dict[str, Any]:
        if self._size < _HEADER.size:
            raise self.error(f"not a recording: {self._size} bytes")
        raw = self.read(0, _HEADER.size)
        values = _HEADER.unpack(raw)
        header = {name: values[index] for name, index in _HEADER_AT.items()}
        if header["magic"] != layout.MAGIC:
            raise self.error("not a recording of fabrictap")
        # Where these two stand is the same in all versions.
        if header["byte_order"] != layout.BYTE_ORDER:
            raise self.error("a recording of a machine with another byte order")
        if header["version"] != ring.VERSION:
            raise self.error(
                f"a recording of version {header['version']}; this fabrictap reads version {ring.VERSION}"
            )
        if header["checksum"] != zlib.crc32(raw[: layout.CHECKED]):
            raise self.error("damaged: the header's checksum is wrong")
        if self._size < header["size"]:
            raise self.error(f"cut short: {self._size} of {header['size']} bytes")
        self._check_sections(header)
        return header

    def _check_sections(self, header: dict[str, Any]) -> None:
        """Each section in its place, large enough for what it must hold and no other's."""
        segments, rest = divmod(header["series"], ring.SEGMENT)
        sections = (
            ("about", header["about_at"], header["about_size"]),
            ("rows", header["rows_at"], header["rows"] * layout.SIZES["row"]),
            ("kinds", header["kinds_at"], segments),
            ("series", header["series_at"], header["series"] * layout.SIZES["series"]),
            ("heap", header["heap_at"], header["heap_size"]),
            ("histograms", header["histograms_at"], header["histograms"] * layout.SIZES["histogram"]),
            ("connections", header["connections_at"], header["connections"] * layout.SIZES["connection"]),
            ("events", header["events_at"], header["events"] * layout.SIZES["event"]),
            ("cells", header["cells_at"], segments * header["rows"] * layout.STRIDE_MAX),
        )
        end = layout.PAGE
        for name, at, size in sections:
            if at < end or at % layout.PAGE or at + size > header["size"]:
                raise self.error(f"damaged: its section {name} is where it cannot be")
            end = at + size
        if rest or not header["rows"] or not header["events"] or not header["tick_ns"]:
            raise self.error("damaged: its header says what cannot be")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
