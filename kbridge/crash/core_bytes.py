"""The bytes of an image's file, whether it is compressed or not: any of them, without unpacking the rest.

in          a file: as it is, seekable zstd, or kdump's compressed format
out         bytes at an offset; ``ImageError`` where the file is damaged there
invariant   no more than ``MOST_KEPT_BYTES`` are unpacked at a time, whatever the file says of itself
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import zstandard

from kbridge.crash import flattened, kdump, seekable
from kbridge.crash.elf_core import CoreError
from kbridge.crash.flattened import Pieces
from kbridge.crash.kdump_bytes import KdumpBytes
from kbridge.crash.seekable import Frame, SeekTable
from kbridge.errors import ImageError

MOST_KEPT_BYTES: Final = seekable.MOST_FRAME_BYTES
_NOT_KNOWN: Final = -1


class Bytes(Protocol):
    """What can be read at any offset."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer past the end, or before a page that is not there.  Raises ``ImageError``."""

    def close(self) -> None:
        """Let go of the file."""


class PlainBytes:
    """A file as it is, mapped."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self.size = len(mapped)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer past the end."""
        return self._mapped[offset : offset + length]

    def close(self) -> None:
        """Let go of the file."""
        self._mapped.close()


class FlattenedBytes:
    """What is in a flattened file of makedumpfile, mapped."""

    def __init__(self, mapped: mmap.mmap, pieces: Pieces) -> None:
        self._mapped = mapped
        self._pieces = pieces
        self.size = pieces.size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer past the end."""
        return self._pieces.read(lambda at, count: self._mapped[at : at + count], offset, length)

    def close(self) -> None:
        """Let go of the file."""
        self._mapped.close()


class SeekableBytes:
    """The contents of a seekable zstd file; frames that were unpacked are kept, the latest."""

    def __init__(self, path: Path, mapped: mmap.mmap, table: SeekTable) -> None:
        self._path = path
        self._mapped = mapped
        self._table = table
        self._unpacker = zstandard.ZstdDecompressor()
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_bytes = 0
        self.size = table.size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer past the end.  Raises ``ImageError``."""
        pieces = []
        end = min(offset + length, self.size)
        while offset < end:
            frame = self._table.frame(offset)
            assert frame is not None, "it is before the end"
            data = self._unpacked(frame)
            piece = data[offset - frame.start : end - frame.start]
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Let go of the file."""
        self._kept.clear()
        self._mapped.close()

    def _unpacked(self, frame: Frame) -> bytes:
        known = self._kept.get(frame.start)
        if known is not None:
            self._kept.move_to_end(frame.start)
            return known
        packed = self._mapped[frame.at : frame.at + frame.length]
        try:
            # What a frame says of its size decides how much memory is taken for it.
            if zstandard.frame_content_size(packed) not in (frame.size, _NOT_KNOWN):
                raise zstandard.ZstdError("its size is not the one in the table of frames")
            data = self._unpacker.decompress(packed, max_output_size=frame.size)
        except zstandard.ZstdError as error:
            raise self._damaged(frame, str(error)) from error
        if len(data) != frame.size:
            raise self._damaged(frame, f"it has {len(data)} bytes of {frame.size}")
        self._kept[frame.start] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > MOST_KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def _damaged(self, frame: Frame, why: str) -> ImageError:
        return ImageError(f"{self._path} is damaged at byte {frame.at}", why=why)


def open_bytes(path: Path) -> Bytes:
    """Open a file as what it is.  Raises ``ImageError``."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read", why=str(error)) from error
    with suppress(OSError):
        # It is read here and there: what is around is not wanted.
        mapped.madvise(mmap.MADV_RANDOM)
    try:
        return _opened(path, mapped)
    except ImageError:
        mapped.close()
        raise


def _opened(path: Path, mapped: mmap.mmap) -> Bytes:
    def read(offset: int, length: int) -> bytes:
        return mapped[offset : offset + length]

    if mapped[:4] == seekable.MAGIC:
        try:
            return SeekableBytes(path, mapped, seekable.read_table(len(mapped), read))
        except seekable.SeekableError as error:
            raise ImageError(
                f"{path} cannot be read", why=str(error), todo="unpack it with `zstd -d`, and give that file"
            ) from error
    file: Bytes = PlainBytes(mapped)
    if read(0, len(flattened.MAGIC)) == flattened.MAGIC:
        try:
            file = FlattenedBytes(mapped, flattened.read_pieces(len(mapped), read))
        except CoreError as error:
            raise ImageError(f"{path} cannot be read", why=str(error)) from error
    return KdumpBytes(path, file) if file.read(0, len(kdump.MAGIC)) == kdump.MAGIC else file
