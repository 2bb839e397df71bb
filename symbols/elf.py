"""Symbols by name out of an ELF file (System V ABI, chapter 4), in milliseconds where the file is large.

Only 64-bit little-endian files, which is what Linux kernels for x86-64 and arm64 are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.errors import NotAnElf

if TYPE_CHECKING:
    from collections.abc import Iterable
    from mmap import mmap

    Image = bytes | mmap

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_NAME: Final = struct.Struct("<I")
_SHT_SYMTAB: Final = 2
_SHN_UNDEF: Final = 0
MAX_SECTIONS: Final = 65_536


@dataclass(frozen=True, slots=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    entry_size: int


def symbol_values(image: Image, names: Iterable[str]) -> dict[str, int]:
    """Return the values of the symbols called ``names`` that the file defines; absent ones are left out.

    Where several have a name, the first counts.  Raises ``NotAnElf``.
    """
    sections = _sections(image)
    found: dict[str, int] = {}
    for table in (one for one in sections if one.kind == _SHT_SYMTAB):
        if table.entry_size != _SYMBOL.size or table.link >= len(sections):
            raise NotAnElf("its symbol table is not one of 64-bit symbols")
        strings = sections[table.link]
        _check_inside(image, table)
        _check_inside(image, strings)
        for name in names:
            if name not in found:
                value = _value(image, table, strings, name)
                if value is not None:
                    found[name] = value
    return found


def _value(image: Image, table: _Section, strings: _Section, name: str) -> int | None:
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


def _first_symbol(image: Image, table: _Section, name_offset: int) -> int | None:
    wanted = _NAME.pack(name_offset)
    end = table.offset + table.size - table.size % _SYMBOL.size
    at = image.find(wanted, table.offset, end)
    while at >= 0:
        aligned = (at - table.offset) % _SYMBOL.size == 0
        if aligned and _SYMBOL.unpack_from(image, at)[3] != _SHN_UNDEF:
            return at
        at = image.find(wanted, at + 1, end)
    return None


def _sections(image: Image) -> list[_Section]:
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
    return [_section(image, offset + number * size) for number in range(count)]


def _section(image: Image, place: int) -> _Section:
    _, kind, _, _, offset, size, link, _, _, entry_size = _SECTION.unpack_from(image, place)
    return _Section(kind, offset, size, link, entry_size)


def _check_inside(image: Image, section: _Section) -> None:
    if section.offset + section.size > len(image):
        raise NotAnElf("a section reaches past the end of the file: it is cut off")
