"""The lines of an index made out of a SymCache, and what that leaves without a line filled in.

A SymCache of version 9 is what the library `symbolic` makes of DWARF in 1.5 s for a kernel; its sections are flat
arrays of little-endian u32, each aligned to 8 bytes, behind a header of 80 bytes:

    files             6 each: compilation folder, folder, name (places of strings), three that are not used
    functions         4 each: name (place of a string), compilation folder, entry, language
    source locations  4 each: file, line, function, the location that it is inlined into
    ranges            the beginning of each, relative to where the file is loaded; the last source locations are theirs
    strings           each behind its length in LEB128

It has no lines where DWARF has no function: in assembler code, in the bytes between functions, and in functions whose
first two rows have one address.  The bytes between are of the line before them, as the line program says too; for the
others the line programs of their units are read, of few among thousands.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from symbols.errors import SymbolError
from symbols.lines import (
    HEADER,
    LOCATION,
    MAGIC,
    MOST_LINE,
    NO_FILE,
    NO_FUNCTION,
    NONE,
    VERSION,
    aligned,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from symbols.dwarf_units import Units

MOST_DECODED: Final = 8 << 20
"""Bytes of line number programs that are read for what the library leaves out: half a second's work each 2 MB."""
_SYMCACHE: Final = 0x434D5953
_SYMCACHE_VERSION: Final = 9
_SYMCACHE_HEADER: Final = struct.Struct("<2I36x5I16x")
_PADDING: Final = 15
"""Bytes at most between two functions that are only there to align the second."""
_MOST_BUCKETS: Final = 1 << 18
_SMALLEST_SHIFT: Final = 8
_LAST: Final = 1 << 32


_Piece = tuple[int, bytes]
"""Where it begins, and its location."""


class _Gap(NamedTuple):
    """A range without a line."""

    number: int
    """In the order of ranges."""
    start: int
    end: int
    covering: list[tuple[int, int, int]]
    """What addresses units have of it: the first, the first behind, the place of the unit."""


