"""Just enough of an ELF file, read as if its author were hostile.

What is analysed lies in containers and belongs to whoever built them. Nothing is mapped or trusted: every
read goes through one budget of bytes, every count has a limit, and whatever does not fit ends in
:class:`Refused` with a reason from a fixed list. Layouts: System V ABI, chapters 4 and 5; the GNU hash table
and symbol versions as glibc reads them (elf/dl-lookup.c).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

#: Bytes read of one file at the most. libmlx5, the largest provider, has half a megabyte.
MAX_READ = 48 << 20
_MAX_SEGMENTS = 64
_MAX_DYNAMIC = 1024
_MAX_RELOCATIONS = 1 << 17
_MAX_CHAIN = 1 << 16
_MAX_NAME = 256
_MAX_FUNCTIONS = 1 << 17

EM_X86_64 = 62
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE, _PT_GNU_EH_FRAME = 1, 2, 4, 0x6474E550
_PF_X = 1
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_STRSZ = 2, 5, 6, 7, 8, 10
_DT_JMPREL, _DT_RELR = 23, 36
_DT_GNU_HASH, _DT_VERSYM = 0x6FFFFEF5, 0x6FFFFFF0
_NT_GNU_BUILD_ID = 3
_STT_FUNC = 2
_VERSYM_HIDDEN = 0x8000
# elf/x86-64: R_X86_64_64, GLOB_DAT, JUMP_SLOT, RELATIVE
_ABS64, _GLOB_DAT, _JUMP_SLOT, _RELATIVE = 1, 6, 7, 8
# DW_EH_PE_datarel | DW_EH_PE_sdata4, the only encoding of the search table that linkers write.
_DATAREL_SDATA4 = 0x3B
_UDATA4 = 0x03

_RELA = struct.Struct("<QQq")
_SYMBOL = struct.Struct("<IBBHQQ")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


class Refused(Exception):  # noqa: N818 - a judgement on a file or a process, not a fault
    """Something is not analysed. ``reason`` is one word for a counter, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: ``address`` in the library, ``offset`` and ``size`` in the file."""

    address: int
    offset: int
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Symbol:
    """A defined function: its address in the library and its length in bytes."""

    address: int
    size: int


class Elf:
    """A 64-bit little-endian shared library behind an open descriptor, which stays the caller's.

    Raises Refused.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left = MAX_READ
        header = self.read(0, 64)
        if header[:6] != b"\x7fELF\x02\x01":
            raise Refused("not_elf64", "no 64-bit little-endian ELF file")
        kind, self.machine = struct.unpack_from("<HH", header, 16)
        if kind not in (2, 3):  # ET_EXEC, ET_DYN
            raise Refused("not_elf64", "neither a program nor a library")
        (table,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        if size != _PROGRAM_HEADER.size or not 0 < count <= _MAX_SEGMENTS:
            raise Refused("malformed", f"{count} program headers of {size} bytes")
        self.segments: list[Segment] = []
        self._notes: list[tuple[int, int]] = []
        self._dynamic_at: tuple[int, int] | None = None
        self._unwind_at: int | None = None
        for fields in _PROGRAM_HEADER.iter_unpack(self.read(table, size * count)):
            kind, flags, offset, address, _, file_size, _, _ = fields
            if kind == _PT_LOAD:
                self.segments.append(Segment(address, offset, file_size, bool(flags & _PF_X)))
            elif kind == _PT_DYNAMIC:
                self._dynamic_at = (offset, file_size)
            elif kind == _PT_NOTE:
                self._notes.append((offset, file_size))
            elif kind == _PT_GNU_EH_FRAME:
                self._unwind_at = address
        self._dynamic: dict[int, int] | None = None
        self._pointers: dict[int, int] | None = None

    # --- bytes ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes of the file at ``offset``."""
        if not 0 <= size <= self._left or not 0 <= offset < 1 << 62:
            raise Refused("too_large", f"more than {MAX_READ >> 20} MiB to be read")
        self._left -= size
        try:
            found = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise Refused("unreadable", error.strerror or str(error)) from None
        if len(found) != size:
            raise Refused("malformed", f"the file ends before {offset + size:#x}")
        return found

    def offset(self, address: int) -> int | None:
        """Where in the file what is mapped at ``address`` stands."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        return None

    def at(self, address: int, size: int) -> bytes:
        """``size`` bytes as they are mapped at ``address``, before relocation."""
        where = self.offset(address)
        if where is None:
            raise Refused("malformed", f"address {address:#x} lies in no segment")
        return self.read(where, size)

    def is_code(self, address: int) -> bool:
        return any(
            segment.executable and segment.address <= address < segment.address + segment.size
            for segment in self.segments
        )

    # --- identity -------------------------------------------------------------------------------

    def build_id(self) -> str | None:
        """The linker's id of this build, in hexadecimal; None where there is none."""
        for offset, size in self._notes:
            notes = self.read(offset, min(size, 4096))
            at = 0
            while at + 12 <= len(notes):
                name_size, description_size, kind = struct.unpack_from("<III", notes, at)
                name_at = at + 12
                description_at = name_at + (name_size + 3 & ~3)
                if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + 4] == b"GNU\0":
                    found = notes[description_at : description_at + min(description_size, 64)]
                    return found.hex() or None
                at = description_at + (description_size + 3 & ~3)
        return None

    # --- symbols --------------------------------------------------------------------------------

    def _tag(self, tag: int) -> int | None:
        if self._dynamic is None:
            if self._dynamic_at is None:
                raise Refused("not_dynamic", "no dynamic section: a static program")
            offset, size = self._dynamic_at
            self._dynamic = {}
            for name, value in struct.iter_unpack(
                "<QQ", self.read(offset, min(size, _MAX_DYNAMIC * 16) & ~15)
            ):
                if name == 0:
                    break
                self._dynamic.setdefault(name, value)
        return self._dynamic.get(tag)

    def _need(self, tag: int, what: str) -> int:
        value = self._tag(tag)
        if value is None:
            raise Refused("not_dynamic", f"no {what}")
        return value

    def _symbol(self, index: int) -> tuple[int, int, int, int, int, int]:
        """st_name, st_info, st_other, st_shndx, st_value, st_size."""
        raw = self.at(self._need(_DT_SYMTAB, "symbol table") + index * _SYMBOL.size, _SYMBOL.size)
        return _SYMBOL.unpack(raw)

    def _is_named(self, symbol: int, name: bytes) -> bool:
        """Whether the name at ``symbol`` in the string table is ``name``."""
        size = self._need(_DT_STRSZ, "size of the string table")
        if symbol + len(name) + 1 > size:
            return False
        return self.at(self._need(_DT_STRTAB, "string table") + symbol, len(name) + 1) == name + b"\0"

    def exported(self, name: str) -> Symbol | None:
        """The function that a linker binds ``name`` to: of its versions, the default one."""
        table = self._need(_DT_GNU_HASH, "GNU hash table")
        buckets, first, bloom, _ = struct.unpack("<IIII", self.at(table, 16))
        if not 0 < buckets <= 1 << 20 or bloom > 1 << 20:
            raise Refused("malformed", f"a hash table of {buckets} buckets")
        wanted = _gnu_hash(name)
        buckets_at = table + 16 + bloom * 8
        chains_at = buckets_at + buckets * 4
        (index,) = struct.unpack("<I", self.at(buckets_at + wanted % buckets * 4, 4))
        versions = self._tag(_DT_VERSYM)
        for _ in range(_MAX_CHAIN):
            if index < first:
                return None
            (value,) = struct.unpack("<I", self.at(chains_at + (index - first) * 4, 4))
            if value | 1 == wanted | 1:
                symbol, info, _, section, address, size = self._symbol(index)
                hidden = versions is not None and (
                    struct.unpack("<H", self.at(versions + index * 2, 2))[0] & _VERSYM_HIDDEN
                )
                if (
                    info & 15 == _STT_FUNC
                    and section
                    and not hidden
                    and self._is_named(symbol, name.encode())
                ):
                    return Symbol(address, size)
            if value & 1:
                return None
            index += 1
        raise Refused("malformed", "a hash chain without end")

    def imported(self, name: str) -> list[int]:
        """Addresses of the pointers (GOT entries) through which ``name`` of another library is called."""
        found = []
        known: dict[int, bool] = {}
        for place, info, _ in self._relocations():
            if info & 0xFFFFFFFF in (_JUMP_SLOT, _GLOB_DAT):
                symbol = info >> 32
                if symbol not in known:
                    known[symbol] = self._is_named(self._symbol(symbol)[0], name.encode())
                if known[symbol]:
                    found.append(place)
        return found

    # --- relocations ----------------------------------------------------------------------------

    def _relocations(self) -> Iterator[tuple[int, int, int]]:
        for start, size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
            address, length = self._tag(start), self._tag(size)
            if address is None or not length:
                continue
            if length // _RELA.size > _MAX_RELOCATIONS:
                raise Refused("too_large", f"{length // _RELA.size} relocations")
            yield from _RELA.iter_unpack(self.at(address, length // _RELA.size * _RELA.size))

    def pointer(self, address: int) -> int | None:
        """The function in this library to which a pointer at ``address`` leads once it is loaded, or None."""
        if self._pointers is None:
            self._pointers = {}
            for place, info, addend in self._relocations():
                kind = info & 0xFFFFFFFF
                if kind == _RELATIVE:
                    self._pointers[place] = addend
                elif kind == _ABS64 and (symbol := self._symbol(info >> 32))[3]:
                    self._pointers[place] = symbol[4] + addend
        found = self._pointers.get(address)
        if found is None and self._tag(_DT_RELR) is not None and self.offset(address) is not None:
            # Packed relative relocations leave the address in the data itself.
            (found,) = struct.unpack("<Q", self.at(address, 8))
        return found if found is not None and self.is_code(found) else None

    # --- functions ------------------------------------------------------------------------------

    def function_starts(self) -> frozenset[int]:
        """Addresses at which functions begin, from the search table of the unwinder (LSB, .eh_frame_hdr)."""
        at = self._unwind_at
        if at is None:
            raise Refused("no_unwind_table", "no .eh_frame_hdr: where functions begin is not known")
        version, _, count_encoding, table_encoding = self.at(at, 4)
        if version != 1 or count_encoding != _UDATA4 or table_encoding != _DATAREL_SDATA4:
            raise Refused("no_unwind_table", "the table of .eh_frame_hdr has an unknown form")
        (count,) = struct.unpack("<I", self.at(at + 8, 4))
        if count > _MAX_FUNCTIONS:
            raise Refused("too_large", f"{count} functions")
        return frozenset(at + start for start, _ in struct.iter_unpack("<ii", self.at(at + 12, count * 8)))


def _gnu_hash(name: str) -> int:
    value = 5381
    for byte in name.encode():
        value = value * 33 + byte & 0xFFFFFFFF
    return value
