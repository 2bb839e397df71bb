"""Crashes of a kernel, noticed on its console: bytes in, begins and ends of crashes out.

in: console bytes in any pieces; ``settle`` when nothing came for a while; ``reset`` when the machine started anew.
out: ``CrashBegins`` with its first line, ``CrashEnds`` with its title.
states: quiet, where only four rare bytes are looked for; crash, where each line is read.
invariants: without ``settle`` and ``reset`` the events depend on the bytes alone, not on how they were cut into pieces;
begins and ends take turns; parsing from a crash's begin finds it, parsing from its end does not; memory is bounded.

Quiet text must cost next to nothing, so no pattern is tried on it.  Whatever begins a crash has ``#``, ``K``, ``U``
or ``>`` in its first lines, which are rare elsewhere; ``bytes.find`` of one byte is C's ``memchr``.  What stands around
such a byte is compared, and only then are the lines near it read by the table (``kinds.ROWS``).
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from kbridge.crash.kinds import BEFORE, BOOTS, ENDS, MARKS, PROMPT, ROWS, WARNS_END, WITHIN, Kind, Weight, Where
from kbridge.crash.lines import STAMP_BYTES, Said, take_apart
from kbridge.crash.replays import LOOKS_BACK, Clock
from kbridge.crash.titles import Title, TitleFinder
from symbols.backtrace import MOST_LINE

if TYPE_CHECKING:
    from collections.abc import Collection

    from kbridge.crash.kinds import Row

MOST_TEXT: Final = 1 << 18
"""Characters of a crash's text that are kept."""
MOST_CRASH: Final = 1 << 20
"""Bytes after which a crash is over, whatever comes."""
MOST_STRANGE: Final = 40
"""Lines in a row that are no part of a crash's text, after which it is over."""
STRANGE_AFTER_MARK: Final = 3
"""The same, once it may be over."""
PAUSE: Final = 1.0
"""Seconds of the kernel's clock that part a crash that may be over from what comes."""
FOLLOWS: Final = 1 << 16
"""Bytes within which a panic that names no reason belongs to the crash before it."""
MOST_BEFORE: Final = 16
"""Lines and"""
MOST_BEFORE_BYTES: Final = 2048
"""bytes before the line that gave a crash away, in which it may have begun."""
SAMPLES: Final = 1 << 14
SAMPLE_WITHIN: Final = 512
"""Each so many bytes of the stream the kernel's clock is read, if it stands within so many."""
BLOCK: Final = 1 << 16
_KEPT: Final = LOOKS_BACK + MOST_LINE

_BUG: Final = frozenset({b"BUG:", b"BUG ", b"KUP ", b"PU: "})
_UB: Final = frozenset({b"UBSAN", b"Unabl"})
_LATE: Final = (b"INFO: ", b"WARNING: ", b"oom-killer", b"Machine Check", b"Entering kdb")
"""What begins crashes whose first lines have none of the four bytes."""


@dataclass(frozen=True, slots=True)
class CrashBegins:
    """A crash's first line came."""

    offset: int
    """Of its first byte in the stream; from here on parsing finds it."""
    kind: Kind
    line: str
    """The one that shows what it is; some that belong to it may stand before."""
    doubt: str
    """Why it may be no crash of now: somebody had a log printed.  Empty otherwise."""


@dataclass(frozen=True, slots=True)
class CrashEnds:
    """A crash's text is over."""

    begin: CrashBegins
    end: int
    """Behind the last byte that belongs to it."""
    title: Title
    text: str
    """Its lines without time stamps and without those of other tasks, where the kernel tells whose they are."""


Event: TypeAlias = CrashBegins | CrashEnds


class _Crash:
    """The crash under way."""

    def __init__(self, begin: CrashBegins, finder: TitleFinder, said: Said, before: list[Said]) -> None:
        self.begin = begin
        self.finder = finder
        self.caller = said.caller
        self.end = said.end
        self.time = said.time
        self.is_marked = False
        self.is_over = False
        self.strange = 0
        self.last = said
        self._kept: list[str] = []
        self._size = 0
        for each in (*before, said):
            self.keep(each)

    def keep(self, said: Said) -> None:
        """Keep a line of its text, as long as there is room."""
        self._size += len(said.body) + 1
        if self._size <= MOST_TEXT:
            self._kept.append(said.body)

    def drop_last(self) -> None:
        """Forget the last line, which comes again."""
        if len(self._kept) > 1:
            self._kept.pop()

    def ends(self) -> CrashEnds:
        """Return its end."""
        title = self.finder.title()
        if self.begin.doubt:
            title = Title(title.title, title.alternatives, title.kind, title.function, self.begin.doubt)
        return CrashEnds(self.begin, self.end, title, "\n".join(self._kept) + "\n")


