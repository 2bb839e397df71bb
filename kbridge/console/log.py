"""One ordered stream out of ring, index and time line: console text with its time, what is missing, events.

Pull-based: ``LogCursor.next`` gives one entry at a time and ``None`` when there is nothing yet, so that
whoever sends the entries on decides how many are in memory.  To follow, ask again after ``Recorder.watch``
called, or after a while in another process.

Order is by console offset; at the same offset by wall clock.  Text keeps the time of the last time mark at
or before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, assert_never

from kbridge.console.index import GapReason, IndexView, Mark, MarkKind
from kbridge.console.recorder import INDEX_NAME, RING_NAME
from kbridge.console.ring import RingView
from kbridge.console.timeline import Event, TimeLineCursor, time_text

if TYPE_CHECKING:
    from pathlib import Path

    from kbridge.console.recorder import Recorder

_BACK_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Text:
    """Console bytes that came at ``wall_ns`` or up to 50 ms later.

    Text older than the index came before ``wall_ns``; it is 0 if there is no index.
    """

    offset: int
    wall_ns: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Missing:
    """Text may be missing before ``offset``: ``lost`` bytes at most, or an unknown number when that is 0."""

    offset: int
    wall_ns: int
    reason: str
    lost: int


Entry = Text | Missing | Event


def as_json(entry: Entry) -> dict[str, Any]:
    """Return the entry as ``kbridge log --json`` prints it; text as latin-1, one character a byte."""
    match entry:
        case Text(offset, wall_ns, data):
            time = time_text(wall_ns) if wall_ns else None
            return {"time": time, "offset": offset, "kind": "console.text", "text": data.decode("latin-1")}
        case Missing(offset, wall_ns, reason, lost):
            time = time_text(wall_ns) if wall_ns else None
            return {"time": time, "offset": offset, "kind": "console.gap", "reason": reason, "lost": lost}
        case Event():
            own = {"time": time_text(entry.wall_ns), "offset": entry.offset, "kind": entry.kind}
            return {**own, **entry.fields}
        case _:
            assert_never(entry)


@dataclass(frozen=True, slots=True)
class History:
    """A guest's record to read from: of a live recorder, or of a folder that another process may write."""

    directory: Path
    ring: RingView
    index: IndexView

    @classmethod
    def of(cls, recorder: Recorder) -> History:
        """Return the history that ``recorder`` writes; it lives as long as the recorder is open."""
        return cls(recorder.directory, recorder.ring, recorder.index)

    @classmethod
    def open(cls, directory: Path) -> History:
        """Open a guest's folder for reading; raises ``RecordError`` with the reason."""
        ring = RingView.open(directory / RING_NAME)
        try:
            return cls(directory, ring, IndexView.open(directory / INDEX_NAME))
        except BaseException:
            ring.close()
            raise

    def close(self) -> None:
        """Unmap; only for a history that ``open`` made."""
        self.ring.close()
        self.index.close()

    def offset_of_last_lines(self, lines: int) -> int:
        """Return the offset where the last ``lines`` lines begin; an unfinished last one counts."""
        ring = self.ring
        place = ring.head
        if lines <= 0:
            return place
        if place > ring.oldest and ring.read(place - 1, 1) == b"\n":
            place -= 1
        while place > ring.oldest:
            start = max(place - _BACK_BYTES, ring.oldest)
            data = ring.read(start, place - start)
            if data is None:  # overwritten meanwhile
                break
            found = len(data)
            while (found := data.rfind(b"\n", 0, found)) >= 0:
                lines -= 1
                if not lines:
                    return start + found + 1
            place = start
        return ring.oldest

    def offset_since(self, wall_ns: int) -> int:
        """Return the offset of the first byte stamped at or after ``wall_ns``; the head if there is none."""
        for mark in self.index.marks():
            if mark.wall_ns >= wall_ns:
                return min(max(mark.offset, self.ring.oldest), self.ring.head)
        return self.ring.head


