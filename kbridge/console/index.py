"""The index of a console ring: when bytes came, and where some may be missing.

A mapped ring of entries of 40 bytes beside the console ring: offset u64, monotonic ns u64, wall clock ns u64,
kind u16, reason u16, low half of the entry's own number u32, bytes possibly lost u64.  Entry *n* is at
``n % slots``.

A time mark says "the byte at this offset came at this time".  A gap says "before this offset, text may be
missing".
An entry is whole before it is counted, so a killed writer leaves no half of one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Self

from kbridge.console.mapped import DamagedError, MappedFile, Word, set_aside
from kbridge.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC: Final = b"kbINDX\r\n"
_ENTRY: Final = struct.Struct("=QQQHHIQ")
_PAGE: Final = 4096
_BYTES_PER_SLOT: Final = 128
_MIN_SLOTS: Final = 1024
_MAX_SLOTS: Final = 65536


class MarkKind(IntEnum):
    """What an entry says."""

    TIME = 1
    GAP = 2
    TORN = 3
    """The writer was killed within a read: up to ``lost`` bytes may be missing."""


class GapReason(IntEnum):
    """Why text may be missing; the number of lost bytes is unknown unless the entry has it."""

    NONE = 0
    LINE_LOST = 1
    LINE_OPEN = 2
    """The line is back (or there for the first time); what was sent before is not here."""
    RELAY_STOPPED = 3
    """The relay was ended and started again."""
    RELAY_KILLED = 4
    """The relay died without closing its files; all that it had received is here."""
    HOST_WENT_DOWN = 5
    """The host went down under the relay: pages not yet on the disk are lost, the end is doubtful."""
    RING_DAMAGED = 6
    """The ring file was damaged and set aside; a new one starts here."""
    RING_RESIZED = 7
    """The ring was made smaller; ``lost`` bytes of old history did not fit."""

    @property
    def text(self) -> str:
        """The reason in words."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Mark:
    """One entry of the index."""

    offset: int
    mono_ns: int
    """CLOCK_MONOTONIC: comparable between processes until the host starts again."""
    wall_ns: int
    """Since the epoch, UTC."""
    kind: MarkKind = MarkKind.TIME
    reason: GapReason = GapReason.NONE
    lost: int = 0


class IndexView:
    """An index to read from, in the writer's process or another; entries are numbered from the first made."""

    __slots__ = ("_body", "_file", "_words", "slots")

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._body = file.body
        self._words = file.words
        self.slots = file.capacity // _ENTRY.size

    @classmethod
    def open(cls, path: Path) -> IndexView:
        """Map an index for reading; raises ``RecordError`` with the reason."""
        return IndexView(MappedFile.view(path, MAGIC))

    @property
    def end(self) -> int:
        """The number of the next entry to come."""
        return self._words[Word.HEAD]

    @property
    def first(self) -> int:
        """The number of the oldest entry that can be read."""
        return max(self._words[Word.BASE], self._words[Word.HEAD] - self.slots + 1)

    def mark(self, number: int) -> Mark | None:
        """Return entry ``number``, or ``None`` when it is no longer, or not yet, or not readably there."""
        if not self.first <= number < self.end:
            return None
        offset, mono, wall, kind, reason, low, lost = _ENTRY.unpack_from(
            self._body, number % self.slots * _ENTRY.size
        )
        if low != number & 0xFFFF_FFFF or number < self.first:
            return None
        try:
            return Mark(offset, mono, wall, MarkKind(kind), GapReason(reason), lost)
        except ValueError:
            return None

    def marks(self, start: int = 0) -> Iterator[Mark]:
        """Iterate over the entries from number ``start`` on, until the end as it is when that is reached."""
        number = max(start, self.first)
        while number < self.end:
            mark = self.mark(number)
            if mark is not None:
                yield mark
            number = max(number + 1, self.first)

    def before(self, offset: int) -> int:
        """Return the number of the last entry at or before ``offset``, or ``first`` if there is none."""
        low, high = self.first, self.end
        while low < high:
            middle = (low + high) // 2
            mark = self.mark(middle)
            if mark is None or mark.offset <= offset:
                low = middle + 1
            else:
                high = middle
        return max(low - 1, self.first)

    def close(self) -> None:
        """Unmap."""
        self._file.close()


