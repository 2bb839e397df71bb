"""Symbols by address and by name, out of flat arrays that are mapped, not parsed.

Which of several symbols at one address is shown is the kernel's own rule for ``%pS`` (kernel/kallsyms.c, of the order
that scripts/kallsyms.c gives them): strong before weak, a linker script's last, fewer leading underscores, then by
name, for it reads what ``nm -n`` printed.  The size of ``symbol+offset/size`` in the kernel's text is the distance to
the next symbol that is elsewhere; both are told.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.elf import SHF_ALLOC, SHT_SYMTAB, check_inside, sections
from symbols.errors import IndexDamaged, NotAnElf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from symbols.elf import Image

_HEADER: Final = struct.Struct("<IIQ")
_SYMBOL_BYTES: Final = 24
_SHN_ABS: Final = 0xFFF1
_PER_CPU: Final = ".data..percpu"
_KINDS: Final = frozenset((0, 1, 2))
_ABSOLUTE: Final = 0x80
"""Beside the kind: the symbol does not move with the kernel."""
_LARGEST: Final = 1 << 24
_SHORTEST_OF_LINKER: Final = 8


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol as linked."""

    name: str
    address: int
    size: int
    """As the file says; 0 where it does not."""
    kind: str
    """``function``, ``object`` or ``label``."""
    absolute: bool
    """It does not move with the kernel: a constant, or an offset into each processor's own variables."""


_WORDS: Final = {0: "label", 1: "object", 2: "function"}


def build(image: Image) -> bytes:
    """Make the arrays out of a linked file.  Raises ``NotAnElf``.

    How many u32, bytes of names u32, 0 u64; then, in the order of addresses, addresses u64, sizes u64, places of names
    u32, kinds u8; the numbers u32 in the order of names; the names, each ended by a NUL.  Each begins at a multiple of
    8.
    """
    found = sections(image)
    table = next((one for one in found if one.kind == SHT_SYMTAB), None)
    if table is None or table.entry_size != _SYMBOL_BYTES or table.link >= len(found):
        raise NotAnElf("it has no table of 64-bit symbols: it is stripped of its symbols")
    check_inside(image, table)
    check_inside(image, found[table.link])
    names = found[table.link]
    text = bytes(image[names.offset : names.offset + names.size])
    size = table.size - table.size % _SYMBOL_BYTES
    words = array("Q", bytes(image[table.offset : table.offset + size]))
    moving = {index for index, one in enumerate(found) if one.flags & SHF_ALLOC and one.name != _PER_CPU}
    fixed = {index for index, one in enumerate(found) if one.flags & SHF_ALLOC and one.name == _PER_CPU} | {
        _SHN_ABS
    }
    rows: list[tuple[int, int, bytes, int, int]] = []
    for first, value, length in zip(words[0::3], words[1::3], words[2::3], strict=True):
        section, kind = first >> 48, first >> 32 & 15
        if kind not in _KINDS or not (section in moving or section in fixed):
            continue
        start = first & 0xFFFFFFFF
        name = text[start : text.find(b"\0", start)]
        if name and not name.startswith((b".L", b"__ksymtab_", b"__kstrtab", b"__crc_")):
            weak = first >> 36 & 15 == 2
            score = weak << 9 | _is_linkers(name) << 8 | min(len(name) - len(name.lstrip(b"_")), 255)
            rows.append((value, score, name, length, kind | (_ABSOLUTE if section in fixed else 0)))
    rows.sort()
    return pack([(value, length, kind, name) for value, _, name, length, kind in rows])


def _is_linkers(name: bytes) -> bool:
    """Whether a name is one that linker scripts give to beginnings and ends (scripts/kallsyms.c)."""
    return (
        len(name) >= _SHORTEST_OF_LINKER
        and name.startswith(b"__")
        and (name.startswith((b"__start_", b"__stop_", b"__end_")) or name.endswith((b"_start", b"_end")))
    )


