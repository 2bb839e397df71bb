"""The console ring: the last bytes of a serial line in a mapped file, by absolute offset.

in          ``window`` + ``advance`` (a read straight into the file), ``append``
out         ``views``, ``view``, ``read`` by absolute offset
invariant   byte number *n* of the line is at ``n % capacity`` of the body, for ``oldest <= n < head``

An offset counts every byte since the ring was first made; it never goes back.  A reader's cursor is an
``int``.

A line reads into ``window()``, past the head, before ``advance`` moves it.  Therefore:

- The word ``FLIGHT`` is the head's offset while such a read goes on.  A writer killed just then leaves the two
  equal: bytes may be there, how many is not known, and the next opening says "up to a window's length may be lost
  here".
- The ``window_bytes`` oldest bytes may be being overwritten at any time.  ``oldest`` leaves them out.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from kbridge.console.mapped import NOT_IN_FLIGHT, DamagedError, Former, MappedFile, Word, set_aside
from kbridge.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAGIC: Final = b"kbRING\r\n"
MAX_WINDOW_BYTES: Final = 131072
"""One read of a line: what two writes of 64 KB left there.  Ten readers are then woken half as often as by one
(docs/console.md); larger reads gain nothing more."""
MIN_RING_BYTES: Final = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Opening:
    """What was found when a ring was opened for writing."""

    former: Former
    torn_bytes: int = 0
    """The former writer was killed within a read: up to so many bytes may be missing after the old head."""
    set_aside: Path | None = None
    """Where a damaged file went."""
    damage: str = ""
    """What was wrong with it, or why it could not be given its new size."""
    dropped_bytes: int = 0
    """History that did not fit a ring made smaller."""


class RingView:
    """A ring to read from, in the writer's process or another.

    In another process ``views`` and ``view`` may be overwritten while they are used: use ``read`` there.
    """

    __slots__ = ("_body", "_file", "_safe", "_words", "capacity", "window_bytes")

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._words = file.words
        self._body = file.body
        self.capacity = file.capacity
        self.window_bytes = min(MAX_WINDOW_BYTES, file.capacity // 4)
        self._safe = file.capacity - self.window_bytes

    @classmethod
    def open(cls, path: Path) -> RingView:
        """Map a ring for reading; raises ``RecordError`` with the reason."""
        return RingView(MappedFile.view(path, MAGIC))

    @property
    def head(self) -> int:
        """The offset of the next byte to come."""
        return self._words[Word.HEAD]

    @property
    def oldest(self) -> int:
        """The offset of the oldest byte that can be read."""
        return max(self._words[Word.BASE], self._words[Word.HEAD] - self._safe)

    def view(self, offset: int, limit: int) -> memoryview:
        """Return one contiguous piece from ``offset`` on, at most ``limit`` bytes; empty at the head.

        ``offset`` must lie between ``oldest`` and ``head``.
        """
        start = offset % self.capacity
        return self._body[start : min(start + min(limit, self.head - offset), self.capacity)]

    def views(self, offset: int, length: int) -> tuple[memoryview, ...]:
        """Return the bytes from ``offset`` on, at most ``length``, in one or two pieces, without copying."""
        length = min(length, self.head - offset)
        first = self.view(offset, length)
        if len(first) == length:
            return (first,)
        return (first, self.view(offset + len(first), length - len(first)))

    def read(self, offset: int, length: int) -> bytes | None:
        """Return a copy of at most ``length`` bytes from ``offset`` on, ``None`` if they are no longer held.

        Checks the head again after copying, so that the answer is right in another process too.
        """
        if offset > self.head:
            raise ValueError(f"offset {offset} is past the head {self.head}")
        if offset < self.oldest:
            return None
        data = b"".join(self.views(offset, length))
        return data if offset >= self.oldest else None

    def close(self) -> None:
        """Unmap."""
        self._file.close()


class Ring(RingView):
    """A ring to write to: one at a time for a file, which the holder of the folder's lock sees to."""

    __slots__ = ("_head", "opening")

    def __init__(self, file: MappedFile, opening: Opening) -> None:
        super().__init__(file)
        self._head = file.words[Word.HEAD]
        self.opening = opening
        self._words[Word.FLIGHT] = NOT_IN_FLIGHT

    @classmethod
    def anonymous(cls, capacity: int) -> Self:
        """Make a ring in memory, for a guest that cannot be recorded: live readers still work."""
        return cls(MappedFile.anonymous(_rounded(capacity)), Opening(Former.NONE))

    @classmethod
    def open_writer(cls, path: Path, capacity: int, *, base: int = 0) -> Self:
        """Open a ring for writing, making it when it is not there.  The caller holds the folder's lock.

        A damaged file is renamed and a new one made that starts at offset ``base``; a file of another
        ``capacity`` (rounded up to pages) is replaced by one that has as much of its tail as fits.
        Raises ``RecordError`` when the disk is full or the file cannot be made; what was there stays.
        """
        capacity = _rounded(capacity)
        try:
            try:
                file = MappedFile.attach(path, MAGIC)
            except FileNotFoundError:
                return cls(_made(path, capacity, base), Opening(Former.NONE))
            except DamagedError as error:
                aside = set_aside(path, "damaged")
                opening = Opening(Former.NONE, set_aside=aside, damage=str(error))
                return cls(_made(path, capacity, base), opening)
            opening = Opening(file.former, torn_bytes=_torn_bytes(file))
            if file.capacity == capacity:
                return cls(file, opening)
            try:
                return cls._resized(file, opening, path, capacity)
            except OSError as error:
                why = f"its size stays {file.capacity} bytes: {error.strerror or error}"
                return cls(file, replace(opening, damage=why))
        except OSError as error:
            raise RecordError(
                f"cannot open the console ring {path}",
                why=error.strerror or str(error),
                todo=f"it needs {capacity} bytes; make room, or lower ring_bytes",
            ) from error

    @classmethod
    def _resized(cls, file: MappedFile, opening: Opening, path: Path, capacity: int) -> Self:
        old = RingView(file)
        fits = capacity - min(MAX_WINDOW_BYTES, capacity // 4)
        start = max(old.oldest, old.head - fits)
        new = cls(
            MappedFile.create(path, MAGIC, capacity, start),
            Opening(opening.former, torn_bytes=opening.torn_bytes, dropped_bytes=start - old.oldest),
        )
        for piece in old.views(start, old.head - start):
            new.append(piece)
        new._file.publish()
        old.close()
        return new

    def window(self) -> memoryview:
        """Return where the next bytes of the line go; ``advance`` must follow, with 0 when none came."""
        start = self._head % self.capacity
        view = self._body[start : start + self.window_bytes]
        self._words[1] = self._head  # Word.FLIGHT
        return view

    def advance(self, count: int) -> None:
        """Count ``count`` bytes of the last ``window()`` as received."""
        self._head += count
        self._words[0] = self._head  # Word.HEAD
        self._words[1] = NOT_IN_FLIGHT  # Word.FLIGHT

    def receive(self, read_into: Callable[[memoryview], int | None]) -> int | None:
        """Let ``read_into`` put the next bytes in place; it returns how many (or ``None``), and so does this.

        What it raises (``OSError``) is passed on, and nothing was received then.  The same as ``window`` and
        ``advance``, in one call: with a thousand lines what counts is how much memory a call touches.
        """
        head = self._head
        start = head % self.capacity
        view = self._body[start : start + self.window_bytes]
        words = self._words
        words[1] = head  # Word.FLIGHT
        try:
            count = read_into(view)
        except OSError:
            words[1] = NOT_IN_FLIGHT
            raise
        if count:
            head += count
            self._head = head
            words[0] = head  # Word.HEAD: from here on FLIGHT is another offset, and means nothing
        else:
            words[1] = NOT_IN_FLIGHT
        return count

    def append(self, data: bytes | memoryview) -> None:
        """Write bytes that are in memory already."""
        view = memoryview(data)
        while view:
            window = self.window()
            count = min(len(window), len(view))
            window[:count] = view[:count]
            self.advance(count)
            view = view[count:]

    def sync(self) -> None:
        """Write the ring to the disk and mark it as closed."""
        if self._file.path is not None:
            self._file.sync()


def _torn_bytes(file: MappedFile) -> int:
    """Return how many bytes the last writer may have received past the head."""
    head = file.words[Word.HEAD]
    if file.words[Word.FLIGHT] != head:
        return 0
    return min(file.capacity // 4, MAX_WINDOW_BYTES, file.capacity - head % file.capacity)


def _rounded(capacity: int) -> int:
    """Whole pages, at least one."""
    pages = max(-(-capacity // mmap.PAGESIZE), 1)
    return pages * mmap.PAGESIZE


def _made(path: Path, capacity: int, base: int) -> MappedFile:
    file = MappedFile.create(path, MAGIC, capacity, base)
    file.publish()
    return file
