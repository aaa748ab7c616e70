"""Where this agent, or one that was killed, has turned counting on: a file, written before it is done."""

from __future__ import annotations

import json
import os
from pathlib import Path

_MAX_BYTES = 1 << 16


class Switched:
    """The ports in the file at ``path``, as DEVICE/PORT. A file that is not that counts as empty.

    It lies where a reboot empties it, as a reboot turns counting off.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.ports: set[str] = self._read()

    def add(self, port: str) -> None:
        """Raises OSError where it cannot be remembered: then it must not be done."""
        self.ports.add(port)
        try:
            self._write()
        except OSError:
            self.ports.discard(port)
            raise

    def remove(self, port: str) -> None:
        """Raises OSError."""
        self.ports.discard(port)
        if self.ports:
            self._write()
        else:
            self._path.unlink(missing_ok=True)

    def _read(self) -> set[str]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                found = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError):
            return set()
        return {port for port in found if isinstance(port, str)} if isinstance(found, list) else set()

    def _write(self) -> None:
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        with os.fdopen(descriptor, "w") as file:
            json.dump(sorted(self.ports), file)
        new.replace(self._path)
