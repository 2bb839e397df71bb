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

from kbridge.crash.functions import hung, is_skipped, plain, short, stalled
from kbridge.crash.kinds import Kind, Where
from symbols.backtrace import read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbridge.crash.kinds import Row
    from kbridge.crash.lines import Said
    from symbols.backtrace import Line

MOST_TITLE: Final = 120
"""Characters."""
MOST_FRAMES: Final = 512

_TRACE: Final = re.compile(r"(?:Call [Tt]race|Backtrace|Call Trace)\b.*:$|Backtrace: ?$")
_AROUND: Final = re.compile(r"\s*</?[A-Z#][\w#]*>$|\s*(?:<[A-Z]+> )?$")
_OVER: Final = re.compile(r"\s*</TASK>$|Modules linked in:|---\[ end ")
_PROCESSOR: Final = re.compile(r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) ")
_DIED: Final = re.compile(r"\[#(?P<count>\d{1,6})\]")
_DROPPED: Final = re.compile(r"\*\* (?P<count>\d+) printk messages dropped \*\*")
_USER: Final = re.compile(r"RIP: 0033:")

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
        self._fields = {key: value for key, value in found.groupdict().items() if value is not None}
        alone = self._fields.pop("alone", "")
        named = self._fields.pop("function", alone)
        self._named = plain(named) if named else ""
        self._function = ""
        self._is_decided = False
        self._frames: list[str] = []
        self._in_trace = False
        self._is_over = False
        self._processor: tuple[str, str] | None = None
        self._died = ""
        self._first = said.text
        if "other" in self._fields:
            self._fields["other"] = plain(self._fields["other"])
        if said.is_joined:
            self._doubt("two lines ran into each other")
        if row.is_die and (died := _DIED.search(said.body)):
            self._died = died["count"]
        if self._named and row.where is not Where.STALL:
            self._frame(self._named)
        if row.where is Where.LINE and not row.more:
            self._function = self._named
            self._is_decided = True

    @property
    def is_decided(self) -> bool:
        """Whether no line that comes can change the title."""
        return self._is_decided

    # ── lines ───────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, said: Said) -> None:
        """Take the next line of the crash."""
        if self._is_decided:
            return
        if trouble := self._trouble(said):
            self._doubt(trouble)
            return
        if self.row.more is not None and (found := self.row.more.search(said.body)):
            self._take(found)
        (line,) = read((said.body,))
        self._trace(said, line)
        if not self._is_decided:
            self._decide()

    def another(self, row: Row, said: Said) -> None:
        """Say that a line came that begins a crash of its own by ``row``, or belongs to one."""
        if self._is_decided:
            return
        if row.is_die:
            died = _DIED.search(said.body)
            count = died["count"] if died is not None else ""
            if self._died and count != self._died:
                self._doubt("another crash's text begins in it")
            self._died = count
        elif not row.is_consequence and row.kind is not Kind.KDB:
            self._doubt("another crash's text begins in it")

    def _trouble(self, said: Said) -> str:
        """Return why the text is not to be trusted from here on."""
        if said.is_joined:
            return "two lines ran into each other"
        if dropped := _DROPPED.search(said.text):
            return f"the kernel dropped {dropped['count']} messages"
        # A stamp that steps back proves nothing: the clock of a processor that hangs stands still.
        if said.time is not None and said.text == self._first:
            return "its text comes twice"
        if found := _PROCESSOR.match(said.body):
            now = found["cpu"], found["pid"]
            before, self._processor = self._processor, now
            # These show what other processors do, one after the other.
            if before not in (None, now) and self.row.where not in (Where.STALL, Where.HANG):
                return f"lines of processors {before[0] if before else ''} and {now[0]} are mixed"
        return ""

    def _doubt(self, why: str) -> None:
        self.corrupted = self.corrupted or why
        self._is_decided = True

    def _take(self, found: re.Match[str]) -> None:
        named = found.groupdict().get("function")
        for key, value in found.groupdict().items():
            if key != "function" and value is not None:
                self._fields.setdefault(key, value)
        if named and self.row.where is Where.LINE:
            self._frame(plain(named))

    def _trace(self, said: Said, line: Line) -> None:
        """Look for the failed instruction and the backtrace."""
        if self._is_over or self.row.where is Where.LINE:
            return
        if _USER.search(said.body):
            self._is_over = self._in_trace or bool(self._frames)
            return
        if line.segment is not None and not line.is_user:
            # What was interrupted counts; what is above it only saw to the interruption.
            if self.row.where is Where.STALL:
                self._frames.clear()
            if line.places and self.row.where not in (Where.TRACE, Where.NONE):
                self._frame(line.places[0].name)
            return
        if _TRACE.match(said.body):
            if self._in_trace and not self._frames:
                self._doubt("a backtrace has no functions")
            self._in_trace = True
        elif line.is_frame:
            self._in_trace = True
            if not line.is_doubtful:
                self._frame(line.places[0].name)
        elif self._in_trace and (_OVER.match(said.body) or not _AROUND.match(said.body)):
            # Registers of what was interrupted stand within a trace.
            self._is_over = _OVER.match(said.body) is not None or not said.body.startswith(_REGISTERS)

    def _frame(self, name: str) -> None:
        if len(self._frames) < MOST_FRAMES:
            self._frames.append(plain(name))

    # ── the function ────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self) -> None:
        """Find the function, once it cannot be another."""
        if self.row.more is not None and not self._has_more():
            return
        name: str | None
        match self.row.where:
            case Where.STALL:
                name = stalled([each for each in self._frames if not self._is_skipped_here(each)])
            case Where.HANG:
                name = hung(self._frames) if self._is_over else None
            case _:
                name = next((each for each in self._frames if not is_skipped(each, self.row.skips)), None)
        if name is not None:
            self._function = name
            self._is_decided = True
        elif self._is_over:
            self._is_decided = True

    def _is_skipped_here(self, name: str) -> bool:
        return self.row.skips is not None and self.row.skips.fullmatch(name) is not None

    def _has_more(self) -> bool:
        if self.row.more is None:
            return True
        wanted = set(self.row.more.groupindex) - {"function"}
        return wanted <= set(self._fields) and (self.row.where is not Where.LINE or bool(self._frames))

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
        others: list[str] = []
        if is_whole:
            for template in (self.row.title, *self.row.alternatives):
                for name in dict.fromkeys((function, self._function)):
                    text, _ = _fill(template, fields | ({"function": name} if name else {}))
                    others.append(text)
        alternatives = tuple(other for other in dict.fromkeys(others) if other != title)
        return Title(title, alternatives, self.row.kind, function, corrupted)

    def _missing(self) -> str:
        if self.row.more is not None and not self._has_more():
            return "the line that says more is missing"
        if not self._in_trace and not self._frames:
            return "the backtrace is missing"
        if not self._is_over:
            return "the backtrace is cut off"
        return "the backtrace has no function but those that report or dispatch"


_REGISTERS: Final = ("RIP:", "Code:", "RSP:", "EAX:", "RAX:", "RDX:", "RBP:", "R10:", "R13:", "ORIG_RAX", "FS:", "CS:", "CR2:")
_FORMATTER: Final = Formatter()


def _fill(template: str, fields: Mapping[str, str]) -> tuple[str, bool]:
    """Return a title as far as its fields are known, and whether all are."""
    parts = []
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
