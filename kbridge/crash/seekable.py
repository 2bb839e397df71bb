"""The seekable zstd format: a file of frames with a table of them at its end, so that any byte is read by one frame.

Any zstd reads such a file as what it holds: the table is a frame that is passed over.

Source: zstd, contrib/seekable_format/zstd_seekable_compression_format.md: a skippable frame (``0x184D2A5E``, size) with
two numbers of 32 bits for each frame, its bytes in the file and its contents' (a third, a checksum, is passed over),
then the number of frames, a byte of flags, and ``0x8F92EAB1``; all little-endian.  Frames themselves: RFC 8878.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

FRAME_BYTES: Final = 1 << 18
"""Of memory in each frame that we write: a page is read in a tenth of a millisecond, and it costs 3 % of the size."""
MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE: Final = struct.Struct("<II")
_SKIPPABLE_MAGIC: Final = 0x184D2A5E
_FOOTER: Final = struct.Struct("<IBI")
_SEEKABLE_MAGIC: Final = 0x8F92EAB1
_CHECKSUMS: Final = 0x80
_RESERVED: Final = 0x7C
MOST_FRAMES: Final = 0x8000000
"""ZSTD_SEEKABLE_MAXFRAMES; 32 TB of frames of ours."""
MOST_FRAME_BYTES: Final = 64 << 20
"""Of contents of one frame that we read: others may have cut a file into larger ones than we do."""
LARGEST_FOOTER: Final = _FOOTER.size
_LARGEST_BLOCK: Final = 1 << 17
_RAW_HEADER: Final = b"\xa0"
"""Of a frame: a single segment, its size in four bytes, no checksum."""


class SeekableError(ValueError):
    """The bytes are no seekable zstd file, or a damaged one."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a frame is in the file, and of what it is a part of the contents."""

    at: int
    length: int
    start: int
    size: int


class SeekTable:
    """The frames of a file; contents are counted from 0."""

    def __init__(self, lengths: Iterable[int], sizes: Iterable[int]) -> None:
        self._places = array("Q", accumulate(lengths, initial=0))
        self._starts = array("Q", accumulate(sizes, initial=0))

    @property
    def size(self) -> int:
        """Bytes of the contents."""
        return self._starts[-1]

    @property
    def length(self) -> int:
        """Bytes of all frames in the file."""
        return self._places[-1]

    def __len__(self) -> int:
        return len(self._places) - 1

    def frame(self, offset: int) -> Frame | None:
        """Return the frame that holds a byte of the contents; None past their end."""
        if not 0 <= offset < self.size:
            return None
        index = bisect_right(self._starts, offset) - 1
        at, start = self._places[index], self._starts[index]
        return Frame(at, self._places[index + 1] - at, start, self._starts[index + 1] - start)


def write_table(frames: Iterable[tuple[int, int]]) -> bytes:
    """Return the table for frames, each as its bytes in the file and its contents'."""
    flat = array("I", [number for one in frames for number in one])
    count = len(flat) // 2
    body = flat.tobytes() + _FOOTER.pack(count, 0, _SEEKABLE_MAGIC)
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(body)) + body


def read_table(size: int, read: Callable[[int, int], bytes]) -> SeekTable:
    """Read the table of a file of ``size`` bytes; ``read`` gives bytes of it.  Raises ``SeekableError``."""
    if size < _SKIPPABLE.size + _FOOTER.size:
        raise SeekableError("the file is too short for its table of frames")
    count, flags, magic = _FOOTER.unpack(read(size - _FOOTER.size, _FOOTER.size))
    if magic != _SEEKABLE_MAGIC or flags & _RESERVED:
        raise SeekableError(
            "the file has no table of frames at its end: it is cut off, or no seekable zstd file"
        )
    width = 3 if flags & _CHECKSUMS else 2
    body = count * width * 4 + _FOOTER.size
    start = size - body - _SKIPPABLE.size
    if count > MOST_FRAMES or start < 0:
        raise SeekableError(f"the table names {count} frames, which the file has no room for")
    if _SKIPPABLE.unpack(read(start, _SKIPPABLE.size)) != (_SKIPPABLE_MAGIC, body):
        raise SeekableError("the table of frames does not begin where its end says")
    flat = array("I", read(start + _SKIPPABLE.size, count * width * 4))
    table = SeekTable(flat[0::width], flat[1::width])
    if table.length != start:
        raise SeekableError("the table of frames does not fit the file: a part of it is missing")
    if count and max(flat[1::width]) > MOST_FRAME_BYTES:
        raise SeekableError(f"a frame has more than {MOST_FRAME_BYTES} bytes of contents")
    return table


def raw_frame(data: bytes | memoryview) -> bytes:
    """Return a frame that holds bytes as they are: others of the same number can be written in its place later."""
    pieces: list[bytes | memoryview] = [MAGIC, _RAW_HEADER, struct.pack("<I", len(data))]
    starts = range(0, max(len(data), 1), _LARGEST_BLOCK)
    for start in starts:
        block = data[start : start + _LARGEST_BLOCK]
        is_last = start == starts[-1]
        pieces += [struct.pack("<I", len(block) << 3 | is_last)[:3], block]
    return b"".join(pieces)
