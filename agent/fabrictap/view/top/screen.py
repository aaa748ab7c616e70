"""The terminal: keys, size, and painting what has changed. Plain control sequences, no terminfo needed."""

from __future__ import annotations

import os
import select
import shutil
import signal
import termios
import time
import tty
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from fabrictap.view import text
from fabrictap.view.top.table import Line

#: Style -> SGR parameters with colour, and without.
STYLES = {
    "": ("", ""),
    "bar": ("7", "7"),
    "title": ("1", "1"),
    "dim": ("2", "2"),
    "warn": ("33", "1"),
    "bad": ("1;31", "1;7"),
    "dark": ("35", "1"),
    "past": ("36", ""),
}
#: Alternate screen, no cursor, no wrapping at the right margin; and back.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_KEYS = {
    "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace", "\x03": "interrupt",
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left", "\x1b[Z": "backtab",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[H": "home", "\x1b[F": "end", "\x1b[1~": "home", "\x1b[4~": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[5~": "pageup", "\x1b[6~": "pagedown", "\x1bOP": "f1", "\x1b[11~": "f1", "\x1b[[A": "f1",
}  # fmt: skip
#: Seconds in which the rest of a key that begins with Esc comes.
_ESCAPE_PAUSE = 0.05
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class TerminalGone(Exception):  # noqa: N818 - what happens to ssh sessions, not a fault
    """Nobody sees what is painted any more."""


class Screen:
    """A context: the terminal is ours inside of it and as it was outside, also after a signal or a fault.

    ``ended``: a signal has asked for the end. Ctrl-Z gives the terminal back until it goes on.
    """

    def __init__(self, keys: int, out: int, *, colour: bool) -> None:
        """``keys`` and ``out``: descriptors of the terminal."""
        self._keys, self._out, self._colour = keys, out, colour
        self._saved: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._painted: list[str] = []
        self._size = (0, 0)
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.ended = False

    def __enter__(self) -> Screen:
        self._saved = termios.tcgetattr(self._keys)
        try:
            for number in (*_ENDING, signal.SIGWINCH, signal.SIGTSTP):
                self._handlers[number] = signal.signal(number, self._on_signal)
            self._take()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._woken)

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines)."""
        try:
            size = os.get_terminal_size(self._out)
        except OSError:
            size = shutil.get_terminal_size()
        return size.columns, size.lines

    def paint(self, lines: Sequence[Line]) -> None:
        """Show these lines, writing only those that are others than before. Raises TerminalGone."""
        size = self.size
        if size != self._size:
            self._size, self._painted = size, []
        said = [self._text(line) for line in lines]
        parts = [] if self._painted else ["\x1b[2J"]
        for number, line in enumerate(said):
            if number >= len(self._painted) or line != self._painted[number]:
                # Behind a full line the cursor stands on its last letter, in most terminals.
                rest = "\x1b[K" if sum(text.width(part) for part, _ in lines[number]) < size[0] else ""
                parts.append(f"\x1b[{number + 1};1H\x1b[0m{line}\x1b[0m{rest}")
        self._painted = said
        if parts:
            self._write("".join(parts))

    def wait(self, seconds: float) -> list[str]:
        """The keys that were pressed, as soon as there is one; none after that time or another size."""
        try:
            ready, _, _ = select.select([self._keys, self._wake], [], [], max(0.0, seconds))
        except OSError as error:
            raise TerminalGone from error
        if self._wake in ready:
            self._drain()
        if self._keys not in ready:
            return []
        typed = self._read()
        if typed.endswith("\x1b") and select.select([self._keys], [], [], _ESCAPE_PAUSE)[0]:
            typed += self._read()
        return split(typed)

    def _text(self, line: Line) -> str:
        made = ""
        for part, style in line:
            codes = STYLES[style][0 if self._colour else 1]
            made += f"\x1b[{codes}m{part}\x1b[0m" if codes else part
        return made

    def _take(self) -> None:
        tty.setcbreak(self._keys, termios.TCSANOW)
        self._painted = []
        self._write(_ENTER)

    def _give_back(self) -> None:
        try:
            self._write(_LEAVE)
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._saved)
        except (TerminalGone, termios.error):
            return  # there is nothing left to be put in order

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - fixed by signal
        if number in _ENDING:
            self.ended = True
        elif number == signal.SIGTSTP:
            self._give_back()
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            # Here when the shell has said fg.
            signal.signal(signal.SIGTSTP, self._on_signal)
            self._take()
        try:
            os.write(self._woken, b".")
        except BlockingIOError:
            return  # it is full, and so awake

    def _drain(self) -> None:
        try:
            while os.read(self._wake, 64):
                pass
        except BlockingIOError:
            return

    def _read(self) -> str:
        try:
            typed = os.read(self._keys, 1024)
        except OSError as error:
            raise TerminalGone from error
        if not typed:
            raise TerminalGone
        return typed.decode("utf-8", "replace")

    def _write(self, said: str) -> None:
        left = memoryview(said.encode("utf-8", "replace"))
        while left:
            try:
                left = left[os.write(self._out, left) :]
            except BlockingIOError:
                select.select([], [self._out], [])
            except OSError as error:
                raise TerminalGone from error


def split(typed: str) -> list[str]:
    """What was typed, key by key; sequences that mean nothing here are passed over."""
    keys: list[str] = []
    while typed:
        known = max((name for name in _KEYS if typed.startswith(name)), key=len, default="")
        if known:
            keys.append(_KEYS[known])
        elif typed[0] == "\x1b":
            known = _sequence(typed)
            if known == "\x1b":
                keys.append("escape")
        else:
            known = typed[0]
            keys.append(known)
        typed = typed[len(known) :]
    return keys


def _sequence(typed: str) -> str:
    """An escape sequence that is not known, as ECMA-48 has it: Esc [, parameters, a final byte."""
    if typed[1:2] not in ("[", "O"):
        return "\x1b"
    for place, one in enumerate(typed[2:], 3):
        if "@" <= one <= "~":
            return typed[:place]
    return typed


def has_unicode(environ: Mapping[str, str]) -> bool:
    """Whether the terminal shows UTF-8, by its locale; the Linux console lacks the signs in any case."""
    if environ.get("TERM") == "linux":
        return False
    given = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""
    if given in ("C.UTF-8", "C.utf8", "UTF-8") and not environ.get("LC_ALL"):
        # Python itself puts this into LC_CTYPE where the locale is C (PEP 538): LANG tells.
        given = environ.get("LANG") or ""
    return given.lower().replace("-", "").rpartition(".")[2] == "utf8"


def pause(seconds: float) -> None:
    """For terminals that have no keys."""
    time.sleep(max(0.0, seconds))
