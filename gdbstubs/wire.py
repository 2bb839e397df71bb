"""Packets on the wire: framing, checksums, escaping and run-length encoding.

Source: GDB manual, appendix "GDB Remote Serial Protocol", section "Overview".  A packet is
``$payload#cc``; ``cc`` is the sum of the payload's bytes modulo 256 in two hexadecimal digits.  Between
packets stand single bytes: ``+`` and ``-`` acknowledge, 0x03 interrupts.  ``%payload#cc`` is a notification,
which is never acknowledged.

in:      bytes, in pieces of any size
out:     the payload of each whole packet as ``bytes``; everything else as a ``Control`` or a ``Notification``
states:  between packets · inside a packet (its bytes are kept) · skipping the rest of an over-long packet
invariant: the events depend on the bytes only, never on how they were split; no more than ``limit`` + 4 bytes
         are ever kept
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gdbstubs.errors import RemoteProtocolError

INTERRUPT: Final = b"\x03"

_HEX_PAIRS: Final[dict[bytes, int]] = {
    bytes((high, low)): int(bytes((high, low)), 16)
    for high in b"0123456789abcdefABCDEF"
    for low in b"0123456789abcdefABCDEF"
}
_ENDINGS: Final[tuple[bytes, ...]] = tuple(b"#%02x" % value for value in range(256))
_DIGITS: Final[tuple[bytes, ...]] = tuple(b"%02x" % value for value in range(256))
_adler32: Final = zlib.adler32
_hex_pair: Final = _HEX_PAIRS.get
_MOST_EXACT: Final = 256  # bytes of anything whose sum Adler-32 holds exactly: 256 * 255 + 1 < 65521
_MOST_EXACT_ASCII: Final = 512  # the same of text, such as memory in hexadecimal: 512 * 127 + 1 < 65521


class Control(Enum):
    """What else stands on the wire beside packets and notifications."""

    ACK = "+"
    NACK = "-"
    INTERRUPT = "\x03"
    DAMAGED = "damaged"
    """A packet whose checksum or run-length encoding is wrong, or that was cut off by the next one."""
    OVERLONG = "overlong"
    """A packet that is longer than the limit; its rest is skipped."""


@dataclass(frozen=True, slots=True)
class Notification:
    """An unacknowledged message of the stub, such as ``%Stop:T05thread:1;#..``."""

    payload: bytes


Event = bytes | Control | Notification


def checksum(payload: bytes) -> int:
    """Return the sum of all bytes modulo 256.

    Adler-32's low half is one plus the sum modulo 65521: exact, and some twenty times faster than ``sum``,
    as long as a piece cannot reach the modulus.
    """
    if len(payload) <= _MOST_EXACT:
        return (_adler32(payload) - 1) & 0xFF
    most = _MOST_EXACT_ASCII if payload.isascii() else _MOST_EXACT
    total = 0
    for start in range(0, len(payload), most):
        total += (_adler32(payload[start : start + most]) & 0xFFFF) - 1
    return total & 0xFF


def frame(payload: bytes) -> bytes:
    """Return ``$payload#cc``, ready to be sent.  The payload is escaped already where it must be.

    >>> frame(b"OK")
    b'$OK#9a'
    """
    return b"$" + payload + _ENDINGS[checksum(payload)]


def escape(data: bytes) -> bytes:
    """Escape binary data: ``}``, ``#``, ``$`` and ``*`` become ``}`` and the byte exclusive-or 0x20.

    ``*`` would start a run in a reply; a request may carry it escaped as well.
    """
    return (
        data.replace(b"}", b"}\x5d").replace(b"#", b"}\x03").replace(b"$", b"}\x04").replace(b"*", b"}\x0a")
    )


def unescape(data: bytes) -> bytes:
    """Undo ``escape``.  Raises ``RemoteProtocolError`` for an escape character at the end."""
    if b"}" not in data:
        return data
    pieces = data.split(b"}")
    out = bytearray(pieces[0])
    rest = iter(pieces[1:])
    for piece in rest:
        if not piece:
            # ``}}`` stands for 0x5d: the split took the second brace for another escape.
            following = next(rest, None)
            if following is None:
                raise RemoteProtocolError("a packet ends inside an escape sequence")
            out.append(0x5D)
            out += following
        else:
            out.append(piece[0] ^ 0x20)
            out += piece[1:]
    return bytes(out)


