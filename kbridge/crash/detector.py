"""Crashes of a kernel, noticed on its console: bytes in, begins and ends of crashes out.

in: console bytes in any pieces; ``settle`` when nothing came for a while; ``reset`` when the machine started anew;
``may_be_put_back`` when it may go on from an earlier moment.
out: ``CrashBegins`` with its first line, ``CrashEnds`` with its title.
states: quiet, where only rare bytes are looked for; crash, where each line is read.
invariants: without the last three the events depend on the bytes alone, not on how they were cut into pieces;
begins and ends take turns; parsing from a crash's begin finds it, parsing from its end does not; memory is bounded.

Quiet text must cost next to nothing, so no pattern is tried on it. Whatever begins a crash has ``G`` or ``#`` in its
first lines (``BUG:``, ``WARNING:``, ``[#1]``, the build's number in ``Not tainted 6.1.0 #1``), prompts have ``#``,
``$`` or ``>``; these are rare elsewhere, and ``bytes.find`` of one byte is C's ``memchr``. What stands around such a
byte is compared, and only then are the lines near it read by the table (``kinds.ROWS``). A line that has neither,
with nothing behind it, is found by ``settle``.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from kbridge.crash.kinds import (
    BAR,
    BARRED,
    BEFORE,
    BEFORE_BAR,
    BOOTS,
    ENDS,
    MARKS,
    PROMPT,
    ROWS,
    WARNS_END,
    WITHIN,
    Kind,
    Weight,
    Where,
)
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
MOST_BEFORE: Final = 24
"""Lines and"""
MOST_BEFORE_BYTES: Final = MOST_LINE
"""bytes before the line that gave a crash away, in which it may have begun."""
SHORTEST: Final = 7
"""Bytes of the shortest line that is looked at."""
SAMPLES: Final = LOOKS_BACK
SAMPLE_WITHIN: Final = 512
"""Each so many bytes of the stream the kernel's clock is read, if it stands within so many."""
BLOCK: Final = 1 << 16
_KEPT: Final = LOOKS_BACK + MOST_BEFORE_BYTES + MOST_LINE
"""Bytes that are kept of what was read."""
_SLACK: Final = 1 << 13
"""Bytes more, so that not each feed removes some."""

