"""kdump's compressed format: where each page of a machine's memory is in the file, and what is told of the processors.

A header in the first block, a second header, notes, two maps with a bit for each page (which there are in the machine,
which of them are in the file), then for each that is in the file an entry: where it is, its bytes, how it is packed.
Pages of zeroes share an entry.

Source: makedumpfile, diskdump_mod.h and IMPLEMENTATION; QEMU, include/sysemu/dump.h (``DiskDumpHeader64``,
``KdumpSubHeader64``, ``PageDescriptor``).  Little-endian, 64-bit.  All of it is another's word: what is counted has a
limit, what is out of the file is an error.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from kbridge.crash import elf_core
from kbridge.crash.elf_core import CoreError, Note

MAGIC: Final = b"KDUMP   "
PAGE_BYTES: Final = 4096
MOST_PAGES: Final = 1 << 36
"""Of a machine: 256 TB."""
MOST_RANGES: Final = elf_core.MOST_PROGRAMS // 2
_MACHINE: Final = b"x86_64"
_HEADER: Final = struct.Struct("<8sI260x65s87x9I")
"""Signature, version, the machine's name in ``struct new_utsname``, what follows the time."""
_SECOND: Final = struct.Struct("<QIIQQQQQQQQQQQ")
_SECOND_BYTES: Final = {1: 12, 2: 32, 3: 48, 4: 64, 5: 80}
"""Of the second header, by version; later ones have all of it."""
_VMCOREINFO_SINCE: Final = 3
_NOTES_SINCE: Final = 4
_WIDE_SINCE: Final = 6
_ENTRY: Final = struct.Struct("<QIIQ")
ZLIB: Final = 0x01
ZSTD: Final = 0x20
PACKED: Final = {ZLIB: "zlib", 0x02: "LZO", 0x04: "snappy", ZSTD: "zstd"}
"""How a page is packed, by the bit in its entry."""
_ALL_PACKED: Final = sum(PACKED)
_PIECE_BYTES: Final = 4096
"""Of a map that are looked at together."""
_PIECE_PAGES: Final = 8 * _PIECE_BYTES
_ALL: Final = (1 << _PIECE_PAGES) - 1

Read = Callable[[int, int], bytes]
"""Gives bytes of the file, given an offset and how many; fewer past its end."""


@dataclass(frozen=True, slots=True)
class Kdump:
    """What stands before the pages."""

    pages: int
    """Of the machine, from physical address 0 on, whether or not there is memory."""
    maps_at: int
    map_bytes: int
    """Of each of the two."""
    entries_at: int
    notes: tuple[Note, ...]
    packed: int
    """How pages are packed that are: a bit of ``PACKED``, or 0 where the header does not tell."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a page is in the file; ``packed`` is a bit of ``PACKED``, 0 where it is as it was."""

    at: int
    length: int
    packed: int


def read_head(size: int, read: Read) -> Kdump:
    """Read what stands before the pages in a file of ``size`` bytes.  Raises ``CoreError``."""
    header = _exactly(read, 0, _HEADER.size)
    magic, version, machine, status, block, second_blocks, map_blocks, pages, *_ = _HEADER.unpack(header)
    if magic != MAGIC or not version:
        raise CoreError("it is no file in kdump's compressed format")
    if machine.partition(b"\0")[0] != _MACHINE:
        name = machine.partition(b"\0")[0].decode("ascii", "replace")
        raise CoreError(f"it is of machine {name!r}: only x86-64 is known")
    if block != PAGE_BYTES:
        raise CoreError(f"its pages have {block} bytes")
    wanted = _SECOND_BYTES.get(version, _SECOND.size)
    second = _exactly(read, block, wanted).ljust(_SECOND.size, b"\0")
    _, _, split, _, _, text_at, text_bytes, notes_at, notes_bytes, _, _, _, _, wide = _SECOND.unpack(second)
    if split:
        raise CoreError(
            "it is a part of an image that was split: join the parts with makedumpfile --reassemble"
        )
    if version >= _WIDE_SINCE and wide:
        pages = wide
    maps_at = (1 + second_blocks) * block
    map_bytes = map_blocks * block // 2
    entries_at = maps_at + 2 * map_bytes
    if not 0 < pages <= min(MOST_PAGES, 8 * map_bytes) or entries_at > size:
        raise CoreError(f"its maps have {map_bytes} bytes for {pages} pages")
    notes: tuple[Note, ...] = ()
    if version >= _NOTES_SINCE and notes_bytes:
        notes = tuple(elf_core.read_notes(_part(read, "notes", notes_at, notes_bytes)))
        if len(notes) > elf_core.MOST_NOTES:
            raise CoreError(f"it has more than {elf_core.MOST_NOTES} notes")
    if (
        version >= _VMCOREINFO_SINCE
        and text_bytes
        and not any(one.owner == elf_core.VMCOREINFO for one in notes)
    ):
        notes += (Note(elf_core.VMCOREINFO, 0, _part(read, "VMCOREINFO", text_at, text_bytes)),)
    return Kdump(pages, maps_at, map_bytes, entries_at, notes, status & _ALL_PACKED)


