"""Symbols by address and by name, out of flat arrays that are mapped, not parsed.

How many u32, bytes of names u32, 0 u64; then, in the order of addresses, addresses u64, sizes u64, places of names u32,
kinds u8; the numbers u32 in the order of names; the names, each ended by a NUL.  Each begins at a multiple of 8.
``table_making.py`` makes it.

Of several symbols at one address the one that the kernel would show is the first.  The size of ``symbol+offset/size``
in the kernel's text is the distance to the next symbol that is elsewhere; both are told.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections import namedtuple

from symbols.errors import IndexDamaged
from symbols.lines import unchecked

# What is loaded here is loaded for one address too: see lines.py.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Final, NamedTuple

    class Symbol(NamedTuple):
        """A symbol as linked."""

        name: str
        address: int
        size: int
        """As the file says; 0 where it does not."""
        kind: str
        """``function``, ``object`` or ``label``."""
        absolute: bool
        """It does not move with the kernel: a constant, or an offset into each processor's own variables."""

else:
    Symbol = namedtuple(  # noqa: PYI024
        "Symbol", "name address size kind absolute"
    )

HEADER: Final = struct.Struct("<IIQ")
ABSOLUTE: Final = 0x80
"""Beside the kind: the symbol does not move with the kernel."""
_LARGEST: Final = 1 << 24
_WORDS: Final = {0: "label", 1: "object", 2: "function"}


class Table:
    """The symbols of one file; ``check`` raises ``IndexDamaged`` for a damaged part of ``data``."""

    def __init__(self, data: memoryview, check: Callable[[int, int], None] = unchecked) -> None:
        if len(data) < HEADER.size:
            raise IndexDamaged("the table of symbols is cut off")
        check(0, HEADER.size)
        count, size, _ = HEADER.unpack_from(data)
        at = HEADER.size
        pieces, places = [], []
        for length in (count * 8, count * 8, count * 4, count, count * 4, size):
            pieces.append(data[at : at + length])
            places.append(at)
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
        self._check = check
        self._at = places

    def __len__(self) -> int:
        return self._count

    def _check_addresses(self) -> None:
        """Check all of them: a search goes through the whole array, and it is 1 MB for a kernel."""
        self._check(self._at[0], self._at[0] + 8 * self._count)

    def _name(self, index: int) -> bytes:
        if index >= self._count:
            raise IndexDamaged("the table of symbols names a symbol that it does not have")
        self._check(self._at[2] + 4 * index, self._at[2] + 4 * index + 4)
        start = self._places[index]
        at, last = self._at[5], len(self._text)
        self._check(at + start, min(at + start + 128, at + last))
        # Most names are short: one piece has them whole.  Of others the end is looked for in more.
        piece = bytes(self._text[start : start + 128])
        end = piece.find(b"\0")
        if end >= 0:
            return piece[:end]
        for end in range(start, last, 128):
            self._check(at + end, min(at + end + 128, at + last))
            found = bytes(self._text[end : end + 128]).find(b"\0")
            if found >= 0:
                return bytes(self._text[start : end + found])
        raise IndexDamaged("a name in the table of symbols is cut off")

    def symbol(self, index: int) -> Symbol:
        """Return a symbol by its number in the order of addresses."""
        name = self._name(index)
        for part, size in ((0, 8), (1, 8), (3, 1)):
            self._check(self._at[part] + size * index, self._at[part] + size * index + size)
        kind = self._kinds[index]
        return Symbol(
            name.decode("utf-8", "replace"),
            self._addresses[index],
            self._sizes[index],
            _WORDS.get(kind & 0x7F, "label"),
            bool(kind & ABSOLUTE),
        )

    def at(self, address: int) -> tuple[Symbol, int] | None:
        """Return the symbol that an address belongs to, and the distance from it to the next that is elsewhere."""
        self._check_addresses()
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
        self._check_addresses()
        after = bisect_right(self._addresses, symbol.address)
        return self._addresses[after] - symbol.address if after < self._count else symbol.size

    def aliases(self, address: int) -> Iterator[Symbol]:
        """Return all symbols at an address, the one that is shown first."""
        self._check_addresses()
        index = bisect_left(self._addresses, address)
        while index < len(self) and self._addresses[index] == address:
            yield self.symbol(index)
            index += 1

    def named(self, name: str) -> list[Symbol]:
        """Return all symbols of a name, by address."""
        wanted = name.encode()
        name_of, by_name, count = self._name, self._by_name, self._count
        low, high = 0, count
        self._check(self._at[4], self._at[4] + 4 * count)
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
