"""What the rules of framing say, written one byte at a time and without regard to speed.

The rules (`gdbstubs.wire` says where they come from), with `limit` as the longest payload:

- Between packets `+`, `-` and 0x03 are controls, `$` opens a packet, `%` a notification; every other byte is noise.
- `#` ends a payload; two bytes follow.  If they are the payload's sum in hexadecimal the packet is whole.  If
  they are hexadecimal and wrong, packet and digits are used up; if they are not, they are read again as what
  stands between packets.
- `$` inside a payload cuts it off and opens the next packet.
- A payload that grows beyond the limit is over-long at that byte; everything is then skipped up to the `#` that
  ends it (which is skipped too) or the next `$` (which opens a packet).
- A notification that is damaged or cut off is noise, its digits not counted; an over-long one counts as one
  byte of noise.
"""

from __future__ import annotations

from enum import Enum

HEX = b"0123456789abcdefABCDEF"
NAMES = {0x2B: "+", 0x2D: "-", 0x03: "interrupt"}

Seen = tuple[str, bytes]


class Place(Enum):
    BETWEEN = 0
    PAYLOAD = 1
    DIGITS = 2
    SKIPPING = 3


def expand(payload: bytes, limit: int) -> bytes | None:
    """Undo run-length encoding, or None where it cannot be undone."""
    out: list[int] = []
    position = 0
    while position < len(payload):
        byte = payload[position]
        if byte == 0x2A:
            if not out or position + 1 == len(payload) or payload[position + 1] < 32:
                return None
            out += [out[-1]] * (payload[position + 1] - 29)
            position += 2
        else:
            out.append(byte)
            position += 1
        if len(out) > limit:
            return None
    return bytes(out)


class Model:
    """The rules as a machine that takes one byte at a time."""

    def __init__(self, limit: int, *, runs: bool = False) -> None:
        self.limit = limit
        self.runs = runs
        self.noise = 0
        self.seen: list[Seen] = []
        self.place = Place.BETWEEN
        self.notification = False
        self.payload = b""
        self.digits = b""

    def feed(self, data: bytes) -> None:
        for byte in data:
            self.byte(byte)

    def byte(self, byte: int) -> None:
        match self.place:
            case Place.BETWEEN:
                self.between(byte)
            case Place.PAYLOAD:
                self.inside(byte)
            case Place.DIGITS:
                self.digits += bytes([byte])
                if len(self.digits) == 2:
                    self.ended()
            case Place.SKIPPING:
                if byte == 0x24:
                    self.open(notification=False)
                elif byte == 0x23:
                    self.place = Place.BETWEEN

    def open(self, *, notification: bool) -> None:
        self.place = Place.PAYLOAD
        self.notification = notification
        self.payload = self.digits = b""

    def between(self, byte: int) -> None:
        if byte in NAMES:
            self.seen.append((NAMES[byte], b""))
        elif byte in (0x24, 0x25):
            self.open(notification=byte == 0x25)
        else:
            self.noise += 1

    def inside(self, byte: int) -> None:
        if byte == 0x23:
            self.place = Place.DIGITS
        elif byte == 0x24:
            if self.notification:
                self.noise += 1 + len(self.payload)
            else:
                self.seen.append(("damaged", b""))
            self.open(notification=False)
        else:
            self.payload += bytes([byte])
            if len(self.payload) > self.limit:
                if self.notification:
                    self.noise += 1
                else:
                    self.seen.append(("overlong", b""))
                self.place = Place.SKIPPING

    def ended(self) -> None:
        self.place = Place.BETWEEN
        hexadecimal = all(digit in HEX for digit in self.digits)
        if hexadecimal and int(self.digits, 16) == sum(self.payload) % 256:
            self.whole()
            return
        if self.notification:
            self.noise += 2 + len(self.payload)
        else:
            self.seen.append(("damaged", b""))
        if not hexadecimal:
            self.feed(self.digits)

    def whole(self) -> None:
        if self.notification:
            self.seen.append(("notification", self.payload))
            return
        payload = expand(self.payload, self.limit) if self.runs else self.payload
        self.seen.append(("damaged", b"") if payload is None else ("packet", payload))
