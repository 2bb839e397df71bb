"""Sections, build-id and symbols by name out of an ELF file (System V ABI, chapter 4), in milliseconds however large.

Only 64-bit little-endian files, which is what Linux kernels for x86-64 and arm64 are.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import TYPE_CHECKING, Final

from symbols.errors import NotAnElf
from symbols.model import BuildId, Section

if TYPE_CHECKING:
    from collections.abc import Iterable

Image = bytes | mmap
"""The bytes of a file, or the file mapped."""

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_NAME: Final = struct.Struct("<I")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_NOTE: Final = struct.Struct("<III")
SHT_SYMTAB: Final = 2
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
SHF_ALLOC: Final = 2
_PT_LOAD: Final = 1
_MOST_PROGRAMS: Final = 256
_SHN_UNDEF: Final = 0
_SHN_XINDEX: Final = 0xFFFF
_NT_GNU_BUILD_ID: Final = 3
_MOST_NAME: Final = 256
_MOST_NOTES: Final = 1 << 20
"""Bytes of notes that are looked at."""
MAX_SECTIONS: Final = 65_536


def symbol_values(image: Image, names: Iterable[str]) -> dict[str, int]:
    """Return the values of the symbols called ``names`` that the file defines; absent ones are left out.

    Where several have a name, the first counts.  Raises ``NotAnElf``.
    """
    sections = _sections(image)
    found: dict[str, int] = {}
    for table in (one for one in sections if one.kind == SHT_SYMTAB):
        if table.entry_size != _SYMBOL.size or table.link >= len(sections):
            raise NotAnElf("its symbol table is not one of 64-bit symbols")
        strings = sections[table.link]
        check_inside(image, table)
        check_inside(image, strings)
        for name in names:
            if name not in found:
                value = _value(image, table, strings, name)
                if value is not None:
                    found[name] = value
    return found


def _value(image: Image, table: Section, strings: Section, name: str) -> int | None:
    # The string table is tail-merged: the name may also stand at the end of longer ones.  Far fewer places
    # have it than there are symbols, so look for symbols that point to those places.
    wanted = name.encode() + b"\0"
    end = strings.offset + strings.size
    best: int | None = None
    at = image.find(wanted, strings.offset, end)
    while at >= 0:
        place = _first_symbol(image, table, at - strings.offset)
        if place is not None and (best is None or place < best):
            best = place
        at = image.find(wanted, at + 1, end)
    if best is None:
        return None
    value: int = _SYMBOL.unpack_from(image, best)[4]
    return value


def _first_symbol(image: Image, table: Section, name_offset: int) -> int | None:
    wanted = _NAME.pack(name_offset)
    end = table.offset + table.size - table.size % _SYMBOL.size
    at = image.find(wanted, table.offset, end)
    while at >= 0:
        aligned = (at - table.offset) % _SYMBOL.size == 0
        if aligned and _SYMBOL.unpack_from(image, at)[3] != _SHN_UNDEF:
            return at
        at = image.find(wanted, at + 1, end)
    return None


def sections(image: Image) -> tuple[Section, ...]:
    """Return all sections in the order of their headers, the first (of no name) too.  Raises ``NotAnElf``."""
    headers = [_SECTION.unpack_from(image, place) for place in _headers(image)]
    names = _names_section(image, headers)
    return tuple(_section(image, names, header) for header in headers)


def build_id(image: Image) -> BuildId | None:
    """Return the file's build-id, None where it has none.  Raises ``NotAnElf``."""
    for section in _sections(image):
        if section.kind == SHT_NOTE and section.offset + min(section.size, _MOST_NOTES) <= len(image):
            found = build_id_of_notes(image[section.offset : section.offset + min(section.size, _MOST_NOTES)])
            if found is not None:
                return found
    return None


def build_id_of_notes(data: bytes) -> BuildId | None:
    """Return the build-id among the notes of a section or of guest memory; None where there is none.

    Of owner ``GNU`` only: a note of Xen's has the same type.  Each part is padded to four bytes.
    """
    at = 0
    while at + _NOTE.size <= len(data):
        name_size, size, kind = _NOTE.unpack_from(data, at)
        at += _NOTE.size
        contents = at + _padded(name_size)
        end = contents + size
        if end > len(data):
            return None
        if kind == _NT_GNU_BUILD_ID and data[at : at + name_size] == b"GNU\0" and size:
            return BuildId(data[contents:end].hex())
        at = contents + _padded(size)
    return None


