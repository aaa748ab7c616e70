"""The loop: look, paint, wait for a key. Also once, and as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from fabrictap.view import text
from fabrictap.view.recording import Recording, RecordingError
from fabrictap.view.text import duration
from fabrictap.view.top import page, tree
from fabrictap.view.top.follow import Follower
from fabrictap.view.top.look import Look
from fabrictap.view.top.read import Reader
from fabrictap.view.top.screen import Screen, TerminalGone, has_unicode, pause
from fabrictap.view.top.state import OVERVIEW, State
from fabrictap.view.top.table import Manner

#: Looks are taken more rarely where they would cost more than this share of a core.
_SHARE = 0.1
#: Seconds for which news stand in the last line.
_NEWS = 15.0
#: Flows whose past is read, where no screen says how many are seen.
_FLOWS = 64
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Options:
    """``interval``: seconds between two looks."""

    once: bool = False
    as_json: bool = False
    colour: bool = True
    ascii_only: bool | None = None
    interval: float = 1.0


def main(path: str, open_recording: Callable[[], Recording], chosen: State, options: Options) -> int:
    """Show the recording at ``path``. Raises RecordingError where there is none to begin with."""
    follower = Follower(path, open_recording)
    reader = Reader(follower)
    ascii_only = not has_unicode(os.environ) if options.ascii_only is None else options.ascii_only
    try:
        if options.as_json or options.once or not sys.stdout.isatty():
            _print(reader, chosen, options, ascii_only)
        elif os.environ.get("TERM", "dumb") in ("dumb", "") or not sys.stdin.isatty():
            _page_by_page(reader, chosen, options, ascii_only)
        else:
            _watch(reader, chosen, options, ascii_only)
    finally:
        follower.close()
    return 0


def _print(reader: Reader, chosen: State, options: Options, ascii_only: bool) -> None:
    """Once; as JSON again and again, unless once was asked for."""
    while True:
        look = reader.look(_FLOWS)
        if options.as_json:
            print(json.dumps(tree.as_json(look)), flush=True)
        else:
            width = text.room(page.LEAST_WIDTH) or _WIDTH
            for line in page.plain(look, chosen, width, _manner(chosen, look, ascii_only)):
                print(line)
        if options.once or not options.as_json:
            return
        pause(max(options.interval, reader.spent / _SHARE))


def _page_by_page(reader: Reader, chosen: State, options: Options, ascii_only: bool) -> None:
    """A terminal without a cursor that moves, or without keys: one page after the other, until Ctrl-C."""
    while True:
        look = reader.look(_FLOWS)
        width = text.room(page.LEAST_WIDTH) or _WIDTH
        print(
            "\n".join([*page.plain(look, chosen, width, _manner(chosen, look, ascii_only)), ""]), flush=True
        )
        pause(max(options.interval, reader.spent / _SHARE))


def _watch(reader: Reader, chosen: State, options: Options, ascii_only: bool) -> None:
    chosen.interval = options.interval
    with Screen(sys.stdin.fileno(), sys.stdout.fileno(), colour=options.colour) as screen:
        began, spent, fresh, trouble = time.monotonic(), 0.0, True, ""
        # In the screen's hands: whatever this raises, the terminal is given back.
        look = reader.look(screen.size[1])
        try:
            while True:
                cost = time.thread_time()
                width, height = screen.size
                news = trouble or _news(reader, chosen, spent)
                screen.paint(
                    page.frame(look, chosen, width, height, _manner(chosen, look, ascii_only), news=news)
                )
                if fresh:
                    # A first look reads all that is kept, and says nothing about the others.
                    spent = reader.spent and reader.spent + time.thread_time() - cost
                due = began + max(chosen.interval, spent / _SHARE)
                left = due - time.monotonic()
                for key in screen.wait(chosen.interval if chosen.paused else left):
                    chosen.key(key)
                if chosen.quit or screen.ended:
                    return
                fresh = not chosen.paused and time.monotonic() >= due
                if fresh:
                    began = time.monotonic()
                    look, trouble = _again(reader, look, height)
        except TerminalGone:
            return


def _again(reader: Reader, look: Look, height: int) -> tuple[Look, str]:
    """(another look, nothing); the last one and why, where the file is damaged: the next may be better."""
    try:
        return reader.look(height), ""
    except RecordingError as error:
        return look, str(error)


def _news(reader: Reader, chosen: State, spent: float) -> str:
    follower = reader.follower
    if time.monotonic() - follower.news_at < _NEWS:
        return follower.news
    if spent / _SHARE > chosen.interval:
        return f"a look takes {duration(spent)}: one every {duration(spent / _SHARE)}"
    return ""


def _manner(chosen: State, look: Look, ascii_only: bool) -> Manner:
    return Manner(chosen.bits, ascii_only, look.time_ns)


__all__ = ["OVERVIEW", "Options", "main"]
