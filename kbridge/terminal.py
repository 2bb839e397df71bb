"""A person at a terminal: raw mode that is always undone, and the escapes typed after a newline.

``Escapes`` is pure: typed bytes in; bytes for the guest and commands out.

    ~.  leave      ~?  help      ~b  BREAK      ~~  one ~

states      at the start of a line; within a line; after a ~ at the start of a line; within what may be a report
            of the terminal at the start of a line
invariant   what is no escape reaches the guest as typed, in order

A shell that asks where the cursor is (busybox does at each prompt) has the terminal "type" the answer, such as
``ESC [ 24 ; 7 R``, right at the start of a line: that does not count as typing.
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
_REPORT_PARAMETERS: Final = b"0123456789;?>"
_REPORT_ENDS: Final = b"Rcn"
"""Cursor position, device attributes, device status (ECMA-48; xterm's control sequences)."""


class Command(Enum):
    """What an escape asks for."""

    LEAVE = b"."
    HELP = b"?"
    BREAK = b"b"


class _State(Enum):
    LINE_START = auto()
    WITHIN_LINE = auto()
    AFTER_ESCAPE = auto()
    REPORT_BEGINS = auto()
    REPORT = auto()


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
        state = self._state
        if state is _State.AFTER_ESCAPE:
            return self._escaped(byte)
        if state is _State.LINE_START and byte == ESCAPE:
            self._state = _State.AFTER_ESCAPE
            return b""
        self._state = _after(state, byte)
        return byte

    def _escaped(self, byte: bytes) -> bytes | Command:
        for command in Command:
            if byte == command.value:
                self._state = _State.LINE_START
                return command
        self._state = _after(_State.WITHIN_LINE, byte)
        return ESCAPE if byte == ESCAPE else ESCAPE + byte


def _after(state: _State, byte: bytes) -> _State:
    """Return the state after a byte that is no part of an escape of ours."""
    match state:
        case _ if byte in _NEWLINES:
            return _State.LINE_START
        case _State.LINE_START if byte == b"\x1b":
            return _State.REPORT_BEGINS
        case _State.REPORT_BEGINS if byte == b"[":
            return _State.REPORT
        case _State.REPORT if byte in _REPORT_PARAMETERS:
            return _State.REPORT
        case _State.REPORT if byte in _REPORT_ENDS:
            return _State.LINE_START
        case _:
            return _State.WITHIN_LINE


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
