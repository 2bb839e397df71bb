"""A line of a console as the kernel wrote it: when, by whom, what.

Source: Linux, kernel/printk/printk.c (``print_prefix``: level, time stamp, with ``CONFIG_PRINTK_CALLER`` the task or
processor) and printk.h.  The kernel's lines land behind whatever stood on the line: a prompt, a login's question.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from symbols.backtrace import MOST_LINE

STAMP: Final = re.compile(
    r"(?:<\d{1,3}>)?\[ {0,4}(?P<time>\d{1,7}\.\d{6})\](?:\[ *(?P<caller>[TC]\d{1,10})\])? ?"
)
STAMP_BYTES: Final = re.compile(rb"\[ {0,4}(\d{1,7}\.\d{6})\]")
_ESCAPE: Final = r"\x1b(?:\[[0-9;?]{0,32}[ -/]{0,4}[@-~]|[@-Z\\^_=>78])"
_ESCAPES: Final = re.compile(_ESCAPE)
_BEGUN: Final = re.compile(rf"(?:{_ESCAPE})*(?:<\d{{1,3}}>)?")
_SIGN: Final = re.compile(r"[#$>]|^\(initramfs\)|^[\w.-]{1,64} login:")
_MOST_PROMPT: Final = 160
"""Characters of a prompt, and"""
_MOST_WORDS: Final = 4
"""words."""


class Said(NamedTuple):
    """A line, taken apart.  A tuple, since it is made in a third of a frozen class's time."""

    offset: int
    """Of its first byte in the stream."""
    end: int
    """Behind its line feed, or behind its last byte where it has none."""
    ahead: str
    """What stands before the stamp: a prompt, a login's question."""
    text: str
    """From the stamp on, where it has one; without blanks and carriage returns at its end."""
    time: float | None
    """Seconds since the kernel started; None where the line has no stamp."""
    caller: str
    """``T`` and a task's or ``C`` and a processor's number; empty where the kernel does not tell."""
    body: str
    """What follows the stamp."""
    is_joined: bool
    """It has a second stamp: two lines ran into each other."""
    is_whole: bool
    """It has its line feed, and nothing of it was left out."""


def take_apart(data: bytes, offset: int) -> Said:
    """Return a line; ``data`` has its line feed, or none.  What is beyond ``MOST_LINE`` characters is left out."""
    is_whole = data.endswith(b"\n") and len(data) <= MOST_LINE
    text = data[:MOST_LINE].decode("latin-1").rstrip().lstrip("\r")
    found = STAMP.search(text)
    if found is None:
        begun = _BEGUN.match(text)
        body = text if begun is None else text[begun.end() :]
        return Said(offset, offset + len(data), "", text, None, "", body, is_joined=False, is_whole=is_whole)
    return Said(
        offset,
        offset + len(data),
        text[: found.start()],
        text[found.start() :],
        float(found["time"]),
        found["caller"] or "",
        text[found.end() :],
        is_joined="[" in text[found.end() :] and STAMP.search(text, found.end()) is not None,
        is_whole=is_whole,
    )


def typed(text: str) -> str | None:
    """Return what was typed in a line, behind a prompt; None where it has no prompt or is the kernel's."""
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    found = _SIGN.search(text, 0, _MOST_PROMPT)
    if found is None or text.count(" ", 0, found.start()) >= _MOST_WORDS or STAMP.match(text):
        return None
    return text[found.end() :].strip()