class Index(IndexView):
    """An index to write to."""

    __slots__ = ("damage",)

    def __init__(self, file: MappedFile, damage: str = "") -> None:
        super().__init__(file)
        self.damage = damage

    @classmethod
    def anonymous(cls, ring_bytes: int) -> Self:
        """Make an index in memory."""
        return cls(MappedFile.anonymous(_capacity(ring_bytes)))

    @classmethod
    def open_writer(cls, path: Path, ring_bytes: int) -> Self:
        """Open the index that fits a ring of ``ring_bytes``, making it when it is not there.

        The caller holds the folder's lock.  A damaged one is set aside.  Raises ``RecordError``.
        """
        capacity = _capacity(ring_bytes)
        damage = ""
        try:
            try:
                file = MappedFile.attach(path, MAGIC)
                if file.capacity == capacity:
                    return cls(file)
                return cls(_resized(file, path, capacity))
            except DamagedError as error:
                damage = f"{error}; it is kept as {set_aside(path, 'damaged').name}"
            except FileNotFoundError:
                pass
            file = MappedFile.create(path, MAGIC, capacity, 0)
            file.publish()
            return cls(file, damage)
        except OSError as error:
            raise RecordError(
                f"cannot open the console index {path}",
                why=error.strerror or str(error),
                todo=f"it needs {capacity} bytes; make room, or lower ring_bytes",
            ) from error

    @property
    def last_offset(self) -> int:
        """The offset of the newest entry that can be read; 0 if there is none."""
        for number in range(self.end - 1, self.first - 1, -1):
            mark = self.mark(number)
            if mark is not None:
                return mark.offset
        return 0

    def drop_after(self, offset: int) -> None:
        """Forget entries past ``offset``: a host that went down may have kept a younger index than ring."""
        end = self.end
        while end > self.first:
            mark = self.mark(end - 1)
            if mark is not None and mark.offset <= offset:
                break
            end -= 1
        self._words[Word.HEAD] = end

    def add(
        self,
        offset: int,
        mono_ns: int,
        wall_ns: int,
        kind: MarkKind = MarkKind.TIME,
        reason: GapReason = GapReason.NONE,
        lost: int = 0,
    ) -> None:
        """Add an entry; ``offset`` must not be less than the one before."""
        number = self._words[0]  # Word.HEAD
        place = number % self.slots * _ENTRY.size
        _ENTRY.pack_into(
            self._body, place, offset, mono_ns, wall_ns, kind, reason, number & 0xFFFF_FFFF, lost
        )
        self._words[0] = number + 1

    def sync(self) -> None:
        """Write the index to the disk and mark it as closed."""
        if self._file.path is not None:
            self._file.sync()


def _capacity(ring_bytes: int) -> int:
    slots = min(max(ring_bytes // _BYTES_PER_SLOT, _MIN_SLOTS), _MAX_SLOTS)
    return -(-slots * _ENTRY.size // _PAGE) * _PAGE


def _resized(file: MappedFile, path: Path, capacity: int) -> MappedFile:
    """Replace the file by one of another size with the newest entries."""
    old = IndexView(file)
    slots = capacity // _ENTRY.size
    start = max(old.first, old.end - slots + 1)
    new_file = MappedFile.create(path, MAGIC, capacity, start)
    new = Index(new_file)
    for number in range(start, old.end):
        mark = old.mark(number)
        if mark is not None:
            new.add(mark.offset, mark.mono_ns, mark.wall_ns, mark.kind, mark.reason, mark.lost)
    new_file.publish()
    old.close()
    return new_file
