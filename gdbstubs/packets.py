"""The packets that a debugger may send: one row each, with its parser and the right it needs.

The table is an allow-list.  A packet that has no row gets the empty reply, which is RSP's way to say
"unknown"; one that has a row is parsed fully or refused.  Rows that exist only to be refused in words
(``vKill``) are here too.

Source: GDB manual, "Packets", "General Query Packets", "vCont".
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gdbstubs.rights import Right
from gdbstubs.target import ALL_THREADS, Action, Breakpoint, BreakpointKind, Motion, ThreadId
from gdbstubs.wire import unescape


@dataclass(frozen=True, slots=True)
class Supported:
    """``qSupported:multiprocess+;swbreak+``: what the debugger can do."""

    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class StartNoAck:
    """``QStartNoAckMode``: no acknowledgements from here on."""


@dataclass(frozen=True, slots=True)
class EnableErrorStrings:
    """``QEnableErrorStrings``: LLDB takes ``E01;hex text``."""


@dataclass(frozen=True, slots=True)
class WhyStopped:
    """``?``: why the target stands still."""


@dataclass(frozen=True, slots=True)
class SelectThread:
    """``Hg1``, ``Hc-1``: the thread of later register and memory (``g``) or resume (``c``) packets."""

    general: bool
    thread: ThreadId


@dataclass(frozen=True, slots=True)
class ReadRegisters:
    """``g``: all general registers."""


@dataclass(frozen=True, slots=True)
class WriteRegisters:
    """``G0011…``: all general registers."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ReadRegister:
    """``p10``: one register, its number in hexadecimal."""

    number: int


@dataclass(frozen=True, slots=True)
class WriteRegister:
    """``P10=0011223344556677``: one register."""

    number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class ReadMemory:
    """``mffffffff81000000,40``: memory, answered in hexadecimal; ``x…``: answered in binary."""

    address: int
    length: int
    binary: bool = False


@dataclass(frozen=True, slots=True)
class WriteMemory:
    """``Mffffffff81000000,1:cc`` in hexadecimal, ``Xffffffff81000000,1:`` and the byte itself in binary."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Insert:
    """``Z0,ffffffff81000000,1``: insert a breakpoint or watchpoint."""

    breakpoint: Breakpoint


@dataclass(frozen=True, slots=True)
class Remove:
    """``z0,ffffffff81000000,1``: remove a breakpoint or watchpoint."""

    breakpoint: Breakpoint


@dataclass(frozen=True, slots=True)
class Resume:
    """``vCont;s:1;c``, or ``c``, ``s``, ``C05``, ``S05`` of old.

    An action without a thread in an old packet holds for the thread of ``Hc`` (``legacy``).  A signal is
    dropped: processors take none.
    """

    actions: tuple[Action, ...]
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class WhichResumes:
    """``vCont?``: the actions known."""


@dataclass(frozen=True, slots=True)
class Detach:
    """``D`` or ``D;1``: leave."""


@dataclass(frozen=True, slots=True)
class Kill:
    """``k``: no reply is expected; a relay takes it for leaving."""


@dataclass(frozen=True, slots=True)
class KillProcess:
    """``vKill;1``: always refused."""


@dataclass(frozen=True, slots=True)
class IsAlive:
    """``T1``: whether a thread exists."""

    thread: ThreadId


@dataclass(frozen=True, slots=True)
class ListThreads:
    """``qfThreadInfo`` (first) and ``qsThreadInfo``: the thread-ids."""

    first: bool


@dataclass(frozen=True, slots=True)
class ThreadExtra:
    """``qThreadExtraInfo,1``: what the stub says of a thread."""

    thread: ThreadId


@dataclass(frozen=True, slots=True)
class CurrentThread:
    """``qC``: the thread that stopped."""


@dataclass(frozen=True, slots=True)
class WasAttached:
    """``qAttached``: whether the target was there before the debugger (always)."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """``qXfer:features:read:target.xml:0,1000``: a piece of an object, offset and length in bytes."""

    kind: str
    annex: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class OffersSymbols:
    """``qSymbol::``: the debugger can look symbols up; none are wanted."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """``qRcmd,68656c70``: ``monitor help``."""

    command: str


Request = (
    Supported
    | StartNoAck
    | EnableErrorStrings
    | WhyStopped
    | SelectThread
    | ReadRegisters
    | WriteRegisters
    | ReadRegister
    | WriteRegister
    | ReadMemory
    | WriteMemory
    | Insert
    | Remove
    | Resume
    | WhichResumes
    | Detach
    | Kill
    | KillProcess
    | IsAlive
    | ListThreads
    | ThreadExtra
    | CurrentThread
    | WasAttached
    | Transfer
    | OffersSymbols
    | Monitor
)

_MOST_ACTIONS: Final = 64


class Malformed(ValueError):
    """A known packet whose arguments cannot be understood; its text says what is wrong."""


def parse_number(text: bytes) -> int:
    """Read an unsigned hexadecimal number of at most 16 digits, in the wire's order (most significant first)."""
    # int() accepts signs, blanks and underscores, the protocol does not.
    if not text or len(text) > 16 or text.translate(None, b"0123456789abcdefABCDEF"):
        raise Malformed(f"{text[:20]!r} is no hexadecimal number")
    return int(text, 16)


