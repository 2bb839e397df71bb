"""Replies of a stub in words; what each answers chooses how it is read.

Each reader takes a payload that is neither empty nor an error, and may raise ``ValueError`` or
``RemoteProtocolError`` for one that makes no sense; ``decode`` then says what it looks like.

Source: GDB manual, "Standard Replies", "Stop Reply Packets", "General Query Packets".
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from typing import Final

from gdbstubs.packets import Malformed, parse_thread
from gdbstubs.target import ALL_THREADS, ANY_THREAD, ThreadId
from gdbstubs.wire import unescape

MOST_TEXT: Final = 200
"""Characters of a text within words; the rest is cut."""
MOST_LISTED: Final = 8

Answer = Callable[[bytes], str]
"""Says what a reply means that is neither empty nor an error."""

_SIGNALS: Final = (
    "no signal", "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGEMT", "SIGFPE",
    "SIGKILL", "SIGBUS", "SIGSEGV", "SIGSYS", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGURG", "SIGSTOP",
)  # fmt: skip
"""GDB's own numbers (include/gdb/signals.def)."""

_ERRORS: Final = {
    1: "EPERM (not permitted)",
    2: "ENOENT (not found)",
    3: "ESRCH (no such thread)",
    5: "EIO (input/output error)",
    7: "E2BIG (too long)",
    9: "EBADF (no such file handle)",
    11: "EAGAIN (not now)",
    12: "ENOMEM (no memory)",
    13: "EACCES (not permitted)",
    14: "EFAULT (bad address)",
    16: "EBUSY (in use)",
    22: "EINVAL (invalid argument)",
    28: "ENOSPC (no room)",
    38: "ENOSYS (not known)",
    110: "ETIMEDOUT (no answer in time)",
    # QEMU writes errno in decimal digits (seen in 7.2); read as the hexadecimal that they should be, these two
    # are ENOTDIR and ERANGE, which no stub means.
    0x14: "EFAULT (bad address)",
    0x22: "EINVAL (invalid argument)",
}

_ERROR: Final = re.compile(rb"E([0-9a-fA-F]{2})(?:;([0-9a-fA-F]*))?")
_OUTPUT: Final = re.compile(rb"O((?:[0-9a-fA-F]{2})+)")
_STOP: Final = re.compile(rb"([TS])([0-9a-fA-F]{2})(.*)", re.DOTALL)
_END: Final = re.compile(rb"([WX])([0-9a-fA-F]{2})(?:;.*)?", re.DOTALL)


def plain(data: bytes, most: int | None = None) -> str:
    r"""Return bytes as printable ASCII: what is none as ``\xNN``; cut after ``most`` characters with ``…``."""
    if most is None or len(data) <= most:
        text = data.decode("latin-1")
        cut = ""
    else:
        text, cut = data[:most].decode("latin-1"), "…"
    if text.isascii() and text.isprintable():
        return text + cut
    text = "".join(
        letter if " " <= letter <= "~" else _ESCAPES.get(letter) or f"\\x{ord(letter):02x}" for letter in text
    )
    if most is not None and len(text) > most:
        return text[:most] + "…"
    return text + cut


_ESCAPES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def thread_words(thread: ThreadId) -> str:
    """Name a thread, or all or any of them."""
    if thread == ALL_THREADS:
        return "all threads"
    return "any thread" if thread == ANY_THREAD else f"thread {thread:x}"