def ranges(kdump: Kdump, read: Read) -> tuple[tuple[int, int], ...]:
    """Return the machine's memory: numbers of pages, the first of each range and the first behind it.

    Raises ``CoreError``.
    """
    found: list[int] = []
    for change in _changes(_pieces(kdump, kdump.maps_at, read), kdump.pages):
        found.append(change)
        if len(found) > 2 * MOST_RANGES:
            raise CoreError(f"its memory is in more than {MOST_RANGES} ranges")
    return tuple(pairwise(found))[::2]


class Pages:
    """The entries of pages; how many stand before each piece of the map is counted when it is first needed."""

    def __init__(self, kdump: Kdump, size: int, read: Read) -> None:
        self._kdump = kdump
        self._size = size
        self._read = read
        self._before = array("Q", (0,))

    def entry(self, page: int) -> Entry | None:
        """Return the entry of a page; None where the file has it not.  Raises ``CoreError``."""
        if not 0 <= page < self._kdump.pages:
            return None
        piece, bit = divmod(page, _PIECE_PAGES)
        while len(self._before) <= piece:
            self._before.append(self._before[-1] + self._map(len(self._before) - 1).bit_count())
        there = self._map(piece)
        if not there >> bit & 1:
            return None
        number = self._before[piece] + (there & (1 << bit) - 1).bit_count()
        place = self._kdump.entries_at + number * _ENTRY.size
        at, length, flags, _ = _ENTRY.unpack(_exactly(self._read, place, _ENTRY.size))
        packed = flags & _ALL_PACKED
        if not self._kdump.entries_at <= at <= self._size - length or not 0 < length <= PAGE_BYTES:
            raise CoreError(f"page {page} has {length} bytes at {at}")
        if (packed and packed not in PACKED) or (not packed and length != PAGE_BYTES):
            raise CoreError(f"page {page} is packed as {flags:#x}, in {length} bytes")
        return Entry(at, length, packed)

    def _map(self, piece: int) -> int:
        start = piece * _PIECE_BYTES
        length = min(_PIECE_BYTES, self._kdump.map_bytes - start)
        at = self._kdump.maps_at + self._kdump.map_bytes + start
        return int.from_bytes(_exactly(self._read, at, length), "little")


def _pieces(kdump: Kdump, at: int, read: Read) -> Iterator[int]:
    """Give a map in pieces, the lowest bit of each being its first page."""
    for start in range(0, -(-kdump.pages // 8), _PIECE_BYTES):
        length = min(_PIECE_BYTES, kdump.map_bytes - start)
        yield int.from_bytes(_exactly(read, at + start, length), "little")


def _changes(pieces: Iterator[int], pages: int) -> Iterator[int]:
    """Give the pages at which a map changes, it being 0 before its first and behind its last."""
    last = 0
    for number, bits in enumerate(pieces):
        start = number * _PIECE_PAGES
        here = min(_PIECE_PAGES, pages - start)
        known = bits & (1 << here) - 1
        if known != (_ALL if last else 0):
            changed = (known ^ (known << 1 | last)) & (1 << here) - 1
            while changed:
                bit = changed & -changed
                yield start + bit.bit_length() - 1
                changed ^= bit
        last = known >> here - 1
    if last:
        yield pages


def _part(read: Read, what: str, at: int, length: int) -> bytes:
    if length > elf_core.MOST_HEAD_BYTES:
        raise CoreError(f"its {what} have {length} bytes")
    return _exactly(read, at, length)


def _exactly(read: Read, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) < length:
        raise CoreError("it is cut off")
    return data