def parse_thread(text: bytes) -> ThreadId:
    """Read a thread-id: ``1``, ``-1`` (all), ``0`` (any), or ``p1.1`` with a process, which is ignored."""
    if text[:1] == b"p":
        process, dot, text = text[1:].partition(b".")
        if process != b"-1":
            parse_number(process)
        if not dot:
            return ALL_THREADS
    if text[:1] == b"-":
        return ThreadId(-parse_number(text[1:]))
    return ThreadId(parse_number(text))


def _hex_bytes(text: bytes) -> bytes:
    try:
        return binascii.unhexlify(text)
    except binascii.Error as error:
        raise Malformed(f"data is not hexadecimal: {error}") from None


def _no_arguments(request: Request) -> Callable[[bytes], Request]:
    def parse(arguments: bytes) -> Request:
        if arguments:
            raise Malformed(f"unexpected {arguments[:20]!r}")
        return request

    return parse


def _ignoring_arguments(request: Request) -> Callable[[bytes], Request]:
    def parse(arguments: bytes) -> Request:
        return request

    return parse


def _range(text: bytes) -> tuple[int, int]:
    address, comma, length = text.partition(b",")
    if not comma:
        raise Malformed("a length is missing")
    return parse_number(address), parse_number(length)


def _supported(arguments: bytes) -> Request:
    return Supported(frozenset(arguments[1:].decode("latin-1").split(";")) - {""})


def _select(arguments: bytes) -> Request:
    if arguments[:1] not in (b"g", b"c"):
        raise Malformed(f"{arguments[:1]!r} is neither g nor c")
    return SelectThread(arguments[:1] == b"g", parse_thread(arguments[1:]))


def _read_memory(arguments: bytes) -> Request:
    address, length = _range(arguments)
    return ReadMemory(address, length)


def _read_memory_binary(arguments: bytes) -> Request:
    address, length = _range(arguments)
    return ReadMemory(address, length, binary=True)


def _write_memory(arguments: bytes, decode: Callable[[bytes], bytes]) -> Request:
    where, colon, text = arguments.partition(b":")
    if not colon:
        raise Malformed("data is missing")
    address, length = _range(where)
    data = decode(text)
    if len(data) != length:
        raise Malformed(f"{length} bytes announced, {len(data)} sent")
    return WriteMemory(address, data)


def _write_memory_hex(arguments: bytes) -> Request:
    return _write_memory(arguments, _hex_bytes)


def _write_memory_binary(arguments: bytes) -> Request:
    return _write_memory(arguments, unescape)


def _write_register(arguments: bytes) -> Request:
    number, equals, value = arguments.partition(b"=")
    if not equals or not value:
        raise Malformed("a value is missing")
    return WriteRegister(parse_number(number), _hex_bytes(value))


def _breakpoint(arguments: bytes) -> Breakpoint:
    # Conditions and commands may follow the size; they are not announced, and a debugger that sends them
    # evaluates them itself as well.
    fields = arguments.partition(b";")[0].split(b",")
    if len(fields) != 3:
        raise Malformed("type, address and size are wanted")
    kind, address, size = (parse_number(field) for field in fields)
    if kind > 4:
        raise Malformed(f"breakpoint type {kind} is unknown")
    return Breakpoint(BreakpointKind(kind), address, size)


def _insert(arguments: bytes) -> Request:
    return Insert(_breakpoint(arguments))


def _remove(arguments: bytes) -> Request:
    return Remove(_breakpoint(arguments))


def _motion(letter: bytes) -> Motion:
    match letter:
        case b"c" | b"C":
            return Motion.CONTINUE
        case b"s" | b"S":
            return Motion.STEP
        case _:
            raise Malformed(f"action {letter!r} is unknown")


def _resume_each(arguments: bytes) -> Request:
    texts = arguments[1:].split(b";")
    if len(texts) > _MOST_ACTIONS:
        raise Malformed(f"more than {_MOST_ACTIONS} actions")
    actions = []
    for text in texts:
        action, colon, thread = text.partition(b":")
        motion = _motion(action[:1])
        if action[:1] in (b"C", b"S"):
            parse_number(action[1:])
        elif action[1:]:
            raise Malformed(f"action {action[:20]!r} is unknown")
        actions.append(Action(motion, parse_thread(thread) if colon else ALL_THREADS))
    return Resume(tuple(actions))


def _resume_old(motion: Motion, *, signal: bool) -> Callable[[bytes], Request]:
    resume = Resume((Action(motion),), legacy=True)

    def parse(arguments: bytes) -> Request:
        where = arguments
        if signal:
            number, _, where = arguments.partition(b";")
            parse_number(number)
        if where:
            raise Malformed("resuming at another address is not supported: set the program counter first")
        return resume

    return parse


