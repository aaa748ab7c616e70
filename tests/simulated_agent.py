"""A running ``fabrictap run --simulate``, for tests that look at its recording."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from fabrictap.view.recording import Recording, RecordingError
from support import eventually


class Agent:
    """An agent of a made-up node that records at ``path`` and exports nothing."""

    def __init__(self, path, profile="hgx-h100", ticks=3, *settings):
        self.path = path
        chosen = [
            f"ring.path={path}",
            "state.path=null",
            "export.interval=1s",
            "export.otlp.metrics.enabled=false",
            "export.otlp.traces.enabled=false",
            "export.otlp.logs.enabled=false",
            *settings,
        ]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the agent lives
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fabrictap", "run", "--simulate", profile, "--duration", "10m"]
            + [word for setting in chosen for word in ("--set", setting)],
            stdout=subprocess.DEVNULL,
            stderr=self._said,
        )
        eventually(lambda: self._ticked(ticks), f"{ticks} ticks", 60 + 2 * ticks)

    def _ticked(self, ticks):
        assert self.process.poll() is None, self.said
        try:
            with Recording.open(str(self.path)) as recording:
                return recording.about.agent.pid == self.process.pid and recording.head >= ticks
        except RecordingError:
            return False

    @property
    def said(self):
        self._said.seek(0)
        return self._said.read().decode()

    def kill(self):
        """As by the OOM killer."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """In order."""
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.kill()
