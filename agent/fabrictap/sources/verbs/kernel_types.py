"""Where kernel structures are described: by the kernel itself (BTF), or by its headers and bcc's compiler.

The programs are the same. ``loader: bcc`` is for kernels that were built without type information, and gives
the control path by kprobes on kernels that have it for themselves only and not for their modules.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from fabrictap.sources.verbs.btf import Btf, Place

_log = logging.getLogger(__name__)
KERNELS_OWN = Path("/sys/kernel/btf/vmlinux")
MODULES = Path("/lib/modules")
TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_TIMEOUT_SECONDS = 180.0
#: Beyond any structure of the kernel, in bytes.
_MAX_OFFSET = 1 << 20
#: What no header has. Of system calls the layout is fixed, of the connection manager's the kernel tells it.
_SYSTEM_CALLS = {
    "trace_event_raw_sys_enter": {"": Place(0, 64), "args": Place(16, 48)},
    "trace_event_raw_sys_exit": {"": Place(0, 24), "ret": Place(16, 8)},
}
_EVENTS = {
    "trace_event_raw_cm_event_handler": "cm_event_handler",
    "trace_event_raw_cma_qp_class": "cm_send_req",
}
_FIELD = re.compile(r"field:[^;]*?(\w+)(?:\[\d*\])?;\s*offset:(\d+);\s*size:(\d+);")


class TypesUnavailable(Exception):  # noqa: N818 - a state of the node
    """No type information can be made of headers; the message says what is missing."""


class HeaderTypes:
    """What the headers in a directory say, compiled when first asked for; or what was compiled before."""

    def __init__(self, headers: Path) -> None:
        self.headers = headers
        self._places: dict[str, dict[str, Place]] | None = None
        self._files: dict[Path, int] = {}

    def file(self, program: Path) -> str:
        """A path under which libbpf finds BTF for an object of ours. Raises TypesUnavailable."""
        if program not in self._files:
            if self._places is None:
                self._places = _read(self.headers) if self.headers.is_file() else _compile(self.headers)
            places = {**self._places, **_SYSTEM_CALLS}
            for name, event in _EVENTS.items():
                if (layout := _event(event)) is not None:
                    places[name] = layout
            try:
                made = Btf(program).placed(places)
            except KeyError as error:
                raise TypesUnavailable(f"{self.headers}: nothing is said of {error}") from None
            descriptor = os.memfd_create(f"{program.name}.btf", os.MFD_CLOEXEC)
            self._files[program] = descriptor
            os.write(descriptor, made)
        return f"/proc/self/fd/{self._files[program]}"

    def has_function(self, name: str) -> bool:
        """Whether the kernel or a module of it has a function ``name``."""
        return name in _functions()

    def has_event(self, name: str) -> bool:
        """Whether the kernel tells the layout of a tracepoint of rdma_cma."""
        return _event(name) is not None

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        _functions.cache_clear()


def choose(loader: Literal["auto", "libbpf", "bcc"], headers: str | None) -> HeaderTypes | None:
    """None: the kernel's own. Raises TypesUnavailable, where there is none and none may be made."""
    if loader == "bcc" or (loader == "auto" and not KERNELS_OWN.exists()):
        return HeaderTypes(Path(headers) if headers else MODULES / platform.release())
    if not KERNELS_OWN.exists():
        raise TypesUnavailable(f"{KERNELS_OWN} does not exist, and sources.verbs.loader is libbpf")
    return None


def _compile(headers: Path) -> dict[str, dict[str, Place]]:
    began = time.monotonic()
    argv = [sys.executable, "-m", "fabrictap.sources.verbs.headers", str(headers)]
    try:
        ran = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TypesUnavailable(f"bcc's compiler: {error}") from None
    if ran.returncode != 0:
        said = ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"]
        first = next((line for line in said if "error:" in line), None)
        raise TypesUnavailable(f"bcc: {said[-1]}{f': {first}' if first else ''}"[:400])
    _log.info("kernel headers compiled by bcc in %.1f s", time.monotonic() - began)
    return _parsed(ran.stdout, headers)


def _read(path: Path) -> dict[str, dict[str, Place]]:
    try:
        return _parsed(path.read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise TypesUnavailable(f"{path}: {error}") from None


def _parsed(text: str, path: Path) -> dict[str, dict[str, Place]]:
    """What the program ``headers`` prints. Raises TypesUnavailable."""
    try:
        found = {
            name: {field: Place(int(offset), int(size)) for field, (offset, size) in fields.items()}
            for name, fields in json.loads(text).items()
        }
    except (ValueError, TypeError, AttributeError):
        raise TypesUnavailable(f"{path} is not what fabrictap.sources.verbs.headers prints") from None
    if any("" not in fields for fields in found.values()) or any(
        not 0 <= place.offset < _MAX_OFFSET or not 0 < place.size < _MAX_OFFSET
        for fields in found.values()
        for place in fields.values()
    ):
        raise TypesUnavailable(f"{path} has places that no structure has")
    return found


@functools.cache
def _functions() -> frozenset[str]:
    """Of the kernel and its modules, whether they are exported or not."""
    names = set()
    with Path("/proc/kallsyms").open() as symbols:
        for line in symbols:
            _, kind, name, *_ = line.split()
            if kind in "tT":
                names.add(name)
    return frozenset(names)


def _event(name: str) -> dict[str, Place] | None:
    """The layout of a tracepoint of rdma_cma."""
    for root in TRACEFS:
        try:
            text = Path(root, "events", "rdma_cma", name, "format").read_text()
        except OSError:
            continue
        fields = {field: Place(int(at), int(size)) for field, at, size in _FIELD.findall(text)}
        return {"": Place(0, max(p.offset + p.size for p in fields.values())), **fields}
    return None
