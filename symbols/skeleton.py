"""The small ELF file that a gdb is served: sections and symbols where the guest has them, and no contents.

A gdb that finds it by ``qXfer:exec-file`` knows every function at its true address, and finds the DWARF by the
build-id in it, which it then moves section by section to match.

What is not copied: contents (``SHT_NOBITS``, but for notes), sections that are not in memory, symbols that tables of
the kernel's own are made of (``__ksymtab_…``), which double the size.  Per-CPU variables stay at their offsets in each
processor's area: their section loses ``SHF_ALLOC`` and they become absolute, because gdb takes a section at address 0
for one whose address was not given, and moves it with the text.

Source: System V ABI, chapters 4 and 5; Linux, include/asm-generic/vmlinux.lds.h.
"""

from __future__ import annotations

import re
import struct
import zlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.elf import SHF_ALLOC, SHT_NOBITS, SHT_NOTE, SHT_SYMTAB, check_inside, sections
from symbols.errors import NotAnElf
from symbols.model import Section

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from symbols.elf import Image

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01" + bytes(9)
ET_REL: Final = 1
ET_EXEC: Final = 2
_EM_X86_64: Final = 62
_SHT_STRTAB: Final = 3
SHN_ABS: Final = 0xFFF1
_SYMBOL_BYTES: Final = 24
_MOST_SYMBOLS: Final = 4 << 20
_MOST_NOTE_BYTES: Final = 1 << 20
_KINDS: Final = frozenset((0, 1, 2))
"""STT_NOTYPE, STT_OBJECT, STT_FUNC."""
_SHT_PROGBITS: Final = 1
_SHF_COMPRESSED: Final = 0x800
_ELFCOMPRESS_ZLIB: Final = 1
_COMPRESSION: Final = struct.Struct("<IIQQ")
_PER_CPU: Final = ".data..percpu"
_TABLES: Final = re.compile(rb"__k(?:sym|str|crc)tab|__crc_|\.L|__UNIQUE_ID")
"""How the names of symbols begin that no user asks for."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A section of a skeleton, and its contents where it has some."""

    section: Section
    contents: bytes = b""


def vmlinux_skeleton(image: Image, slide: int, debug_frame: bytes = b"") -> bytes:
    """Return the skeleton of a linked kernel that was moved by ``slide`` bytes.

    ``debug_frame``: how to unwind it, with addresses as they are in memory.  Raises ``NotAnElf``.
    """
    found, table, names = _tables(image)
    kept: list[Kept] = []
    numbers: dict[int, tuple[int, int]] = {SHN_ABS: (SHN_ABS, 0)}
    for index, section in enumerate(found):
        if not section.flags & SHF_ALLOC:
            continue
        if section.name == _PER_CPU and section.address == 0:
            numbers[index] = SHN_ABS, 0
            kept.append(Kept(section._replace(kind=SHT_NOBITS, flags=section.flags & ~SHF_ALLOC)))
        else:
            kept.append(_without_contents(image, section, section.address + slide))
            numbers[index] = len(kept), slide
    if debug_frame:
        kept.append(compressed(".debug_frame", debug_frame))
    return write_elf(ET_EXEC, kept, *_symbols(image, table, names, numbers))


def module_skeleton(image: Image, addresses: Collection[str], debug_frame: bytes = b"") -> bytes:
    """Return the skeleton of a module, a relocatable file like itself, with those of its sections that are in memory.

    Where they are is told beside it, in the list of libraries.  ``debug_frame``: how to unwind it, with addresses
    as they are in memory (``memory_skeleton.bare_module`` says why).  Raises ``NotAnElf``.
    """
    found, table, names = _tables(image)
    kept: list[Kept] = []
    numbers: dict[int, tuple[int, int]] = {SHN_ABS: (SHN_ABS, 0)}
    for index, section in enumerate(found):
        if section.flags & SHF_ALLOC and section.name in addresses:
            kept.append(_without_contents(image, section, 0))
            numbers[index] = len(kept), 0
    if debug_frame:
        kept.append(compressed(".debug_frame", debug_frame))
    return write_elf(ET_REL, kept, *_symbols(image, table, names, numbers))


def compressed(name: str, contents: bytes) -> Kept:
    """Compress a section (System V ABI, "Section Compression"): half of the file would be these instructions."""
    data = _COMPRESSION.pack(_ELFCOMPRESS_ZLIB, 0, len(contents), 8) + zlib.compress(contents, 6)
    return Kept(Section(name, _SHT_PROGBITS, _SHF_COMPRESSED, 0, 0, len(data), 0, 0, 8, 0), data)


