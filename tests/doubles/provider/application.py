"""The stand-in application (driver.c) as an object: each command returns when it has been done."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RC, UC, UD = 2, 3, 4
SIGNALED, INLINE = 2, 8
NO_HANDLE = -1


class Application:
    """Runs until it is closed. ``cpus`` confines it, so that its threads preempt each other there;
    ``driver`` may be a command that ends in becoming it."""

    def __init__(
        self,
        driver: Path | list[str],
        cpus: Iterable[int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            driver if isinstance(driver, list) else [driver],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.pid = self._process.pid
        if cpus is not None:
            os.sched_setaffinity(self.pid, cpus)

    def tell(self, *words: object) -> Any:
        """Give one command of driver.c; its answer. Raises EOFError with what went wrong on its stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise EOFError(f"the driver ended at {words}")
        return json.loads(answer)

    def send(
        self, qp: int, *, times: int = 1, chain: int = 1, opcode: int = 0, flags: int = 0, sges: int = 1,
        length: int = 100, handle: int = NO_HANDLE, peer: int = 0,
    ) -> None:  # fmt: skip
        self.tell("send", qp, times, chain, opcode, flags, sges, length, handle, peer)

    def recv(self, qp: int, *, times: int = 1, chain: int = 1, sges: int = 1, length: int = 100) -> None:
        self.tell("recv", qp, times, chain, sges, length)

    def close(self) -> None:
        """Let it end by itself, and wait for that."""
        self._process.communicate()

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
