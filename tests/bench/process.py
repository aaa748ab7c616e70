"""What the kernel says about a process: CPU, memory, threads."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

_RANGE = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")


class Watched:
    """A running process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._proc = Path(f"/proc/{pid}")

    def cpu_ns(self) -> int:
        """User and system time of all threads, ended ones too: clock_getcpuclockid(3), in nanoseconds.

        utime and stime of /proc/PID/stat are the same, rounded to ticks of 10 ms.
        """
        return time.clock_gettime_ns((~self.pid << 3) | 2)

    def private_bytes(self) -> int:
        """Memory that is this process's alone (smaps_rollup, Private_*)."""
        text = (self._proc / "smaps_rollup").read_text()
        return sum(int(kib) << 10 for kib in re.findall(r"^Private_\w+: +(\d+) kB", text, re.M))

    def alone_bytes(self) -> int:
        """Private memory as it is where no other process runs this Python and these packages."""
        total, own = self.private_bytes(), False
        for line in (self._proc / "smaps").read_text().splitlines():
            if _RANGE.match(line):
                own = _group(_path(line)) not in ("system libraries", "kernel's")
            elif own and line.startswith("Shared_Clean"):
                total += int(line.split()[1]) << 10
        return total

    def private_by_group(self) -> dict[str, int]:
        """Private bytes of each group of mappings: heap, anonymous, stacks, libraries, extensions, files."""
        found: dict[str, int] = {}
        group = ""
        for line in (self._proc / "smaps").read_text().splitlines():
            if _RANGE.match(line):
                group = _group(_path(line))
            elif line.startswith("Private_"):
                found[group] = found.get(group, 0) + (int(line.split()[1]) << 10)
        return {name: size for name, size in found.items() if size}

    def threads(self) -> int:
        return len(list((self._proc / "task").iterdir()))

    def voluntary_switches(self) -> int:
        """Of the threads that live now."""
        total = 0
        for task in (self._proc / "task").iterdir():
            with contextlib.suppress(OSError):  # ended just now
                match = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.M)
                total += int(match[1]) if match else 0
        return total

    def cpu_by_thread(self) -> dict[str, float]:
        """Milliseconds on the CPU of the threads that live now, by name."""
        found: dict[str, float] = {}
        for task in sorted((self._proc / "task").iterdir(), key=lambda task: int(task.name)):
            with contextlib.suppress(OSError):
                name = (task / "comm").read_text().strip()
                spent = int((task / "schedstat").read_text().split()[0]) / 1e6
                found[name] = found.get(name, 0.0) + spent
        return found


#: What a mapping's path contains -> its group; the first that fits.
_GROUPS = (
    ("[heap", "heap"),
    ("[stack", "stack"),
    ("[", "kernel's"),
    ("/ring", "the ring's file"),
    ("fabrictap/ext", "fabrictap's extensions"),
    ("fabrictap", "fabrictap's files"),
    ("bin/python", "python"),
    (".so", "system libraries"),
)


def _path(line: str) -> str:
    """What a mapping in smaps maps; empty for anonymous memory."""
    words = line.split(maxsplit=5)
    return words[5] if len(words) > 5 else ""


def _group(path: str) -> str:
    if "-packages/" in path:
        return "package " + path.split("-packages/")[1].split("/", maxsplit=1)[0].split(".", maxsplit=1)[0]
    if not path:
        return "anonymous"
    return next((group for part, group in _GROUPS if part in path), "other files")
