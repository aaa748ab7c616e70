"""The recording at a path, over restarts of the agent that writes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fabrictap.view.recording import Life, Recording, RecordingError


class Follower:
    """Keeps the recording open. An agent that starts puts a new file into the place of the old one.

    The old file stays open until the new one can be read, so that there is always something to show.
    ``news`` says what has happened last, and ``news_at`` when (time.monotonic).
    """

    def __init__(self, path: str, open_recording: Callable[[], Recording]) -> None:
        """Raises RecordingError where there is nothing to read."""
        self._path = path
        self._open = open_recording
        self.recording = open_recording()
        self._identity = self._at_path()
        #: Counts the files that were opened.
        self.generation = 0
        self.news = ""
        self.news_at = -1e9
        self._life = self.recording.alive()

    def close(self) -> None:
        self.recording.close()

    def life(self) -> Life:
        """Of the writer, once a new file has been taken where there is one."""
        identity = self._at_path()
        if identity is not None and identity != self._identity:
            self._renew(identity)
        life = self.recording.alive()
        if life.state != self._life.state:
            self._say(
                {
                    "running": "the agent ticks again",
                    "stalled": "the agent has stopped ticking",
                    "ended": "the agent has ended",
                    "died": "the agent has died",
                }[life.state]
            )
        self._life = life
        return life

    def _renew(self, identity: tuple[int, int]) -> None:
        try:
            fresh = self._open()
        except RecordingError as error:
            # Half made: with the next look. But one that never can be read must be told of.
            self._say(str(error))
            return
        before = self.recording.about.agent
        self.recording.close()
        self.recording, self._identity = fresh, identity
        self.generation += 1
        self._life = fresh.alive()
        after = fresh.about.agent
        version = "" if before.version == after.version else f", now version {after.version}"
        self._say(f"the agent was started anew (pid {fresh.alive().pid}{version}); this is its new recording")

    def _say(self, news: str) -> None:
        self.news, self.news_at = news, time.monotonic()

    def _at_path(self) -> tuple[int, int] | None:
        try:
            status = Path(self._path).lstat()
        except OSError:
            return None  # moved away, or not yet there
        return status.st_dev, status.st_ino