_BEHIND_PROMPTS: Final = frozenset({b" ", b"\x1b"})
_WORDS: Final = frozenset({b"BUG:", b"BUG ", b"ING:"})
_LATE: Final = (
    b"Kernel panic",
    b"INFO: ",
    b"UBSAN: ",
    b"Unable to handle",
    b"LOCKUP",
    b"oom-killer",
    b"Machine Check",
    b"Entering kdb",
    b"PANIC: ",
    b"Insufficient",
)
"""What begins crashes whose first line has neither of the two bytes."""


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
        self.weight = finder.row.weight
        self.caller = said.caller
        self.end = said.end
        self.time = said.time
        self.is_marked = False
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

    def goes_on_beside(self, said: Said) -> bool:
        """Whether lines of its text may come among those of a crash that begins with ``said``."""
        is_late = said.time is not None and self.time is not None and said.time - self.time > PAUSE
        return not (self.is_marked or is_late or (said.caller and self.caller))

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
        self._cleared = offset
        """Up to here no line begins a crash without the two bytes."""
        self._last: TitleFinder | None = None
        """Of the crash that ended there."""

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
        tail = self._buffer.rfind(b"\n", self._at) + 1 or self._at
        said = take_apart(self._buffer[tail:], self._base + tail)
        # A prompt is left: what is typed at it comes later, and is read with it.
        is_cut_off = said.time is not None if self._crash is not None else self._begins(said.body) is not None
        self._read_lines(len(self._buffer) if is_cut_off else tail)
        if self._crash is None:
            # A line that begins a crash and has neither of the two bytes, with nothing behind it.
            self._look_back(self._at)
            self._read_lines(tail)
        self._finish()
        self._clock.pauses()
        return self._told()

    def reset(self, offset: int | None = None) -> list[Event]:
        """Say that the machine starts anew; what comes next is at ``offset``, if given."""
        self._read_lines(len(self._buffer))
        self._finish()
        events = self._told()
        self._begin(self.offset if offset is None else offset)
        return events

    def may_be_put_back(self) -> None:
        """Say that the machine may have been put back to an earlier moment: what comes next may be stamped so."""
        # Of the text that came before no stamp is read any more.
        self._next_sample = max(self._next_sample, _round_up(self.offset))
        self._clock.may_fall()

    def _told(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, data: bytes) -> None:
        self._buffer += data
        whole = self._buffer.rfind(b"\n", len(self._buffer) - len(data)) + 1
        if whole:
            self._read_lines(whole)
        is_overlong = len(self._buffer) - self._at > MOST_LINE
        if is_overlong or self._buffer.endswith((b"kdb> ", b"more> ")):
            self._at_prompt()
        if is_overlong:
            self._at = len(self._buffer)
            self._is_overlong = True
        if len(self._buffer) > _KEPT + _SLACK:
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
                if line.end - line.offset <= MOST_LINE or _is_kdbs(line):
                    self._in_crash(line)

    def _line(self, begin: int, end: int) -> Said:
        stop = self._buffer.find(b"\n", begin, end) + 1 or end
        return take_apart(self._buffer[begin:stop], self._base + begin)

    # ── quiet ───────────────────────────────────────────────────────────────────────────────────────────────

    def _quiet_text(self, end: int) -> None:
        """Look for the first crash up to ``end``; all before it, or all, is read then."""
        begin = self._at
        looked_at = begin
        for place, is_prompt in _suspicious(self._buffer, begin, end):
            # Each line is looked at once, and for a prompt once more.
            if place < self._at or (is_prompt and place < looked_at):
                continue
            first = self._buffer.rfind(b"\n", max(place - MOST_LINE, begin), place) + 1
            if not first and place - begin > MOST_LINE:
                continue
            first = first or begin
            stop = self._buffer.find(b"\n", place, end) + 1 or end
            if self._look_for_prompt(first, stop) if is_prompt else self._look_at(first, stop):
                return
            looked_at = stop
            if not is_prompt:
                self._at = stop
        self._sample(end)
        self._at = end

    def _sample(self, end: int) -> None:
        """Read the kernel's clock in the text before ``end``."""
        while self._next_sample + SAMPLE_WITHIN <= self._base + end:
            place = self._next_sample - self._base
            found = STAMP_BYTES.search(self._buffer, max(place, 0), place + SAMPLE_WITHIN)
            if found is not None:
                self._clock.passes(float(found[1]), self._buffer, found.start())
            self._next_sample += SAMPLES

    def _look_at(self, first: int, stop: int) -> bool:
        """Look at a line, and at those before it; return whether a crash begins there."""
        if not SHORTEST <= stop - first <= MOST_LINE:
            return False
        said = take_apart(self._buffer[first:stop], self._base + first)
        matched = self._begins(said.body)
        if (matched is not None or _MAY_FOLLOW.search(said.body)) and self._look_back(first):
            return True
        if matched is not None:
            self._sample(first)
            self._start(said, matched)
        return matched is not None

    def _look_for_prompt(self, first: int, stop: int) -> bool:
        """Look at a line that may have a prompt; return whether kdb's shows that it was entered."""
        said = take_apart(self._buffer[first:stop], self._base + first)
        if _is_kdbs(said) and self._look_back(first):
            return True
        if stop - first <= MOST_LINE:
            self._clock.line(said)
        return False

    def _look_back(self, first: int) -> bool:
        """Begin a crash with the first line of those before ``first`` that begins one without the two bytes."""
        window = max(first - MOST_BEFORE_BYTES, self._ended - self._base, self._cleared - self._base, 0)
        self._cleared = max(self._cleared, self._base + first)
        text = self._buffer[window:first]
        if not any(late in text for late in _LATE):
            return False
        for said in self._lines_before(window, first):
            matched = self._begins(said.body)
            if matched is not None:
                self._sample(first)
                self._start(said, matched)
                return True
        return False

    def _lines_before(self, begin: int, end: int) -> list[Said]:
        """Return the last lines between two places in the buffer; one that begins before ``begin`` is left out."""
        if begin > 0 and self._buffer[begin - 1 : begin] != b"\n":
            begin = self._buffer.find(b"\n", begin, end) + 1 or end
        lines = []
        while begin < end:
            said = self._line(begin, end)
            lines.append(said)
            begin = said.end - self._base
        return lines[-MOST_BEFORE:]

    def _begins(self, body: str) -> tuple[Row, re.Match[str]] | None:
        """Return the row that a line obeys, where its kind is told."""
        matched = _match(body)
        return None if matched is None or matched[0].kind in self._off else matched

    def _start(self, said: Said, matched: tuple[Row, re.Match[str]]) -> None:
        """Begin a crash."""
        row, found = matched
        place = said.offset - self._base
        own: deque[Said] = deque()
        for each in reversed(
            self._lines_before(max(place - MOST_BEFORE_BYTES, self._ended - self._base, 0), place)
        ):
            if not BEFORE.match(each.body) or each.caller != said.caller:
                break
            own.appendleft(each)
        offset = own[0].offset if own else said.offset
        place = offset - self._base
        doubt = self._clock.doubt(own[0] if own else said, self._buffer, place)
        begin = CrashBegins(offset, row.kind, said.text, doubt)
        self._events.append(begin)
        self._at = said.end - self._base
        finder = TitleFinder(row, said, found)
        if row.is_consequence and row.doubt and self._last is not None and offset - self._ended <= FOLLOWS:
            finder = self._last
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
        if said.time is None or said.ahead:
            self._clock.line(said)
        if _is_kdbs(said):
            # The guest stands; what is behind the prompt on its line comes later.
            self._at = said.offset - self._base
            self._finish()
            return
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
        self._read(crash, said)

    def _read(self, crash: _Crash, said: Said) -> None:
        """Take a line that may be of the crash's text, or begin another."""
        matched = _match(said.body)
        if self._is_of_another(crash, said, matched):
            self._finish()
            if matched is not None and matched[0].kind not in self._off:
                self._start(said, matched)
                if self._crash is not None and crash.goes_on_beside(said):
                    self._crash.finder.mixed()
            return
        if matched is not None:
            crash.finder.another(matched[0], said)
            if matched[0].weight is Weight.FATAL:
                crash.weight = Weight.FATAL
        self._belongs(crash, said)

    def _belongs(self, crash: _Crash, said: Said) -> None:
        """Take a line that may be of the crash's text."""
        body = said.body
        is_others = crash.caller and said.caller and said.caller != crash.caller
        # A stall shows what other processors do.
        if is_others and not crash.finder.is_decided and crash.finder.row.where is not Where.STALL:
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
        if crash.begin.kind in BARRED:
            is_mark = BAR.match(body) is not None and BEFORE_BAR.match(crash.last.body) is not None
        else:
            is_mark = MARKS.match(body) is not None
        crash.is_marked = crash.is_marked or is_mark
        crash.last = said
        crash.end = said.end
        crash.time = said.time if said.time is not None else crash.time
        crash.keep(said)
        crash.finder.add(said)
        if ENDS.match(body) or (crash.weight is Weight.NOTE and WARNS_END.match(body)):
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
        if row.kind is Kind.KDB or (row.is_consequence and row.doubt):
            return False
        if late:
            return True
        match crash.weight:
            case Weight.FATAL:
                return False
            case Weight.CHECK:
                return row.weight is not Weight.FATAL
            case Weight.NOTE:
                return True

    def _at_prompt(self) -> None:
        """See whether the kernel's debugger waits for a command; its prompt is no whole line."""
        first = self._at
        if self._is_overlong or not _is_kdbs(take_apart(self._buffer[first:], self._base + first)):
            return
        if self._crash is None and self._look_back(first):
            self._read_lines(first)
        self._finish()

    def _finish(self) -> None:
        """End the crash under way, if there is one."""
        if self._crash is None:
            return
        self._events.append(self._crash.ends())
        self._last = self._crash.finder
        self._ended = self._crash.end
        # Lines of a crash were read, and their stamps with them.
        self._next_sample = max(self._next_sample, _round_up(self._base + self._at))
        self._crash = None


