"""A program on a terminal that really is one: a pty, and pyte's screen at its other end."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pyte
import pytest

#: Sequences that pyte does not know and that change nothing of what is seen.
_ENTER, _LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


def _at_a_terminal():
    """The terminal of its session, so that another size and Ctrl-C reach it as they would.

    Also where the tests run in the background of a script, and so ignore Ctrl-C.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """``said`` is all that the program has written."""

    def __init__(self, command, columns=80, lines=24, **environment):
        self._ours, theirs = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.said = b""
        self._size(columns, lines)
        self.before = termios.tcgetattr(theirs)
        kept = {
            name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")
        }
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | environment,
            start_new_session=True,
            preexec_fn=_at_a_terminal,  # noqa: PLW1509 - no threads here
        )
        self._theirs = theirs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    @property
    def text(self):
        """What is seen now."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def type(self, keys):
        os.write(self._ours, keys.encode())

    def resize(self, columns, lines):
        self.screen.resize(lines, columns)
        self._size(columns, lines)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def read(self, seconds=0.0):
        """Take what the program writes within that time."""
        ready, _, _ = select.select([self._ours], [], [], seconds)
        if ready:
            part = os.read(self._ours, 1 << 16)
            self.said += part
            self._stream.feed(part.replace(_ENTER, b"").replace(_LEAVE, b""))
        return bool(ready)

    def until(self, condition, what, timeout=30.0):
        """Read until ``condition`` holds: a text that is to be seen, or a function."""
        wanted = (lambda: condition in self.text) if isinstance(condition, str) else condition
        deadline = time.monotonic() + timeout
        while not wanted():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout:g} s: {what}; the screen has\n{self.text}", pytrace=False)
            self.read(0.05)

    def end(self, timeout=10.0):
        """Wait for the program's end; its exit code."""
        self.until(lambda: self.process.poll() is not None, "the program has ended", timeout)
        while self.read(0.05):
            pass
        return self.process.returncode

    @property
    def restored(self):
        """Whether the terminal is as it was before the program."""
        left = self.said.rpartition(_LEAVE)
        return (
            termios.tcgetattr(self._theirs) == self.before
            and bool(left[1])
            and _ENTER not in left[2]
            and b"\x1b[?25h" in self.said[self.said.rindex(_ENTER) :]
            and b"\x1b[?7h" in self.said[self.said.rindex(_ENTER) :]
        )

    def _size(self, columns, lines):
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
