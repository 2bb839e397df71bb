"""The index of one file with symbols: its table and its lines in one file that is mapped.

    magic 8 bytes · version u32 · CRC-32 of all before the table, without itself u32 · bytes of the build-id u32 · 0 ·
    where the file is loaded u64 · bytes of the table u64 · bytes of the lines u64 · build-id, 40 bytes at most ·
    the CRC-32 of each block of 16 KB of what follows u32

then the table and the lines, each at a multiple of 8.  A file that is shorter than it says, or of another version or
build-id, is not opened; a block is checked when it is read first: damage anywhere is noticed before an answer is made
of it, and opening stays quick.  Whoever keeps the file makes it anew.
"""

from __future__ import annotations

import struct
import zlib

from symbols.errors import IndexDamaged
from symbols.lines import Frame, Lines
from symbols.table import Symbol, Table

# What is loaded here is loaded for one address too: see lines.py.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence
    from typing import Final, TypeVar

    from symbols.model import BuildId

    _Result = TypeVar("_Result")

MAGIC: Final = b"kbSYMS\r\n"
VERSION: Final = 3
_HEADER: Final = struct.Struct("<8sIIIIQQQ40s")
_BLOCK_BITS: Final = 14
_BLOCK: Final = 1 << _BLOCK_BITS
_RELATIVE: Final = 1 << 32
"""Lines are within so many bytes from where the file is loaded."""


def parts(build_id: BuildId, base: int, table: bytes, lines: bytes = b"") -> list[bytes]:
    """Return what an index consists of, in order; the table's bytes are a multiple of 8."""
    sums = bytearray()
    size = len(table) + len(lines)
    for start in range(0, size, _BLOCK):
        end = start + _BLOCK
        block = table[start:end]
        if end > len(table):
            block += lines[max(start - len(table), 0) : end - len(table)]
        sums += struct.pack("<I", zlib.crc32(block))
    sums += bytes(-len(sums) % 8)
    raw = bytes.fromhex(build_id)
    whole = _header(raw, base, len(table), len(lines), 0) + sums
    return [_header(raw, base, len(table), len(lines), zlib.crc32(whole)), bytes(sums), table, lines]


def _header(raw: bytes, base: int, table: int, lines: int, crc: int) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, crc, len(raw), 0, base, table, lines, raw)


class _Opened:
    """One index file."""

    def __init__(self, data: memoryview, build_id: BuildId | None) -> None:
        if len(data) < _HEADER.size:
            raise IndexDamaged("the index is cut off")
        magic, version, crc, length, _, self.base, table, lines, raw = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or not length <= len(raw):
            raise IndexDamaged("it is no index of this version")
        blocks = table + lines + _BLOCK - 1 >> _BLOCK_BITS
        start = _HEADER.size + (4 * blocks + 7 & ~7)
        if len(data) != start + table + lines or table % 8:
            raise IndexDamaged("the index is cut off")
        if zlib.crc32(data[16:start], zlib.crc32(bytes(data[:12]) + bytes(4))) != crc:
            raise IndexDamaged("the header of the index is damaged")
        self.build_id: BuildId = raw[:length].hex()
        if build_id is not None and self.build_id != build_id:
            raise IndexDamaged(f"it is the index of build-id {self.build_id}, not of {build_id}")
        self._body = data[start:]
        self._sums: Sequence[int] = data[_HEADER.size : _HEADER.size + 4 * blocks].cast("I")
        self._is_sound = bytearray(blocks)
        self.table = Table(self._body[:table], self._checks(0))
        self.lines = Lines(self._body[table:], self._checks(table)) if lines else None

    def _checks(self, offset: int) -> Callable[[int, int], None]:
        """Return what checks the blocks that hold bytes of a part that begins at ``offset``."""
        is_sound, verify = self._is_sound, self._verify

        def check(start: int, end: int) -> None:
            block, last = start + offset >> _BLOCK_BITS, end + offset - 1 >> _BLOCK_BITS
            while block <= last:
                if not is_sound[block]:
                    verify(block)
                block += 1

        return check

    def _verify(self, block: int) -> None:
        start = block << _BLOCK_BITS
        if zlib.crc32(self._body[start : start + _BLOCK]) != self._sums[block]:
            raise IndexDamaged(
                f"the index is damaged between bytes {start} and {start + _BLOCK} of its contents"
            )
        self._is_sound[block] = 1

    def frames(self, address: int) -> tuple[Frame, ...]:
        offset = address - self.base
        if self.lines is None or not 0 <= offset < _RELATIVE:
            return ()
        found = self.lines.frames(offset)
        return self.named(found, address) if found and found[-1][0] is None else found

    def named(self, found: tuple[Frame, ...], address: int) -> tuple[Frame, ...]:
        """Return frames with the symbol for a function that DWARF does not know, such as one in assembler code."""
        symbol = self.table.at(address)
        if symbol is None:
            return found
        return (*found[:-1], Frame(symbol[0].name, found[-1].file, found[-1].line))


