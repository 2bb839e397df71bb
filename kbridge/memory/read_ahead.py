"""Short reads of memory served out of the line around them: who reads a string byte by byte asks once.

in          reads of memory, the time
out         what is there, as it was when it came, ``SECONDS`` ago at most
invariant   only ranges that are backed by memory or by nothing are read around what was asked: elsewhere a neighbour
            may be a device's register, and reading it has effects
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

LINE_BYTES: Final = 256
"""Never across a page, which is mapped as a whole or not at all."""
SECONDS: Final = 0.002
"""What a guest's memory may change in meanwhile, it may change between two reads too."""
MOST_LINES: Final = 64


class ReadAhead:
    """Memory read in lines; the module's text says how.

    ``read`` gives what is mapped of a range from its first byte on; ``now`` the monotonic time in seconds.
    """

    def __init__(
        self, read: Callable[[int, int], bytes], ranges: Sequence[range], now: Callable[[], float]
    ) -> None:
        self._read = read
        self._ranges = tuple(ranges)
        self._now = now
        self._lines: OrderedDict[int, tuple[float, bytes]] = OrderedDict()

    def read(self, address: int, length: int) -> bytes:
        """Return what is mapped of ``length`` bytes, from the first on; raises what ``read`` raises."""
        start = address & -LINE_BYTES
        if address + length > start + LINE_BYTES or not any(
            start in one and start + LINE_BYTES - 1 in one for one in self._ranges
        ):
            return self._read(address, length)
        known = self._lines.get(start)
        if known is None or self._now() - known[0] > SECONDS:
            data = self._read(start, LINE_BYTES)
            # Counted from its arrival: over a slow line it is otherwise old when it comes.
            known = self._lines[start] = (self._now(), data)
            self._lines.move_to_end(start)
            while len(self._lines) > MOST_LINES:
                self._lines.popitem(last=False)
        return known[1][address - start : address - start + length]
