"""Compile units of a linked file, as far as lines need them: which addresses each has, and its line number program.

No unit's tree is read: a list of address ranges leads to the unit, its first entry to its program.  That is 20 ms for
one address of a kernel's file of 590 MB.

Source: DWARF 5, 6.1.2 "Lookup by Address" (``.debug_aranges``), 7.5 "Format of Debugging Information".
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from symbols import line_program
from symbols.elf import SHT_NOBITS, check_inside, sections
from symbols.errors import NotAnElf, SymbolError
from symbols.line_program import unsigned

if TYPE_CHECKING:
    from symbols.elf import Image
    from symbols.model import Section

MOST_RANGES: Final = 1 << 20
_MOST_STRING: Final = 4096
_MOST_TEXTS: Final = 65_536
_MOST_SECTION: Final = 1 << 30
_MOST_ATTRIBUTES: Final = 256
_FIRST_ENTRY: Final = 4096
"""Bytes of a unit within which its first entry is."""
_ABBREVIATIONS: Final = 1 << 18
"""Bytes of a unit's abbreviations, which stand in any order."""
_SHF_COMPRESSED: Final = 0x800
_ZLIB: Final = 1
_COMPRESSION: Final = struct.Struct("<IIQQ")
_PAIR: Final = struct.Struct("<QQ")
_STMT_LIST: Final = 0x10
_IMPLICIT_CONST, _INDIRECT = 0x21, 0x16
_SIZES: Final = {
    0x01: 8, 0x03: -2, 0x04: -4, 0x05: 2, 0x06: 4, 0x07: 8, 0x08: -9, 0x09: -5, 0x0A: -1, 0x0B: 1, 0x0C: 1, 0x0D: -5,
    0x0E: -8, 0x0F: -5, 0x10: -8, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x15: -5, 0x17: -8, 0x18: -6, 0x19: 0, 0x1A: -5,
    0x1B: -5, 0x1C: 4, 0x1D: -8, 0x1E: 16, 0x1F: -8, 0x20: 8, 0x21: 0, 0x22: -5, 0x23: -5, 0x24: 8, 0x25: 1, 0x26: 2,
    0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4, 0x1F20: -8, 0x1F21: -8,
}  # fmt: skip
"""Bytes of each form; below 0: blocks with a length in 1, 2, 4 bytes or LEB128 (-1, -2, -4, -6), LEB128 (-5), an
offset (-8), a string (-9)."""


