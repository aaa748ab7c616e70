"""What is known of a library file: which of its functions are probed, and how that was found.

A file is analysed once. The result is kept by the file itself (device, inode, size and times) and by its
content, so that the same library in a hundred images costs a hundred digests and one analysis. The content is
the whole file, not its build-id: that may be forged by whoever made the file, and a function's offset in a
library of the same name is an instruction's middle in another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from fabrictap.sources.verbs import maps, static
from fabrictap.sources.verbs.elf import MAX_READ, Elf, Refused
from fabrictap.sources.verbs.maps import Identity, Mapping

#: Names of libibverbs, and of providers: libmlx5-rdmav34.so, libmlx5.so.1.24.44.0 and their like.
_LIBIBVERBS = re.compile(r"libibverbs\.so\b")
_PROVIDER = re.compile(r"lib(\w+?)(?:-rdmav\d+\.so|\.so\.\d[\d.]*)\b")
_ALSO_APPLICATION_LIBRARIES = frozenset(("mlx4", "mlx5", "efa", "hns", "mana", "zxdh", "bnxt_re", "ionic"))
_MAX_FILES = 1024
_MAX_CONTENTS = 256
#: Where reading may block for as long as another program likes.
_UNTRUSTED_FILE_SYSTEMS = ("fuse", "fuseblk")


def is_libibverbs(path: str) -> bool:
    return _LIBIBVERBS.match(path.rpartition("/")[2]) is not None


def provider_name(path: str) -> str | None:
    """``mlx5`` of libmlx5-rdmav34.so and of libmlx5.so.1.24.44.0; None where the name is no provider's."""
    name = path.rpartition("/")[2]
    match = _PROVIDER.match(name)
    if match is None or ("-rdmav" not in name and match[1] not in _ALSO_APPLICATION_LIBRARIES):
        return None
    return match[1]


@dataclass(frozen=True, slots=True)
class Library:
    """``functions``: name of our program -> offsets in the file. ``how``: helper, static."""

    functions: dict[str, tuple[int, ...]]
    how: str
    build_id: str | None
    #: Why its functions are unknown: a reason and a sentence; None where they are known.
    refusal: tuple[str, str] | None = None
    #: Offsets in ``struct verbs_context_ops``, of a libibverbs.
    slots: dict[str, int] = field(default_factory=dict)


class Libraries:
    """Analyses files, with a bounded memory of what it found. ``spent``: seconds, and how many files."""

    def __init__(self) -> None:
        self._by_file: OrderedDict[tuple[Identity, tuple[tuple[str, int], ...]], Library] = OrderedDict()
        self._by_content: OrderedDict[tuple[bytes, tuple[tuple[str, int], ...]], Library] = OrderedDict()
        self._of_host: OrderedDict[bytes, Library] = OrderedDict()
        self.analysed = 0
        self.spent = 0.0

    def host(self, descriptor: int, functions: dict[str, tuple[int, ...]]) -> Library:
        """What the helper process found in a library of the host: holds for every file with this content."""
        library = Library(functions, "helper", _build_id(descriptor))
        with contextlib.suppress(Refused):  # known by its inode all the same
            self._of_host[_digest(descriptor)] = library
        _bound(self._of_host, _MAX_CONTENTS)
        for known in (self._by_file, self._by_content):
            known.clear()
        return library

    def of(self, pid: int, mapping: Mapping, slots: dict[str, int] | None) -> Library:
        """The library that ``pid`` has mapped; ``slots`` of its libibverbs, None for libibverbs itself.

        What cannot be analysed is a Library without functions, with the reason; it is kept too. Raises
        Refused where the file cannot be reached, which may be different the next time.
        """
        kind = tuple(sorted(slots.items())) if slots is not None else ()
        identity = maps.mapped_identity(pid, mapping)
        if identity is not None and (known := self._by_file.get((identity, kind))) is not None:
            self._by_file.move_to_end((identity, kind))
            return known
        descriptor = maps.open_mapped(pid, mapping)
        try:
            identity = maps.identity(descriptor)
            system = maps.file_system(pid, identity.device) or ""
            if system.split(".")[0] in _UNTRUSTED_FILE_SYSTEMS:
                raise Refused("fuse", f"{mapping.path} lies on {system}, which could hang the agent")
            began = time.monotonic()
            library = self._analyse(descriptor, slots, kind)
            self.spent += time.monotonic() - began
        finally:
            os.close(descriptor)
        self._by_file[identity, kind] = library
        _bound(self._by_file, _MAX_FILES)
        return library

    def _analyse(
        self, descriptor: int, slots: dict[str, int] | None, kind: tuple[tuple[str, int], ...]
    ) -> Library:
        build_id = None
        try:
            content = _digest(descriptor)
            if (host := self._of_host.get(content)) is not None and slots is not None:
                return host
            if (known := self._by_content.get((content, kind))) is not None:
                return known
            self.analysed += 1
            build_id = _build_id(descriptor)
            elf = Elf(descriptor)
            if slots is None:
                library = _libibverbs(elf, build_id)
            elif not slots:
                raise Refused(
                    "no_libibverbs", "no libibverbs in the process that tells how its table is ordered"
                )
            else:
                found = {name: tuple(offsets) for name, offsets in static.functions(elf, slots).items()}
                library = Library(found, "static", build_id)
            self._by_content[content, kind] = library
            _bound(self._by_content, _MAX_CONTENTS)
        except Refused as refusal:
            return Library({}, "static", build_id, (refusal.reason, str(refusal)))
        return library


def _libibverbs(elf: Elf, build_id: str | None) -> Library:
    entries: dict[str, tuple[int, ...]] = {
        name: (offset,) for name, offset in static.entry_points(elf).items()
    }
    try:
        return Library(entries, "static", build_id, slots=static.slots(elf))
    except Refused as refusal:
        return Library(entries, "static", build_id, (refusal.reason, str(refusal)))


def host_library(path: str) -> int:
    """A descriptor of a library of the host's own, by path. Raises OSError."""
    return os.open(Path(path), os.O_RDONLY | os.O_CLOEXEC)


def _build_id(descriptor: int) -> str | None:
    try:
        return Elf(descriptor).build_id()
    except Refused:
        return None


def _digest(descriptor: int) -> bytes:
    """BLAKE2b of the whole file, which must not be larger than what would be read of it."""
    size = os.fstat(descriptor).st_size
    if size > MAX_READ:
        raise Refused("too_large", f"{size >> 20} MiB")
    digest = hashlib.blake2b(digest_size=16)
    at = 0
    while at < size:
        chunk = os.pread(descriptor, 1 << 20, at)
        if not chunk:
            break
        digest.update(chunk)
        at += len(chunk)
    return digest.digest()


def _bound(table: OrderedDict, limit: int) -> None:  # type: ignore[type-arg]
    while len(table) > limit:
        table.popitem(last=False)
