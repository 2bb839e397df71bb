"""What a debugger's user is told: the one place that decides how a refusal is worded on the wire.

gdb shows the text of an ``E.`` reply for some packets, takes it for data in others, and hides it in the rest;
LLDB drops the connection on an error to a resume.  ``docs/protocol-notes.md`` has the table, with the
versions in which each was seen.
"""

from __future__ import annotations

import binascii
from typing import Final

from gdbstubs.errors import TargetError
from gdbstubs.packets import (
    Insert,
    Monitor,
    ReadMemory,
    Remove,
    Request,
    WriteMemory,
)

MOST_WORDS: Final = 32
LONGEST_WORDS: Final = 2000

_WORDLESS: Final = (ReadMemory, WriteMemory, Insert, Remove, Monitor)
"""Requests whose textual error gdb either takes for data (``m``, ``qRcmd``) or does not show."""


def error_reply(request: Request, error: TargetError) -> bytes:
    """Return the error reply to a request: with words where every debugger reads them, else a number."""
    if error.words and not isinstance(request, _WORDLESS):
        return b"E." + clean(error.words).encode("ascii", "replace")
    return b"E%02x" % (error.errno & 0xFF)


def shows_words(request: Request) -> bool:
    """Whether the user of a refused request sees the words of its error reply."""
    return not isinstance(request, _WORDLESS)


def clean(words: str) -> str:
    """Return words as one line of bounded length, without bytes that mean something on the wire."""
    line = " ".join(words.split())[:LONGEST_WORDS]
    return line.translate(_UNSAFE)


_UNSAFE: Final = {ord(letter): "?" for letter in "#$}*"}


def console_output(words: str) -> bytes:
    """Return an ``O`` packet's payload: text that gdb prints while it waits for a stop reply."""
    return b"O" + binascii.hexlify(f"kbridge: {' '.join(words.split())[:LONGEST_WORDS]}\n".encode())
