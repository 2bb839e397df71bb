"""Source lines and inlined calls of an address, out of a mapped index: nothing is parsed when it is opened.

The index is a SymCache of version 9, which the library `symbolic` makes of DWARF in 2 s for a kernel; its sections are
flat arrays of little-endian u32, each aligned to 8 bytes, behind a header of 80 bytes:

    files             6 each: compilation folder, folder, name (places of strings), three that are not used
    functions         4 each: name (place of a string), compilation folder, entry, language
    source locations  4 each: file, line, function, the location that it is inlined into
    ranges            the beginning of each, relative to where the file is loaded; the last source locations are theirs
    strings           each behind its length in LEB128

``NONE`` stands for what there is not.  Everything is checked when it is read: a damaged file raises ``IndexDamaged``.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.errors import IndexDamaged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAGIC: Final = 0x434D5953
VERSION: Final = 9
NONE: Final = 0xFFFF_FFFF
_HEADER: Final = struct.Struct("<2I36x5I16x")
_FILE: Final = struct.Struct("<3I12x")
_FUNCTION: Final = struct.Struct("<I12x")
_LOCATION: Final = struct.Struct("<4I")
_DEEPEST: Final = 256


@dataclass(frozen=True, slots=True)
class Frame:
    """One call at an address; of several the innermost comes first, and the others inlined it."""

    function: str | None
    file: str | None
    """As the compiler was told, relative paths as they were."""
    line: int | None


def completed(
    frames: tuple[Frame, ...], function: str | None, look: Callable[[], Frame | None]
) -> tuple[Frame, ...]:
    """Return frames of which the innermost has a file: where it has none, as in assembler code, what ``look`` tells."""
    if frames and frames[0].file is not None:
        return frames
    own = look()
    return frames if own is None else (Frame(function, own.file, own.line), *frames[1:])


class Lines:
    """The lines of one file with DWARF; ``data`` is the index, as a view of bytes."""

    def __init__(self, data: memoryview) -> None:
        if len(data) < _HEADER.size:
            raise IndexDamaged("the index of lines is cut off")
        magic, version, files, functions, locations, ranges, strings = _HEADER.unpack_from(data)
        if (magic, version) != (MAGIC, VERSION):
            raise IndexDamaged("it is no index of lines of a version that is known")
        self._data = data
        self._files = _HEADER.size
        self._functions = _aligned(self._files + files * 24)
        self._locations = _aligned(self._functions + functions * 16)
        starts = _aligned(self._locations + locations * 16)
        self._strings = _aligned(starts + ranges * 4)
        self._end = self._strings + strings
        if self._end > len(data) or ranges > locations:
            raise IndexDamaged("the index of lines is cut off")
        self._counts = files, functions, locations
        self._first = locations - ranges
        self._starts: Sequence[int] = data[starts : starts + ranges * 4].cast("I")

    def location(self, offset: int) -> int:
        """Return the number of the source location at an offset from where the file is loaded; -1 for none."""
        index = bisect_right(self._starts, offset) - 1
        return self._first + index if index >= 0 else -1

    def frames(self, offset: int) -> tuple[Frame, ...]:
        """Return the calls at an offset from where the file is loaded; none where nothing is known."""
        number = self.location(offset)
        found: list[Frame] = []
        files, functions, locations = self._counts
        while 0 <= number < locations and len(found) < _DEEPEST:
            file, line, function, number = _LOCATION.unpack_from(self._data, self._locations + number * 16)
            name = path = None
            if function < functions:
                name = self._string(_FUNCTION.unpack_from(self._data, self._functions + function * 16)[0])
            if file < files:
                folders = [
                    self._string(place) for place in _FILE.unpack_from(self._data, self._files + file * 24)
                ]
                path = _path(*folders)
            if name is None and path is None:
                break
            found.append(Frame(name, path, line if 0 < line < NONE else None))
        return tuple(found)

    def _string(self, place: int) -> str | None:
        if place == NONE:
            return None
        at = self._strings + place
        length = shift = 0
        while at < self._end:
            byte = self._data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        if at + length > self._end:
            raise IndexDamaged("a name in the index of lines is cut off")
        return bytes(self._data[at : at + length]).decode("utf-8", "replace")


def _path(compilation: str | None, folder: str | None, name: str | None) -> str | None:
    """Return a source file's path: what is relative to the tree that was built stays so."""
    if name is None:
        return None
    whole = name if name.startswith("/") or not folder else f"{folder}/{name}"
    if whole.startswith("/") and compilation and whole.startswith(compilation + "/"):
        return whole[len(compilation) + 1 :]
    return whole


def _aligned(at: int) -> int:
    return at + 7 & ~7
