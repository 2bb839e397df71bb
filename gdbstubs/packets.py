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
from functools import lru_cache
from typing import Final

from gdbstubs.errors import RemoteProtocolError
from gdbstubs.requests import (
    ChecksumMemory,
    CloseFile,
    CurrentThread,
    DescribeHost,
    DescribeProcess,
    Detach,
    EnableErrorStrings,
    Insert,
    IsAlive,
    Kill,
    KillProcess,
    ListThreads,
    Monitor,
    NonStop,
    OffersSymbols,
    OpenFile,
    OtherFile,
    ReadFile,
    ReadMemory,
    ReadRegister,
    ReadRegisters,
    Remove,
    Request,
    Resume,
    SearchMemory,
    SelectFiles,
    SelectThread,
    StartNoAck,
    StatFile,
    Supported,
    ThreadExtra,
    Transfer,
    WasAttached,
    WhichResumes,
    WhyStopped,
    WriteMemory,
    WriteRegister,
    WriteRegisters,
)
from gdbstubs.rights import Right
from gdbstubs.target import ALL_THREADS, Action, Breakpoint, BreakpointKind, Motion, ThreadId
from gdbstubs.wire import Framer, unescape

_MOST_ACTIONS: Final = 64
LONGEST_PATTERN: Final = 0x1000
"""Bytes that ``qSearch:memory`` may look for."""


class Malformed(ValueError):
    """A known packet whose arguments cannot be understood; its text says what is wrong."""


def parse_number(text: bytes) -> int:
    """Read an unsigned hexadecimal number of at most 16 digits, in the wire's order (most significant first)."""
    # int() accepts signs, blanks and underscores, the protocol does not.
    if not text or len(text) > 16 or text.translate(None, b"0123456789abcdefABCDEF"):
        raise Malformed(f"{text[:20]!r} is no hexadecimal number")
    return int(text, 16)


def parse_thread(text: bytes) -> ThreadId:
    """Read a thread-id: ``1``, ``-1`` (all), ``0`` (any), or ``p1.1`` with a process, which is ignored.

    gdb keeps thread-ids as 32-bit integers with a sign, and so writes kgdb's ``fffffffd`` as ``-3``.
    """
    if text[:1] == b"p":
        process, dot, text = text[1:].partition(b".")
        if process != b"-1":
            parse_number(process)
        if not dot:
            return ALL_THREADS
    if text[:1] == b"-":
        number = parse_number(text[1:])
        return ALL_THREADS if number == 1 else ThreadId(-number & 0xFFFFFFFF)
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


def _action(text: bytes) -> tuple[Motion, tuple[int, int] | None]:
    """Read an action without its thread; the signal of ``C05`` is dropped."""
    letter, rest = text[:1], text[1:]
    within = None
    match letter:
        case b"c" | b"s" if not rest:
            pass
        case b"C" | b"S":
            parse_number(rest)
        case b"r":
            start, end = _range(rest)
            if start > end:
                raise Malformed(f"a range from {start:#x} back to {end:#x}")
            # An empty range is one step, even if that jumps to its start.
            within = (start, end) if start < end else None
        case _:
            raise Malformed(f"action {text[:20]!r} is unknown")
    return Motion.CONTINUE if letter in (b"c", b"C") else Motion.STEP, within


def _resume_each(arguments: bytes) -> Request:
    texts = arguments[1:].split(b";")
    if len(texts) > _MOST_ACTIONS:
        raise Malformed(f"more than {_MOST_ACTIONS} actions")
    actions = []
    for text in texts:
        action, colon, thread = text.partition(b":")
        motion, within = _action(action)
        actions.append(Action(motion, parse_thread(thread) if colon else ALL_THREADS, within))
    return Resume(tuple(actions))


def _reverse(arguments: bytes) -> Request:
    match arguments:
        case b"c":
            return Resume((Action(Motion.REVERSE_CONTINUE),))
        case b"s":
            return Resume((Action(Motion.REVERSE_STEP),))
        case _:
            # ``b9600`` of old sets a line's speed.
            raise Malformed("only bc and bs are known")


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


