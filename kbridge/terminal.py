"""A person at a terminal: raw mode that is always undone, and the escapes typed after a newline.

``Escapes`` is pure: typed bytes in; bytes for the guest and commands out.

    ~.  leave      ~?  help      ~b  BREAK      ~~  one ~

states      at the start of a line; within a line; after a ~ at the start of a line
invariant   what is no escape reaches the guest as typed, in order
"""

from __future__ import annotations

import os
import termios
import tty
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ESCAPE: Final = b"~"
_NEWLINES: Final = b"\r\n"


class Command(Enum):
    """What an escape asks for."""

    LEAVE = b"."
    HELP = b"?"
    BREAK = b"b"


class _State(Enum):
    LINE_START = auto()
    WITHIN_LINE = auto()
    AFTER_ESCAPE = auto()


class Escapes:
    """Tells escapes from what is typed for the guest."""

    def __init__(self) -> None:
        self._state = _State.LINE_START

    def feed(self, typed: bytes) -> Iterator[bytes | Command]:
        """Yield what the bytes mean, in order."""
        plain = b""
        for number in typed:
            byte = bytes((number,))
            found = self._one(byte)
            if isinstance(found, Command):
                if plain:
                    yield plain
                    plain = b""
                yield found
            else:
                plain += found
        if plain:
            yield plain

    def _one(self, byte: bytes) -> bytes | Command:
        state, self._state = self._state, _State.WITHIN_LINE
        if state is _State.AFTER_ESCAPE:
            for command in Command:
                if byte == command.value:
                    self._state = _State.LINE_START
                    return command
            if byte == ESCAPE:
                return ESCAPE
            if byte in _NEWLINES:
                self._state = _State.LINE_START
            return ESCAPE + byte
        if state is _State.LINE_START and byte == ESCAPE:
            self._state = _State.AFTER_ESCAPE
            return b""
        if byte in _NEWLINES:
            self._state = _State.LINE_START
        return byte


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Have ``fd`` pass each key as it is typed; when it is no terminal, nothing is done."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        # Discard nothing: keys typed ahead count.
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
