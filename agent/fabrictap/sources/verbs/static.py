"""A provider's functions from its file alone, and the entry points of libibverbs.

A provider hands tables of functions, ``struct verbs_context_ops``, to ``verbs_set_ops`` of libibverbs. Where
in such a table post_send stands is private to a release of rdma-core (byte 416 in v28, 440 in v44, 480 in
v64), but ``verbs_set_ops`` itself tells: it copies each entry to its place in ``struct ibv_context``, which
is public. So the copies are read from libibverbs' machine code (x86-64), then the tables that the provider
passes, then the relocations that fill these tables. No code of the library is run.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from fabrictap.sources.verbs.elf import EM_X86_64, Elf, Refused
from fabrictap.sources.verbs.providers import EXPORTED

#: struct verbs_context grows at its beginning, so that all but ``priv``, which verbs_set_ops reads, and what
#: follows it moves: struct ibv_context comes 112 bytes after (libibverbs/verbs.h, public).
_CONTEXT_AFTER_PRIVATE = 112
#: The functions in struct ibv_context.ops, bytes from its beginning.
OPS = {"poll_cq": 96, "post_srq_recv": 168, "post_send": 208, "post_recv": 216}

_MAX_SETTER = 16 << 10  # verbs_set_ops has 1.8 KiB
_MAX_CODE = 16 << 20
_MAX_CALLS = 64
_LOOK_BACK = 96  # bytes before a call in which its second argument is loaded
_MAX_TABLE = 4096

_RSP, _RBP, _RSI, _RDI = 4, 5, 6, 7
_TEST, _STORE, _LOAD, _RET = 0x85, 0x89, 0x8B, 0xC3
_REGISTER = 3  # mode of an operand that is no memory
_DISPLACEMENT = {0: "<", 1: "<b", 2: "<i"}
_JUMP_LENGTH = {b"\x74": 2, b"\x0f\x84": 6}  # je, with 8 and with 32 bits
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_LOAD_SECOND_ARGUMENT = b"\x48\x8d\x35"  # lea disp32(%rip),%rsi
_JUMP_THROUGH = re.compile(rb"\xff\x25", re.DOTALL)  # jmp *disp32(%rip)
_CALLS = re.compile(rb"[\xe8\xe9]|\xff[\x15\x25]", re.DOTALL)


def slots(libibverbs: Elf) -> dict[str, int]:
    """Byte offset of each of ``OPS`` in this libibverbs' ``struct verbs_context_ops``. Raises Refused."""
    if libibverbs.machine != EM_X86_64:
        raise Refused("architecture", f"machine code of ELF machine {libibverbs.machine} is not read")
    setter = libibverbs.exported("verbs_set_ops")
    if setter is None or not 0 < setter.size <= _MAX_SETTER:
        raise Refused(
            "no_verbs_set_ops", "libibverbs has no verbs_set_ops: older than rdma-core v17, or no libibverbs"
        )
    copies, private = _copies(libibverbs.at(setter.address, setter.size))
    if len(private) != 1:
        raise Refused("setter_not_understood", f"verbs_set_ops reads {len(private)} members of the context")
    context = private.pop() + _CONTEXT_AFTER_PRIVATE
    found = {}
    for name, offset in OPS.items():
        sources = {source for source, target in copies if target == context + offset}
        if len(sources) != 1:
            raise Refused("setter_not_understood", f"verbs_set_ops copies {len(sources)} entries to {name}")
        found[name] = sources.pop()
    if len(set(found.values())) != len(found) or not all(0 <= slot < _MAX_TABLE for slot in found.values()):
        raise Refused("setter_not_understood", f"verbs_set_ops copies to {found}")
    return found


@dataclass(frozen=True, slots=True)
class _Instruction:
    """One of mov and test between 64-bit registers and memory. ``offset`` is None without memory."""

    operation: int
    register: int
    base: int
    offset: int | None
    length: int


def _copies(code: bytes) -> tuple[set[tuple[int, int]], set[int]]:
    """(offset in the second argument, offset in the first) of every pointer that straight-line code copies;
    and the offsets in the first argument that it reads.

    Follows moves between registers, loads and stores; jumps are only those over a store, so each instruction
    is taken as it stands. Anything else than what compilers make of verbs_set_ops is refused.
    """
    # What a register holds: ("argument", which) or ("loaded", offset in the second argument).
    held: dict[int, tuple[str, int] | None] = {_RDI: ("argument", 0), _RSI: ("argument", 1)}
    found: set[tuple[int, int]] = set()
    read: set[int] = set()
    at = len(_ENDBR64) if code.startswith(_ENDBR64) else 0
    while at < len(code) and code[at] != _RET:
        if (
            skipped := _JUMP_LENGTH.get(code[at : at + 1]) or _JUMP_LENGTH.get(code[at : at + 2])
        ) is not None:
            at += skipped
            continue
        one = _decode(code, at)
        if one is None:
            break
        at += one.length
        if one.operation == _TEST:
            continue
        if one.offset is None:
            source, target = (one.register, one.base) if one.operation == _STORE else (one.base, one.register)
            held[target] = held.get(source)
        elif one.operation == _LOAD:
            source_of = held.get(one.base)
            held[one.register] = ("loaded", one.offset) if source_of == ("argument", 1) else None
            if source_of == ("argument", 0):
                read.add(one.offset)
        else:
            what = held.get(one.register)
            if held.get(one.base) == ("argument", 0) and what is not None and what[0] == "loaded":
                found.add((what[1], one.offset))
    if at >= len(code) or code[at] != _RET:
        raise Refused("setter_not_understood", f"verbs_set_ops: {code[at : at + 8].hex(' ')} at +{at:#x}")
    return found, read