class _SymCache:
    """The arrays of a SymCache."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _SYMCACHE_HEADER.size:
            raise SymbolError("the lines that were made of its DWARF are cut off")
        magic, version, files, functions, locations, ranges, strings = _SYMCACHE_HEADER.unpack_from(data)
        if (magic, version) != (_SYMCACHE, _SYMCACHE_VERSION):
            raise SymbolError("the lines that were made of its DWARF are of a version that is not known")
        if _SYMCACHE_HEADER.size + files * 24 + functions * 16 + locations * 16 + ranges * 4 + strings > len(
            data
        ):
            raise SymbolError("the lines that were made of its DWARF are cut off")
        at = _SYMCACHE_HEADER.size
        self.files = array("I", data[at : at + files * 24])
        at = aligned(at + files * 24)
        self.functions = array("I", data[at : at + functions * 16])[0::4]
        at = aligned(at + functions * 16)
        self.locations = memoryview(data)[at : at + locations * 16]
        at = aligned(at + locations * 16)
        self.starts = array("I", data[at : at + ranges * 4])
        at = aligned(at + ranges * 4)
        self.strings = bytes(data[at : at + strings])
        if len(self.strings) != strings or ranges > locations or files >= NO_FILE or functions >= NO_FUNCTION:
            raise SymbolError("the lines that were made of its DWARF are more than there can be, or cut off")

    def paths(self) -> list[str]:
        """Return the paths of the files; empty where one has no name."""
        words, found = self.files, []
        folders: dict[int, str | None] = {}
        for at in range(0, len(words), 6):
            for place in words[at : at + 2]:
                if place not in folders:
                    folders[place] = self._string(place)
            found.append(_path(folders[words[at]], folders[words[at + 1]], self._string(words[at + 2])) or "")
        return found

    def _string(self, place: int) -> str | None:
        if place == NONE:
            return None
        length = shift = 0
        while True:
            byte = self.strings[place] if place < len(self.strings) else 0
            place += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        return self.strings[place : place + length].decode("utf-8", "replace")


def make(symcache: bytes, base: int, units: Units | None) -> Iterator[bytes]:
    """Return the parts of the lines of a file loaded at ``base``, filled in from its units' line programs.

    Raises ``SymbolError``.
    """
    known = _SymCache(symcache)
    ranges = len(known.starts)
    first = len(known.locations) // 16 - ranges
    packed = _packed(known.locations)
    paths = known.paths()
    starts = known.starts
    if units is not None:
        if starts and starts[0]:
            # What is before the first range may have a line too.
            starts.insert(0, 0)
            packed[first * 12 : first * 12] = _location(NO_FILE, 0, NO_FUNCTION, NONE)
        filler = _Filler(starts, packed, first, paths, base, units)
        starts, packed = filler.filled()
    yield from _laid_out(known, paths, starts, packed)


def _packed(locations: memoryview) -> bytearray:
    """Put locations of 16 bytes into 12, a byte of all of them at a time: all runs in the array's own loops."""
    raw = bytes(locations)
    out = bytearray(len(raw) // 16 * 12)
    # File 0..1, line 4..6, function 8..10, inlined into 12..15.
    for to, source in enumerate((0, 1, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15)):
        out[to::12] = raw[source::16]
    return out


class _Filler:
    """Gives lines to ranges that have none."""

    def __init__(
        self, starts: array[int], packed: bytearray, first: int, paths: list[str], base: int, units: Units
    ) -> None:
        self._starts = starts
        self._packed = packed
        self._first = first
        self._paths = paths
        self._numbers = {path: number for number, path in enumerate(paths)}
        self._units = units
        self._base = base
        self._ranges = [
            (max(start - base, 0), min(end - base, _LAST), unit)
            for start, end, unit in _ranges(units)
            if start - base < _LAST and end > base
        ]
        self._firsts = [one[0] for one in self._ranges]

    def filled(self) -> tuple[array[int], bytearray]:
        """Return the ranges and the locations, with what was put in."""
        left = [gap for gap in self._gaps() if not self._is_padding(gap)]
        read = self._decoded(left)
        new: list[tuple[int, list[_Piece]]] = []
        for gap in left:
            pieces = self._pieces(gap, read)
            if pieces and pieces[0][0] == gap.start:
                at = (self._first + gap.number) * 12
                self._packed[at : at + 12] = pieces[0][1]
                pieces = pieces[1:]
            if pieces:
                new.append((gap.number + 1, pieces))
        return self._inserted(new)

    def _gaps(self) -> Iterator[_Gap]:
        """Return the ranges without a line of which some unit has a part."""
        files = array("H", bytes(self._packed[self._first * 12 :]))[0::6]
        starts, count, index = self._starts, len(files), -1
        while True:
            try:
                index = files.index(NO_FILE, index + 1)
            except ValueError:
                return
            start = starts[index]
            end = starts[index + 1] if index + 1 < count else _LAST
            at = max(bisect_right(self._firsts, start) - 1, 0)
            last = bisect_left(self._firsts, end)
            covering = [one for one in self._ranges[at:last] if one[1] > start]
            if covering:
                yield _Gap(index, start, end, covering)

    def _is_padding(self, gap: _Gap) -> bool:
        """Give a few bytes behind a function the line before them, if that is what they are."""
        at = (self._first + gap.number) * 12
        _, second, _ = LOCATION.unpack_from(self._packed, at)
        first, last, _ = gap.covering[0]
        if (
            second >> 8 != NO_FUNCTION
            or gap.end - gap.start > _PADDING
            or not first < gap.start < gap.end <= last
        ):
            return False
        before = LOCATION.unpack_from(self._packed, at - 12)
        if before[0] & 0xFFFF == NO_FILE:
            return False
        self._packed[at : at + 12] = _location(before[0] & 0xFFFF, _line(before), NO_FUNCTION, NONE)
        return True

    def _decoded(self, gaps: list[_Gap]) -> dict[int, list[tuple[int, int, str | None, int]]]:
        """Return the lines of units where they have gaps."""
        wanted: dict[int, tuple[int, int]] = {}
        for gap in gaps:
            for _, _, unit in gap.covering:
                low, high = wanted.get(unit, (gap.start, gap.end))
                wanted[unit] = min(low, gap.start), max(high, gap.end)
        found = {}
        left = MOST_DECODED
        for unit, (low, high) in wanted.items():
            try:
                program = self._units.program(unit)
                left -= len(program)
                if program and left >= 0:
                    found[unit] = self._units.lines(program, self._base + low, self._base + high)
            except SymbolError:
                # What is left out stays without a line; the rest of the file is worth having.
                continue
        return found

    def _pieces(self, gap: _Gap, read: dict[int, list[tuple[int, int, str | None, int]]]) -> list[_Piece]:
        """Return what a range without a line consists of."""
        at = (self._first + gap.number) * 12
        _, second, into = LOCATION.unpack_from(self._packed, at)
        nothing = _location(NO_FILE, 0, NO_FUNCTION, NONE)
        pieces: list[_Piece] = []
        covered = gap.start
        for _, _, unit in gap.covering:
            rows = read.get(unit, [])
            number = max(bisect_right(rows, self._base + gap.start, key=itemgetter(0)) - 1, 0)
            for begin, stop, name, line in rows[number:]:
                begin, stop = max(begin - self._base, covered), min(stop - self._base, gap.end)
                if begin >= gap.end:
                    break
                if begin < stop:
                    if begin > covered:
                        pieces.append((covered, nothing))
                    file = NO_FILE if name is None else self._file(name)
                    pieces.append((begin, _location(file, line, second >> 8, into)))
                    covered = stop
        if pieces and covered < gap.end:
            pieces.append((covered, nothing))
        return pieces

    def _inserted(self, new: list[tuple[int, list[_Piece]]]) -> tuple[array[int], bytearray]:
        if not new or max(array("i", self._packed)[2::3]) >= self._first:
            # No call is inlined into a range's own location, which these would move; never seen.
            return self._starts, self._packed
        starts, packed = array("I"), self._packed[: self._first * 12]
        tail = memoryview(self._packed)[self._first * 12 :]
        done = 0
        for index, pieces in new:
            starts += self._starts[done:index]
            packed += tail[done * 12 : index * 12]
            starts.extend(start for start, _ in pieces)
            packed += b"".join(location for _, location in pieces)
            done = index
        starts += self._starts[done:]
        packed += tail[done * 12 :]
        return starts, packed

    def _file(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._paths)
            if number >= NO_FILE:
                raise SymbolError("it has more source files than an index holds")
            self._paths.append(name)
        return number


def _ranges(units: Units) -> Sequence[tuple[int, int, int]]:
    try:
        return units.ranges()
    except SymbolError:
        # Without them nothing is filled in.
        return ()


def _line(location: tuple[int, ...]) -> int:
    return location[0] >> 16 | (location[1] & 0xFF) << 16


def _location(file: int, line: int, function: int, into: int) -> bytes:
    line = line if 0 < line <= MOST_LINE else 0
    return LOCATION.pack(file | (line & 0xFFFF) << 16, line >> 16 | function << 8, into)


def _laid_out(known: _SymCache, paths: list[str], starts: array[int], packed: bytearray) -> Iterator[bytes]:
    text = bytearray(known.strings)
    places = array("I")
    for path in paths:
        places.append(len(text))
        raw = path.encode()
        text += _leb128(len(raw)) + raw
    shift = _SMALLEST_SHIFT
    last = starts[-1] if starts else 0
    while last >> shift >= _MOST_BUCKETS:
        shift += 1
    buckets = array("I")
    low = 0
    for bucket in range((last >> shift) + 1):
        # A range that begins where the bucket does is not before it, but is found in it.
        low = bisect_left(starts, bucket << shift, low)
        buckets.append(low)
    buckets.append(len(starts))
    locations = len(packed) // LOCATION.size
    yield HEADER.pack(
        MAGIC,
        VERSION,
        len(paths),
        len(known.functions),
        locations,
        len(starts),
        len(text),
        len(buckets) - 1,
        shift,
    )
    for part in (buckets, starts, packed, places, known.functions):
        raw = part.tobytes() if isinstance(part, array) else bytes(part)
        yield raw + bytes(-len(raw) % 8)
    yield bytes(text)


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _path(compilation: str | None, folder: str | None, name: str | None) -> str | None:
    """Return a source file's path: what is relative to the tree that was built stays so."""
    if name is None:
        return None
    whole = name if name.startswith("/") or not folder else f"{folder}/{name}"
    if whole.startswith("/") and compilation and whole.startswith(compilation + "/"):
        return whole[len(compilation) + 1 :]
    return whole
