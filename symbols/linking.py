"""A module's file as if it were linked: sections at addresses of their own, and its debug sections relocated to them.

A module is a relocatable file: its sections all begin at 0, and addresses in its DWARF are relocations still to be
applied.  Readers of linked files then read it like any other.  Where its sections are in a guest is told beside it.

Source: System V ABI for AMD64, 4.4 "Relocation"; System V ABI, "Section Compression".
"""

from __future__ import annotations

import struct
import zlib
from array import array
from typing import TYPE_CHECKING, Final

from symbols.elf import SHF_ALLOC, SHT_NOBITS, SHT_SYMTAB, sections
from symbols.errors import NotAnElf

if TYPE_CHECKING:
    from symbols.elf import Image
    from symbols.model import Section

BASE: Final = 0x10000
"""Where the first section is put: index formats count in 32 bits from there."""
MOST_BYTES: Final = 512 << 20
"""Of the file, and of what it is made into."""
_ET_REL, _ET_EXEC = 1, 2
_EM_X86_64: Final = 62
_SHT_NULL, _SHT_RELA = 0, 4
_SHF_COMPRESSED: Final = 0x800
_ZLIB: Final = 1
_WORD: Final = (1 << 64) - 1
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_COMPRESSION: Final = struct.Struct("<IIQQ")
_SYMBOL_BYTES: Final = 24
_RELA_BYTES: Final = 24
_MOST_ALIGNMENT: Final = 1 << 21
_ADDRESSES: Final = frozenset((1,))
"""R_X86_64_64: S + A, 8 bytes."""
_HALVES: Final = frozenset((10, 11))
"""R_X86_64_32 and 32S: S + A, 4 bytes."""
_DISTANCES: Final = frozenset((2, 4))
"""R_X86_64_PC32 and PLT32: S + A - P, 4 bytes."""
_FAR_DISTANCES: Final = frozenset((24,))
"""R_X86_64_PC64: S + A - P, 8 bytes."""


def is_relocatable(image: Image) -> bool:
    """Return whether a file is one that is still to be linked, such as a module's.  Raises ``NotAnElf``."""
    sections(image)
    return int(_HEADER.unpack_from(image, 0)[1]) == _ET_REL


def link(image: Image) -> bytearray:
    """Return a module's file linked.  Raises ``NotAnElf`` for one that is not for x86-64, damaged, or too large."""
    found = sections(image)
    header = list(_HEADER.unpack_from(image, 0))
    if header[1] != _ET_REL or header[2] != _EM_X86_64:
        raise NotAnElf("it is no relocatable file for x86-64")
    if len(image) > MOST_BYTES:
        raise NotAnElf(f"it has {len(image)} bytes, more than any module")
    out = bytearray(image[:])
    placed = _placed(out, found)
    values = _values(out, placed)
    for section in placed:
        if section.kind == _SHT_RELA and section.info < len(placed):
            target = placed[section.info]
            if target.name.startswith(".debug_"):
                _apply(out, section, target, values)
    end = max((one.address + one.size for one in placed if one.flags & SHF_ALLOC), default=BASE)
    header[1], header[5] = _ET_EXEC, len(out)
    header[9], header[10] = _PROGRAM.size, 1
    _HEADER.pack_into(out, 0, *header)
    out += _PROGRAM.pack(1, 5, 0, BASE, BASE, 0, end - BASE, 4096)
    for index, section in enumerate(placed):
        # Nobody is to apply them a second time.
        kind = _SHT_NULL if section.kind == _SHT_RELA else section.kind
        place = header[6] + index * _SECTION.size
        name = _SECTION.unpack_from(out, place)[0]
        _SECTION.pack_into(
            out, place, name, kind, section.flags, section.address, section.offset, section.size,
            section.link, section.info, section.alignment, section.entry_size,
        )  # fmt: skip
    return out


