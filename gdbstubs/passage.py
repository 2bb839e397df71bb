"""Reads that pass as they came: the packet of the debugger to the stub, the packet of the stub to the debugger.

Most requests are reads of memory in the form (``m``) and at the stop in which the stub takes them.  Nothing between
needs to take such a packet apart and make it anew, which is most of the work on it: three quarters for 2,000 bytes.
``Server`` recognises them and ``StubClient`` passes them on; whoever is between says whether it must see them
(``Target.pass_read``).  Everything else, and every error, takes the long way with the same result.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Final

from gdbstubs.errors import TargetError

_READ: Final = re.compile(rb"\$m([0-9a-f]{1,16}),([0-9a-f]{1,8})#([0-9a-f]{2})")
_LONGEST: Final = 29 + 1
_LETTER_E: Final = 0x45
_match: Final = _READ.fullmatch
_adler32: Final = zlib.adler32


def read_asked(data: bytes) -> tuple[int, int] | None:
    """Return address and length, if these bytes are one undamaged packet that asks for memory, and nothing else.

    >>> read_asked(b"$mffffffc0,40#25")
    (4294967232, 64)
    """
    found = _match(data)
    if found is None or (_adler32(data[1:-3]) - 1) & 0xFF != int(found[3], 16):
        return None
    return int(found[1], 16), int(found[2], 16)


class Passage:
    """Where the reply to a read that was passed on belongs; one session has one such read under way at most.

    ``whole`` is called with the packet of a reply that holds data, ``otherwise`` with any other reply, or the error.
    """

    __slots__ = ("otherwise", "whole")

    def __init__(
        self, whole: Callable[[bytes], None], otherwise: Callable[[bytes | TargetError], None]
    ) -> None:
        self.whole = whole
        self.otherwise = otherwise

    def take(self, packet: bytes) -> None:
        """Take the stub's reply, with its frame."""
        # Data never begins with a capital E.  That it is hexadecimal, the debugger sees for itself.
        if len(packet) > 4 and packet[1] != _LETTER_E and not len(packet) % 2:
            self.whole(packet)
        else:
            self.otherwise(packet[1:-3])

    def __call__(self, reply: bytes | TargetError) -> None:
        """Take a reply as other requests do: its payload, or why there is none."""
        self.otherwise(reply)
