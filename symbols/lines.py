"""Source lines and inlined calls of an address, out of a mapped index: nothing is parsed when it is opened.

A header of nine u32 (mark, version, files, functions, locations, ranges, bytes of strings, buckets, by how many bits
an offset is shifted to its bucket), then, little-endian and each aligned to 8 bytes:

    buckets      u32: how many ranges begin before the bucket does; one more than there are buckets: all
    ranges       u32: the beginning of each, relative to where the file is loaded; the last locations are theirs
    locations    12 bytes: file in 16 bits, line in 24, function in 24, the location that it is inlined into in 32
    files        u32: place of the path
    functions    u32: place of the name
    strings      each behind its length in LEB128

All ones stand for what there is not.  ``line_making.py`` makes it.  Everything is checked when it is read: a damaged
file raises ``IndexDamaged``.
"""

from __future__ import annotations

import gc
import struct
from array import array
from bisect import bisect_right
from collections import namedtuple

from symbols.errors import IndexDamaged

# `typing` and `dataclasses` take longer to load than all that answers for one address: nothing here loads them.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Final, NamedTuple

    class Frame(NamedTuple):
        """One call at an address; of several the innermost comes first, and the others inlined it."""

        function: str | None
        file: str | None
        """As the compiler was told, relative paths as they were."""
        line: int | None

else:
    Frame = namedtuple("Frame", "function file line")  # noqa: PYI024

MAGIC: Final = 0x4E4C626B
VERSION: Final = 1
NONE: Final = 0xFFFF_FFFF
NO_FILE: Final = 0xFFFF
NO_FUNCTION: Final = 0xFF_FFFF
MOST_LINE: Final = 0xFF_FFFE
HEADER: Final = struct.Struct("<9I4x")
LOCATION: Final = struct.Struct("<3I")
_DEEPEST: Final = 256
_WIDEST: Final = 32
_MANY: Final = 8192
"""Addresses for which everything is checked at once, and not what each needs."""


def unchecked(start: int, end: int) -> None:
    """Check nothing, where nothing is known of what the bytes should be."""


