"""The kernel notes the thread that made an object: whose it is."""

from __future__ import annotations

from pathlib import Path


def process_of(tid: int) -> int:
    """The process that a thread belongs to; the thread's own id where it cannot be read any more."""
    try:
        for line in Path(f"/proc/{tid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return tid