def expand_run_length(payload: bytes, limit: int) -> bytes:
    """Undo run-length encoding: ``0* `` is ``0000``, the byte after ``*`` being the count plus 29.

    Raises ``RemoteProtocolError`` where nothing can be repeated, a count is missing or below three, or the
    result would be longer than ``limit`` bytes.
    """
    star = payload.find(b"*")
    if star < 0:
        return payload
    out = bytearray()
    position = 0
    while star >= 0:
        out += payload[position:star]
        if not out or star + 1 >= len(payload):
            raise RemoteProtocolError("a run has nothing to repeat, or no count")
        count = payload[star + 1] - 29
        if count < 3:
            raise RemoteProtocolError(f"a run of {count} is shorter than a run can be")
        if len(out) + count > limit:
            raise RemoteProtocolError(f"a packet expands to more than {limit} bytes")
        out += out[-1:] * count
        position = star + 2
        star = payload.find(b"*", position)
    out += payload[position:]
    if len(out) > limit:
        raise RemoteProtocolError(f"a packet expands to more than {limit} bytes")
    return bytes(out)


_RUN: Final = re.compile(rb"(.)\1{3,96}", re.DOTALL)
_FORBIDDEN_COUNTS: Final = frozenset(value - 29 for value in b"#$+-")


def _encode_run(match: re.Match[bytes]) -> bytes:
    byte = match.group(1)
    repeats = len(match.group()) - 1
    left = b""
    while repeats in _FORBIDDEN_COUNTS:
        # The count would be one of # $ + -: repeat less, and write the difference out.
        repeats -= 1
        left += byte
    return byte + b"*" + bytes((repeats + 29,)) + left


def compress_run_length(payload: bytes) -> bytes:
    """Run-length encode a reply; the opposite of ``expand_run_length``.

    Only replies may be encoded, and every ``*`` in them must have been escaped before.
    """
    return _RUN.sub(_encode_run, payload)


