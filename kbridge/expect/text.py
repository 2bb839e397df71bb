r"""A console's bytes as the text that patterns are held against: without escape sequences, byte by byte.

in          bytes, in any pieces
out         text; a line's end is one ``\n``, however many carriage returns came with it
states      plain; within an escape sequence (ECMA-48: control sequences, and strings such as a window's title)
invariant   what has come out after a byte depends on the bytes up to it only, never on how they were split;
            at most ``MAX_SEQUENCE`` characters are held back

Bytes that are no UTF-8 come out as U+DC80 to U+DCFF (``surrogateescape``).
"""

from __future__ import annotations

import codecs
import re
from enum import Enum, auto
from typing import Final

MAX_SEQUENCE: Final = 256
"""A sequence that is longer, or has a line's end within, is none: what was held back comes out as text."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PLAIN: Final = re.compile(rb"[ -~]+")


class _State(Enum):
    PLAIN = auto()
    RETURNED = auto()
    """After a carriage return: a line feed belongs to it."""
    ESCAPE = auto()
    """After ESC, or intermediate characters after it."""
    CONTROL = auto()
    """Within a control sequence, ``ESC [``."""
    STRING = auto()
    STRING_ESCAPE = auto()


class ConsoleText:
    """Makes text of bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self._state = _State.PLAIN
        self._held = ""
        self._whole = True

    def plain_run(self, data: bytes, start: int) -> int:
        """Return where the printable ASCII that begins at ``start`` ends, each byte of which is a character.

        It is ``start`` where bytes must be fed one by one.  Nothing is taken.
        """
        if self._state is not _State.PLAIN or not self._whole:
            return start
        found = _PLAIN.match(data, start)
        return start if found is None else found.end()

    def feed(self, byte: bytes) -> str:
        """Return what came out with one byte more."""
        text = self._decoder.decode(byte)
        self._whole = not self._decoder.getstate()[0]
        return "".join(map(self._one, text))

    def reset(self) -> None:
        """Forget what is held back: bytes are missing here."""
        self._decoder.reset()
        self._state = _State.PLAIN
        self._held = ""
        self._whole = True

    def _one(self, char: str) -> str:
        match self._state:
            case _State.PLAIN:
                return self._plain(char)
            case _State.RETURNED:
                if char == "\r":
                    return ""
                self._state = _State.PLAIN
                return "" if char == "\n" else self._plain(char)
            case _:
                return self._within(char)

    def _plain(self, char: str) -> str:
        if char == "\x1b":
            self._state = _State.ESCAPE
            self._held = char
            return ""
        if char == "\r":
            self._state = _State.RETURNED
            return "\n"
        return "" if _CONTROL.match(char) else char

    def _within(self, char: str) -> str:
        if char in "\r\n\x18\x1a" or len(self._held) >= MAX_SEQUENCE:
            held, self._held = _CONTROL.sub("", self._held), ""
            self._state = _State.PLAIN
            return held + self._plain(char)
        self._held += char
        self._state = _next(self._state, char)
        if self._state is _State.PLAIN:
            self._held = ""
        return ""


def _next(state: _State, char: str) -> _State:
    match state:
        case _State.STRING if char == "\x1b":
            return _State.STRING_ESCAPE
        case _State.STRING:
            return _State.PLAIN if char == "\x07" else _State.STRING
        case _ if char == "\x1b":
            return _State.ESCAPE
        case _State.CONTROL:
            # Parameters and intermediates go on, anything else is the last.
            return _State.CONTROL if " " <= char <= "?" else _State.PLAIN
        case _State.STRING_ESCAPE:
            return _State.PLAIN
        case _ if char == "[":
            return _State.CONTROL
        case _ if char in "]PX^_":
            return _State.STRING
        case _:
            return _State.ESCAPE if " " <= char <= "/" else _State.PLAIN
