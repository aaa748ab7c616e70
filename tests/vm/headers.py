"""The headers of a kernel, compiled here by bcc's library: where the fields of its structures are."""

from __future__ import annotations

import lzma
import subprocess
import sys
from functools import cache
from pathlib import Path

from fabrictap.sources.verbs.headers import LIBRARY
from support import require
from vm.qemu import HERE


@cache
def compiled(kernel: Path, suite: str) -> Path:
    """The file that fabrictap.sources.verbs.headers prints, kept beside the headers of this Debian kernel."""
    fetch = [HERE / "kernel.sh", "--suite", suite, "--headers", kernel.name]
    made = subprocess.run(fetch, capture_output=True, text=True, timeout=200, check=False)
    require("kernels", made.returncode == 0, made.stderr.strip()[-300:])
    headers = Path(made.stdout.strip())
    path = headers / "places.json"
    argv = [
        sys.executable,
        "-m",
        "fabrictap.sources.verbs.headers",
        headers / "lib" / "modules" / kernel.name,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    require("bcc", done.returncode == 0 or LIBRARY not in done.stderr, done.stderr.strip())
    assert done.returncode == 0, done.stderr
    path.write_text(done.stdout)
    return path


def vmlinux(kernel: Path) -> bytes:
    """The ELF file that a kernel's image holds, xz-compressed as Debian has it."""
    image = (kernel / "boot" / f"vmlinuz-{kernel.name}").read_bytes()
    at = image.find(b"\xfd7zXZ\0")
    while at >= 0:
        found = lzma.LZMADecompressor().decompress(image[at:])
        if found.startswith(b"\x7fELF"):
            return found
        at = image.find(b"\xfd7zXZ\0", at + 1)
    raise AssertionError(f"{kernel.name} holds no vmlinux that is compressed by xz")