_TRANSFER: Final = re.compile(rb":([a-z-]+):read:([^:]*):([0-9a-fA-F]{1,8}),([0-9a-fA-F]{1,8})", re.DOTALL)


def _transfer(arguments: bytes) -> Request:
    match = _TRANSFER.fullmatch(arguments)
    if match is None:
        raise Malformed("object, read, annex, offset and length are wanted")
    kind, annex, offset, length = match.groups()
    return Transfer(kind.decode("ascii"), annex.decode("latin-1"), int(offset, 16), int(length, 16))


def _monitor(arguments: bytes) -> Request:
    return Monitor(_hex_bytes(arguments[1:]).decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Row:
    """One packet: how its arguments are parsed, and the right that it needs."""

    parse: Callable[[bytes], Request]
    right: Right


_OBSERVER: Final = Right.OBSERVER
_CONTROLLER: Final = Right.CONTROLLER

LETTERS: Final[dict[int, Row]] = {
    ord(letter): row
    for letter, row in {
        "?": Row(_no_arguments(WhyStopped()), _OBSERVER),
        "C": Row(_resume_old(Motion.CONTINUE, signal=True), _CONTROLLER),
        "D": Row(_ignoring_arguments(Detach()), _OBSERVER),
        "G": Row(lambda text: WriteRegisters(_hex_bytes(text)), _CONTROLLER),
        "H": Row(_select, _OBSERVER),
        "M": Row(_write_memory_hex, _CONTROLLER),
        "P": Row(_write_register, _CONTROLLER),
        "S": Row(_resume_old(Motion.STEP, signal=True), _CONTROLLER),
        "T": Row(lambda text: IsAlive(parse_thread(text)), _OBSERVER),
        "X": Row(_write_memory_binary, _CONTROLLER),
        "Z": Row(_insert, _CONTROLLER),
        "c": Row(_resume_old(Motion.CONTINUE, signal=False), _CONTROLLER),
        "g": Row(_no_arguments(ReadRegisters()), _OBSERVER),
        "k": Row(_ignoring_arguments(Kill()), _OBSERVER),
        "m": Row(_read_memory, _OBSERVER),
        "p": Row(lambda text: ReadRegister(parse_number(text)), _OBSERVER),
        "s": Row(_resume_old(Motion.STEP, signal=False), _CONTROLLER),
        "x": Row(_read_memory_binary, _OBSERVER),
        "z": Row(_remove, _CONTROLLER),
    }.items()
}
"""Packets known by their first byte."""

NAMES: Final[dict[bytes, Row]] = {
    b"QEnableErrorStrings": Row(_no_arguments(EnableErrorStrings()), _OBSERVER),
    b"QStartNoAckMode": Row(_no_arguments(StartNoAck()), _OBSERVER),
    b"qAttached": Row(_ignoring_arguments(WasAttached()), _OBSERVER),
    b"qC": Row(_no_arguments(CurrentThread()), _OBSERVER),
    b"qRcmd": Row(_monitor, _OBSERVER),
    b"qSupported": Row(_supported, _OBSERVER),
    b"qSymbol": Row(_ignoring_arguments(OffersSymbols()), _OBSERVER),
    b"qThreadExtraInfo": Row(lambda text: ThreadExtra(parse_thread(text[1:])), _OBSERVER),
    b"qXfer": Row(_transfer, _OBSERVER),
    b"qfThreadInfo": Row(_no_arguments(ListThreads(first=True)), _OBSERVER),
    b"qsThreadInfo": Row(_no_arguments(ListThreads(first=False)), _OBSERVER),
    b"vCont": Row(_resume_each, _CONTROLLER),
    b"vCont?": Row(_no_arguments(WhichResumes()), _OBSERVER),
    b"vKill": Row(_ignoring_arguments(KillProcess()), _CONTROLLER),
}
"""Packets known by a name, which ends at the first ``:``, ``;`` or ``,``."""

_NAME: Final = re.compile(rb"[A-Za-z]+\??")
_NAMED: Final = frozenset(b"Qqv")


def find(payload: bytes) -> tuple[Row, bytes] | None:
    """Return the row of a packet and its arguments, or None for a packet that is unknown.

    The arguments of a named packet begin with the byte that ended its name.
    """
    if not payload:
        return None
    first = payload[0]
    if first not in _NAMED:
        row = LETTERS.get(first)
        return None if row is None else (row, payload[1:])
    match = _NAME.match(payload)
    if match is None:
        return None
    name = match.group()
    row = NAMES.get(name)
    end = match.end()
    if row is None or payload[end : end + 1] not in (b"", b":", b";", b","):
        return None
    return row, payload[end:]


def format_thread(thread: ThreadId) -> bytes:
    """Write a thread-id without a process: ``1``, ``-1``."""
    return b"%x" % thread if thread >= 0 else b"-%x" % -thread
