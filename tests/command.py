"""The commands that read a recording, run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys


def fabrictap(*arguments, code=0, **environment):
    """What the command said; it must end with ``code``, and never with a traceback."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("FABRICTAP_", "OTEL_"))}
    mine.pop("COLUMNS", None)
    done = subprocess.run(
        [sys.executable, "-m", "fabrictap", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=mine | environment,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done
    return done
