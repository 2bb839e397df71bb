"""Reading a packet ring as a sequence of packets in words, from the record and then as they come.

in          a ring; which session, since when, how many of the last
out         ``Line``: a packet and its meaning, raw bytes, or a remark about the record
states      finding the start (backwards, segment by segment) · counting, where only the last N are wanted · reading
invariant   ``next`` does a bounded amount of work: it returns ``LATER`` when there is more to do than that

A reply is understood by its request, so that reading begins a segment before what is asked for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from gdbstubs.conversation import Conversation, Said, Side
from gdbstubs.decode_replies import plain
from kbridge.console.timeline import time_text
from kbridge.trace.ring import SEGMENT_BYTES, STUB, Chunk, ChunkView, LostError, Note

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

MOST_PACKET_TEXT: Final = 4096
"""Bytes of a packet in a line; what is longer is cut, and ``length`` says how long it is."""
MOST_SESSIONS: Final = 64
"""Connections that are told apart at a time; the one that was silent for longest is forgotten first."""
ENTRIES_A_CALL: Final = 64


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a trace.

    ``session`` is empty for a remark about the record; ``side`` is who sent it: ``debugger`` or ``stub``.
    ``kind`` is one of ``gdbstubs.conversation.Kind``'s, ``bytes`` (not decoded) or ``record`` (a remark).
    """

    offset: int
    wall_ns: int
    session: str
    side: str
    kind: str
    packet: bytes
    length: int
    """How long the packet is; more than ``packet`` has where that was cut."""
    words: str


class Later(Enum):
    """There is more to do; ask again when others had their turn."""

    LATER = "later"


LATER: Final = Later.LATER


def as_json(line: Line) -> dict[str, Any]:
    """Return the line as ``kbridge trace --json`` prints it; the packet as latin-1, one character a byte."""
    return {
        "time": time_text(line.wall_ns),
        "offset": line.offset,
        "session": line.session or None,
        "from": line.side or None,
        "kind": line.kind,
        "packet": line.packet.decode("latin-1"),
        "length": line.length,
        "words": line.words,
    }


def from_json(fields: Mapping[str, Any]) -> Line:
    """Return the line that ``as_json`` made an object of.  Raises ``KeyError`` or ``ValueError`` for another."""
    return Line(
        fields["offset"],
        int(datetime.fromisoformat(fields["time"]).timestamp() * 1_000_000) * 1000,
        fields["session"] or "",
        fields["from"] or "",
        fields["kind"],
        fields["packet"].encode("latin-1"),
        fields["length"],
        fields["words"],
    )


class ChunkCursor:
    """Reads a ring entry by entry from an offset where a segment begins."""

    __slots__ = ("_ring", "offset")

    def __init__(self, ring: ChunkView, offset: int) -> None:
        self._ring = ring
        self.offset = max(offset, ring.oldest)

    def next(self) -> Chunk | Note | LostError | None:
        """Return the next entry, what is lost instead of it, or None when there is none yet."""
        while self.offset < self._ring.head:
            try:
                entry, self.offset = self._ring.read(self.offset)
            except LostError as lost:
                self.offset = lost.until
                return lost
            if entry is not None:
                return entry
        return None


class Decoder:
    """Makes lines of entries; with ``raw`` of each chunk one, as it passed."""

    def __init__(self, *, session: str | None = None, raw: bool = False) -> None:
        self._session = session
        self._raw = raw
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._wall_ns = 0

    def lines(self, entry: Chunk | Note | LostError) -> list[Line]:
        """Return the lines that an entry completes."""
        match entry:
            case Note(offset, wall_ns, words):
                self._conversations.clear()
                self._wall_ns = wall_ns
                return [_remark(offset, wall_ns, words)]
            case LostError():
                for conversation in self._conversations.values():
                    conversation.lose()
                return [_remark(entry.until, self._wall_ns, entry.reason)]
            case Chunk():
                self._wall_ns = entry.wall_ns
                if self._session is not None and entry.session != self._session:
                    return []
                return [_bytes(entry)] if self._raw else self._decode(entry)

    def _decode(self, chunk: Chunk) -> list[Line]:
        conversation = self._conversations.get(chunk.session)
        if conversation is None:
            conversation = self._conversations[chunk.session] = Conversation()
            if len(self._conversations) > MOST_SESSIONS:
                self._conversations.popitem(last=False)
        else:
            self._conversations.move_to_end(chunk.session)
        said = conversation.feed(_side(chunk), chunk.data, chunk.passed - len(chunk.data))
        return [_line(chunk, one) for one in said]


def _side(chunk: Chunk) -> Side:
    """Who sent a chunk: to the stub's socket goes what a debugger would send."""
    return Side.DEBUGGER if (chunk.session == STUB) is chunk.to_peer else Side.STUB


