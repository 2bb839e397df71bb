"""One connection's bytes, both ways, taken apart into packets with their meaning.

in:      bytes of either side, in pieces of any size, from anywhere on; ``lose`` where some are not known
out:     ``Said``: packets, notifications, interrupts, refused and damaged packets, in words
states:  each side: sought (inside of what is not known; up to the next packet all is passed over) · known
invariant: nothing raises, whatever the bytes; kept are at most one packet of ``MOST_PACKET_BYTES`` a side and
         ``MOST_OPEN`` requests

Acknowledgements are left out: they say nothing that their absence would not.  A reply is read in the light of the
oldest request without one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gdbstubs.decode import Asked, answered, asked, notified
from gdbstubs.decode_replies import counted
from gdbstubs.wire import Control, Event, Framer, Notification

MOST_PACKET_BYTES: Final = 1 << 18
"""Longer ones are passed over; twice what the relay takes."""
MOST_OPEN: Final = 256
_BEGINNINGS: Final = frozenset(b"$+-%\x03")


class Side(Enum):
    """Who sent something."""

    DEBUGGER = "debugger"
    STUB = "stub"


class Kind(Enum):
    """What was sent."""

    PACKET = "packet"
    NOTIFICATION = "notification"
    INTERRUPT = "interrupt"
    NACK = "nack"
    DAMAGED = "damaged"
    OVERLONG = "overlong"
    NOISE = "noise"
    CUT = "cut"
    """A packet of which only the beginning is known."""


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that one side said; ``payload`` is without frame, and with runs written out."""

    side: Side
    kind: Kind
    payload: bytes
    words: str


class Conversation:
    """Reads one connection; the module's text says how."""

    __slots__ = ("_again", "_framers", "_last", "_noise", "_open", "_sought")

    def __init__(self) -> None:
        self._framers = {
            Side.DEBUGGER: Framer(MOST_PACKET_BYTES),
            Side.STUB: Framer(MOST_PACKET_BYTES, runs=True),
        }
        self._noise = dict.fromkeys(Side, 0)
        self._sought = dict.fromkeys(Side, True)
        self._last = dict.fromkeys(Side, b"")
        self._again = dict.fromkeys(Side, False)
        self._open: deque[Asked] = deque(maxlen=MOST_OPEN)

    def feed(self, side: Side, data: bytes, missing: int = 0) -> list[Said]:
        """Take the next bytes of one side, after which ``missing`` more are not known, all of one packet."""
        sought = self._sought[side]
        if sought and data:
            data = self._seek(side, data)
        framer = self._framers[side]
        said = [self._read(side, event) for event in framer.feed(data)]
        noise = framer.noise - self._noise[side]
        if noise:
            self._noise[side] = framer.noise
            said.append(Said(side, Kind.NOISE, b"", f"{counted(noise, 'byte')} of no packet"))
        found = [one for one in said if one is not None]
        if missing:
            found += self._cut(side, data, missing, sought=sought)
        return found

    def lose(self) -> None:
        """Bytes are not known from here on, of either side: begin again at the next packet."""
        for side in Side:
            self._forget(side)
        self._open.clear()

    def _forget(self, side: Side) -> None:
        old = self._framers[side]
        self._framers[side] = Framer(old.limit, runs=old.runs)
        self._noise[side] = 0
        self._sought[side] = True

    def _seek(self, side: Side, data: bytes) -> bytes:
        """Pass over the rest of a packet whose beginning is not known."""
        if data[0] in _BEGINNINGS:
            self._sought[side] = False
            return data
        start = data.find(b"$")
        if start < 0:
            return b""
        self._sought[side] = False
        return data[start:]

    def _cut(self, side: Side, data: bytes, missing: int, *, sought: bool) -> list[Said]:
        """Tell of a packet whose rest is not known; ``sought``: its beginning was not either, or is told already."""
        start = data.rfind(b"$")
        begins = start >= 0 and b"#" not in data[start:]
        self._forget(side)
        if sought and start < 0:
            return []
        words = f"{counted(missing, 'byte')} more were not recorded"
        if side is Side.STUB and self._open:
            words += f"; answers: {self._open.popleft().words}"
        return [Said(side, Kind.CUT, data[start + 1 :] if begins else b"", words)]

    def _read(self, side: Side, event: Event) -> Said | None:
        if type(event) is bytes:
            return self._packet(side, event)
        match event:
            case bytes() | Control.ACK:
                return None
            case Notification(payload):
                return Said(side, Kind.NOTIFICATION, payload, notified(payload))
            case Control.INTERRUPT:
                return Said(side, Kind.INTERRUPT, b"\x03", "interrupt")
            case Control.NACK:
                other = Side.STUB if side is Side.DEBUGGER else Side.DEBUGGER
                self._again[other] = True
                return Said(side, Kind.NACK, b"-", "not understood: send it again")
            case Control.DAMAGED:
                return Said(side, Kind.DAMAGED, b"", "a damaged packet")
            case Control.OVERLONG:
                return Said(
                    side, Kind.OVERLONG, b"", f"a packet longer than {MOST_PACKET_BYTES} bytes, passed over"
                )

    def _packet(self, side: Side, payload: bytes) -> Said:
        again = self._again[side] and payload == self._last[side]
        self._again[side] = False
        self._last[side] = payload
        if again:
            return Said(side, Kind.PACKET, payload, "once more")
        if side is Side.DEBUGGER:
            return Said(side, Kind.PACKET, payload, self._request(payload))
        request = self._open[0] if self._open else None
        if request is not None and (request.binary or request.takes(payload)):
            self._open.popleft()
        else:
            request = None
        return Said(side, Kind.PACKET, payload, answered(payload, request))

    def _request(self, payload: bytes) -> str:
        request = asked(payload)
        if payload.startswith(b"qSupported"):
            # The first of a connection: what an earlier one of this name asked for is answered nowhere.
            self._open.clear()
        if request.answer is not None:
            self._open.append(request)
        return request.words
