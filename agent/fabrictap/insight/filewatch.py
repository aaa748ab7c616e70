"""Files that nobody else should change while the agent runs. Blocks; used by a thread of its own."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from fabrictap.insight.detectors import FileState

_MOST_READ = 1 << 20


class WatchedFile:
    """One file. With ``content`` it is compared by what is in it, else by which file has the name."""

    def __init__(self, what: str, path: str, *, content: bool) -> None:
        self._what = what
        self._path = path
        self._content = content
        self._before = self._look()

    def accept(self) -> None:
        """What is there now is what it should be, as after a reload."""
        self._before = self._look()

    def state(self) -> FileState:
        """What became of it."""
        now = self._look()
        changed = None
        if now != self._before:
            if now is None:
                changed = "is gone"
            elif self._content:
                changed = "has changed since it was read"
            else:
                changed = "is another file than the one that the agent writes"
        return FileState(self._what, self._path, changed)

    def _look(self) -> object:
        try:
            if not self._content:
                status = Path(self._path).lstat()
                return status.st_dev, status.st_ino
            # Not blocking, for a FIFO in its place.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return "no regular file"
                digest, left = hashlib.blake2b(), _MOST_READ
                while left and (part := os.read(descriptor, min(left, 65536))):
                    digest.update(part)
                    left -= len(part)
                return digest.digest()
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.errno
