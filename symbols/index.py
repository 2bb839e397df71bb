"""The index of one file with symbols: its table and its lines in one file that is mapped.

    magic 8 bytes · version u32 · CRC-32 of the header without itself u32 · bytes of the build-id u32 · 0 u32 ·
    where the file is loaded u64 · bytes of the table u64 · bytes of the lines u64 · build-id, 40 bytes at most

then the table and the lines, each at a multiple of 8.  A file that is shorter than it says, or of another version or
build-id, is not opened: whoever keeps it makes it anew.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from symbols import elf
from symbols.errors import IndexDamaged, NotAnElf
from symbols.lines import Frame, Lines
from symbols.model import BuildId
from symbols.table import Symbol, Table

if TYPE_CHECKING:
    from symbols.elf import Image

MAGIC: Final = b"kbSYMS\r\n"
VERSION: Final = 2
_HEADER: Final = struct.Struct("<8sIIIIQQQ40s")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_PT_LOAD: Final = 1
_MOST_PROGRAMS: Final = 256


def header(build_id: BuildId, base: int, table: int, lines: int) -> bytes:
    """Return the header of an index with so many bytes of table and lines."""
    raw = bytes.fromhex(build_id)

    def packed(crc: int) -> bytes:
        return _HEADER.pack(MAGIC, VERSION, crc, len(raw), 0, base, table, lines, raw)

    return packed(zlib.crc32(packed(0)))


def has_lines(image: Image) -> bool:
    """Whether a file has DWARF's line programs.  Raises ``NotAnElf``."""
    return any(one.name in (".debug_line", ".zdebug_line") for one in elf.sections(image))


def load_address(image: Image) -> int:
    """Return the address that offsets in the lines count from: of the first part of the file that is loaded.

    Raises ``NotAnElf``.
    """
    elf.sections(image)
    at, size, count = struct.unpack_from("<Q", image, 32)[0], *struct.unpack_from("<HH", image, 54)
    if size != _PROGRAM.size or count > _MOST_PROGRAMS or at + size * count > len(image):
        raise NotAnElf("it has no program headers that can be read: it is not linked")
    for place in range(at, at + size * count, size):
        kind, _, _, address, *_ = _PROGRAM.unpack_from(image, place)
        if kind == _PT_LOAD:
            return int(address)
    raise NotAnElf("it has no part that is loaded")


class Index:
    """An index that was opened; addresses are as linked."""

    def __init__(self, data: memoryview, build_id: BuildId | None = None) -> None:
        """Open an index, of this build-id if one is given.  Raises ``IndexDamaged``."""
        if len(data) < _HEADER.size:
            raise IndexDamaged("the index is cut off")
        magic, version, crc, length, _, self.base, table, lines, raw = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or not length <= len(raw):
            raise IndexDamaged("it is no index of this version")
        self.build_id = BuildId(raw[:length].hex())
        if header(self.build_id, self.base, table, lines)[: _HEADER.size] != bytes(data[: _HEADER.size]):
            raise IndexDamaged(f"the header of the index is damaged ({crc:#x})")
        if build_id is not None and self.build_id != build_id:
            raise IndexDamaged(f"it is the index of build-id {self.build_id}, not of {build_id}")
        start = _HEADER.size
        if len(data) != start + table + lines:
            raise IndexDamaged("the index is cut off")
        self.table = Table(data[start : start + table])
        self._lines = Lines(data[start + table :]) if lines else None

    @property
    def has_lines(self) -> bool:
        """Whether the file had DWARF."""
        return self._lines is not None

    def frames(self, address: int) -> tuple[Frame, ...]:
        """Return the calls at an address as linked, the innermost first."""
        if self._lines is None or not 0 <= address - self.base < 1 << 32:
            return ()
        return self._lines.frames(address - self.base)

    def symbol(self, address: int) -> tuple[Symbol, int] | None:
        """Return the symbol at an address as linked, and how far it reaches."""
        return self.table.at(address)
