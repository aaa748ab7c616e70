"""OTLP/JSON lines: one export request a line, in a file that is rotated by size.

The Collector's otlpjsonfile receiver reads the lines back. Source: "OpenTelemetry Protocol File Exporter".
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from fabrictap import config
from fabrictap.export.otlpjson import logs_line, metrics_line, spans_line
from fabrictap.export.outbox import Delivered, Outbox, Outcome, Refused, Request
from fabrictap.export.signals import Signal

log = logging.getLogger(__name__)


class RotatingFile:
    """Appends whole lines to ``path``; when full it becomes ``path.1``, that ``path.2``, and so on.

    There are at most ``max_files`` files of about ``max_size`` bytes. The file is opened at the first
    line and again after an error or when somebody moved it away. Raises OSError.
    """

    def __init__(self, path: str, max_size: int, max_files: int) -> None:
        self.path = path
        self._max_size = max_size
        self._max_files = max_files
        self._descriptor = -1

    def append(self, line: bytes) -> None:
        """Write one line, wholly or not at all."""
        try:
            size = self._open()
            if size and size + len(line) > self._max_size:
                self._rotate()
                size = self._open()
            self._write(line, size)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        """The file's size, once it is open and the one that ``path`` names."""
        if self._descriptor >= 0:
            ours = os.fstat(self._descriptor)
            try:
                if os.path.samestat(ours, Path(self.path).lstat()):
                    return ours.st_size
            except FileNotFoundError:
                pass
            self.close()
        # Readable as well, to see how it ends; non-blocking, so that a FIFO does not stop us.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._descriptor = os.open(self.path, flags, 0o640)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        if status.st_size and os.pread(self._descriptor, 1, status.st_size - 1) != b"\n":
            # A writer died in the middle of a line; ours must not become part of it.
            self._write(b"\n", status.st_size)
            return status.st_size + 1
        return status.st_size

    def _write(self, data: bytes, size: int) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def _rotate(self) -> None:
        self.close()
        for number in range(self._max_files - 1, 0, -1):
            older = Path(f"{self.path}.{number}")
            newer = Path(self.path if number == 1 else f"{self.path}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        if self._max_files == 1:
            Path(self.path).unlink()


class FileSink:
    """Writes the requests of all signals to one file, in threads of its own.

    A line that cannot be written is dropped and counted; the next one is tried anew. Trouble is said
    once, and once when it is over.
    """

    def __init__(self, settings: config.File, queue: int) -> None:
        if settings.path is None:
            raise ValueError("export.file.path is not set")
        self._file = RotatingFile(settings.path, settings.max_size, settings.max_files)
        self._lock = threading.Lock()
        self._said = ""
        self.outboxes = {
            signal: Outbox(f"file-{signal.value}", queue, functools.partial(self._deliver, encode))
            for signal, encode in (
                (Signal.METRICS, metrics_line),
                (Signal.TRACES, spans_line),
                (Signal.LOGS, logs_line),
            )
        }

    def close(self) -> None:
        """Close the file; the outboxes are closed by then."""
        with self._lock:
            self._file.close()

    def _deliver(self, encode: Callable[[bytes], bytes], request: Request) -> Outcome:
        line = encode(request.body)
        with self._lock:
            try:
                self._file.append(line)
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, type(error).__name__)
                if name != self._said:
                    self._said = name
                    log.warning(
                        "export.file.path %s cannot be written: %s. Lines are dropped until it can",
                        self._file.path,
                        error.strerror or error,
                    )
                return Refused(name)
            if self._said:
                self._said = ""
                log.info("export.file.path %s is written again", self._file.path)
        return Delivered()
