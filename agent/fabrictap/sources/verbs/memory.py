"""Verbs objects in the memory of a running process, by their signature. Its code is never run.

The last resort for a provider whose file does not tell (linked into the program, or with a table that is made
at run time), and for queue pairs of the extended API that are older than the agent. An ``ibv_context`` is
known by its ``cmd_fd``, which is one of the process's descriptors of /dev/infiniband/uverbs*, together with
functions that all lie in one executable file; an ``ibv_qp_ex`` by the address of such a context and functions
likewise. Offsets are those of the public 64-bit ABI (libibverbs/verbs.h).

What is found was written by the process and proves nothing about others: it is used for that process only.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fabrictap.sources.verbs.elf import Refused
from fabrictap.sources.verbs.maps import Mapping
from fabrictap.sources.verbs.providers import EXTENDED
from fabrictap.sources.verbs.static import OPS

_PAGE = 4096
_CHUNK = 1 << 20
_CONTEXT_SIZE = 328
_COMMAND_DESCRIPTOR = 264
#: Present in every queue pair of the extended API, whatever its type.
_ALWAYS = (320, 328, 336)  # wr_start, wr_complete, wr_abort
_QP_EX_SIZE = 344
_MAX_FOUND = 1024
# /proc/PID/pagemap: bit 63, present. Pages that are swapped out are not fetched: the process would pay.
_PRESENT = 1 << 63


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one process: bytes read, seconds taken, memory regions looked into."""

    bytes: int = 64 << 20
    seconds: float = 0.5
    regions: int = 4096


class Memory:
    """Reads the writable memory of one process within ``limits``; close it. Raises Refused."""

    def __init__(self, pid: int, mapped: Sequence[Mapping], limits: Limits | None = None) -> None:
        self._pid = pid
        self._limits = limits or Limits()
        self._deadline = time.monotonic() + self._limits.seconds
        self.scanned = 0
        #: Whether a limit ended the search before all was seen.
        self.incomplete = False
        # The heap first, then small regions: contexts come from malloc, and large regions are buffers.
        regions = [
            m for m in mapped if "w" in m.permissions and "r" in m.permissions and not m.path.startswith("/")
        ]
        regions.sort(key=lambda m: (m.path != "[heap]", m.end - m.start))
        self.incomplete = len(regions) > self._limits.regions
        self._regions = regions[: self._limits.regions]
        try:
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Refused("unreadable", f"the memory of process {pid}: {error.strerror}") from None
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            os.close(self._memory)
            raise Refused("unreadable", f"the page map of process {pid}: {error.strerror}") from None

    def close(self) -> None:
        os.close(self._memory)
        os.close(self._pagemap)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, address: int, size: int) -> bytes | None:
        """``size`` bytes at ``address``; None where not all are readable."""
        if not 0 <= address < 1 << 47:
            return None
        try:
            found = os.pread(self._memory, size, address)
        except OSError:
            return None
        return found if len(found) == size else None

    def words(self, prefixes: Iterable[bytes]) -> Iterator[tuple[int, int]]:
        """(address, value) of every aligned 8-byte word whose highest bytes are one of ``prefixes``."""
        for start, data in self._present():
            for prefix in prefixes:
                low = 8 - len(prefix)
                at = data.find(prefix, low)
                while at >= 0:
                    if (at - low) & 7 == 0:
                        yield start + at - low, int.from_bytes(data[at - low : at - low + 8], "little")
                    at = data.find(prefix, at + 1)

    def _present(self) -> Iterator[tuple[int, bytes]]:
        """(address, bytes) of what is in memory, in pieces of at most a megabyte."""
        for region in self._regions:
            for start in range(region.start, region.end, _CHUNK):
                end = min(start + _CHUNK, region.end)
                for first, last in self._runs(start, end):
                    if self.scanned + last - first > self._limits.bytes or time.monotonic() > self._deadline:
                        self.incomplete = True
                        return
                    data = self.read(first, last - first)
                    if data is not None:
                        self.scanned += len(data)
                        yield first, data

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Ranges of pages that are present: reading others would make the process's memory grow."""
        pages = (end - start) // _PAGE
        try:
            raw = os.pread(self._pagemap, pages * 8, start // _PAGE * 8)
        except OSError:
            return
        first = None
        for page, (entry,) in enumerate(struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8])):
            if entry & _PRESENT:
                first = page if first is None else first
            elif first is not None:
                yield start + first * _PAGE, start + page * _PAGE
                first = None
        if first is not None:
            yield start + first * _PAGE, start + len(raw) // 8 * _PAGE


@dataclass(frozen=True, slots=True)
class Context:
    """An open device: ``address`` of its struct ibv_context, ``functions`` (address by name) in ``code``."""

    address: int
    code: Mapping
    functions: dict[str, int]


@dataclass(frozen=True, slots=True)
class ExtendedQueuePair:
    """``functions``: address by name of EXTENDED, as far as this queue pair has them, in ``code``."""

    address: int
    code: Mapping
    functions: dict[str, int]


def contexts(memory: Memory, code: Sequence[Mapping], descriptors: set[int]) -> list[Context]:
    """Every open device whose functions lie in one of ``code`` and whose cmd_fd is among ``descriptors``."""
    found: dict[int, Context] = {}
    for at, value in memory.words(_prefixes(code)):
        mapping = _mapping(code, value)
        address = at - OPS["post_send"]
        if mapping is None or address in found:
            continue
        raw = memory.read(address, _CONTEXT_SIZE)
        if raw is None:
            continue
        (descriptor,) = struct.unpack_from("<i", raw, _COMMAND_DESCRIPTOR)
        functions = {name: _word(raw, offset) for name, offset in OPS.items()}
        inside = (functions["poll_cq"], functions["post_send"], functions["post_recv"])
        if descriptor in descriptors and all(_mapping([mapping], pointer) for pointer in inside):
            # What a provider leaves out points into libibverbs: not its own.
            functions = {name: p for name, p in functions.items() if _mapping([mapping], p)}
            found[address] = Context(address, mapping, functions)
            if len(found) >= _MAX_FOUND:
                break
    return list(found.values())


def extended(memory: Memory, of: Sequence[Context]) -> list[ExtendedQueuePair]:
    """Queue pairs of the contexts ``of`` that have the extended API."""
    code = {context.address: context.code for context in of}
    found = []
    for address, value in memory.words([context.address.to_bytes(8, "little") for context in of]):
        mapping = code[value]
        raw = memory.read(address, _QP_EX_SIZE)
        if raw is None or not all(_mapping([mapping], _word(raw, offset)) for offset in _ALWAYS):
            continue
        functions = {
            name: pointer
            for name, offset in EXTENDED.items()
            if _mapping([mapping], pointer := _word(raw, offset)) is not None
        }
        found.append(ExtendedQueuePair(address, mapping, functions))
        if len(found) >= _MAX_FOUND:
            break
    return found


def _prefixes(code: Sequence[Mapping]) -> list[bytes]:
    """The highest five bytes of any address in ``code``, as they stand in memory."""
    tops = {top for m in code for top in range(m.start >> 24, (m.end - 1 >> 24) + 1)}
    return [top.to_bytes(5, "little") for top in sorted(tops)]


def _mapping(code: Sequence[Mapping], address: int) -> Mapping | None:
    return next((mapping for mapping in code if mapping.start <= address < mapping.end), None)


def _word(raw: bytes, offset: int) -> int:
    value: int = struct.unpack_from("<Q", raw, offset)[0]
    return value
