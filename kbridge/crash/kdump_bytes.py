"""A file in kdump's compressed format, as the ELF core file that it stands for.

in          the bytes of the file, flattened or not
out         bytes of a core file with the same notes and memory, up to a page that was left out of the file
invariant   a page is unpacked when it is read, to a byte more than its size at most; ``MOST_KEPT`` are kept
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import zstandard

from kbridge.crash import elf_core, kdump
from kbridge.crash.elf_core import CoreError
from kbridge.crash.kdump import PAGE_BYTES, Entry, Pages
from kbridge.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from kbridge.crash.core_bytes import Bytes

MOST_KEPT: Final = 4096
"""Pages that were unpacked: 16 MB."""
_MACHINE: Final = 62


class KdumpBytes:
    """The contents; the module's text says how.  ``file``: what is in the kdump file, which is closed with this."""

    def __init__(self, path: Path, file: Bytes) -> None:
        """Read what stands before the pages.  Raises ``ImageError``."""
        self._path = path
        self._file = file
        try:
            head = kdump.read_head(file.size, file.read)
            ranges = kdump.ranges(head, file.read)
            lengths = [PAGE_BYTES * (end - start) for start, end in ranges]
            loads = [
                (elf_core.PT_LOAD, 0, PAGE_BYTES + before, 0, PAGE_BYTES * start, length, length, 0)
                for (start, _), length, before in zip(
                    ranges, lengths, accumulate(lengths, initial=0), strict=False
                )
            ]
            if not loads:
                raise CoreError("it has no memory in it")
            plan = elf_core.rewrite(elf_core.Head(_MACHINE, tuple(loads), head.notes))
            self._head = plan.bytes_with(None)
        except CoreError as error:
            raise ImageError(f"{path} cannot be read", why=str(error)) from error
        if head.packed not in (0, kdump.ZLIB, kdump.ZSTD):
            raise self._unknown(head.packed)
        self._pages = Pages(head, file.size, file.read)
        self._firsts = [start for start, _ in ranges]
        self._starts = [len(self._head) + before for before in accumulate(lengths, initial=0)]
        self._unpacker = zstandard.ZstdDecompressor()
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self.size = self._starts.pop()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer past the end, or before a page that is not there.  Raises ``ImageError``."""
        end = min(offset + length, self.size)
        pieces = []
        while offset < end:
            if offset < len(self._head):
                piece: bytes | None = self._head[offset:end]
            else:
                index = bisect_right(self._starts, offset) - 1
                number, start = divmod(offset - self._starts[index], PAGE_BYTES)
                piece = self._page(self._firsts[index] + number)
                if piece is not None:
                    piece = piece[start : start + end - offset]
            if piece is None:
                break
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Let go of the file."""
        self._kept.clear()
        self._file.close()

    def _page(self, number: int) -> bytes | None:
        try:
            entry = self._pages.entry(number)
        except CoreError as error:
            raise ImageError(f"{self._path} is damaged", why=str(error)) from error
        if entry is None:
            return None
        # Pages of zeroes are one in the file.
        known = self._kept.get(entry.at)
        if known is not None:
            self._kept.move_to_end(entry.at)
            return known
        page = self._unpacked(entry, self._file.read(entry.at, entry.length))
        if len(page) != PAGE_BYTES:
            raise self._damaged(entry, f"the page has {len(page)} bytes or more")
        self._kept[entry.at] = page
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return page

    def _unpacked(self, entry: Entry, data: bytes) -> bytes:
        try:
            match entry.packed:
                case 0:
                    return data
                case kdump.ZLIB:
                    return zlib.decompressobj().decompress(data, PAGE_BYTES + 1)
                case kdump.ZSTD:
                    if zstandard.frame_content_size(data) > PAGE_BYTES:
                        raise self._damaged(entry, "it says that it is larger than a page")
                    return self._unpacker.decompress(data, max_output_size=PAGE_BYTES)
                case other:
                    raise self._unknown(other)
        except (zlib.error, zstandard.ZstdError) as error:
            raise self._damaged(entry, str(error)) from error

    def _damaged(self, entry: Entry, why: str) -> ImageError:
        return ImageError(f"{self._path} is damaged at byte {entry.at}", why=why)

    def _unknown(self, packed: int) -> ImageError:
        return ImageError(
            f"{self._path} cannot be read",
            why=f"its pages are compressed by {kdump.PACKED.get(packed, hex(packed))}, which is not known here",
            todo="give it to crash itself, or write it anew with zlib: makedumpfile -c FILE NEW",
        )
