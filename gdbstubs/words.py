"""What a debugger's user is told: the one place that decides how a refusal is worded on the wire.

gdb shows the text of an ``E.`` reply for some packets, takes it for data in others, and hides it in the rest; LLDB
shows none and drops the connection on an error to a resume.  What a reply cannot carry is told as console output
before the next stop reply or ``monitor`` output.  ``docs/protocol-notes.md`` has the table, with the versions in which
each was seen.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gdbstubs.errors import EFAULT, EPERM, TargetError
from gdbstubs.requests import (
    Insert,
    KillProcess,
    Monitor,
    NonStop,
    OpenFile,
    ReadMemory,
    ReadRegister,
    ReadRegisters,
    Request,
    SearchMemory,
    Supported,
    ThreadExtra,
    Transfer,
    WhyStopped,
    WriteMemory,
    WriteRegister,
    WriteRegisters,
)
from gdbstubs.target import SIGINT, BreakpointKind, Halted, ThreadId

MOST_WORDS: Final = 32
"""How many statements wait for a debugger to listen."""
LONGEST_WORDS: Final = 2000


class Debugger(Enum):
    """Which debugger listens, as far as that decides how it is told something."""

    OLD_GDB = "gdb that announces no error-message+ (13), and whoever has not said what it is"
    GDB = "gdb that announces error-message+ (18)"
    LLDB = "LLDB"


def recognise(features: frozenset[str]) -> Debugger:
    """Return who announces these features in its ``qSupported``."""
    if "error-message+" in features:
        return Debugger.GDB
    # gdb names the register files of one architecture, LLDB always all that it can read.
    described = next((one for one in features if one.startswith("xmlRegisters=")), "")
    return Debugger.LLDB if "arm" in described.partition("=")[2].split(",") else Debugger.OLD_GDB


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a request is refused: the packets that answer it, and the words that these do not show to the user."""

    payloads: tuple[bytes, ...]
    later: str = ""


_SHOWN_BY_GDB: Final = frozenset(
    (
        NonStop,
        ReadRegister,
        ReadRegisters,
        Supported,
        Transfer,
        WhyStopped,
        WriteRegister,
        WriteRegisters,
    )
)
"""Requests to whose refusal every gdb prints the text of an ``E.`` reply, or to which it needs none."""


def refuse(debugger: Debugger, refused: Request | type[Request], error: TargetError) -> Refusal:
    """Return how a request, or one whose arguments could not be read, is refused.  A resume never is: ``refused_stop``.

    An ``E.`` reply to ``m`` and to ``qRcmd`` is taken for data by gdb 13, one to ``M``, ``X``, ``Z`` is not shown.
    """
    kind = refused if isinstance(refused, type) else type(refused)
    number = b"E%02x" % (error.errno & 0xFF)
    if kind is Monitor:
        return Refusal((console_output(str(error)), b"OK"))
    if kind is OpenFile:
        # The arguments of a file operation; an error without ``F`` is none to gdb.
        return Refusal((b"F-1,16",), error.words)
    if kind is ThreadExtra:
        # gdb shows what else it gets, a number too, as what is said of the thread.
        return Refusal((b"",), error.words)
    if not error.words or (kind is ReadMemory and error.errno == EFAULT):
        # That nothing is mapped there is what every debugger says by itself, of reads that nobody asked for too.
        return Refusal((number,))
    if debugger is Debugger.LLDB:
        text = clean(error.words).encode("ascii", "replace")
        return Refusal((number + b";" + binascii.hexlify(text),), error.words)
    if kind is SearchMemory:
        # After an error gdb says "Pattern not found", which is not so; of what it does not know it shows all.
        return Refusal((b"kbridge: " + clean(error.words).encode("ascii", "replace"),))
    if kind in _SHOWN_BY_GDB or (
        debugger is Debugger.GDB
        and isinstance(refused, Insert)
        and refused.breakpoint.kind is BreakpointKind.HARDWARE
    ):
        return Refusal((b"E." + clean(error.words).encode("ascii", "replace"),))
    return Refusal((number,), error.words)


def refused_stop(error: TargetError, thread: ThreadId | None) -> tuple[bytes, Halted]:
    """Return what answers a resume that is refused: words, then an ordinary stop.

    An error makes LLDB drop the connection; ``T05`` at the same address makes gdb's ``next`` try for ever, ``T00``
    LLDB's; an empty reply and ``N`` hang gdb.
    """
    return console_output(str(error)), Halted(SIGINT, thread)


def forbidden(debugger: Debugger, refused: Request) -> TargetError:
    """Return why an observer may not do something, and how its user asks for the right to."""
    match refused:
        case WriteMemory():
            what = "write memory"
        case WriteRegister() | WriteRegisters():
            what = "write registers"
        case _:
            what = "do that"
    return TargetError(
        EPERM, f"this session observes and may not {what}: 'monitor control take' asks for control"
    )


def not_served(request: NonStop | KillProcess) -> TargetError:
    """Return why nobody may do something, whatever the right."""
    match request:
        case NonStop():
            return TargetError(
                EPERM, "non-stop mode is not served: the guest's processors stop and run together"
            )
        case KillProcess():
            return TargetError(
                EPERM, "a debugger does not kill a guest: 'detach' leaves it, 'kbridge power' switches it off"
            )


WAITS_INSTEAD: Final = "this session observes: it waits for the next stop instead of stepping"


def killed_nothing() -> bytes:
    """Return what answers LLDB's ``k``, which ends its session and nothing else."""
    return b"kbridge: a debugger does not kill a guest: this session has left it"


def clean(words: str) -> str:
    """Return words as one line of bounded length, without bytes that mean something on the wire."""
    line = " ".join(words.split())[:LONGEST_WORDS]
    return line.translate(_UNSAFE)


_UNSAFE: Final = {ord(letter): "?" for letter in "#$}*"}


def console_output(words: str) -> bytes:
    """Return an ``O`` packet's payload: text that a debugger prints while it waits for a stop reply."""
    return b"O" + binascii.hexlify(f"kbridge: {' '.join(words.split())[:LONGEST_WORDS]}\n".encode())
