"""A crash's title out of its lines: what happened and in which function, or why that cannot be told.

in: the lines from the one that begins a crash on, as they come.
out: a ``Title``, at any time.
states: looking for what the table's row asks for (another line, a backtrace); decided; doubtful.
invariant: once decided, no line that comes later changes it, so a text that is cut off gives the whole text's title or
a doubtful one, never another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Final

from kbridge.crash.functions import plain, short
from kbridge.crash.kinds import DIES, Kind, Weight, Where
from kbridge.crash.stack import PROCESSOR, Stack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbridge.crash.kinds import Row
    from kbridge.crash.lines import Said

MIXED: Final = "another crash's text is mixed with it"
MOST_TITLE: Final = 120
"""Characters."""

_DROPPED: Final = re.compile(r"\*\* (?P<count>\d+) printk messages dropped \*\*")

_VARIES: Final = (
    (re.compile(r"\b(?P<name>[A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+"), r"\g<name>"),
    (re.compile(r"\b(?:0x[0-9a-fA-F]+|(?=[a-f]*\d)[0-9a-f]{6,})\b"), "ADDR"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "IP"),
    (re.compile(r"(?<=\.[chSs])(?::\d+)+\b"), ":LINE"),
    (re.compile(r"\bCPU ?#?\d+\b"), "CPU"),
    (re.compile(r"(?<![\w.])-?\d+(?![\w.])"), "NUM"),
    (re.compile(r"[^ -~]+| {2,}"), " "),
)
"""What is another number in the same crash's next text."""


@dataclass(frozen=True, slots=True)
class Title:
    """What a crash is called."""

    title: str
    alternatives: tuple[str, ...]
    """What the same crash may be called where it is met in another way; for finding it again, not for showing."""
    kind: Kind
    function: str
    """The title's, or the one that a title without any is about; empty where it is not known."""
    corrupted: str
    """Why the text does not tell more; empty where it does.  The title is what is sure."""


class TitleFinder:
    """Reads the lines of one crash."""

    def __init__(self, row: Row, said: Said, found: re.Match[str]) -> None:
        """Begin with the line that ``row`` has; ``found`` is its match."""
        self.row = row
        self.corrupted = row.doubt
        self.is_decided = False
        """Whether no line that comes can change the title."""
        self._fields = {key: value for key, value in found.groupdict().items() if value is not None}
        named = self._fields.pop("function", self._fields.pop("alone", ""))
        if "other" in self._fields:
            self._fields["other"] = plain(self._fields["other"])
        self._function = plain(named) if row.where is Where.LINE else ""
        self._stack = Stack(row)
        self._processor: tuple[str, str] | None = None
        self._has_died = row.is_die or row.weight is not Weight.FATAL
        self._first = said.text
        if said.is_joined:
            self._doubt("two lines ran into each other")
        elif not said.is_whole:
            self._doubt("its first line is cut off")
        if named and row.where is Where.STACK:
            self._stack.take(named)
        self._decide()

    # ── lines ───────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, said: Said) -> None:
        """Take the next line of the crash."""
        if self.is_decided or not said.is_whole:
            return
        if trouble := self._trouble(said):
            self._doubt(trouble)
            return
        if self.row.more is not None and (found := self.row.more.search(said.body)):
            for key, value in found.groupdict().items():
                self._fields.setdefault(key, value)
            self._function = self._function or plain(self._fields.pop("function", ""))
        self._stack.add(said.body)
        if self._stack.is_empty:
            self._doubt("a backtrace has no functions")
        self._decide()

    def another(self, row: Row, said: Said) -> None:
        """Say that a line came that would begin a crash by ``row``."""
        if self.is_decided:
            return
        dies = DIES.get(self.row.kind)
        if row.is_die and not self._has_died and dies is not None and dies.match(said.body):
            self._has_died = True
        elif row.kind is not Kind.KDB and (row.doubt or not row.is_consequence):
            self.mixed()

    def mixed(self) -> None:
        """Say that lines of another crash may be among those that come."""
        if not self.is_decided:
            self._doubt(MIXED)

    def _trouble(self, said: Said) -> str:
        """Return why the text is not to be trusted from here on."""
        if said.is_joined:
            return "two lines ran into each other"
        if dropped := _DROPPED.search(said.text):
            return f"the kernel dropped {dropped['count']} messages"
        # A stamp that steps back proves nothing: the clock of a processor that hangs stands still.
        if said.time is not None and said.text == self._first:
            return "its text comes twice"
        if found := PROCESSOR.match(said.body):
            now = found["cpu"], found["pid"]
            before, self._processor = self._processor or now, now
            # A stall shows what the processors do, one after the other.
            if before != now and self.row.where not in (Where.STALL, Where.HANG):
                return f"lines of processors {before[0]} and {now[0]} are mixed"
        return ""

    def _doubt(self, why: str) -> None:
        self.corrupted = self.corrupted or why
        self.is_decided = True

    def _decide(self) -> None:
        """See whether the title can still change."""
        if self.is_decided or not self._has_more():
            return
        if self.row.where is Where.LINE:
            self.is_decided = True
            return
        self._function = self._stack.function
        # Of a stall another processor may be shown.
        self.is_decided = bool(self._function) or (self._stack.is_over and self.row.where is not Where.STALL)

    def _has_more(self) -> bool:
        """Whether the other line came that the row asks for."""
        if self.row.more is None:
            return True
        wanted = set(self.row.more.groupindex)
        return wanted - {"function"} <= set(self._fields) and (
            "function" not in wanted or bool(self._function)
        )

    # ── the title ───────────────────────────────────────────────────────────────────────────────────────────

    def title(self) -> Title:
        """Return what is known so far."""
        fields: dict[str, str] = {key: _steady(value) for key, value in self._fields.items()}
        function = short(self._function)
        if function:
            fields["function"] = function
        corrupted = self.corrupted
        title, is_whole = _fill(self.row.title, fields)
        if not corrupted and not is_whole:
            corrupted = self._missing()
        others = [
            _fill(template, fields | ({"function": name} if name else {}))[0]
            for template in (self.row.title, *self.row.alternatives)
            for name in dict.fromkeys((function, self._function))
            if is_whole
        ]
        alternatives = tuple(other for other in dict.fromkeys(others) if other != title)
        return Title(title, alternatives, self.row.kind, function, corrupted)

    def _missing(self) -> str:
        if self.row.more is not None and not self._has_more():
            return "the line that says more is missing"
        if not self._stack.has_frames:
            return "the backtrace is missing"
        if not self._stack.is_over:
            return "the backtrace is cut off"
        return "the backtrace has no function but those that report or dispatch"


_FORMATTER: Final = Formatter()


def _fill(template: str, fields: Mapping[str, str]) -> tuple[str, bool]:
    """Return a title as far as its fields are known, and whether all are."""
    parts: list[str] = []
    for text, name, _, _ in _FORMATTER.parse(template):
        if name is not None and name not in fields:
            return _cut("".join(parts) + text).removesuffix(" in"), False
        parts.append(text)
        if name is not None:
            parts.append(fields[name])
    return _cut("".join(parts)), True


def _cut(title: str) -> str:
    return title[:MOST_TITLE].strip()


def _steady(text: str) -> str:
    """Return text without what differs from crash to crash."""
    for pattern, instead in _VARIES:
        text = pattern.sub(instead, text)
    return text.strip()