def _decode(code: bytes, at: int) -> _Instruction | None:
    """A mov or test with REX.W and without SIB byte (Intel SDM, volume 2, chapter 2); None for any other."""
    if at + 3 > len(code) or not 0x48 <= code[at] <= 0x4F or code[at] & 2:
        return None
    prefix, operation, modrm = code[at : at + 3]
    mode, base = modrm >> 6, modrm & 7
    if operation not in (_TEST, _STORE, _LOAD) or (operation == _TEST and mode != _REGISTER):
        return None
    register = modrm >> 3 & 7 | (prefix & 4) << 1
    offset: int | None = None
    length = 3
    if mode != _REGISTER:
        if base == _RSP or (mode == 0 and base == _RBP):  # SIB, or relative to the instruction
            return None
        form = _DISPLACEMENT[mode]
        if at + 3 + struct.calcsize(form) > len(code):
            return None
        offset = int(struct.unpack_from(form, code, at + 3)[0]) if mode else 0
        length += struct.calcsize(form)
    return _Instruction(operation, register, base | (prefix & 1) << 3, offset, length)


def is_provider(library: Elf) -> bool:
    """Whether a library calls verbs_set_ops of libibverbs, as only providers do. Raises Refused."""
    return bool(library.imported("verbs_set_ops"))


def functions(provider: Elf, at: dict[str, int]) -> dict[str, list[int]]:
    """File offsets of a provider's functions, by the names of ``OPS``; ``at`` is what :func:`slots` gave.

    A provider may have several of one kind. Raises Refused where there is none.
    """
    if provider.machine != EM_X86_64:
        raise Refused("architecture", f"machine code of ELF machine {provider.machine} is not read")
    entries = set(provider.imported("verbs_set_ops"))
    if not entries:
        raise Refused("not_a_provider", "does not call verbs_set_ops")
    tables: set[int] = set()
    for segment in provider.segments:
        if segment.executable:
            if segment.size > _MAX_CODE:
                raise Refused("too_large", f"{segment.size >> 20} MiB of machine code")
            tables |= _tables(provider.read(segment.offset, segment.size), segment.address, entries)
    found: dict[str, list[int]] = {}
    for name, slot in at.items():
        addresses = {address for table in tables if (address := provider.pointer(table + slot)) is not None}
        offsets = sorted({offset for a in addresses if (offset := provider.offset(a)) is not None})
        if offsets:
            found[name] = offsets
    if "post_send" not in found:
        raise Refused("no_table", f"no post_send in {len(tables)} tables that are passed to verbs_set_ops")
    return found


def _tables(code: bytes, base: int, entries: set[int]) -> set[int]:
    """Addresses of the tables that this code passes to the function behind the pointers ``entries``."""
    stubs = set()
    for match in _JUMP_THROUGH.finditer(code, 0, max(0, len(code) - 4)):
        start = match.start()
        if base + start + 6 + _rel32(code, start + 2) in entries:
            # The stub begins with endbr64 or a bnd prefix where the compiler was told so.
            stubs |= {base + start, base + start - 1, base + start - 4, base + start - 5}
    found = set()
    calls = 0
    for match in _CALLS.finditer(code, 0, max(0, len(code) - 6)):
        start = match.start()
        if match[0][0] == 0xFF:
            reached = base + start + 6 + _rel32(code, start + 2) in entries and base + start not in stubs
        else:
            reached = base + start + 5 + _rel32(code, start + 1) in stubs
        if not reached:
            continue
        calls += 1
        if calls > _MAX_CALLS:
            raise Refused("too_large", f"more than {_MAX_CALLS} calls of verbs_set_ops")
        lea = code.rfind(_LOAD_SECOND_ARGUMENT, max(0, start - _LOOK_BACK), start)
        if lea >= 0 and lea + 7 <= start:
            found.add(base + lea + 7 + _rel32(code, lea + 3))
    return found


def _rel32(code: bytes, at: int) -> int:
    value: int = struct.unpack_from("<i", code, at)[0]
    return value


def entry_points(libibverbs: Elf) -> dict[str, int]:
    """File offsets of the functions of libibverbs that are probed. Raises Refused."""
    found = {}
    for name, symbol in EXPORTED.items():
        exported = libibverbs.exported(symbol)
        offset = libibverbs.offset(exported.address) if exported is not None else None
        if offset is not None:
            found[name] = offset
    return found
