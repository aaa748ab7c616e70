"""A peer in a process of its own, which answers each line with a line of JSON."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class Worker:
    """Started at once, ended by the end of its input. What it says on stderr is shown when it fails."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        self._command = [str(word) for word in command]
        #: A file, because nobody reads along.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            bufsize=1, env=env,
        )  # fmt: skip
        self.pid = self._process.pid

    def ask(self, *words: object) -> Any:
        """Send one line, wait for the answer. Raises RuntimeError with the worker's last words."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{' '.join(self._command[:2])} ended: {self.last_words()}")
        return json.loads(answer)

    def last_words(self) -> str:
        """The end of what it has said on stderr."""
        self._process.wait(30)
        size = self._said.seek(0, 2)
        self._said.seek(max(0, size - 2000))
        return self._said.read().decode(errors="replace").strip() or "it said nothing"

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.communicate(timeout=30)
        self._said.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