def _placed(out: bytearray, found: tuple[Section, ...]) -> list[Section]:
    """Give each section in memory an address, and put what is compressed at the file's end, uncompressed."""
    placed = []
    at = BASE
    for section in found:
        if section.kind not in (SHT_NOBITS, _SHT_NULL) and section.offset + section.size > len(out):
            raise NotAnElf("a section reaches past the end of the file: it is cut off")
        if section.flags & SHF_ALLOC:
            alignment = min(max(section.alignment, 1), _MOST_ALIGNMENT)
            at += -at % alignment
            section = section._replace(address=at)
            at += section.size
            if at > BASE + MOST_BYTES:
                raise NotAnElf("its sections are larger than any module's")
        elif section.flags & _SHF_COMPRESSED:
            contents = _uncompressed(out, section)
            section = section._replace(
                offset=len(out), size=len(contents), flags=section.flags & ~_SHF_COMPRESSED
            )
            out += contents
            if len(out) > MOST_BYTES:
                raise NotAnElf("uncompressed it is larger than any module")
        placed.append(section)
    return placed


def _uncompressed(out: bytearray, section: Section) -> bytes:
    if section.size < _COMPRESSION.size:
        raise NotAnElf("a compressed section is cut off")
    kind, _, size, _ = _COMPRESSION.unpack_from(out, section.offset)
    if kind != _ZLIB:
        raise NotAnElf(f"{section.name} is compressed in a way that is not read (kind {kind})")
    if size > MOST_BYTES:
        raise NotAnElf("uncompressed it is larger than any module")
    reader = zlib.decompressobj()
    packed = memoryview(out)[section.offset + _COMPRESSION.size : section.offset + section.size]
    try:
        contents = reader.decompress(packed, size)
    except zlib.error as error:
        raise NotAnElf(f"{section.name} is damaged: {error}") from error
    finally:
        packed.release()
    if len(contents) != size:
        raise NotAnElf(f"{section.name} is cut off")
    return contents


def _values(out: bytearray, placed: list[Section]) -> array[int]:
    """Return the symbols' values, and move them in the file to where their sections are."""
    table = next((one for one in placed if one.kind == SHT_SYMTAB), None)
    if table is None or table.entry_size != _SYMBOL_BYTES:
        raise NotAnElf("it has no table of 64-bit symbols: it is stripped of its symbols")
    count = table.size // _SYMBOL_BYTES
    words = array("Q", bytes(out[table.offset : table.offset + count * _SYMBOL_BYTES]))
    moved = [one.address if one.flags & SHF_ALLOC else 0 for one in placed]
    values = array("Q", bytes(8 * count))
    for index in range(count):
        section = words[index * 3] >> 48
        value = words[index * 3 + 1]
        if section < len(moved):
            value = value + moved[section] & _WORD
        values[index] = words[index * 3 + 1] = value
    out[table.offset : table.offset + count * _SYMBOL_BYTES] = words.tobytes()
    return values


def _apply(out: bytearray, relocations: Section, target: Section, values: array[int]) -> None:
    """Write what the relocations of one section come to."""
    count = relocations.size // _RELA_BYTES
    words = array("Q", bytes(out[relocations.offset : relocations.offset + count * _RELA_BYTES]))
    put_8, put_4 = struct.Struct("<Q").pack_into, struct.Struct("<I").pack_into
    start, size = target.offset, target.size
    for at, info, addend in zip(words[0::3], words[1::3], words[2::3], strict=True):
        kind, symbol = info & 0xFFFFFFFF, info >> 32
        if symbol >= len(values):
            raise NotAnElf("a relocation is of a symbol that is not there")
        value = values[symbol] + addend
        if kind in _HALVES and at + 4 <= size:
            put_4(out, start + at, value & 0xFFFFFFFF)
        elif kind in _ADDRESSES and at + 8 <= size:
            put_8(out, start + at, value & _WORD)
        elif kind in _DISTANCES and at + 4 <= size:
            put_4(out, start + at, value - target.address - at & 0xFFFFFFFF)
        elif kind in _FAR_DISTANCES and at + 8 <= size:
            put_8(out, start + at, value - target.address - at & _WORD)
        elif kind:
            raise NotAnElf(
                f"a relocation of {target.name} is damaged, or of a kind that is not read ({kind})"
            )
