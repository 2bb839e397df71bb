"""The function that a crash is called after, out of its failed instruction and its first backtrace.

in: the lines of a crash, as they come.
out: the function, once no line that comes can make it another.
states: before the backtrace, within it, behind it.
invariant: once found, a function stays.

Frames are read by ``symbols.backtrace``.  One that the kernel doubts (``?``) only stands on the stack and counts for
nothing, save where the instruction itself is in no function: then the kernel cannot unwind, but who called it stands
first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kbridge.crash.functions import calls_others, dispatches, is_skipped, known_wait, plain, waits
from kbridge.crash.kinds import Where
from symbols.backtrace import read

if TYPE_CHECKING:
    from kbridge.crash.kinds import Row
    from symbols.backtrace import Line

PROCESSOR: Final = re.compile(r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) ")
"""The line that begins what the kernel shows of a processor."""
_TRACE: Final = re.compile(r"(?:Call [Tt]race|Backtrace)\b.*:$|Backtrace: ?$")
_INTERRUPTS: Final = re.compile(r"\s*<(?:IRQ|NMI|#[A-Z]+)>$")
_INTERRUPTED: Final = re.compile(r"\s*</(?:IRQ|NMI|#[A-Z]+)>$")
_USER: Final = re.compile(r"RIP: 0033:")
_STAYS: Final = re.compile(
    r"\s*</?[A-Z#][\w#]*>$|\s*$|RIP:|Code:|[ER][A-Z]{2}:|R\d\d?:|ORIG_RAX|FS:|CS:|CR2:"
)
"""Marks, and registers of what was interrupted, which stand within a backtrace."""
_OVER: Final = re.compile(r"\s*</TASK>$|Modules linked in:|---\[ end ")


class Stack:
    """Reads the lines of one crash for its function."""

    def __init__(self, row: Row) -> None:
        """Begin before the first line."""
        self._where = row.where
        self._skips = row.skips
        self.function = ""
        """Empty while it is not known."""
        self.is_over = False
        """Whether a backtrace is behind us."""
        self.has_frames = False
        self.is_empty = False
        """Whether one backtrace began and another, with no function between."""
        self._in_trace = False
        self._is_nowhere = False
        """The failed instruction is in no function."""
        self._is_aside = False
        """In the code that only saw to the interruption that shows a stall."""
        self._has_processor = False
        self._before = ""
        """Of a stall: the outermost function so far that is no mere helper; of a hang: the first that does not wait."""

    def add(self, body: str) -> None:
        """Take a line, without its stamp."""
        if self.function or self._where is Where.LINE:
            return
        (line,) = read((body,))
        if self._where is Where.STALL and not self._is_of_interest(body, line):
            return
        if self.is_over:
            return
        if _USER.search(body):
            self._over(self._in_trace or self.has_frames)
        elif line.segment is not None and not line.is_user:
            self._instruction(line)
        elif _TRACE.match(body):
            self.is_empty = self.is_empty or (self._in_trace and not self.has_frames)
            self._in_trace = True
        elif line.is_frame:
            self._in_trace = True
            if self._is_nowhere or not line.is_doubtful:
                self.take(line.places[0].name)
        elif self._in_trace and (_OVER.match(body) or not _STAYS.match(body)):
            self._over(is_over=True)

    def take(self, name: str) -> None:
        """Take a function, the next one outwards."""
        name = plain(name)
        self.has_frames = True
        match self._where:
            case Where.STALL:
                self._stalls_in(name)
            case Where.HANG:
                self._before = self._before or ("" if waits(name) else name)
                self.function = known_wait(name)
            case _:
                self.function = "" if is_skipped(name, self._skips) else name

    def _over(self, is_over: bool) -> None:
        self.is_over = is_over
        if is_over and self._where is Where.HANG:
            self.function = self._before

    def _instruction(self, line: Line) -> None:
        """Take the failed or the interrupted instruction."""
        if self._where is Where.STALL:
            self._before = ""
        self._is_nowhere = not line.places
        if line.places and self._where in (Where.STACK, Where.STALL):
            self.take(line.places[0].name)

    def _is_of_interest(self, body: str, line: Line) -> bool:
        """Follow where in what is shown of a stall we are; return whether the line is of the code that stalls."""
        if PROCESSOR.match(body):
            self._has_processor = True
            self._anew()
        elif _INTERRUPTED.match(body):
            self._anew()
        elif _INTERRUPTS.match(body) and not self._before:
            self._is_aside = True
        elif line.segment is not None:
            self._is_aside = False
        return self._has_processor and not self._is_aside

    def _anew(self) -> None:
        """Forget what only saw to the interruption, or was of another processor."""
        self._before = ""
        self.has_frames = self._in_trace = self.is_over = self._is_aside = False

    def _stalls_in(self, name: str) -> None:
        """Take a function of code that stalls: it is called after what was dispatched."""
        if self._skips is not None and is_skipped(name, self._skips) and not self._before:
            return
        if calls_others(name):
            self.function = "smp_call_function"
        elif dispatches(name):
            self.function = self._before or name
        elif not self._before or not is_skipped(name, self._skips):
            self._before = name