class Units:
    """The compile units of a linked file; addresses are as linked."""

    def __init__(self, image: Image) -> None:
        """Look at the sections.  Raises ``NotAnElf``."""
        self._image = image
        self._found = {one.name: one for one in sections(image) if one.kind != SHT_NOBITS}
        self._unpacked: dict[str, bytes] = {}
        self._texts: dict[tuple[str, int], str] = {}

    # -- sections -------------------------------------------------------------------------------------------

    def _piece(self, name: str, start: int, size: int) -> bytes:
        """Return bytes of a section, fewer at its end."""
        section = self._found.get(name)
        if section is None:
            return b""
        if section.flags & _SHF_COMPRESSED:
            if name not in self._unpacked:
                self._unpacked[name] = _uncompressed(self._image, section)
            return self._unpacked[name][start : start + size]
        check_inside(self._image, section)
        begin = section.offset + min(start, section.size)
        return bytes(self._image[begin : min(begin + size, section.offset + section.size)])

    def _text(self, name: str, place: int) -> str:
        known = self._texts.get((name, place))
        if known is None:
            piece = self._piece(name, place, 256)
            if b"\0" not in piece:
                piece = self._piece(name, place, _MOST_STRING)
            known = piece.partition(b"\0")[0].decode("utf-8", "replace")
            # Units name the same files again and again.
            if len(self._texts) < _MOST_TEXTS:
                self._texts[name, place] = known
        return known

    # -- which unit -----------------------------------------------------------------------------------------

    def ranges(self) -> list[tuple[int, int, int]]:
        """Return what addresses units have, by address: the first, the first behind, the place of the unit.

        Nothing where the file does not say.  Raises ``SymbolError``.
        """
        data = self._piece(".debug_aranges", 0, _MOST_SECTION)
        found: list[tuple[int, int, int]] = []
        at = 0
        try:
            while at < len(data):
                begin = at
                (length,) = struct.unpack_from("<I", data, at)
                at += 4
                wide = length == 0xFFFFFFFF
                if wide:
                    (length,) = struct.unpack_from("<Q", data, at)
                    at += 8
                end = at + length
                version, place, address_bytes, segment_bytes = struct.unpack_from(
                    "<HQBB" if wide else "<HIBB", data, at
                )
                if end > len(data) or version != 2 or (address_bytes, segment_bytes) != (8, 0):
                    raise SymbolError("the list of its units' addresses is damaged")
                at += 12 if wide else 8
                at += -(at - begin) % _PAIR.size
                last = at + (end - at) // _PAIR.size * _PAIR.size
                for start, size in _PAIR.iter_unpack(data[at:last]):
                    if size:
                        found.append((start, start + size, place))
                if len(found) > MOST_RANGES:
                    raise SymbolError("it has more units than any kernel")
                at = end
        except struct.error as error:
            raise SymbolError("the list of its units' addresses is cut off") from error
        found.sort()
        return found

    def unit_at(self, address: int) -> int | None:
        """Return the place of the unit that an address belongs to; None where the file names none."""
        for start, end, place in self.ranges():
            if start <= address < end:
                return place
        return None

    # -- its lines ------------------------------------------------------------------------------------------

    def _program_of(self, unit: int) -> int | None:
        data = self._piece(".debug_info", unit, _FIRST_ENTRY)
        try:
            wide = data[:4] == b"\xff\xff\xff\xff"
            at = 12 if wide else 4
            (version,) = struct.unpack_from("<H", data, at)
            at += 2
            offset_bytes = 8 if wide else 4
            if version == 5:
                kind, address_bytes = data[at : at + 2]
                at += 2
                abbreviations = int.from_bytes(data[at : at + offset_bytes], "little")
                at += offset_bytes + {4: 8, 5: 8, 2: 8 + offset_bytes, 6: 8 + offset_bytes}.get(kind, 0)
            elif 2 <= version <= 4:
                abbreviations = int.from_bytes(data[at : at + offset_bytes], "little")
                at += offset_bytes
                address_bytes = data[at]
                at += 1
            else:
                raise SymbolError(f"a compile unit is of version {version}, which is not known")
            if address_bytes != 8:
                raise SymbolError("a compile unit is not for a machine of 64 bits")
            return self._statements(data, at, abbreviations, version, offset_bytes)
        except (struct.error, IndexError, ValueError) as error:
            raise SymbolError("a compile unit is cut off") from error

    def _statements(
        self, data: bytes, at: int, abbreviations: int, version: int, offset_bytes: int
    ) -> int | None:
        number, at = unsigned(data, at)
        for attribute, form in _attributes(
            self._piece(".debug_abbrev", abbreviations, _ABBREVIATIONS), number
        ):
            if form == _INDIRECT:
                form, at = unsigned(data, at)
            if attribute == _STMT_LIST:
                size = 4 if form == 0x06 else offset_bytes
                return int.from_bytes(data[at : at + size], "little") if at + size <= len(data) else None
            at = _skipped(data, at, form, version, offset_bytes)
        return None

    def program(self, unit: int) -> bytes:
        """Return a unit's line number program; nothing where it has none.  Raises ``SymbolError``."""
        place = self._program_of(unit)
        if place is None:
            return b""
        head = self._piece(".debug_line", place, 12)
        if len(head) < 12:
            raise SymbolError("a line number program is cut off")
        length = int.from_bytes(head[:4], "little")
        length = int.from_bytes(head[4:], "little") + 12 if length == 0xFFFFFFFF else length + 4
        return self._piece(".debug_line", place, min(length, line_program.MOST_BYTES))

    def lines(self, program: bytes, low: int, high: int) -> list[tuple[int, int, str | None, int]]:
        """Return what has an address from ``low`` to before ``high``: the first, the first behind, file and line.

        Raises ``SymbolError``.
        """
        rows = line_program.read(
            program,
            lambda at: self._text(".debug_line_str", at),
            lambda at: self._text(".debug_str", at),
            (low, high),
        )
        return rows.between(low, high)

    def line_at(self, address: int) -> tuple[str | None, int] | None:
        """Return file and line of an address; None where the file has none.  Raises ``SymbolError``."""
        unit = self.unit_at(address)
        program = b"" if unit is None else self.program(unit)
        found = self.lines(program, address, address + 1) if program else []
        return found[0][2:] if found else None


def _attributes(data: bytes, wanted: int) -> list[tuple[int, int]]:
    """Return attributes and forms of one abbreviation; those of a unit's first entry come first."""
    at = 0
    while at < len(data):
        number, at = unsigned(data, at)
        _, at = unsigned(data, at)
        at += 1
        found = []
        while True:
            attribute, at = unsigned(data, at)
            form, at = unsigned(data, at)
            if form == _IMPLICIT_CONST:
                _, at = unsigned(data, at)
            if not attribute and not form:
                break
            found.append((attribute, form))
            if len(found) > _MOST_ATTRIBUTES:
                raise SymbolError("an abbreviation has more attributes than there are")
        if number == wanted:
            return found
    raise SymbolError("a compile unit's abbreviation is missing")


def _skipped(data: bytes, at: int, form: int, version: int, offset_bytes: int) -> int:
    """Return where a value ends."""
    size = _SIZES.get(form)
    if size is None:
        raise SymbolError(f"a compile unit has a form that is not known ({form:#x})")
    if size >= 0:
        return at + size
    if size == -8:
        return at + (8 if form == 0x10 and version == 2 else offset_bytes)
    if size == -9:
        return data.index(b"\0", at) + 1
    if size in (-5, -6):
        value, at = unsigned(data, at)
        return at + value if size == -6 or form == 0x09 else at
    return at - size + int.from_bytes(data[at : at - size], "little")


def _uncompressed(image: Image, section: Section) -> bytes:
    check_inside(image, section)
    if section.size < _COMPRESSION.size:
        raise NotAnElf("a compressed section is cut off")
    kind, _, size, _ = _COMPRESSION.unpack_from(image, section.offset)
    if kind != _ZLIB or size > _MOST_SECTION:
        raise NotAnElf(f"{section.name} is compressed in a way that is not read (kind {kind})")
    packed = image[section.offset + _COMPRESSION.size : section.offset + section.size]
    try:
        contents = zlib.decompressobj().decompress(packed, size)
    except zlib.error as error:
        raise NotAnElf(f"{section.name} is damaged: {error}") from error
    if len(contents) != size:
        raise NotAnElf(f"{section.name} is cut off")
    return contents