def allocated(image: Image) -> tuple[str, ...]:
    """Return the names of those sections of a skeleton that are in memory, in its order."""
    return tuple(section.name for section in sections(image) if section.flags & SHF_ALLOC)


def _tables(image: Image) -> tuple[tuple[Section, ...], Section, Section]:
    """Return all sections, the table of symbols, and the one with their names."""
    found = sections(image)
    table = next((one for one in found if one.kind == SHT_SYMTAB), None)
    if table is None or table.entry_size != _SYMBOL_BYTES or table.link >= len(found):
        raise NotAnElf("it has no table of 64-bit symbols: it is stripped of its symbols")
    return found, table, found[table.link]


def _without_contents(image: Image, section: Section, address: int) -> Kept:
    moved = section._replace(address=address)
    if section.kind == SHT_NOTE and section.size <= _MOST_NOTE_BYTES:
        check_inside(image, section)
        return Kept(moved, bytes(image[section.offset : section.offset + section.size]))
    return Kept(moved._replace(kind=SHT_NOBITS))


def _symbols(
    image: Image, table: Section, names: Section, numbers: dict[int, tuple[int, int]]
) -> tuple[bytes, bytes, int]:
    """Return the symbols to keep, their names, and how many of them are local, the first (of no name) too.

    ``numbers``: for each section whose symbols are kept its number in the skeleton, and by how much they are moved.
    An entry is three 64-bit words, little-endian: name (32 bits), info and other (8 each), section (16); value; size.
    """
    check_inside(image, table)
    check_inside(image, names)
    count = table.size // _SYMBOL_BYTES
    if count > _MOST_SYMBOLS:
        raise NotAnElf(f"it says that it has {count} symbols")
    words = array("Q", bytes(image[table.offset : table.offset + count * _SYMBOL_BYTES]))
    text = bytes(image[names.offset : names.offset + names.size])
    find = text.find
    unwanted = _TABLES.match
    strings = [b""]
    at = 1
    out = array("Q", (0, 0, 0))
    locals_ = 1
    for first, value, size in zip(words[0::3], words[1::3], words[2::3], strict=True):
        moved = numbers.get(first >> 48)
        if moved is None or first >> 32 & 15 not in _KINDS:
            continue
        start = first & 0xFFFFFFFF
        if unwanted(text, start):
            continue
        end = find(b"\0", start)
        if end <= start:
            continue
        number, slide = moved
        out.extend((at | first & 0x0000FFFF_00000000 | number << 48, value + slide & _WORD, size))
        if not first >> 36 & 15:
            locals_ += 1
        strings.append(text[start:end])
        at += end - start + 1
    strings.append(b"")
    return out.tobytes(), b"\0".join(strings), locals_


_WORD: Final = (1 << 64) - 1


def write_elf(kind: int, kept: Sequence[Kept], symbols: bytes, strings: bytes, locals_: int) -> bytes:
    """Put a file together: header, contents, symbols, names, section headers."""
    names = bytearray(b"\0")
    headers: list[tuple[int, ...]] = [(0,) * 10]
    parts: list[bytes] = []
    at = _HEADER.size

    def add(contents: bytes) -> int:
        nonlocal at
        padding = -at % 8
        parts.append(bytes(padding) + contents)
        start = at + padding
        at = start + len(contents)
        return start

    def named(name: str) -> int:
        start = len(names)
        names.extend(name.encode() + b"\0")
        return start

    for one in kept:
        section = one.section
        offset = add(one.contents) if one.contents else at
        place = section.address, offset, section.size
        headers.append((named(section.name), section.kind, section.flags, *place, 0, 0, section.alignment, 0))
    table = len(headers)
    headers.append(
        (named(".symtab"), SHT_SYMTAB, 0, 0, add(symbols), len(symbols), table + 1, locals_, 8, _SYMBOL_BYTES)
    )
    headers.append((named(".strtab"), _SHT_STRTAB, 0, 0, add(strings), len(strings), 0, 0, 1, 0))
    name = named(".shstrtab")
    headers.append((name, _SHT_STRTAB, 0, 0, add(bytes(names)), len(names), 0, 0, 1, 0))
    start = add(b"".join(_SECTION.pack(*header) for header in headers))
    header = _HEADER.pack(
        _IDENT, kind, _EM_X86_64, 1, 0, 0, start, 0, _HEADER.size, 0, 0, _SECTION.size, len(headers),
        len(headers) - 1,
    )  # fmt: skip
    return header + b"".join(parts)
