"""The packet ring: the last bytes that passed a guest's debug sockets, in a mapped file, by absolute offset.

in          ``append``: a chunk as it passed a socket; ``note``: words about the record itself
out         ``ChunkView.read``: the entry at an offset
invariant   an entry lies within one segment; the header of one that can be read names its own offset

The file is divided into segments of 16 KB.  An entry that does not fit the rest of its segment begins the next; so
whoever reads finds an entry at the beginning of each segment, and nothing is sought.  An entry is whole before the head
moves past it: a killed writer leaves no half of one, and a page that a host lost shows by its headers.

    header   low half of the offset u32, bytes kept u16, bytes of the name u8, flags u8, bytes that passed u32,
             monotonic ns u64, wall clock ns u64; then the session's name (UTF-8) and the bytes kept
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from kbridge.console.mapped import DamagedError, Former, MappedFile, Word, set_aside
from kbridge.errors import RecordError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC: Final = b"kbPACK\r\n"
SEGMENT_BYTES: Final = 16384
MOST_KEPT: Final = 4096 + 16
"""Bytes of an entry: a packet with 4 KB and its frame.  Of a longer packet the beginning is kept, and its length."""
MIN_RING_BYTES: Final = 4 * SEGMENT_BYTES
MOST_NAME_BYTES: Final = 64
STUB: Final = "stub"
"""The session's name of the relay's own connection to the stub."""

_HEADER: Final = struct.Struct("=IHBBIQQ")
_TO_PEER: Final = 1
_NOTE: Final = 2
_END: Final = 4
"""No more entries in this segment."""
_MOST_NAMES: Final = 256
_LOW: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that passed a socket together: to its peer, or from it.  Where some are missing, one packet is."""

    offset: int
    mono_ns: int
    """CLOCK_MONOTONIC."""
    wall_ns: int
    """Since the epoch, UTC."""
    session: str
    """A debugger's session, or ``stub``."""
    to_peer: bool
    data: bytes
    passed: int
    """How many bytes passed; more than ``data`` has where a packet was cut, and no more than that packet's."""


@dataclass(frozen=True, slots=True)
class Note:
    """Words about the record itself: the relay was started again, something is missing."""

    offset: int
    wall_ns: int
    words: str


Entry = Chunk | Note