class LogCursor:
    """Reads a history entry by entry, from its oldest, or from a time or a number of lines on."""

    def __init__(self, history: History, *, since_ns: int | None = None, lines: int | None = None) -> None:
        """Start at the oldest; at the first byte and event since ``since_ns``; at the last ``lines`` lines.

        With both, whichever is later.
        """
        self._ring = history.ring
        self._index = history.index
        self._events = TimeLineCursor(history.directory)
        self._since_ns = since_ns or 0
        start = 0
        if since_ns is not None:
            start = history.offset_since(since_ns)
        if lines is not None:
            start = max(start, history.offset_of_last_lines(lines))
        self._events_from = start if lines is not None else 0
        self._at = max(start, self._ring.oldest)
        self._mark = self._index.before(self._at)
        first = self._next_mark()
        self._wall_ns = 0 if first is None else first.wall_ns
        if start:
            self._skip_marks_before(start)

    def next(self, max_bytes: int = 65536) -> Entry | None:
        """Return the next entry, text in pieces of at most ``max_bytes``; ``None`` when there is none yet."""
        while True:
            # The head before and after the look at the events: text up to the former has no event that is not
            # seen yet, and an event seen is past the latter only if the host went down and lost text.
            head = self._ring.head
            event = self._event()
            if event is not None:
                head = self._ring.head
            mark = self._next_mark()
            if event is not None and self._event_is_next(event, mark, head):
                return self._events.take()
            if mark is not None and mark.offset <= self._at:
                self._mark += 1
                self._wall_ns = mark.wall_ns
                if mark.kind is MarkKind.TIME or (event is not None and _same(mark, event)):
                    continue
                return _missing(mark)
            if self._at >= head:
                return None
            limit = min([head, *(e.offset for e in (event, mark) if e is not None and e.offset > self._at)])
            data = self._ring.read(self._at, min(limit - self._at, max_bytes))
            if data is not None:
                text = Text(self._at, self._wall_ns, data)
                self._at += len(data)
                return text
            lost = self._ring.oldest - self._at
            self._at += lost
            return Missing(self._at, self._wall_ns, "overwritten before it was read", lost)

    def close(self) -> None:
        """Let go of the time line's file; the history stays open."""
        self._events.close()

    def _event(self) -> Event | None:
        """Return the next event that is asked for, left where it is."""
        while True:
            event = self._events.peek()
            if event is None or (event.wall_ns >= self._since_ns and event.offset >= self._events_from):
                return event
            self._events.take()

    def _next_mark(self) -> Mark | None:
        while self._mark < self._index.end:
            self._mark = max(self._mark, self._index.first)
            mark = self._index.mark(self._mark)
            if mark is not None:
                return mark
            self._mark += 1
        return None

    def _event_is_next(self, event: Event, mark: Mark | None, head: int) -> bool:
        if event.offset > self._at and self._at < head:
            return False
        if mark is None or mark.offset > self._at or mark.kind is MarkKind.TIME:
            return True
        # A gap at the same place: the earlier first; the gap, which is then passed over, if it is the same
        # thing.
        return event.wall_ns < mark.wall_ns or (event.wall_ns == mark.wall_ns and not _same(mark, event))

    def _skip_marks_before(self, offset: int) -> None:
        while (mark := self._next_mark()) is not None and mark.offset < offset:
            self._wall_ns = mark.wall_ns
            self._mark += 1


def _same(mark: Mark, event: Event) -> bool:
    """Whether a gap and an event are the same loss or return of the line: the recorder stamps both alike."""
    return (
        mark.wall_ns == event.wall_ns
        and event.kind in ("line.lost", "line.open")
        and mark.reason in (GapReason.LINE_LOST, GapReason.LINE_OPEN)
    )


def _missing(mark: Mark) -> Missing:
    torn = mark.kind is MarkKind.TORN
    reason = "torn tail: the relay was killed within a read" if torn else mark.reason.text
    return Missing(mark.offset, mark.wall_ns, reason, mark.lost)