class Detector:
    """Follows one console."""

    def __init__(self, off: Collection[Kind] = ()) -> None:
        """Begin at offset 0; crashes of the kinds ``off`` are not told."""
        self._off = frozenset(off)
        self._events: list[Event] = []
        self._last_finder: TitleFinder
        self._begin(0)

    def _begin(self, offset: int) -> None:
        self._buffer = b""
        self._base = offset
        self._at = 0
        """Where the first line that is not read begins in the buffer."""
        self._is_overlong = False
        """The line at the end of the buffer is too long to be looked at."""
        self._crash: _Crash | None = None
        self._clock = Clock()
        self._next_sample = _round_up(offset)
        self._ended = offset
        """Where the last crash ended: nothing before is looked at again."""
        self._last: tuple[CrashEnds, Weight] | None = None
        self._quiet = offset
        """Where the last pause was."""

    # ── what the caller says ────────────────────────────────────────────────────────────────────────────────

    @property
    def offset(self) -> int:
        """Where the next byte is."""
        return self._base + len(self._buffer)

    @property
    def is_crash(self) -> bool:
        """Whether a crash has begun and not ended."""
        return self._crash is not None

    def peek(self) -> Title | None:
        """Return the title of the crash under way by what has come; None where there is none."""
        return None if self._crash is None else self._crash.ends().title

    def feed(self, data: bytes) -> list[Event]:
        """Take console bytes; return what began and ended, in order."""
        for first in range(0, len(data), BLOCK):
            self._take(data[first : first + BLOCK] if len(data) > BLOCK else data)
        return self._told()

    def settle(self) -> list[Event]:
        """Say that nothing came for a while: what has come is all, also of its last line."""
        self._read_lines(len(self._buffer))
        if self._crash is None:
            # A line that begins a crash and has none of the four bytes, with nothing behind it.
            self._look_back(len(self._buffer), [])
            self._read_lines(len(self._buffer))
        self._finish()
        self._quiet = self.offset
        return self._told()

    def reset(self, offset: int | None = None) -> list[Event]:
        """Say that the machine starts anew; what comes next is at ``offset``, if given."""
        self._read_lines(len(self._buffer))
        self._finish()
        events = self._told()
        self._begin(self.offset if offset is None else offset)
        return events

    def _told(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, data: bytes) -> None:
        self._buffer += data
        whole = self._buffer.rfind(b"\n", len(self._buffer) - len(data)) + 1
        if whole:
            self._read_lines(whole)
        if len(self._buffer) - self._at > MOST_LINE:
            self._at = len(self._buffer)
            self._is_overlong = True
        if self._buffer.endswith((b"kdb> ", b"more> ")):
            self._at_prompt()
        if len(self._buffer) > _KEPT + BLOCK:
            gone = min(len(self._buffer) - _KEPT, self._at)
            self._buffer = self._buffer[gone:]
            self._base += gone
            self._at -= gone

    def _read_lines(self, end: int) -> None:
        """Read the lines up to ``end``, in the buffer."""
        if self._is_overlong and self._at < end:
            first = self._buffer.find(b"\n", self._at, end)
            self._at = end if first < 0 else first + 1
            self._is_overlong = first < 0
        while self._at < end:
            if self._crash is None:
                self._quiet_text(end)
            else:
                line = self._line(self._at, end)
                self._at = line.end - self._base
                self._in_crash(line)

    def _line(self, begin: int, end: int) -> Said:
        stop = self._buffer.find(b"\n", begin, end) + 1 or end
        return take_apart(self._buffer[begin:stop], self._base + begin)

    # ── quiet ───────────────────────────────────────────────────────────────────────────────────────────────

    def _quiet_text(self, end: int) -> None:
        """Look for the first crash up to ``end``; all before it, or all, is read then."""
        begin = self._at
        for place in _suspicious(self._buffer, begin, end):
            if place < self._at:
                continue
            first = self._buffer.rfind(b"\n", max(place - MOST_LINE, begin), place) + 1 or begin
            self._sample(first)
            if self._look_back_from(first, end):
                return
            # Each line is looked at once, whatever it has.
            stop = self._buffer.find(b"\n", place, end)
            self._at = end if stop < 0 else stop + 1
        self._sample(end)
        self._at = end

    def _sample(self, end: int) -> None:
        """Read the kernel's clock in the text before ``end``."""
        # Lines of a crash are read, and their stamps with them.
        self._next_sample = max(self._next_sample, _round_up(self._ended))
        while self._next_sample + SAMPLE_WITHIN <= self._base + end:
            place = self._next_sample - self._base
            found = STAMP_BYTES.search(self._buffer, max(place, 0), place + SAMPLE_WITHIN)
            if found is not None:
                self._clock.passes(float(found[1]), self._buffer[max(found.start() - LOOKS_BACK, 0) : found.start()])
            self._next_sample += SAMPLES

    def _look_back_from(self, first: int, end: int) -> bool:
        """Look at the line at ``first``, and at those before it; return whether a crash begins there."""
        stop = self._buffer.find(b"\n", first, end) + 1 or end
        if stop - first > MOST_LINE:
            return False
        said = take_apart(self._buffer[first:stop], self._base + first)
        matched = self._begins(said.body)
        if matched is None and not _MAY_FOLLOW.search(said.body):
            return False
        return self._look_back(first, [said])

    def _look_back(self, first: int, lines: list[Said]) -> bool:
        """Begin a crash with the first line that begins one, in those before ``first`` and in ``lines``."""
        window = max(first - MOST_BEFORE_BYTES, self._ended - self._base, 0)
        text = self._buffer[window:first]
        before: list[Said] = []
        place = self._base + window
        pieces = text.split(b"\n")
        for number, piece in enumerate(pieces):
            # The first may be the end of a line, the last is empty.
            if number < len(pieces) - 1 or piece:
                cut = number == 0 and window > 0 and self._buffer[window - 1 : window] != b"\n"
                data = piece + (b"\n" if number < len(pieces) - 1 else b"")
                if not cut:
                    before.append(take_apart(data, place))
            place += len(piece) + 1
        before = before[-MOST_BEFORE:]
        lines = before + lines
        from_late = any(late in text for late in _LATE)
        for number, said in enumerate(lines):
            if number < len(before) and not from_late:
                continue
            matched = self._begins(said.body)
            if matched is not None:
                self._start(said, matched, lines[:number])
                return True
        return False

    def _begins(self, body: str) -> tuple[Row, re.Match[str]] | None:
        """Return the row that a line obeys, where its kind is told."""
        matched = _match(body)
        return None if matched is None or matched[0].kind in self._off else matched

    def _start(self, said: Said, matched: tuple[Row, re.Match[str]], before: list[Said]) -> None:
        """Begin a crash; ``before``: the lines before ``said``, of which the last may belong to it."""
        row, found = matched
        own: deque[Said] = deque()
        for each in reversed(before):
            if not BEFORE.match(each.body) or each.caller != said.caller:
                break
            own.appendleft(each)
        offset = own[0].offset if own else said.offset
        place = offset - self._base
        text = self._buffer[max(place - LOOKS_BACK, 0) : place]
        quiet = offset <= self._quiet
        doubt = self._clock.doubt(said.time, text[max(len(text) - (offset - self._quiet), 0) :], quiet=quiet)
        begin = CrashBegins(offset, row.kind, said.text, doubt)
        finder = TitleFinder(row, said, found)
        self._events.append(begin)
        self._at = said.end - self._base
        if row.is_consequence and self._last is not None and offset - self._last[0].end <= FOLLOWS:
            self._crash = _Crash(begin, self._last_finder, said, list(own))
        else:
            self._last_finder = finder
            self._crash = _Crash(begin, finder, said, list(own))

    # ── a crash ─────────────────────────────────────────────────────────────────────────────────────────────

    def _in_crash(self, said: Said) -> None:
        """Take a line while a crash is under way."""
        crash = self._crash
        if crash is None:
            return
        body = said.body
        if said.time is not None:
            self._clock.rises(said.time)
        if BOOTS.match(body) or said.end - crash.begin.offset > MOST_CRASH:
            self._finish()
            return
        if "replaying previous printk message" in body:
            crash.drop_last()
            return
        if said.text == crash.last.text and said.time is not None:
            # Two consoles on one line print each line twice.
            crash.end = said.end
            return
        matched = _match(body)
        if self._is_of_another(crash, said, matched):
            self._finish()
            if matched is not None and matched[0].kind not in self._off:
                self._start(said, matched, [])
            return
        if matched is not None:
            crash.finder.another(matched[0], said)
        self._belongs(crash, said)

    def _belongs(self, crash: _Crash, said: Said) -> None:
        """Take a line that may be of the crash's text."""
        body = said.body
        if crash.caller and said.caller and said.caller != crash.caller and not crash.finder.is_decided:
            # Of another task or processor.
            if crash.finder.row.where is not Where.STALL:
                return
        if not body or not WITHIN.match(body):
            crash.strange += 1
            most = STRANGE_AFTER_MARK if crash.is_marked else MOST_STRANGE
            if crash.strange > most:
                self._finish()
            elif not crash.is_marked:
                crash.finder.add(said)
            return
        crash.strange = 0
        crash.last = said
        crash.end = said.end
        crash.time = said.time if said.time is not None else crash.time
        crash.keep(said)
        crash.finder.add(said)
        if MARKS.search(body):
            crash.is_marked = True
        if ENDS.match(body) or (crash.finder.row.weight is Weight.NOTE and WARNS_END.match(body)):
            self._finish()

    def _is_of_another(self, crash: _Crash, said: Said, matched: tuple[Row, re.Match[str]] | None) -> bool:
        """Whether a line is no part of the crash under way, but of what comes after it."""
        late = (
            crash.is_marked
            and said.time is not None
            and crash.time is not None
            and said.time - crash.time > PAUSE
        )
        if matched is None:
            return late
        row = matched[0]
        if row.is_consequence or row.kind is Kind.KDB:
            return False
        if late:
            return True
        match crash.finder.row.weight:
            case Weight.FATAL:
                return False
            case Weight.CHECK:
                return row.weight is not Weight.FATAL
            case Weight.NOTE:
                return not row.is_die or row.weight is Weight.FATAL and crash.is_marked

    def _at_prompt(self) -> None:
        """The kernel's debugger waits for a command."""
        first = self._buffer.rfind(b"\n", max(len(self._buffer) - MOST_LINE, 0)) + 1
        said = take_apart(self._buffer[first:], self._base + first)
        if not PROMPT.search(said.text + " "):
            return
        if self._crash is None:
            self._look_back(first, [])
            self._read_lines(first)
        if self._crash is not None:
            self._at = len(self._buffer)
            self._finish()

    def _finish(self) -> None:
        """End the crash under way, if there is one."""
        if self._crash is None:
            return
        ended = self._crash.ends()
        self._events.append(ended)
        self._last = ended, self._crash.finder.row.weight
        self._ended = ended.end
        self._crash = None


