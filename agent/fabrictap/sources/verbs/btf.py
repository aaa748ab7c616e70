"""Type information for libbpf (BTF), made from one of our own objects and the places of the kernel's fields.

An object's own BTF has every structure that its programs read, and its relocations say which fields. With the
offsets and sizes of the running kernel put into a copy of it, libbpf places these programs without any type
information of the kernel's. Formats: Documentation/bpf/btf.rst of the kernel; struct bpf_core_relo.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: magic, version, flags, header's length; offset and length of types and of strings behind the header.
_HEADER = struct.Struct("<HBBIIIII")
#: The same of .BTF.ext, whose parts are functions, lines and relocations.
_EXT_HEADER = struct.Struct("<HBBIIIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_RELOCATION = struct.Struct("<IIII")
_MAGIC = 0xEB9F
_INT, _ARRAY, _STRUCT, _UNION = 1, 3, 4, 5
#: Bytes behind the 12 of every type, by kind: fixed, and for each of its members.
_FIXED = {_INT: 4, _ARRAY: 12, 14: 4, 17: 4}
_EACH = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}
#: Kinds of struct bpf_core_relo about fields: enum bpf_core_relo_kind.
_FIELDS = range(6)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field is, in bytes."""

    offset: int
    size: int


#: Structure -> field -> its place; "" is the structure itself, with its size.
Places = Mapping[str, Mapping[str, Place]]


class Btf:
    """The BTF of an object that this package was built with."""

    def __init__(self, path: Path) -> None:
        sections = _sections(path.read_bytes())
        raw = sections[".BTF"]
        _, _, _, header, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(raw)
        self._types = bytearray(raw[header + types_at : header + types_at + types_size])
        self._strings = raw[header + strings_at : header + strings_at + strings_size]
        #: Where each type begins; the number 0 is void.
        self._at = [0]
        at = 0
        while at < len(self._types):
            self._at.append(at)
            _, info, _ = _TYPE.unpack_from(self._types, at)
            kind = info >> 24 & 31
            at += _TYPE.size + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
        self._wanted = self._relocations(sections[".BTF.ext"])

    def wanted(self) -> dict[str, list[str]]:
        """Structures of the kernel and the fields of them that are read."""
        found: dict[str, list[str]] = {}
        for number, index in sorted(self._wanted):
            fields = found.setdefault(self._name(number), [])
            name = self._string(_MEMBER.unpack_from(self._types, self._member(number, index))[0])
            if name not in fields:
                fields.append(name)
        return found

    def kind(self, structure: str) -> str:
        """``struct`` or ``union``."""
        kinds = {self._kind(number) for number, _ in self._wanted if self._name(number) == structure}
        return "union" if kinds == {_UNION} else "struct"

    def placed(self, places: Places) -> bytes:
        """A file of BTF with these places; what is not in them stays as it is here, and must not be read."""
        types = bytearray(self._types)
        integers: dict[int, int] = {}
        count = len(self._at)
        for number, index in self._wanted:
            known = places.get(self._name(number))
            if known is None:
                continue
            struct.pack_into("<I", types, self._at[number] + 8, known[""].size)
            at = self._member(number, index)
            name, member, _ = _MEMBER.unpack_from(types, at)
            place = known[self._string(name)]
            plain = self._plain(member)
            if self._kind(plain) == _INT and self._size(plain) != place.size:
                if place.size not in integers:
                    integers[place.size] = count
                    count += 1
                member = integers[place.size]
            # With no bit fields in a structure, offsets are plain numbers of bits.
            _MEMBER.pack_into(types, at, name, member, place.offset * 8)
        for size in integers:  # in the order of their numbers
            types += _TYPE.pack(self._any_name(), _INT << 24, size) + struct.pack("<I", size * 8)
        header = _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, len(types), len(types), len(self._strings))
        return header + bytes(types) + self._strings

    def _relocations(self, raw: bytes) -> set[tuple[int, int]]:
        """(structure, member) of every field on the way to what a program reads."""
        _, _, _, header, *_, at, size = _EXT_HEADER.unpack_from(raw)
        at += header
        end = at + size
        at += 4  # the size of a relocation
        found: set[tuple[int, int]] = set()
        while at < end:
            _, count = struct.unpack_from("<II", raw, at)
            at += 8
            for _ in range(count):
                _, number, access, kind = _RELOCATION.unpack_from(raw, at)
                at += _RELOCATION.size
                if kind in _FIELDS:
                    found |= set(self._steps(number, self._string(access)))
        return found

    def _steps(self, number: int, access: str) -> list[tuple[int, int]]:
        """What an access string as 0:2:1 goes through; the first figure indexes the pointer."""
        steps = []
        for part in access.split(":")[1:]:
            number = self._plain(number)
            if self._kind(number) == _ARRAY:
                (number,) = struct.unpack_from("<I", self._types, self._at[number] + _TYPE.size)
                continue
            steps.append((number, int(part)))
            _, number, _ = _MEMBER.unpack_from(self._types, self._member(number, int(part)))
        return steps

    def _plain(self, number: int) -> int:
        """Without typedef, volatile, const and restrict."""
        while self._kind(number) in (8, 9, 10, 11):
            number = self._size(number)
        return number

    def _kind(self, number: int) -> int:
        if number == 0:
            return 0
        return int(_TYPE.unpack_from(self._types, self._at[number])[1]) >> 24 & 31

    def _size(self, number: int) -> int:
        """The third word: a size, or the type behind."""
        return int(_TYPE.unpack_from(self._types, self._at[number])[2])

    def _name(self, number: int) -> str:
        return self._string(int(_TYPE.unpack_from(self._types, self._at[number])[0]))

    def _member(self, number: int, index: int) -> int:
        return self._at[number] + _TYPE.size + _MEMBER.size * index

    def _string(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode()

    def _any_name(self) -> int:
        """Of an integer: the kernel's, which nobody asks for."""
        return next(
            int(struct.unpack_from("<I", self._types, at)[0])
            for number, at in enumerate(self._at)
            if number and self._kind(number) == _INT
        )


def _sections(data: bytes) -> dict[str, bytes]:
    """Name -> content, of an ELF64 file of this machine's byte order."""
    (headers,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    rows = [struct.unpack_from("<IIQQQQ", data, headers + size * index) for index in range(count)]
    text = data[rows[names][4] : rows[names][4] + rows[names][5]]
    return {text[row[0] : text.index(b"\0", row[0])].decode(): data[row[4] : row[4] + row[5]] for row in rows}