class ChunkView:
    """A packet ring to read from, in the writer's process or another."""

    __slots__ = ("_body", "_file", "_words", "capacity")

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._body = file.body
        self._words = file.words
        self.capacity = file.capacity

    @classmethod
    def open(cls, path: Path) -> ChunkView:
        """Map a packet ring for reading; raises ``RecordError`` with the reason."""
        return ChunkView(MappedFile.view(path, MAGIC))

    @property
    def head(self) -> int:
        """The offset of the next entry to come."""
        return self._words[Word.HEAD]

    @property
    def oldest(self) -> int:
        """The offset of the oldest segment that can be read.

        The writer may be in the segment after the head's before it moves the head there.
        """
        behind = (self._words[Word.HEAD] // SEGMENT_BYTES + 2) * SEGMENT_BYTES - self.capacity
        return max(self._words[Word.BASE], behind)

    def read(self, offset: int) -> tuple[Entry | None, int]:
        """Return the entry at ``offset`` and where the next one is; no entry where a segment ends.

        ``offset`` is where an entry was said to be, below the head.  Raises ``LostError`` where what stands there is
        no longer, or never was, an entry.
        """
        place = offset % self.capacity
        room = SEGMENT_BYTES - offset % SEGMENT_BYTES
        if room < _HEADER.size:
            return None, offset + room
        low, kept, named, flags, passed, mono, wall = _HEADER.unpack_from(self._body, place)
        end = _HEADER.size + named + kept
        start = place + _HEADER.size
        data = bytes(self._body[start : start + named + kept])
        if offset < self.oldest:
            raise LostError(self.oldest, "overwritten before it was read")
        if low != offset & _LOW or end > room:
            raise LostError(offset + room, "this part of the record is damaged")
        if flags & _END:
            return None, offset + room
        if flags & _NOTE:
            return Note(offset, wall, data.decode("utf-8", "replace")), offset + end
        name = data[:named].decode("utf-8", "replace")
        chunk = Chunk(offset, mono, wall, name, bool(flags & _TO_PEER), data[named:], passed)
        return chunk, offset + end

    def close(self) -> None:
        """Unmap."""
        self._file.close()


class LostError(Exception):
    """Nothing can be read up to ``until``, where a segment begins, and why."""

    def __init__(self, until: int, reason: str) -> None:
        super().__init__(until, reason)
        self.until = until
        self.reason = reason


class PacketRing(ChunkView):
    """A packet ring to write to: one at a time for a file, which the holder of the folder's lock sees to."""

    __slots__ = ("_head", "_names")

    def __init__(self, file: MappedFile) -> None:
        super().__init__(file)
        self._head = file.words[Word.HEAD]
        self._names: dict[str, bytes] = {}

    @classmethod
    def anonymous(cls, capacity: int) -> Self:
        """Make one in memory, where none can be made on disk: live readers still work."""
        return cls(MappedFile.anonymous(_rounded(capacity)))

    @classmethod
    def open_writer(cls, path: Path, capacity: int) -> Self:
        """Open the ring for writing, making it when it is not there.  The caller holds the folder's lock.

        A damaged file is renamed and a new one made; one of another ``capacity`` (rounded up to segments) is replaced
        by one with as much of its tail as fits.  What the former writer left is said by a note.  Raises
        ``RecordError`` when the disk is full or the file cannot be made; what was there stays.
        """
        capacity = _rounded(capacity)
        try:
            try:
                file = MappedFile.attach(path, MAGIC)
            except FileNotFoundError:
                return cls(_made(path, capacity, 0))
            except DamagedError as error:
                aside = set_aside(path, "damaged")
                ring = cls(_made(path, capacity, 0))
                ring.note(f"the packets before were set aside as {aside.name}: {error}")
                return ring
            former = file.former
            ring = cls(file if file.capacity == capacity else _resized(file, path, capacity))
            ring.note(_FORMER[former])
        except OSError as error:
            raise RecordError(
                f"cannot open the packet ring {path}",
                why=error.strerror or str(error),
                todo=f"it needs {capacity} bytes; make room, or lower packets_ring_bytes",
            ) from error
        return ring

    def append(self, session: str, to_peer: bool, data: bytes, ago_ns: int = 0) -> None:
        """Record a chunk that passed the socket of ``session``, to its peer or from it, so many nanoseconds ago."""
        name = self._names.get(session) or self._name(session)
        passed = len(data)
        if passed <= MOST_KEPT:
            self._write(1 if to_peer else 0, name, data, passed, ago_ns)
        else:
            self._append_long(1 if to_peer else 0, name, data, ago_ns)

    def _append_long(self, flags: int, name: bytes, data: bytes, ago_ns: int) -> None:
        """Record a long chunk as several, none of which ends within a packet, but for one that is too long itself."""
        at = 0
        while len(data) - at > MOST_KEPT:
            end = data.rfind(b"$", at + 1, at + MOST_KEPT + 1)
            if end > 0:
                self._write(flags, name, data[at:end], end - at, ago_ns)
            else:
                end = data.find(b"$", at + MOST_KEPT)
                end = len(data) if end < 0 else end
                self._write(flags, name, data[at : at + MOST_KEPT], end - at, ago_ns)
            at = end
        if at < len(data):
            self._write(flags, name, data[at:], len(data) - at, ago_ns)

    def note(self, words: str) -> None:
        """Record words about the record itself."""
        data = words.encode()[:MOST_KEPT]
        self._write(_NOTE, b"", data, len(data), 0)

    def sync(self) -> None:
        """Write the ring to the disk and mark it as closed."""
        if self._file.path is not None:
            self._file.sync()

    def _write(self, flags: int, name: bytes, data: bytes, passed: int, ago_ns: int) -> None:
        head = self._head
        size = 28 + len(name) + len(data)  # _HEADER.size
        room = SEGMENT_BYTES - head % SEGMENT_BYTES
        if size > room:
            if room >= _HEADER.size:
                _HEADER.pack_into(self._body, head % self.capacity, head & _LOW, 0, 0, _END, 0, 0, 0)
            head += room
        place = head % self.capacity
        self._body[place : place + size] = (
            _pack(head & _LOW, len(data), len(name), flags, passed, _mono_ns() - ago_ns, _wall_ns() - ago_ns)
            + name
            + data
        )
        self._words[0] = self._head = head + size  # Word.HEAD

    def _name(self, session: str) -> bytes:
        name = session.encode("utf-8", "replace")[:MOST_NAME_BYTES]
        if len(self._names) >= _MOST_NAMES:
            self._names.clear()
        self._names[session] = name
        return name


_pack: Final = _HEADER.pack
_mono_ns: Final = time.monotonic_ns
_wall_ns: Final = time.time_ns

_FORMER: Final = {
    Former.NONE: "the record begins",
    Former.CLEAN: "the relay was started again",
    Former.KILLED: "the relay was killed and started again: its last packet may be missing here",
    Former.HOST_WENT_DOWN: "the host went down: the last packets before this may be missing or wrong",
}


def _rounded(capacity: int) -> int:
    """Whole segments, at least four."""
    return max(-(-capacity // SEGMENT_BYTES) * SEGMENT_BYTES, MIN_RING_BYTES)


def _made(path: Path, capacity: int, base: int) -> MappedFile:
    file = MappedFile.create(path, MAGIC, capacity, base)
    file.publish()
    return file


def _resized(file: MappedFile, path: Path, capacity: int) -> MappedFile:
    """Replace the file by one of another size with the newest segments."""
    old = ChunkView(file)
    head = old.head
    start = max(old.oldest, (head // SEGMENT_BYTES + 2) * SEGMENT_BYTES - capacity)
    new = MappedFile.create(path, MAGIC, capacity, start)
    for offset in range(start, head, SEGMENT_BYTES):
        here, there = offset % old.capacity, offset % capacity
        new.body[there : there + SEGMENT_BYTES] = file.body[here : here + SEGMENT_BYTES]
    new.words[Word.HEAD] = head
    new.publish()
    old.close()
    return new