def _round_up(offset: int) -> int:
    return -(-offset // SAMPLES) * SAMPLES


_MAY_FOLLOW: Final = re.compile(r"(?:Not t|T)ainted\b|CPU: \d+ (?:UID: \d+ )?PID: |CPU \d+: Machine Check|\[#\d+\]")
"""Lines behind those that begin a crash."""


def _match(body: str) -> tuple[Row, re.Match[str]] | None:
    """Return the row that a line obeys."""
    for row in ROWS:
        found = row.begins.match(body)
        if found is not None:
            return row, found
    return None


def _suspicious(text: bytes, begin: int, end: int) -> list[int]:
    """Return the places in quiet text near which a crash may begin, in order."""
    found = []
    find = text.find
    place = find(b"U", begin, end)
    while place >= 0:
        if text[place - 1 : place + 3] in _BUG or text[place : place + 5] in _UB:
            found.append(place)
        place = find(b"U", place + 1, end)
    place = find(b"K", begin, end)
    while place >= 0:
        if text[place : place + 12] == b"Kernel panic":
            found.append(place)
        place = find(b"K", place + 1, end)
    place = find(b"#", begin, end)
    while place >= 0:
        if text[place - 1 : place] == b"[" or text[place + 1 : place + 2].isdigit():
            found.append(place)
        place = find(b"#", place + 1, end)
    found.sort()
    return found
