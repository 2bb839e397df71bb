"""What results look like on the wire: stops, memory, registers.

Source: GDB manual, "Stop Reply Packets", "Packets" (``x``).
"""

from __future__ import annotations

import re
from typing import Final

from gdbstubs.packets import format_thread
from gdbstubs.target import Ended, Stop
from gdbstubs.wire import escape

_ANNOUNCED: Final = ("swbreak", "hwbreak")
"""Reasons that may be sent only to a debugger that announced them."""
_LIKE_A_REPLY: Final = re.compile(rb"OK|E[0-9a-fA-F]{2}(?:;.*)?", re.DOTALL)


def encode_ok(result: None) -> bytes:
    """Return the reply to what was done."""
    return b"OK"


def encode_prefixed(data: bytes) -> bytes:
    """Return the reply to ``x`` where ``binary-upload+`` was announced."""
    return b"b" + escape(data)


def encode_bare(data: bytes) -> bytes:
    """Return the reply to ``x`` where it was not.

    Memory that reads as an ``OK`` or an error cannot be told from one: fewer bytes than were asked for can.
    """
    return escape(data[:1] if _LIKE_A_REPLY.fullmatch(data) else data)


def stop_reply(stop: Stop, features: frozenset[str]) -> bytes:
    """Return the stop reply for a debugger that announced these features, such as ``T05thread:1;swbreak:;``."""
    if isinstance(stop, Ended):
        return b"X%02x" % (stop.signal & 0xFF) if stop.status is None else b"W%02x" % (stop.status & 0xFF)
    reply = b"T%02x" % (stop.signal & 0xFF)
    if stop.thread is not None:
        reply += b"thread:%s;" % format_thread(stop.thread)
    if stop.reason is not None and (stop.reason[0] not in _ANNOUNCED or f"{stop.reason[0]}+" in features):
        reply += f"{stop.reason[0]}:{stop.reason[1]};".encode("latin-1")
    return reply