class Index:
    """An index that was opened; addresses are as linked."""

    def __init__(
        self,
        data: memoryview,
        build_id: BuildId | None = None,
        renew: Callable[[], memoryview] | None = None,
    ) -> None:
        """Open an index, of this build-id if one is given; ``renew`` makes it anew when it proves to be damaged.

        Raises ``IndexDamaged``, here and later, where that is not given or of no avail.
        """
        self._opened = _Opened(data, build_id)
        self._renew = renew

    def _ask(self, question: Callable[[_Opened], _Result]) -> _Result:
        try:
            return question(self._opened)
        except IndexDamaged:
            if self._renew is None:
                raise
            renew, self._renew = self._renew, None
            self._opened = _Opened(renew(), self._opened.build_id)
            return question(self._opened)

    @property
    def build_id(self) -> BuildId:
        """Of the file that it was made of."""
        return self._opened.build_id

    @property
    def base(self) -> int:
        """Where the file is loaded, as linked."""
        return int(self._opened.base)

    @property
    def has_lines(self) -> bool:
        """Whether the file had DWARF."""
        return self._opened.lines is not None

    def __len__(self) -> int:
        """Return how many symbols there are."""
        return len(self._opened.table)

    # -- one at a time --------------------------------------------------------------------------------------

    def frames(self, address: int) -> tuple[Frame, ...]:
        """Return the calls at an address, the innermost first.

        Assembler code has one, of the symbol's name; so have the bytes between two functions, of the line before.
        """
        try:
            return self._opened.frames(address)
        except IndexDamaged:
            return self._ask(lambda opened: opened.frames(address))

    def symbol(self, address: int) -> tuple[Symbol, int] | None:
        """Return the symbol at an address, and the distance from it to the next that is elsewhere."""
        return self._ask(lambda opened: opened.table.at(address))

    def named(self, name: str) -> list[Symbol]:
        """Return all symbols of a name, by address."""
        return self._ask(lambda opened: opened.table.named(name))

    def aliases(self, address: int) -> list[Symbol]:
        """Return all symbols at an address, the one that is shown first."""
        return self._ask(lambda opened: list(opened.table.aliases(address)))

    def reach(self, symbol: Symbol) -> int:
        """Return the distance from one of these symbols to the next that is elsewhere; of the last its size."""
        return self._ask(lambda opened: opened.table.reach(symbol))

    def symbols(self) -> list[Symbol]:
        """Return all symbols, by address."""
        return self._ask(lambda opened: [opened.table.symbol(at) for at in range(len(opened.table))])

    # -- many at once ---------------------------------------------------------------------------------------

    def locations(self, addresses: Sequence[int]) -> array[int]:
        """Return for each address the number of its source location, -1 for none: equal ones have equal frames.

        A million addresses a second, in any order.
        """
        return self._ask(lambda opened: _locations(opened, addresses))

    def frames_of(self, addresses: Sequence[int]) -> list[tuple[Frame, ...]]:
        """Return the calls at many addresses, in their order, as ``frames`` does for each: 400,000 a second."""
        return self._ask(lambda opened: _frames_of(opened, addresses))


def _frames_of(opened: _Opened, addresses: Sequence[int]) -> list[tuple[Frame, ...]]:
    if opened.lines is None:
        return [()] * len(addresses)
    found = opened.lines.frames_of(_locations(opened, addresses))
    for at, calls in enumerate(found):
        if calls and calls[-1][0] is None:
            found[at] = opened.named(calls, addresses[at])
    return found


def _locations(opened: _Opened, addresses: Sequence[int]) -> array[int]:
    from array import array  # noqa: PLC0415 (many lookups are made without it)

    base, lines = opened.base, opened.lines
    if lines is None or not addresses:
        return array("i", (-1 for _ in addresses))
    if min(addresses) >= base and max(addresses) - base < _RELATIVE:
        return lines.locations([one - base for one in addresses])
    return array(
        "i", [lines.location(one - base) if 0 <= one - base < _RELATIVE else -1 for one in addresses]
    )
