"""Text that a console shows again: a log that somebody has printed, told from what the kernel says now.

in: samples of the kernel's clock as they pass, and the text before what begins like a crash.
out: why a line is not the kernel's word of now, or nothing.
invariant: what it says depends on the bytes alone, not on how they were cut into pieces.

The kernel's time stamps rise while it runs.  Where they fall, either a machine started anew or something printed
lines of before: behind a prompt at which somebody typed a command.
"""

from __future__ import annotations

import re
from typing import Final

from kbridge.crash.lines import STAMP_BYTES, take_apart, typed

LOOKS_BACK: Final = 1 << 14
"""Bytes before a line in which a prompt is looked for."""

BACKWARDS: Final = 1.0
"""Seconds by which stamps may fall and still be of now: each processor has a clock, which stands while it hangs."""
_PRINTS: Final = re.compile(
    r"(?:sudo +)?(?:\S*/)?(?:dmesg\b(?!.* (?:-[a-zA-Z]*w|--follow))|journalctl\b(?!.* (?:-[a-zA-Z]*f|--follow))|"
    r"(?:cat|less|more|head|tail|grep|zcat|zgrep|sed|awk|strings)\b.*(?:/log/|\.log\b|\.txt\b|messages|kmsg|dmesg|pstore))"
)
AGAIN: Final = "printed again: its time stamps are of before"
PRINTED: Final = "printed by a command that shows a log"


class Clock:
    """The kernel's clock as a console shows it."""

    def __init__(self) -> None:
        self._latest = -1.0
        self._is_printing = False

    def rises(self, time: float) -> None:
        """Take a stamp of a line that is read anyway; what falls is left to the samples."""
        if time >= self._latest:
            self._latest = time
            self._is_printing = False

    def passes(self, time: float, before: bytes) -> None:
        """Take a stamp that came; ``before``: the text up to it."""
        if time >= self._latest:
            self.rises(time)
        elif not self._is_printing and time < self._latest - BACKWARDS:
            # What was printed ends where the stamps are of now; a machine that starts anew begins a clock.
            self._is_printing = _stepped_back_at_prompt(before)
            if not self._is_printing:
                self._latest = time

    def doubt(self, time: float | None, before: bytes, *, quiet: bool) -> str:
        """Return why a line that looks like a crash is none of now; ``quiet``: the text before is of before a pause."""
        if time is not None:
            self.passes(time, before)
            if self._is_printing:
                return AGAIN
        return PRINTED if not quiet and _is_printed(before) else ""


def _is_printed(before: bytes) -> bool:
    """Whether the last prompt in a text has a command that prints logs."""
    for said in _backwards(before):
        command = typed(said)
        if command is not None:
            return _PRINTS.search(command) is not None
    return False


def _stepped_back_at_prompt(before: bytes) -> bool:
    """Whether the stamps of a text last fell behind a line at which somebody typed."""
    after: float | None = None
    between: list[str] = []
    for line in _backwards(before):
        found = STAMP_BYTES.search(line.encode("latin-1"))
        if found is None:
            between.append(line)
            continue
        time = float(found[1])
        if after is not None and time > after + BACKWARDS:
            return any(typed(each) for each in between)
        after = time
        between = []
    return any(typed(each) for each in between)


def _backwards(text: bytes) -> list[str]:
    """Return a text's lines, the last first, without escape sequences."""
    return [take_apart(line, 0).text for line in reversed(text[-LOOKS_BACK:].split(b"\n"))]