def _padded(size: int) -> int:
    return size + 3 & ~3


def _names_section(image: Image, headers: list[tuple[int, ...]]) -> tuple[int, int]:
    """Return where the names of the sections begin and end in the file."""
    index = _HEADER.unpack_from(image, 0)[13]
    if index == _SHN_XINDEX:
        index = headers[0][6]
    if index >= len(headers):
        raise NotAnElf("its sections have no names")
    start, size = headers[index][4:6]
    if start + size > len(image):
        raise NotAnElf("the names of its sections reach past the end of the file: it is cut off")
    return start, start + size


def _section(image: Image, names: tuple[int, int], header: tuple[int, ...]) -> Section:
    name, kind, flags, address, offset, size, link, info, alignment, entry_size = header
    start, end = names
    text = image[start + name : min(start + name + _MOST_NAME, end)].partition(b"\0")[0]
    return Section(
        text.decode("utf-8", "replace"), kind, flags, address, offset, size, link, info, alignment, entry_size
    )


def _headers(image: Image) -> range:
    """Return where each section header begins."""
    if len(image) < _HEADER.size:
        raise NotAnElf(f"it is only {len(image)} bytes long")
    ident, *_, offset, _, _, _, _, size, count, _ = _HEADER.unpack_from(image, 0)
    if ident[:4] != b"\x7fELF":
        raise NotAnElf("it does not start with ELF's mark")
    if ident[4:6] != b"\x02\x01":
        raise NotAnElf("it is not a 64-bit little-endian file")
    if not offset or not count:
        raise NotAnElf("it has no sections: it is stripped of its symbols")
    if size != _SECTION.size or count > MAX_SECTIONS or offset + count * size > len(image):
        raise NotAnElf("its section headers are cut off")
    return range(offset, offset + count * size, size)


def _sections(image: Image) -> list[Section]:
    """Return the sections without their names, which a search for a symbol does not need."""
    return [Section("", *_SECTION.unpack_from(image, place)[1:]) for place in _headers(image)]


def check_inside(image: Image, section: Section) -> None:
    """Raise ``NotAnElf`` where a section is not wholly in the file."""
    if section.offset + section.size > len(image):
        raise NotAnElf("a section reaches past the end of the file: it is cut off")


def has_lines(image: Image) -> bool:
    """Whether a file has DWARF's line programs.  Raises ``NotAnElf``."""
    return any(
        one.name in (".debug_line", ".zdebug_line") and one.kind != SHT_NOBITS for one in sections(image)
    )


def debug_link(image: Image) -> tuple[str, int] | None:
    """Return the name of the file with this one's DWARF, and that file's CRC-32; None where it has no such link.

    Raises ``NotAnElf``.  Source: gdb's manual, "Separate Debug Files": the name, ended by a NUL, padded to four bytes,
    then the CRC.
    """
    section = next((one for one in sections(image) if one.name == ".gnu_debuglink"), None)
    if section is None or section.kind == SHT_NOBITS:
        return None
    check_inside(image, section)
    data = bytes(image[section.offset : section.offset + min(section.size, _MOST_NAME + 8)])
    name = data.partition(b"\0")[0]
    at = _padded(len(name) + 1)
    if not name or b"/" in name or name in (b".", b"..") or at + 4 > len(data):
        return None
    return name.decode("utf-8", "surrogateescape"), int(_NAME.unpack_from(data, at)[0])


def load_address(image: Image) -> int:
    """Return the address that offsets in the lines count from: of the first part of the file that is loaded.

    Raises ``NotAnElf``.
    """
    sections(image)
    at, size, count = struct.unpack_from("<Q", image, 32)[0], *struct.unpack_from("<HH", image, 54)
    if size != _PROGRAM.size or count > _MOST_PROGRAMS or at + size * count > len(image):
        raise NotAnElf("it has no program headers that can be read: it is not linked")
    for place in range(at, at + size * count, size):
        kind, _, _, address, *_ = _PROGRAM.unpack_from(image, place)
        if kind == _PT_LOAD:
            return int(address)
    raise NotAnElf("it has no part that is loaded")
