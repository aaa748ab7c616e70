"""Where the exported functions of a shared library lie in its file, which is what a uprobe takes."""

from __future__ import annotations

import struct
from pathlib import Path

_PT_LOAD = 1
_SHT_DYNSYM = 11
_SHT_GNU_VERSYM = 0x6FFFFFFF
_HIDDEN = 0x8000  # of a version that a linker does not choose


def exported(library: Path) -> dict[str, int]:
    """Function name -> file offset, of the default version of each. 64-bit little-endian ELF."""
    raw = library.read_bytes()
    assert raw[:6] == b"\x7fELF\x02\x01", f"{library} is no 64-bit little-endian ELF file"
    segments_at, sections_at = struct.unpack_from("<QQ", raw, 32)
    segment_size, segment_count, section_size, section_count = struct.unpack_from("<HHHH", raw, 54)
    loads = []
    for index in range(segment_count):
        kind, _, offset, address, _, size = struct.unpack_from(
            "<IIQQQQ", raw, segments_at + index * segment_size
        )
        if kind == _PT_LOAD:
            loads.append((address, size, offset))
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", raw, sections_at + index * section_size)
        for index in range(section_count)
    ]
    symbols = next(section for section in sections if section[1] == _SHT_DYNSYM)
    names_at = sections[symbols[6]][4]
    versions_at = next((section[4] for section in sections if section[1] == _SHT_GNU_VERSYM), None)
    found = {}
    for index in range(symbols[5] // 24):
        name_at, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", raw, symbols[4] + index * 24)
        if info & 0xF != 2 or section == 0:  # STT_FUNC that is defined here
            continue
        if versions_at is not None and struct.unpack_from("<H", raw, versions_at + 2 * index)[0] & _HIDDEN:
            continue
        name = raw[names_at + name_at : raw.index(b"\0", names_at + name_at)].decode()
        found[name] = next(
            value - address + offset for address, size, offset in loads if address <= value < address + size
        )
    return found
