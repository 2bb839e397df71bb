"""Reading and writing a stub's memory in packets that it takes, in binary where it can.

Source: GDB manual, "Packets": ``m``, ``x`` (announced as ``binary-upload+``; the reply begins with ``b``), ``M``, and
``X``, which a stub knows if it takes an empty one.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Final

from gdbstubs.errors import TargetError
from gdbstubs.gather import LargeRead
from gdbstubs.replies import Reply as RawReply
from gdbstubs.replies import as_binary, as_data, as_done
from gdbstubs.target import Reply, ThreadId
from gdbstubs.wire import escape

_OVERHEAD: Final = 32
"""Bytes that a packet needs beside its data: letter, address, length, frame."""

AskOf = Callable[[ThreadId, bytes, Callable[[RawReply], object], Callable[..., None]], None]
"""Asks something of one thread; reads the reply with the function given, and tells the result."""


class StubMemory:
    """The memory of one connection's target."""

    def __init__(self, ask_of: AskOf, packet_size: int, *, uploads: bool, probes: bool) -> None:
        self._ask_of = ask_of
        self._packet_size = packet_size
        self._most = (packet_size - _OVERHEAD) // 2
        self._uploads = uploads
        self._downloads: bool | None = None if probes else False
        """Whether ``X`` is known; None until it was tried."""

    def read(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read memory; what is larger than a packet of the stub is put together from several."""
        most = self._most
        if length <= most:
            self._read(thread, address, length, done)
        else:
            LargeRead(
                lambda start, size, part: self._read(thread, start, size, part), address, length, most, done
            ).start()

    def _read(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        if self._uploads:
            self._ask_of(thread, b"x%x,%x" % (address, length), as_binary, done)
        else:
            self._ask_of(thread, b"m%x,%x" % (address, length), as_data, done)

    def fits(self, length: int) -> bool:
        """Whether a read fits in one packet of the stub in hexadecimal."""
        return length <= self._most

    def write(self, thread: ThreadId, address: int, data: bytes, done: Reply[None]) -> None:
        """Write memory in pieces that fit in the stub's packets, up to the first that fails."""
        if self._downloads is not None:
            self._write(thread, address, data, done)
            return

        def tried(result: TargetError | None) -> None:
            self._downloads = result is None
            self._write(thread, address, data, done)

        self._ask_of(thread, b"X%x,0:" % address, as_done, tried)

    def _write(self, thread: ThreadId, address: int, data: bytes, done: Reply[None]) -> None:
        room = self._packet_size - _OVERHEAD - 16
        position = 0

        def written(result: TargetError | None) -> None:
            nonlocal position
            if result is not None or (position and position == len(data)):
                done(result)
                return
            start = position
            piece, text = self._piece(data, start, room)
            # An empty write is written too: it tells whether there is anything at the address.
            position += len(piece)
            answered = done if position == len(data) else written
            letter = b"X" if self._downloads else b"M"
            self._ask_of(
                thread,
                b"%s%x,%x:%s" % (letter, address + start, len(piece), text),
                as_done,
                answered,
            )

        written(None)

    def _piece(self, data: bytes, start: int, room: int) -> tuple[bytes, bytes]:
        """Return as much data from ``start`` on as a packet holds, and how it is written there."""
        if not self._downloads:
            piece = data[start : start + room // 2]
            return piece, binascii.hexlify(piece)
        piece = data[start : start + room]
        text = escape(piece)
        while len(text) > room:
            piece = piece[: -max(1, (len(text) - room) // 2)]
            text = escape(piece)
        return piece, text