def pack(rows: Sequence[tuple[int, int, int, bytes]]) -> bytes:
    """Make the arrays out of rows in the order of addresses: address, size, kind with ``_ABSOLUTE``, name."""
    addresses, sizes = array("Q"), array("Q")
    places, kinds, text = array("I"), bytearray(), bytearray()
    for value, length, kind, name in rows:
        addresses.append(value)
        sizes.append(length)
        places.append(len(text))
        kinds.append(kind)
        text += name + b"\0"
    by_name = array("I", sorted(range(len(rows)), key=lambda index: rows[index][3]))
    parts = [_HEADER.pack(len(rows), len(text), 0)]
    parts += [
        addresses.tobytes(),
        sizes.tobytes(),
        places.tobytes(),
        bytes(kinds),
        by_name.tobytes(),
        bytes(text),
    ]
    return b"".join(part + bytes(-len(part) % 8) for part in parts)


class Table:
    """The symbols of one file; ``data`` is what ``build`` made.  Raises ``IndexDamaged``, also later."""

    def __init__(self, data: memoryview) -> None:
        if len(data) < _HEADER.size:
            raise IndexDamaged("the table of symbols is cut off")
        count, size, _ = _HEADER.unpack_from(data)
        at = _HEADER.size
        pieces = []
        for length in (count * 8, count * 8, count * 4, count, count * 4, size):
            pieces.append(data[at : at + length])
            at += length + -length % 8
        if at > len(data):
            raise IndexDamaged("the table of symbols is cut off")
        self._count = int(count)
        self._addresses: Sequence[int] = pieces[0].cast("Q")
        self._sizes: Sequence[int] = pieces[1].cast("Q")
        self._places: Sequence[int] = pieces[2].cast("I")
        self._kinds = pieces[3]
        self._by_name: Sequence[int] = pieces[4].cast("I")
        self._text = pieces[5]

    def __len__(self) -> int:
        return self._count

    def _name(self, index: int) -> bytes:
        if index >= self._count:
            raise IndexDamaged("the table of symbols names a symbol that it does not have")
        start = self._places[index]
        # Most names are short: one piece has them whole.  Of others the end is looked for in more.
        piece = bytes(self._text[start : start + 128])
        end = piece.find(b"\0")
        if end >= 0:
            return piece[:end]
        for end in range(start, len(self._text), 128):
            found = bytes(self._text[end : end + 128]).find(b"\0")
            if found >= 0:
                return bytes(self._text[start : end + found])
        raise IndexDamaged("a name in the table of symbols is cut off")

    def symbol(self, index: int) -> Symbol:
        """Return a symbol by its number in the order of addresses."""
        name = self._name(index)
        kind = self._kinds[index]
        return Symbol(
            name.decode("utf-8", "replace"),
            self._addresses[index],
            self._sizes[index],
            _WORDS.get(kind & 0x7F, "label"),
            bool(kind & _ABSOLUTE),
        )

    def at(self, address: int) -> tuple[Symbol, int] | None:
        """Return the symbol that an address belongs to, and the distance from it to the next that is elsewhere."""
        after = bisect_right(self._addresses, address)
        if not after:
            return None
        first = bisect_left(self._addresses, self._addresses[after - 1])
        symbol = self.symbol(first)
        reach = self._addresses[after] - symbol.address if after < len(self) else symbol.size
        if address - symbol.address >= min(max(reach, symbol.size, 1), _LARGEST):
            return None
        return symbol, reach

    def reach(self, symbol: Symbol) -> int:
        """Return the distance from a symbol of this table to the next that is elsewhere; of the last its size."""
        after = bisect_right(self._addresses, symbol.address)
        return self._addresses[after] - symbol.address if after < self._count else symbol.size

    def aliases(self, address: int) -> Iterator[Symbol]:
        """Return all symbols at an address, the one that is shown first."""
        index = bisect_left(self._addresses, address)
        while index < len(self) and self._addresses[index] == address:
            yield self.symbol(index)
            index += 1

    def named(self, name: str) -> list[Symbol]:
        """Return all symbols of a name, by address."""
        wanted = name.encode()
        name_of, by_name, count = self._name, self._by_name, self._count
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if name_of(by_name[middle]) < wanted:
                low = middle + 1
            else:
                high = middle
        found = []
        while low < count and name_of(by_name[low]) == wanted:
            found.append(by_name[low])
            low += 1
        return [self.symbol(index) for index in sorted(found)]
