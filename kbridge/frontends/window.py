"""The window of history that one who joins a console sees first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kbridge.console.ring import RingView

SCREEN_BYTES: Final = 4096
"""About two screens of 80 by 24: what is shown to those who cannot ask for more or less."""


def window_start(ring: RingView, limit: int) -> int:
    """Return the offset where the last ``limit`` bytes begin, moved on to the start of a line.

    Without a line's start in them, or when the record is shorter than that, it is where they or the record
    begin.
    """
    start = max(ring.oldest, ring.head - limit)
    if start == ring.oldest == 0 or start == ring.head:
        return start
    # With the byte before, where it is held: a window that begins with a line needs no moving on.
    before = max(start - 1, ring.oldest)
    data = ring.read(before, ring.head - before) or b""
    newline = data.find(b"\n")
    return start if newline < 0 or before + newline + 1 == ring.head else before + newline + 1