_LONGEST_FILE_NAME: Final = 4096
_FILE_OPERATION: Final = re.compile(rb":([a-z]+):(.*)", re.DOTALL)


def _file(arguments: bytes) -> Request:
    match = _FILE_OPERATION.fullmatch(arguments)
    if match is None:
        raise Malformed("an operation is wanted")
    operation, rest = match.groups()
    fields = rest.split(b",")
    match operation, len(fields):
        case b"open", 3:
            name = _hex_bytes(fields[0])
            if len(name) > _LONGEST_FILE_NAME:
                raise Malformed(f"a file's name of {len(name)} bytes")
            return OpenFile(name.decode("utf-8", "replace"), parse_number(fields[1]))
        case b"pread", 3:
            return ReadFile(*(parse_number(field) for field in fields))
        case b"fstat", 1:
            return StatFile(parse_number(rest))
        case b"close", 1:
            return CloseFile(parse_number(rest))
        case b"setfs", 1:
            parse_number(rest)
            return SelectFiles()
        case ((b"open" | b"pread" | b"fstat" | b"close" | b"setfs"), _):
            raise Malformed(f"{operation.decode()} with {len(fields)} arguments")
        case _:
            return OtherFile(operation[:32].decode("ascii"))


def _monitor(arguments: bytes) -> Request:
    return Monitor(_hex_bytes(arguments[1:]).decode("utf-8", "replace"))


def _search(arguments: bytes) -> Request:
    name, _, rest = arguments[1:].partition(b":")
    if name != b"memory":
        raise Malformed(f"nothing but memory is searched, not {name[:20]!r}")
    # The pattern is binary and may contain semicolons itself.
    fields = rest.split(b";", 2)
    if len(fields) != 3:
        raise Malformed("address, length and pattern are wanted")
    pattern = unescape(fields[2])
    if not 0 < len(pattern) <= LONGEST_PATTERN:
        raise Malformed(f"a pattern has 1 to {LONGEST_PATTERN} bytes, not {len(pattern)}")
    return SearchMemory(parse_number(fields[0]), parse_number(fields[1]), pattern)


def _non_stop(arguments: bytes) -> Request:
    if arguments not in (b":0", b":1"):
        raise Malformed("0 or 1 is wanted")
    return NonStop(arguments == b":1")


@dataclass(frozen=True, slots=True)
class Row:
    """One packet: what it asks, how its arguments are parsed, and the right that it needs."""

    kind: type[Request]
    parse: Callable[[bytes], Request]
    right: Right = Right.OBSERVER


def _bare(request: Request) -> Row:
    """Return the row of a packet without arguments."""
    return Row(type(request), _no_arguments(request))


def _loose(request: Request) -> Row:
    """Return the row of a packet whose arguments mean nothing to a relay."""
    return Row(type(request), _ignoring_arguments(request))


_CONTROLLER: Final = Right.CONTROLLER

