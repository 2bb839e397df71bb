"""What a stub's replies mean.

Each function takes the payload of a reply, or the ``TargetError`` that stands in for one when the connection
was lost, and returns the value or the error.  Source: GDB manual, "Standard Replies", "Stop Reply Packets".
"""

from __future__ import annotations

import binascii
import re
from typing import Final
from xml.etree import ElementTree as ET

from gdbstubs.errors import E2BIG, EIO, ENOSYS, RemoteProtocolError, TargetError
from gdbstubs.packets import parse_thread
from gdbstubs.target import Ended, Halted, Stop, Thread, ThreadId
from gdbstubs.wire import unescape

MOST_THREADS: Final = 65536

_STOP: Final = re.compile(rb"([TS])([0-9a-fA-F]{2})(.*)", re.DOTALL)
_END: Final = re.compile(rb"([WX])([0-9a-fA-F]{2})(;.*)?", re.DOTALL)
_ERROR: Final = re.compile(rb"E([0-9a-fA-F]{2})(;.*)?", re.DOTALL)
_REASONS: Final = frozenset((b"watch", b"rwatch", b"awatch", b"swbreak", b"hwbreak", b"replaylog"))

Reply = bytes | TargetError


def as_error(reply: Reply) -> TargetError | None:
    """Return the error that a reply stands for; None for a reply that is none."""
    if isinstance(reply, TargetError):
        return reply
    if not reply:
        return TargetError(ENOSYS, "the stub does not know this request")
    if reply[:2] == b"E.":
        return TargetError(EIO, reply[2:].decode("utf-8", "replace"))
    if reply[0] == 0x45 and (match := _ERROR.fullmatch(reply)) is not None:
        return TargetError(int(match.group(1), 16))
    return None


def unexpected(reply: bytes, wanted: str) -> TargetError:
    """Return the error for a reply that makes no sense."""
    return TargetError(EIO, f"the stub answered {reply[:20]!r} where {wanted} was expected")


def as_data(reply: Reply) -> bytes | TargetError:
    """Decode hexadecimal data, such as the reply to ``m``."""
    # Hexadecimal data never begins with a capital E: stubs write lower case, and gdb relies on it too.
    if isinstance(reply, TargetError) or not reply or reply[0] == 0x45:
        return as_error(reply) or unexpected(bytes(reply) if isinstance(reply, bytes) else b"", "data")
    try:
        return binascii.unhexlify(reply)
    except binascii.Error:
        return unexpected(reply, "data")


def as_binary(reply: Reply) -> bytes | TargetError:
    """Decode binary data, the reply to ``x``: ``b`` and the escaped bytes."""
    if isinstance(reply, TargetError) or reply[:1] != b"b":
        return as_error(reply) or unexpected(bytes(reply) if isinstance(reply, bytes) else b"", "data")
    try:
        return unescape(reply[1:])
    except RemoteProtocolError as error:
        return TargetError(EIO, str(error))


def as_registers(reply: Reply) -> bytes | TargetError:
    """Take the reply to ``g`` or ``p``: hexadecimal text, ``xx`` for what is not available."""
    if isinstance(reply, TargetError) or not reply or reply[0] == 0x45:
        return as_error(reply) or unexpected(bytes(reply) if isinstance(reply, bytes) else b"", "registers")
    if len(reply) % 2 or reply.translate(None, b"0123456789abcdefABCDEFx"):
        return unexpected(reply, "registers")
    return reply


def as_done(reply: Reply) -> TargetError | None:
    """Return None for ``OK``, else the error."""
    if reply == b"OK":
        return None
    return as_error(reply) or unexpected(bytes(reply) if isinstance(reply, bytes) else b"", "OK")


def as_stop(reply: Reply) -> Stop | TargetError:
    """Read a stop reply: ``T05thread:p01.01;watch:ffff…;``, ``S05``, ``W00``, ``X09``."""
    error = as_error(reply)
    if error is not None or isinstance(reply, TargetError):
        return error or TargetError(EIO)
    if (match := _END.fullmatch(reply)) is not None:
        value = int(match.group(2), 16)
        return Ended(status=value) if match.group(1) == b"W" else Ended(signal=value)
    if (match := _STOP.fullmatch(reply)) is None:
        return unexpected(reply, "a stop reply")
    thread: ThreadId | None = None
    reason: tuple[str, str] | None = None
    for pair in match.group(3).split(b";"):
        name, _, value_text = pair.partition(b":")
        if name == b"thread":
            try:
                thread = parse_thread(value_text)
            except ValueError:
                return unexpected(reply, "a stop reply")
        elif name in _REASONS:
            reason = (name.decode("ascii"), value_text.decode("latin-1"))
    return Halted(int(match.group(2), 16), thread, reason)


def as_threads(document: bytes) -> dict[ThreadId, tuple[bytes, Thread]] | TargetError:
    """Read the document of ``qXfer:threads:read``: each thread with the text of its thread-id."""
    if b"<!ENTITY" in document:
        return TargetError(EIO, "the stub's list of threads declares entities")
    try:
        # Read as text, so that no encoding that it declares can hide a declaration.
        root = ET.fromstring(document.decode("utf-8"))  # noqa: S314
    except (ET.ParseError, ValueError) as error:
        return TargetError(EIO, f"the stub's list of threads is no XML: {error}")
    threads: dict[ThreadId, tuple[bytes, Thread]] = {}
    for element in root.iter("thread"):
        text = element.get("id", "").encode("ascii", "replace")
        try:
            number = parse_thread(text)
        except ValueError:
            return unexpected(text, "a thread-id")
        threads[number] = text, Thread(number, (element.text or element.get("name") or "").strip())
        if len(threads) > MOST_THREADS:
            return TargetError(E2BIG, f"the stub lists more than {MOST_THREADS} threads")
    return threads