def counted(number: int, what: str) -> str:
    """Count things: ``1 byte``, ``2 bytes``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def refusal(payload: bytes) -> str | None:
    """Say why a request was refused; None for a reply that is no error."""
    if payload[:1] != b"E":
        return None
    if payload[:2] == b"E.":
        return f"refused: {plain(payload[2:], MOST_TEXT)}"
    match = _ERROR.fullmatch(payload)
    if match is None:
        return None
    number = int(match.group(1), 16)
    text = match.group(2)
    if text and len(text) % 2 == 0:
        return f"refused: {plain(binascii.unhexlify(text), MOST_TEXT)}"
    return f"refused: {_error(number)}"


def is_output(payload: bytes) -> bool:
    """Whether a payload is console output (``O6b62…``), which comes before the reply proper."""
    return _OUTPUT.fullmatch(payload) is not None


def is_stop(payload: bytes) -> bool:
    """Whether a payload can only be a stop reply: nothing else begins so."""
    return payload[:1] in (b"T", b"S", b"W", b"X") and (
        _STOP.fullmatch(payload) is not None or _END.fullmatch(payload) is not None
    )


def output(payload: bytes) -> str:
    """Read console output."""
    return f"says {quoted(binascii.unhexlify(payload[1:]))}"


def _error(number: int) -> str:
    return _ERRORS.get(number, f"error {number}")


def done(payload: bytes) -> str:
    """Read ``OK``."""
    return "done" if payload == b"OK" else anything(payload)


def stop(payload: bytes) -> str:
    """Read a stop reply: ``T05thread:01;watch:ffff…;`` is SIGTRAP, thread 1, write watchpoint at ffff…."""
    if (end := _END.fullmatch(payload)) is not None:
        number = int(end.group(2), 16)
        how = f"with status {number}" if end.group(1) == b"W" else f"by {_signal(number)}"
        return f"the target ended {how}"
    if payload[:1] == b"N":
        return "no thread is left that runs"
    match = _STOP.fullmatch(payload)
    if match is None:
        return anything(payload)
    said = [_signal(int(match.group(2), 16))]
    expedited = 0
    for pair in match.group(3).split(b";"):
        name, colon, value = pair.partition(b":")
        if not colon:
            continue
        if name == b"thread":
            said.append(_thread_text(value))
        elif name in _REASONS:
            said.append(_REASONS[name] + (f" at {plain(value.lstrip(b'0'), 40)}" if value else ""))
        elif not name.translate(None, b"0123456789abcdefABCDEF"):
            expedited += 1
    if expedited:
        said.append(counted(expedited, "register"))
    return f"stopped: {', '.join(said)}"


_REASONS: Final = {
    b"watch": "write watchpoint",
    b"rwatch": "read watchpoint",
    b"awatch": "access watchpoint",
    b"swbreak": "breakpoint",
    b"hwbreak": "hardware breakpoint",
    b"library": "libraries changed",
    b"replaylog": "the recording's other end",
    b"exec": "a new program",
}


def _signal(number: int) -> str:
    return _SIGNALS[number] if number < len(_SIGNALS) else f"signal {number}"


def _thread_text(text: bytes) -> str:
    try:
        return thread_words(parse_thread(text))
    except Malformed:
        return f"thread {plain(text, 40)}"


def memory(length: int) -> Answer:
    """Return a reader of ``length`` bytes in hexadecimal (``m``)."""

    def read(payload: bytes) -> str:
        return _bytes(binascii.unhexlify(payload), length)

    return read


def binary_memory(length: int) -> Answer:
    """Return a reader of ``length`` bytes as they are (``x``)."""

    def read(payload: bytes) -> str:
        # gdb's packet has a `b` before the bytes, LLDB's has not.
        data = payload[1:] if payload[:1] == b"b" else payload
        return _bytes(unescape(data), length)

    return read


def _bytes(data: bytes, length: int | None = None) -> str:
    short = length is not None and len(data) < length
    size = f"{len(data)} of {length} bytes" if short else counted(len(data), "byte")
    return size + _text_in(data)


def _text_in(data: bytes) -> str:
    """Quote what data begins with where that is text: a banner, a command line, a name."""
    end = _PRINTABLE.match(data)
    assert end is not None
    text = end.group()
    return f": {quoted(text, 48)}" if len(text) >= _LEAST_TEXT else ""


_PRINTABLE: Final = re.compile(rb"[\t\n -~]*")
_LEAST_TEXT: Final = 6


def quoted(data: bytes, most: int = MOST_TEXT) -> str:
    """Return text in quotes, as printable ASCII on one line."""
    return f'"{plain(data.rstrip(), most)}"'


def registers(payload: bytes) -> str:
    """Read registers: hexadecimal digits, ``xx`` for a byte that is not available."""
    size = len(payload) // 2
    missing = payload.count(b"x") // 2
    if payload.translate(None, b"0123456789abcdefABCDEFx"):
        return anything(payload)
    return f"{counted(size, 'byte')}" + (f", {missing} not available" if missing else "")


def features(payload: bytes) -> str:
    """Read the reply to ``qSupported``."""
    return f"knows {listed([one for one in payload.decode('latin-1').split(';') if one])}"


def listed(items: list[str]) -> str:
    """List the first few of many."""
    shown = ", ".join(items[:MOST_LISTED])
    more = len(items) - MOST_LISTED
    return plain(shown.encode("latin-1", "replace"), MOST_TEXT) + (f" and {more} more" if more > 0 else "")


def threads(payload: bytes) -> str:
    """Read a list of threads: ``m1,2`` or ``l``."""
    if payload == b"l":
        return "no more threads"
    if payload[:1] != b"m":
        return anything(payload)
    names = payload[1:].split(b",")
    return f"{counted(len(names), 'thread')}: {listed([plain(name, 40) for name in names])}"


def piece(payload: bytes) -> str:
    """Read a piece of an object: ``m`` or ``l``, and the bytes."""
    match payload[:1]:
        case b"l":
            return f"the last {counted(len(payload) - 1, 'byte')}" if payload[1:] else "no more bytes"
        case b"m":
            return f"{counted(len(payload) - 1, 'byte')}, more follow"
        case _:
            return anything(payload)


def hex_text(payload: bytes) -> str:
    """Read text in hexadecimal digits."""
    return quoted(binascii.unhexlify(payload)) if payload != b"OK" else "done"


def current(payload: bytes) -> str:
    """Read ``QC1``."""
    return _thread_text(payload[2:]) if payload[:2] == b"QC" else anything(payload)


def attached(payload: bytes) -> str:
    """Read the reply to ``qAttached``."""
    return {b"1": "yes: detach when done", b"0": "no: kill when done"}.get(payload, anything(payload))


def resumes(payload: bytes) -> str:
    """Read ``vCont;c;C;s;S``."""
    if not payload.startswith(b"vCont"):
        return anything(payload)
    return f"knows {listed(payload[6:].decode('latin-1').split(';'))}"


def alive(payload: bytes) -> str:
    """Read the reply to ``T``."""
    return "yes" if payload == b"OK" else anything(payload)


def symbols(payload: bytes) -> str:
    """Read the reply to ``qSymbol``: a name that is wanted, or ``OK``."""
    if payload == b"OK":
        return "none wanted"
    name = payload.removeprefix(b"qSymbol:")
    return f"wants the address of {quoted(binascii.unhexlify(name))}"


def found(payload: bytes) -> str:
    """Read the reply to ``qSearch:memory``."""
    match payload[:2]:
        case b"0":
            return "not found"
        case b"1,":
            return f"found at {plain(payload[2:], 20)}"
        case _:
            return anything(payload)


def checksum(payload: bytes) -> str:
    """Read the reply to ``qCRC``."""
    return f"CRC-32 {plain(payload[1:], 20)}" if payload[:1] == b"C" else anything(payload)


def file(payload: bytes) -> str:
    """Read the reply to ``vFile``."""
    if payload[:1] != b"F":
        return anything(payload)
    result, semicolon, data = payload[1:].partition(b";")
    if result[:1] == b"-":
        _, _, code = result.partition(b",")
        number = int(code, 16) if code and len(code) <= 4 else 0
        return f"refused: {_error(number)}"
    return counted(len(data), "byte") if semicolon else f"done: {plain(result, 20)}"


def anything(payload: bytes) -> str:
    """Say what a reply looks like when it is not known what it answers."""
    if payload == b"OK":
        return "done"
    if _STOP.fullmatch(payload) is not None or _END.fullmatch(payload) is not None:
        return stop(payload)
    if len(payload) % 2 == 0 and not payload.translate(None, b"0123456789abcdefABCDEF"):
        return _bytes(binascii.unhexlify(payload))
    return ""