class Lines:
    """The lines of one file with DWARF; ``check`` raises ``IndexDamaged`` for a damaged part of ``data``."""

    def __init__(self, data: memoryview, check: Callable[[int, int], None] = unchecked) -> None:
        if len(data) < HEADER.size:
            raise IndexDamaged("the index of lines is cut off")
        check(0, HEADER.size)
        magic, version, files, functions, locations, ranges, strings, buckets, self._shift = (
            HEADER.unpack_from(data)
        )
        if (magic, version) != (MAGIC, VERSION) or not buckets or self._shift > _WIDEST:
            raise IndexDamaged("it is no index of lines of a version that is known")
        self._data = data
        self._check = check
        self._buckets_at = HEADER.size
        self._starts_at = self._buckets_at + aligned(4 * buckets + 4)
        self._locations_at = self._starts_at + aligned(4 * ranges)
        self._files_at = self._locations_at + aligned(12 * locations)
        self._functions_at = self._files_at + aligned(4 * files)
        self._strings_at = self._functions_at + aligned(4 * functions)
        if self._strings_at + strings > len(data) or ranges > locations:
            raise IndexDamaged("the index of lines is cut off")

        def words(at: int, count: int) -> Sequence[int]:
            return data[at : at + 4 * count].cast("I")

        self._buckets = words(self._buckets_at, buckets + 1)
        self._starts = words(self._starts_at, ranges)
        self._files = words(self._files_at, files)
        self._functions = words(self._functions_at, functions)
        self._counts = files, functions, locations
        self._first = locations - ranges
        self._last_bucket = buckets - 1
        self._paths: dict[int, str] = {}
        self._names: dict[int, str] = {}

    # -- one address ----------------------------------------------------------------------------------------

    def location(self, offset: int) -> int:
        """Return the number of the source location at an offset from where the file is loaded; -1 for none."""
        buckets, check, starts = self._buckets, self._check, self._starts
        bucket = min(offset >> self._shift, self._last_bucket)
        at = self._buckets_at + 4 * bucket
        check(at, at + 8)
        low, high = buckets[bucket], buckets[bucket + 1]
        if not low <= high <= len(starts):
            raise IndexDamaged("the index of lines has ranges out of order")
        at = self._starts_at
        check(at + 4 * low, at + 4 * high)
        index = bisect_right(starts, offset, low, high) - 1
        return self._first + index if index >= 0 else -1

    def frames(self, offset: int) -> tuple[Frame, ...]:
        """Return the calls at an offset from where the file is loaded; none where nothing is known."""
        return self._calls(self.location(offset))

    def _calls(self, number: int) -> tuple[Frame, ...]:
        found: list[Frame] = []
        locations = self._counts[2]
        while 0 <= number < locations and len(found) < _DEEPEST:
            at = self._locations_at + number * 12
            self._check(at, at + 12)
            first, second, number = LOCATION.unpack_from(self._data, at)
            frame = self._frame(first, second)
            if frame is None:
                break
            found.append(frame)
        return tuple(found)

    def _frame(self, first: int, second: int) -> Frame | None:
        file, function = first & 0xFFFF, second >> 8
        line = first >> 16 | (second & 0xFF) << 16
        name = None if function == NO_FUNCTION else self._names.get(function) or self._function(function)
        path = None if file == NO_FILE else self._paths.get(file) or self._file(file)
        if name is None and path is None:
            return None
        # As `Frame(...)` does, in half the time.
        return tuple.__new__(Frame, (name, path, line if 0 < line <= MOST_LINE else None))

    def _function(self, number: int) -> str:
        if number >= self._counts[1]:
            raise IndexDamaged("the index of lines names a function that it does not have")
        at = self._functions_at + 4 * number
        self._check(at, at + 4)
        name = self._names[number] = self._string(self._functions[number])
        return name

    def _file(self, number: int) -> str | None:
        if number >= self._counts[0]:
            raise IndexDamaged("the index of lines names a file that it does not have")
        at = self._files_at + 4 * number
        self._check(at, at + 4)
        path = self._string(self._files[number])
        if not path:
            return None
        self._paths[number] = path
        return path

    def _string(self, place: int) -> str:
        at = self._strings_at + place
        end = len(self._data)
        self._check(at, min(at + 5, end))
        piece = bytes(self._data[at : at + 5])
        length = shift = 0
        for byte in piece:
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        if not piece or at + length > end:
            raise IndexDamaged("a name in the index of lines is cut off")
        self._check(at, at + length)
        return str(bytes(self._data[at : at + length]), "utf-8", "replace")

    # -- many addresses -------------------------------------------------------------------------------------

    def locations(self, offsets: Iterable[int]) -> array[int]:
        """Return the numbers of the source locations of many offsets, in their order; -1 for none."""
        many = offsets if isinstance(offsets, list) else list(offsets)
        if len(many) < _MANY:
            return array("i", map(self.location, many))
        self._check(0, self._locations_at)
        # Arrays answer in half the time of views.
        starts, buckets = array("I", bytes(self._starts)), array("I", bytes(self._buckets))
        shift, first, last = self._shift, self._first - 1, self._last_bucket
        if min(many) < 0:
            raise ValueError("an offset is below where the file is loaded")
        try:
            if max(many) >> shift > last:
                # What is behind the last bucket is in it.
                places = [min(one >> shift, last) for one in many]
                found = [
                    bisect_right(starts, one, buckets[at], buckets[at + 1]) + first
                    for one, at in zip(many, places, strict=True)
                ]
            else:
                found = [
                    bisect_right(starts, one, buckets[at := one >> shift], buckets[at + 1]) + first
                    for one in many
                ]
            if starts and min(many) < starts[0]:
                found = [one if one > first else -1 for one in found]
            return array("i", found)
        except (IndexError, OverflowError) as error:
            raise IndexDamaged("the index of lines has ranges out of order") from error

    def frames_of(self, numbers: Sequence[int]) -> list[tuple[Frame, ...]]:
        """Return the calls of many source locations, as ``locations`` numbers them, in their order."""
        if len(numbers) < _MANY:
            return [self._calls(one) for one in numbers]
        self._check(self._locations_at, self._files_at)
        # What is made here has no cycles, and looking for them would take half the time.
        collects = gc.isenabled()
        gc.disable()
        try:
            return self._frames_of(numbers)
        finally:
            if collects:
                gc.enable()

    def _frames_of(self, numbers: Sequence[int]) -> list[tuple[Frame, ...]]:
        known: dict[int, tuple[Frame, ...]] = {-1: ()}
        unpack, data, at = LOCATION.unpack_from, self._data, self._locations_at
        names, paths, frame, new = self._names, self._paths, self._frame, tuple.__new__
        around = self._around
        outer: dict[int, tuple[Frame, ...]] = {NONE: ()}
        locations = self._counts[2]
        self._read_names()
        found = []
        for one in numbers:
            calls = known.get(one)
            if calls is None:
                if not 0 <= one < locations:
                    raise IndexDamaged("the index of lines has no such location")
                first, second, into = unpack(data, at + one * 12)
                name, path = names.get(second >> 8), paths.get(first & 0xFFFF)
                if name is None or path is None:
                    innermost = frame(first, second)
                else:
                    line = first >> 16 | (second & 0xFF) << 16
                    innermost = new(Frame, (name, path, line if 0 < line <= MOST_LINE else None))
                rest = outer.get(into)
                if rest is None:
                    rest = around(into, outer)
                calls = known[one] = () if innermost is None else (innermost, *rest)
            found.append(calls)
        return found

    def _around(self, number: int, known: dict[int, tuple[Frame, ...]]) -> tuple[Frame, ...]:
        """Return the calls of a location that others are inlined into, and keep those of all on the way."""
        way: list[tuple[int, Frame | None]] = []
        while number not in known and number < self._counts[2] and len(way) < _DEEPEST:
            first, second, into = LOCATION.unpack_from(self._data, self._locations_at + number * 12)
            way.append((number, self._frame(first, second)))
            number = into
        rest = known.get(number, ())
        for passed, frame in reversed(way):
            rest = known[passed] = () if frame is None else (frame, *rest)
        return rest

    def _read_names(self) -> None:
        """Read the names of all functions: quicker than one by one where most are wanted."""
        if len(self._names) == self._counts[1]:
            return
        self._check(self._functions_at, len(self._data))
        text = bytes(self._data[self._strings_at :])
        for number, place in enumerate(self._functions):
            length = text[place] if place < len(text) else 0x80
            name = text[place + 1 : place + 1 + length]
            # Longer names, and damaged ones, are read with more care.
            if length < 0x80 and len(name) == length:
                self._names[number] = name.decode("utf-8", "replace")


def aligned(at: int) -> int:
    """Return the next multiple of 8."""
    return at + 7 & ~7
