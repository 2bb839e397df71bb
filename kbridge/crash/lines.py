"""A line of a console as the kernel wrote it: when, by whom, what.

Source: Linux, kernel/printk/printk.c (``print_prefix``: level, time stamp, with ``CONFIG_PRINTK_CALLER`` the task or
processor) and printk.h.  The kernel's lines land behind whatever stood on the line: a prompt, a login's question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from symbols.backtrace import MOST_LINE

STAMP: Final = re.compile(r"(?:<\d{1,3}>)?\[ {0,4}(?P<time>\d{1,7}\.\d{6})\](?:\[ *(?P<caller>[TC]\d{1,10})\])? ?")
STAMP_BYTES: Final = re.compile(rb"\[ {0,4}(\d{1,7}\.\d{6})\]")
_LEVEL: Final = re.compile(r"<\d{1,3}>")
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-9;?]{0,32}[ -/]{0,4}[@-~]|[@-Z\\^_=>78])")
_PROMPT: Final = re.compile(
    r"(?:(?:[^\s#$>]{0,80} ){0,3}[^\s#$>]{0,80}(?P<sign>[#$>])|\(initramfs\)|[\w.-]{1,64} login:) {0,2}(?P<typed>.*)"
)


@dataclass(frozen=True, slots=True)
class Said:
    """A line, taken apart."""

    offset: int
    """Of its first byte in the stream."""
    end: int
    """Behind its line feed, or behind its last byte where it has none."""
    text: str
    """Without escape sequences, carriage returns, and blanks at its end."""
    time: float | None
    """Seconds since the kernel started; None where the line has no stamp."""
    caller: str
    """``T`` and a task's or ``C`` and a processor's number; empty where the kernel does not tell."""
    body: str
    """What follows the stamp."""
    is_joined: bool
    """It has a second stamp: two lines ran into each other."""


def take_apart(data: bytes, offset: int) -> Said:
    """Return a line; ``data`` has its line feed, or none.  What is beyond ``MOST_LINE`` characters is left out."""
    text = data[:MOST_LINE].decode("latin-1")
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    # A carriage return draws over the line; the kernel sends it only before a line feed.
    text = text.replace("\r", "").rstrip()
    found = STAMP.search(text)
    if found is None:
        level = _LEVEL.match(text)
        body = text if level is None else text[level.end() :]
        return Said(offset, offset + len(data), text, None, "", body, is_joined=False)
    return Said(
        offset,
        offset + len(data),
        text,
        float(found["time"]),
        found["caller"] or "",
        text[found.end() :],
        is_joined=STAMP.search(text, found.end()) is not None,
    )


def typed(text: str) -> str | None:
    """Return what was typed in a line, behind a prompt; None where it has no prompt or is the kernel's."""
    found = _PROMPT.match(text)
    return None if found is None or STAMP.match(text) else found["typed"]
