"""Text that a console shows again: a log that somebody has printed, told from what the kernel says now.

in: samples of the kernel's clock as they pass, and the text before what begins like a crash.
out: why a line is not the kernel's word of now, or nothing.
invariant: what it says depends on the bytes alone, not on how they were cut into pieces.

The kernel's time stamps rise while it runs.  Where they fall, either a machine started anew or something printed
lines of before: behind a prompt at which somebody typed a command.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

from kbridge.crash.lines import STAMP_BYTES, take_apart, typed

if TYPE_CHECKING:
    from kbridge.crash.lines import Said

LOOKS_BACK: Final = 1 << 13
"""Bytes before a stamp in which it is looked for where the clock fell: as many as from sample to sample."""
STRIDE: Final = 1 << 9
MOST_BEGUN: Final = 32
COMMAND_WITHIN: Final = 4
"""Lines before what a command prints of a log, in which it is."""
BACKWARDS: Final = 1.0
"""Seconds by which stamps may fall and still be of now: each processor has a clock, which stands while it hangs."""
_PRINTS: Final = re.compile(
    r"(?:sudo +)?(?:\S*/)?(?:dmesg\b(?!.* (?:-[a-zA-Z]*w|--follow))|journalctl\b(?!.* (?:-[a-zA-Z]*f|--follow))|"
    r"(?:cat|less|more|head|tail|grep|zcat|zgrep|sed|awk|strings)\b.*(?:/log/|\.log\b|\.txt\b|messages|kmsg|dmesg|pstore))"
)
_RESETS: Final = re.compile(
    r"\b(?:reboot|shutdown|halt|poweroff|kexec|init|telinit|systemctl|sysrq\S*|exit)\b"
)
AGAIN: Final = "printed again: its time stamps are of before"
TWICE: Final = "printed again: the same line, of the same time, began a crash before"
PRINTED: Final = "printed by a command that shows a log"


class Clock:
    """The kernel's clock as a console shows it, and whether somebody has its log shown."""

    def __init__(self) -> None:
        self._latest = -1.0
        """Of the kernel that runs."""
        self._shown = -1.0
        """Last, by it or by what prints its lines of before."""
        self._is_printing = False
        self._may_fall = False
        """The machine may have been put back: the next stamp says what time it is."""
        self._is_log = False
        """The last command that was typed shows a log."""
        self._begun: deque[str] = deque(maxlen=MOST_BEGUN)
        """The lines with which crashes began."""

    def line(self, said: Said) -> None:
        """Take a line that may have a prompt."""
        if said.time is not None:
            # A prompt that is back, with the kernel's line behind it.
            self._is_log = self._is_log and typed(said.ahead) is None
        elif (command := typed(said.text)) is not None:
            self._is_log = _PRINTS.search(command) is not None

    def pauses(self) -> None:
        """Say that nothing came for a while: what showed a log is done."""
        self._is_log = False

    def may_fall(self) -> None:
        """Say that the machine may have been put back to an earlier moment, and its clock with it."""
        self._may_fall = True

    def rises(self, time: float) -> None:
        """Take a stamp of a line that is read anyway; what falls is left to the samples."""
        if time >= self._latest:
            self._latest = self._shown = time
            self._is_printing = self._may_fall = False

    def passes(self, time: float, text: bytes, place: int) -> None:
        """Take a stamp that came, which stands in ``text`` at ``place``."""
        shown, self._shown = self._shown, time
        if time >= self._latest or self._may_fall:
            if time < self._latest:
                # It was put back, and may say again what it said since that moment, to the microsecond.
                self._begun.clear()
            self._latest = time
            self.rises(time)
        elif time < shown - BACKWARDS:
            # What is printed ends where the stamps are of now again; a machine that starts anew begins a clock.
            self._is_printing = _fell_at_prompt(text[max(place - LOOKS_BACK, 0) : place], time)
            if not self._is_printing:
                self._latest = time

    def doubt(self, said: Said, text: bytes, place: int) -> str:
        """Return why a line that looks like a crash is none of now; it stands in ``text`` at ``place``."""
        self.line(said)
        if said.time is not None:
            self.passes(said.time, text, place)
            if self._is_printing:
                return AGAIN
            if said.text in self._begun:
                return TWICE
            self._begun.append(said.text)
        return PRINTED if self._is_log else ""


def _fell_at_prompt(text: bytes, time: float) -> bool:
    """Whether the clock, which shows ``time`` after a text, last fell in it behind a command that somebody typed."""
    after, end = time, len(text)
    # Not every stamp is read: the first of each stride shows in which the clock fell.
    for first in range(len(text) - STRIDE, -STRIDE, -STRIDE):
        begin = max(first, 0)
        found = STAMP_BYTES.search(text, begin, first + STRIDE)
        if found is None:
            continue
        if float(found[1]) > after + BACKWARDS:
            for last in reversed(list(STAMP_BYTES.finditer(text, begin, end))):
                if float(last[1]) > after + BACKWARDS:
                    return _is_typed_in(text[last.end() : end], text[end : end + 80])
                after, end = float(last[1]), last.start()
            return False
        after, end = float(found[1]), found.start()
    return _is_typed_in(b"\n" + text[:end], text[end : end + 80])


def _is_typed_in(between: bytes, following: bytes) -> bool:
    """Whether a command in the last lines before some text printed it; the first line of ``between`` is cut off."""
    for line in reversed(between.split(b"\n")[1:][-COMMAND_WITHIN:]):
        command = typed(take_apart(line, 0).text)
        if command:
            # A kernel begins with its version; so does its log.
            is_begin = b"Linux version" in following
            return _PRINTS.search(command) is not None if is_begin else _RESETS.search(command) is None
    return False