class Framer:
    """Finds packets in a stream of bytes; the module's text says how.

    ``limit`` is the longest payload accepted, in bytes as they stand on the wire and, with ``runs``, after
    expansion.  ``runs`` is for the side that receives replies: requests are never run-length encoded.  With ``framed``
    packets are returned with their frame, ``$payload#cc``, for whoever passes them on.
    """

    __slots__ = ("_framed", "_kept", "_searched", "_skipping", "limit", "noise", "runs")

    def __init__(self, limit: int, *, runs: bool = False, framed: bool = False) -> None:
        self.limit = limit
        self.runs = runs
        self._framed = framed
        self.noise = 0
        """How many bytes were neither packets nor control bytes."""
        self._kept = bytearray()
        self._searched = 0
        self._skipping = False

    @property
    def is_between(self) -> bool:
        """Whether the stream stands between packets."""
        return not self._kept and not self._skipping

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes of the stream and return the events that they complete."""
        if self._kept:
            self._kept += data
            kept = self._kept
            end = kept.find(b"#", self._searched)
            stop = len(kept) if end < 0 else end
            if (
                (end < 0 or end + 2 >= len(kept))
                and stop - 1 <= self.limit
                and kept.find(b"$", self._searched, stop) < 0
            ):
                # Still inside one packet.  Remembering how far we looked keeps a packet that comes byte by
                # byte linear.
                self._searched = stop
                return []
            data = bytes(kept)
            kept.clear()
            self._searched = 0
        events: list[Event] = []
        position = 0
        length = len(data)
        limit = self.limit
        if self._skipping:
            position = self._skip(data)
        while position < length:
            if data[position] != 0x24:
                start = data.find(b"$", position)
                position = self._between(data, position, length if start < 0 else start, events)
                continue
            end = data.find(b"#", position)
            if end < 0 or end + 2 >= length:
                position = self._unfinished(data, position, length if end < 0 else end, events)
                if position < 0:
                    return events
                continue
            payload = data[position + 1 : end]
            if b"$" in payload or end - position > limit + 1:
                position = self._suspicious(data, position, end, events)
                continue
            total = (_adler32(payload) - 1) & 0xFF if end - position <= _MOST_EXACT else checksum(payload)
            if data[end + 1 : end + 3] == _DIGITS[total] or _hex_pair(data[end + 1 : end + 3]) == total:
                if self.runs and b"*" in payload:
                    self._expand(payload, events)
                else:
                    events.append(data[position : end + 3] if self._framed else payload)
                position = end + 3
            else:
                events.append(Control.DAMAGED)
                position = self._after_damage(data, end)
        return events

    def _after_damage(self, data: bytes, end: int) -> int:
        # Where the two bytes after '#' are no digits they may be the beginning of the next packet.
        return end + 3 if data[end + 1 : end + 3] in _HEX_PAIRS else end + 1

    def _expand(self, payload: bytes, events: list[Event]) -> None:
        try:
            expanded = expand_run_length(payload, self.limit)
            events.append(frame(expanded) if self._framed else expanded)
        except RemoteProtocolError:
            events.append(Control.DAMAGED)

    def _unfinished(self, data: bytes, start: int, end: int, events: list[Event]) -> int:
        """Keep the packet that starts at ``start`` and is not whole; return where to go on, or -1."""
        last = data.rfind(b"$", start, end)
        if last > start:
            return self._cut_off(data, start, last, events)
        if end - start - 1 > self.limit:
            events.append(Control.OVERLONG)
            self._skipping = True
            return start + 1 + self._skip(data[start + 1 :])
        self._kept += data[start:]
        self._searched = end - start
        return -1

    def _suspicious(self, data: bytes, start: int, end: int, events: list[Event]) -> int:
        last = data.rfind(b"$", start, end)
        if last > start:
            return self._cut_off(data, start, last, events)
        events.append(Control.OVERLONG)
        self._skipping = True
        return start + 1 + self._skip(data[start + 1 :])

    def _cut_off(self, data: bytes, start: int, last: int, events: list[Event]) -> int:
        """Report the packets between two ``$`` that never ended; return where the last one starts."""
        events += [
            Control.OVERLONG if len(piece) > self.limit else Control.DAMAGED
            for piece in data[start + 1 : last].split(b"$")
        ]
        return last

    def _skip(self, data: bytes) -> int:
        """Skip the rest of an over-long packet, up to its ``#`` or the next ``$``; return how much."""
        end = data.find(b"#")
        start = data.find(b"$", 0, end if end >= 0 else len(data))
        if start >= 0:
            self._skipping = False
            return start
        if end >= 0:
            self._skipping = False
            return end + 1
        return len(data)

    def _between(self, data: bytes, position: int, end: int, events: list[Event]) -> int:
        """Read what stands between packets; return where to go on."""
        gap = data[position:end]
        if gap == b"+":
            events.append(Control.ACK)
            return end
        for offset, byte in enumerate(gap):
            match byte:
                case 0x2B:
                    events.append(Control.ACK)
                case 0x2D:
                    events.append(Control.NACK)
                case 0x03:
                    events.append(Control.INTERRUPT)
                case 0x25:
                    return self._notification(data, position + offset, events)
                case _:
                    self.noise += 1
        return end

    def _notification(self, data: bytes, start: int, events: list[Event]) -> int:
        """Read a notification; one that is damaged or cut off is noise, an over-long one a byte of noise."""
        end = data.find(b"#", start)
        dollar = data.find(b"$", start, end if end >= 0 else len(data))
        stop = dollar if dollar >= 0 else end if end >= 0 else len(data)
        if stop - start - 1 > self.limit:
            self.noise += 1
            self._skipping = True
            return start + 1 + self._skip(data[start + 1 :])
        if dollar >= 0:
            self.noise += dollar - start
            return dollar
        if end < 0 or end + 2 >= len(data):
            self._kept += data[start:]
            self._searched = (len(data) if end < 0 else end) - start
            return len(data)
        payload = data[start + 1 : end]
        if _hex_pair(data[end + 1 : end + 3]) == checksum(payload):
            events.append(Notification(payload))
            return end + 3
        self.noise += end - start + 1
        return self._after_damage(data, end)