def _line(chunk: Chunk, said: Said) -> Line:
    return Line(
        chunk.offset,
        chunk.wall_ns,
        chunk.session,
        said.side.value,
        said.kind.value,
        said.payload[:MOST_PACKET_TEXT],
        len(said.payload),
        said.words,
    )


def _bytes(chunk: Chunk) -> Line:
    missing = chunk.passed - len(chunk.data)
    words = f"{missing} bytes more were not recorded" if missing else ""
    return Line(
        chunk.offset,
        chunk.wall_ns,
        chunk.session,
        _side(chunk).value,
        "bytes",
        chunk.data,
        chunk.passed,
        words,
    )


def _remark(offset: int, wall_ns: int, words: str) -> Line:
    return Line(offset, wall_ns, "", "", "record", b"", 0, plain(words.encode("ascii", "replace")))


class TraceReader:
    """Reads a trace line by line; the module's text says how.

    ``session``: of that one only.  ``since_ns``: nothing older.  ``last``: at most so many of the lines there are;
    with both, whichever is fewer.  ``raw``: chunks as they passed.  ``follow``: go on with what comes; else the end is
    where the ring's head is now.
    """

    def __init__(
        self,
        ring: ChunkView,
        *,
        session: str | None = None,
        since_ns: int | None = None,
        last: int | None = None,
        raw: bool = False,
        follow: bool = False,
    ) -> None:
        self._ring = ring
        self._session = session
        self._since_ns = since_ns or 0
        self._raw = raw
        self._begun_at = ring.head
        self._until = None if follow else ring.head
        self._skip = 0
        self._cursor = ChunkCursor(ring, 0)
        self._decoder = self._new_decoder()
        self._ready: deque[Line] = deque()
        self._preparing: Generator[None, None, None] | None = self._prepare(since_ns, last)

    @property
    def follows(self) -> bool:
        """Whether more may come when there is nothing now."""
        return self._until is None

    def next(self) -> Line | Later | None:
        """Return the next line, ``LATER`` when this took long enough, None when there is nothing (yet)."""
        if self._preparing is not None:
            try:
                next(self._preparing)
            except StopIteration:
                self._preparing = None
            return LATER
        for _ in range(ENTRIES_A_CALL):
            if self._ready:
                return self._ready.popleft()
            if self._until is not None and self._cursor.offset >= self._until:
                return None
            entry = self._cursor.next()
            if entry is None:
                return None
            for line in self._decoder.lines(entry):
                self._pass(line)
        return LATER

    def _pass(self, line: Line) -> None:
        if line.wall_ns < self._since_ns:
            return
        if self._skip:
            self._skip -= 1
        else:
            self._ready.append(line)

    def _new_decoder(self) -> Decoder:
        return Decoder(session=self._session, raw=self._raw)

    # -- finding the start ----------------------------------------------------------------------------------

    def _prepare(self, since_ns: int | None, last: int | None) -> Generator[None, None, None]:
        """Set the cursor, and how many lines are to be passed over; a step is a segment."""
        start = self._ring.oldest
        if since_ns is not None:
            start = yield from self._segment_since(since_ns)
        if last is not None:
            start = yield from self._start_of_last(last, start)
        self._cursor = ChunkCursor(self._ring, start)

    def _segments_back(self, until: int) -> Iterator[int]:
        """Yield where segments begin, the last first; ``until`` is the last of them."""
        start = self._begun_at // SEGMENT_BYTES * SEGMENT_BYTES
        while start > until:
            yield start
            start -= SEGMENT_BYTES
        yield until

    def _segment_since(self, since_ns: int) -> Generator[None, None, int]:
        """Return the last segment that begins before ``since_ns``, and has what the first replies answer."""
        oldest = self._ring.oldest
        for start in self._segments_back(oldest):
            entry = ChunkCursor(self._ring, start).next()
            if isinstance(entry, Chunk | Note) and entry.wall_ns < since_ns:
                return start
            yield
        return oldest

    def _start_of_last(self, last: int, oldest: int) -> Generator[None, None, int]:
        """Return from where on to read for the last lines, and set how many of those read are not wanted.

        Lines are counted by reading them; each time that there were too few it begins twice as far back.
        """
        segments = 1
        end = self._begun_at // SEGMENT_BYTES * SEGMENT_BYTES
        while True:
            start = max(end - segments * SEGMENT_BYTES, oldest, self._ring.oldest)
            count = 0
            cursor, decoder = ChunkCursor(self._ring, start), self._new_decoder()
            mark = start + SEGMENT_BYTES
            while cursor.offset < self._begun_at and (entry := cursor.next()) is not None:
                count += sum(line.wall_ns >= self._since_ns for line in decoder.lines(entry))
                if cursor.offset >= mark:
                    mark += SEGMENT_BYTES
                    yield
            if count >= last or start <= max(oldest, self._ring.oldest):
                self._skip = max(count - last, 0)
                return start
            segments *= 2
            yield
