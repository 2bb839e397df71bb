"""Errors whose text is for the operator.

KbridgeError            what went wrong, why, and what to do next
  ConfigError           a configuration that is not valid: all its mistakes at once
  MachineError          the machine monitor refused, or could not be reached
    CommandRefusedError its command was certainly not carried out
  LineError             a serial line cannot be opened, written or broken
    PenHeldError        another may type on it
  RecordError           a console ring or time line cannot be used
  GuestError            a guest is unknown, or lacks what the request needs
  ImageError            a memory image cannot be taken, kept or read
  ScriptError           a script for a console is not valid: all its mistakes at once
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class KbridgeError(Exception):
    """Something that the operator should read: what, why, and what to do next, in one line.

    The state of the object that raised it is as before the call, unless its docstring says otherwise.
    """

    def __init__(self, what: str, *, why: str = "", todo: str = "") -> None:
        super().__init__(what, why, todo)
        self.what = what
        self.why = why
        self.todo = todo

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}" if self.why else self.what
        return f"{text}; {self.todo}" if self.todo else text


class ConfigError(KbridgeError):
    """The configuration is not valid; nothing was started or changed."""


class MachineError(KbridgeError):
    """The machine monitor refused a command or cannot be reached; the machine is as it was."""


class CommandRefusedError(MachineError):
    """The machine monitor refused a command, or was not sent it: it was certainly not carried out."""


class LineError(KbridgeError):
    """A serial line cannot be opened, written to or broken."""


class PenHeldError(LineError):
    """Another holds the console's pen."""


class RecordError(KbridgeError):
    """A console ring, its index or a time line cannot be used."""


class GuestError(KbridgeError):
    """The guest is unknown or lacks the capability that the request needs."""


class ImageError(KbridgeError):
    """A memory image cannot be taken, kept or read; nothing is left where it was to be."""


@dataclass(frozen=True, slots=True)
class ScriptMistake:
    """A mistake in a script, and its line, 0 where it has none."""

    line: int
    words: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.words}" if self.line else self.words


class ScriptError(KbridgeError):
    """A script for a console is not valid; nothing was sent."""

    def __init__(self, mistakes: Iterable[ScriptMistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))
