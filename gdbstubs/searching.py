"""Questions about a range of memory that the relay answers by reading it: where a pattern is, what its checksum is.

A debugger waits two seconds for any reply, and a target may be a serial line: a ``Sweep`` reads the range in pieces
that grow as long as they come quickly, one under way at a time, so that other sessions' requests pass between them,
and gives up in time.

Source: GDB manual, "General Query Packets" (``qSearch:memory``, ``qCRC``).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol

from gdbstubs.errors import EFAULT, ETIMEDOUT, TargetError
from gdbstubs.target import Reply

FIRST_PIECE: Final = 0x400
"""A fifth of a second on a serial line of 115,200 baud."""
LARGEST_PIECE: Final = 0x10000
QUICK_SECONDS: Final = 0.02
"""A piece that came so fast is followed by one twice as large."""
SWEEP_SECONDS: Final = 1.0
"""How long a sweep may take, in half of the time that gdb waits for a reply."""
MOST_SWEPT: Final = 64 << 20
"""Bytes that one sweep reads at most: a target that answers at once would never let go."""


class Question(Protocol):
    """What is to be found out of a range of memory."""

    def take(self, data: bytes) -> bool:
        """Take the next bytes, at least one; return whether the answer is known now."""


class PatternSearch:
    """Where a pattern begins first in the bytes that are taken, across their borders too."""

    def __init__(self, address: int, pattern: bytes) -> None:
        self.found: int | None = None
        """The address of its first byte."""
        self._address = address
        self._pattern = pattern
        self._kept = b""

    def take(self, data: bytes) -> bool:
        """Take the next bytes; return whether the pattern is in what was taken so far."""
        window = self._kept + data
        index = window.find(self._pattern)
        if index >= 0:
            self.found = self._address + index
            return True
        keep = min(len(self._pattern) - 1, len(window))
        self._address += len(window) - keep
        self._kept = window[len(window) - keep :]
        return False


class Checksum:
    """GDB's CRC-32: polynomial 0x04c11db7, from 0xffffffff, most significant bit first, not inverted at the end."""

    def __init__(self) -> None:
        self._mirrored = 0

    def take(self, data: bytes) -> bool:
        """Take the next bytes; the answer is known only at the end."""
        # zlib's goes through the bits of each byte the other way round, in C.
        self._mirrored = zlib.crc32(data.translate(_MIRRORED), self._mirrored)
        return False

    @property
    def value(self) -> int:
        """The checksum of what was taken so far."""
        return int(f"{self._mirrored ^ 0xFFFFFFFF:032b}"[::-1], 2)


_MIRRORED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Sweep:
    """Reads ``length`` bytes from ``address`` on for a question; ``done`` is called once, with None or what is wrong.

    ``read`` answers once each time, at once or later, with fewer bytes where the rest is not mapped.  ``clock`` gives
    monotonic seconds.
    """

    def __init__(
        self,
        read: Callable[[int, int, Reply[bytes]], None],
        address: int,
        length: int,
        question: Question,
        clock: Callable[[], float],
        done: Reply[None],
    ) -> None:
        self._read = read
        self._next = address
        self._end = min(address + length, 1 << 64)
        self._limit = min(self._end, address + MOST_SWEPT)
        self._question = question
        self._clock = clock
        self._done: Reply[None] | None = done
        self._piece = FIRST_PIECE
        self._began = self._asked = clock()
        self._awaits = False
        self._turning = False

    def start(self) -> None:
        """Ask for one piece after the other until the answer is known."""
        # A target that answers at once is asked in a loop: each piece in the last one's answer would pile up.
        self._turning = True
        while self._done is not None and not self._awaits:
            if self._next == self._end:
                self._finish(None)
            elif self._next >= self._limit or self._clock() - self._began > SWEEP_SECONDS:
                self._finish(
                    TargetError(
                        ETIMEDOUT,
                        f"read up to {self._next:#x} only in the time that a debugger waits: go on from there",
                    )
                )
            else:
                self._asked = self._clock()
                self._awaits = True
                self._read(self._next, min(self._piece, self._limit - self._next), self._arrived)
        self._turning = False

    def _arrived(self, data: bytes | TargetError) -> None:
        self._awaits = False
        if isinstance(data, TargetError) or not data:
            error = data if isinstance(data, TargetError) else TargetError(EFAULT)
            why = f": {error.words}" if error.words else ""
            self._finish(TargetError(error.errno, f"memory cannot be read at {self._next:#x}{why}"))
            return
        self._next += len(data)
        if self._question.take(data):
            self._finish(None)
            return
        if self._clock() - self._asked > QUICK_SECONDS:
            self._piece = FIRST_PIECE
        else:
            self._piece = min(2 * self._piece, LARGEST_PIECE)
        if not self._turning:
            self.start()

    def _finish(self, result: TargetError | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(result)