# What resumes is open to observers: their ``continue`` waits for the controller's next stop without resuming
# anything.  So are breakpoints: an observer's are kept by its seat and stand in no stub, for a refusal would break
# off each of its ``continue``s.  What truly acts is refused behind the port, where control is known (docs/sharing.md).
LETTERS: Final[dict[int, Row]] = {
    ord(letter): row
    for letter, row in {
        "?": _bare(WhyStopped()),
        "C": Row(Resume, _resume_old(Motion.CONTINUE, signal=True)),
        "D": _loose(Detach()),
        "G": Row(WriteRegisters, lambda text: WriteRegisters(_hex_bytes(text)), _CONTROLLER),
        "H": Row(SelectThread, _select),
        "M": Row(WriteMemory, _write_memory_hex, _CONTROLLER),
        "P": Row(WriteRegister, _write_register, _CONTROLLER),
        "S": Row(Resume, _resume_old(Motion.STEP, signal=True)),
        "T": Row(IsAlive, lambda text: IsAlive(parse_thread(text))),
        "X": Row(WriteMemory, _write_memory_binary, _CONTROLLER),
        "Z": Row(Insert, lambda text: Insert(_breakpoint(text))),
        "b": Row(Resume, _reverse),
        "c": Row(Resume, _resume_old(Motion.CONTINUE, signal=False)),
        "g": _bare(ReadRegisters()),
        "k": _loose(Kill()),
        "m": Row(ReadMemory, lambda text: ReadMemory(*_range(text))),
        "p": Row(ReadRegister, lambda text: ReadRegister(parse_number(text))),
        "s": Row(Resume, _resume_old(Motion.STEP, signal=False)),
        "x": Row(ReadMemory, lambda text: ReadMemory(*_range(text), binary=True)),
        "z": Row(Remove, lambda text: Remove(_breakpoint(text))),
    }.items()
}
"""Packets known by their first byte."""

NAMES: Final[dict[bytes, Row]] = {
    b"QEnableErrorStrings": _bare(EnableErrorStrings()),
    b"QNonStop": Row(NonStop, _non_stop),
    b"QStartNoAckMode": _bare(StartNoAck()),
    b"qAttached": _loose(WasAttached()),
    b"qC": _bare(CurrentThread()),
    b"qCRC": Row(ChecksumMemory, lambda text: ChecksumMemory(*_range(text[1:]))),
    b"qHostInfo": _bare(DescribeHost()),
    b"qProcessInfo": _bare(DescribeProcess()),
    b"qRcmd": Row(Monitor, _monitor),
    b"qSearch": Row(SearchMemory, _search),
    b"qSupported": Row(Supported, _supported),
    b"qSymbol": _loose(OffersSymbols()),
    b"qThreadExtraInfo": Row(ThreadExtra, lambda text: ThreadExtra(parse_thread(text[1:]))),
    b"qXfer": Row(Transfer, _transfer),
    b"qfThreadInfo": _bare(ListThreads(first=True)),
    b"qsThreadInfo": _bare(ListThreads(first=False)),
    b"vCont": Row(Resume, _resume_each),
    b"vCont?": _bare(WhichResumes()),
    b"vFile": Row(OpenFile, _file),
    b"vKill": _loose(KillProcess()),
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


_SHORT: Final = 48
"""Requests up to this length are remembered: debuggers ask the same few over and over at each stop."""


def parse(payload: bytes) -> tuple[Row, Request] | None:
    """Return the row of a packet and what it asks for, or None for a packet that is unknown.

    Raises ``Malformed`` or ``RemoteProtocolError`` for a known packet whose arguments cannot be understood.
    """
    return _parse_short(payload) if len(payload) <= _SHORT else _parse(payload)


def _parse(payload: bytes) -> tuple[Row, Request] | None:
    found = find(payload)
    if found is None:
        return None
    row, arguments = found
    return row, row.parse(arguments)


_parse_short = lru_cache(maxsize=512)(_parse)


@lru_cache(maxsize=128)
def asked_whole(data: bytes) -> tuple[Row, Request] | None:
    """Return what ``parse`` does, if these bytes are one undamaged packet that is understood, and nothing else.

    For what is asked again and again in the same bytes: nothing is taken apart the second time.

    >>> asked_whole(b"$g#67")[1]
    ReadRegisters()
    """
    framer = Framer(len(data))
    events = framer.feed(data)
    if len(events) != 1 or not isinstance(events[0], bytes) or not framer.is_between or framer.noise:
        return None
    try:
        return _parse(events[0])
    except (Malformed, RemoteProtocolError):
        return None


def format_thread(thread: ThreadId) -> bytes:
    """Write a thread-id without a process: ``1``, ``-1``."""
    return b"%x" % thread if thread >= 0 else b"-%x" % -thread