def _is_kdbs(said: Said) -> bool:
    """Whether a line begins with the prompt of the kernel's debugger."""
    return PROMPT.match(said.ahead or said.text) is not None


def _round_up(offset: int) -> int:
    return -(-offset // SAMPLES) * SAMPLES


_MAY_FOLLOW: Final = re.compile(
    r"(?:Not t|T)ainted\b|CPU: \d+ (?:UID: \d+ )?PID: |CPU \d+: Machine Check|\[#\d+\]"
)
"""Lines behind those that begin a crash."""


_GROUP: Final = re.compile(r"\(\?P<\w+>")
_ANY: Final = re.compile("|".join("(?:" + _GROUP.sub("(?:", row.begins.pattern) + ")" for row in ROWS))


def _match(body: str) -> tuple[Row, re.Match[str]] | None:
    """Return the row that a line obeys."""
    # One try for all first: few lines of a crash begin one, and each row's pattern costs as much as that.
    if _ANY.match(body) is None:
        return None
    for row in ROWS:
        found = row.begins.match(body)
        if found is not None:
            return row, found
    return None


def _suspicious(text: bytes, begin: int, end: int) -> list[tuple[int, bool]]:
    """Return the places in quiet text near which a crash may begin, and those of prompts (true), in order."""
    places = []
    find = text.find
    place = find(b"G", begin, end)
    while place >= 0:
        if text[place - 2 : place + 2] in _WORDS:
            places.append((place, False))
        place = find(b"G", place + 1, end)
    for sign in (b"#", b"$", b">"):
        place = find(sign, begin, end)
        while place >= 0:
            if text[place + 1 : place + 2] in _BEHIND_PROMPTS:
                places.append((place, True))
            elif sign == b"#" and (text[place - 1 : place] == b"[" or _is_tainted(text, begin, place, end)):
                places.append((place, False))
            place = find(sign, place + 1, end)
    places.sort()
    return places


def _is_tainted(text: bytes, begin: int, place: int, end: int) -> bool:
    """Whether the line around a place says whether the kernel is tainted."""
    if b"ainted" not in text[max(place - 160, begin) : place + 20]:
        return False
    first = text.rfind(b"\n", begin, place) + 1 or begin
    stop = text.find(b"\n", place, end)
    return b"ainted" in text[first : end if stop < 0 else stop]
