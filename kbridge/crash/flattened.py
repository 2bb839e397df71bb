"""makedumpfile's flattened format: a file in pieces, each with where it belongs, so that it could go through a pipe.

A header of 4096 bytes, then pieces: offset, length, that many bytes; an offset of -1 ends them.  Where two have the
same bytes, the later one counts; where none has any, there are zeroes.

Source: makedumpfile, makedumpfile.h (``struct makedumpfile_header``, ``makedumpfile_data_header``).  Big-endian.
QEMU writes kdump's format so, whatever it writes to.  All of it is another's word: pieces are counted, what is out of
the file is an error.
"""

from __future__ import annotations

import heapq
import struct
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from kbridge.crash.elf_core import CoreError

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC: Final = b"makedumpfile\0\0\0\0"
MOST_PIECES: Final = 1 << 22
"""16 GB of memory in pieces of a page."""
MOST_BYTES: Final = 1 << 48
"""Of the file that is in pieces."""
_HEADER: Final = struct.Struct(">16sqq")
_HEADER_BYTES: Final = 4096
_TYPE: Final = 1
_PIECE: Final = struct.Struct(">qq")
_END: Final = -1


class Pieces:
    """Where the bytes of a file are in the flattened one."""

    def __init__(self, starts: array[int], ends: array[int], places: array[int]) -> None:
        self._starts, self._ends, self._places = starts, ends, places
        self.size = max(ends, default=0)

    def read(self, raw: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
        """Return bytes of the file, fewer past its end; ``raw`` gives those of the flattened one."""
        end = min(offset + length, self.size)
        found = bytearray(max(end - offset, 0))
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self._starts) and self._starts[index] < end:
            start, stop = max(self._starts[index], offset), min(self._ends[index], end)
            if start < stop:
                place = self._places[index] + start - self._starts[index]
                found[start - offset : stop - offset] = raw(place, stop - start)
            index += 1
        return bytes(found)


def read_pieces(size: int, read: Callable[[int, int], bytes]) -> Pieces:
    """Read where the pieces of a flattened file of ``size`` bytes are.  Raises ``CoreError``."""
    header = read(0, _HEADER.size)
    if len(header) < _HEADER.size or _HEADER.unpack(header)[:2] != (MAGIC, _TYPE):
        raise CoreError("it is no flattened file of makedumpfile")
    starts, ends, places = array("Q"), array("Q"), array("Q")
    at = _HEADER_BYTES
    while True:
        head = read(at, _PIECE.size)
        if len(head) < _PIECE.size:
            raise CoreError("it is cut off")
        start, length = _PIECE.unpack(head)
        at += _PIECE.size
        if start == _END:
            break
        if start < 0 or length <= 0 or start + length > MOST_BYTES:
            raise CoreError(f"a piece of it has {length} bytes for {start}")
        if at + length > size:
            raise CoreError("it is cut off")
        if len(starts) == MOST_PIECES:
            raise CoreError(f"it has more than {MOST_PIECES} pieces: put it together with makedumpfile -R")
        starts.append(start)
        ends.append(start + length)
        places.append(at)
        at += length
    return _in_order(starts, ends, places)


def _in_order(starts: array[int], ends: array[int], places: array[int]) -> Pieces:
    """Return the pieces by where they belong, none of them over another."""
    order = sorted(range(len(starts)), key=starts.__getitem__)
    new_starts, new_ends, new_places = array("Q"), array("Q"), array("Q")

    def add(index: int, start: int, end: int) -> None:
        if start < end:
            new_starts.append(start)
            new_ends.append(end)
            new_places.append(places[index] + start - starts[index])

    # The latest of those that have a place is on top; ``done`` is up to where it is decided.
    here: list[int] = []
    done = 0
    for index in order:
        done = _decide(here, ends, done, starts[index], add)
        heapq.heappush(here, -index)
    _decide(here, ends, done, MOST_BYTES, add)
    return Pieces(new_starts, new_ends, new_places)


def _decide(
    here: list[int], ends: array[int], done: int, until: int, add: Callable[[int, int, int], None]
) -> int:
    """Say whose the bytes from ``done`` to ``until`` are, among pieces that begin before them."""
    while here and done < until:
        index = -here[0]
        end = min(ends[index], until)
        add(index, done, end)
        done = max(done, end)
        if ends[index] <= until:
            heapq.heappop(here)
    return max(done, until)
