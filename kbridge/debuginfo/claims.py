"""What others say of where a guest's kernel is: the end of its console, and where the processor that stopped is.

Nothing of it is believed before the kernel's build-id was read back (``symbols/kaslr.py``); each costs one read, the
search of all places 512: a second on a serial line.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from symbols.kaslr import Claim, Linked, console_claim, counter_claims

if TYPE_CHECKING:
    from kbridge.console.ring import RingView

CONSOLE_BYTES: Final = 64 << 10
"""A panic tells the place last; the backtraces of all processors may stand around it."""


class Claims:
    """What is said of one guest's kernel; ``counter``: the program counter at the present stop, None without one."""

    def __init__(self, console: RingView | None, counter: Callable[[], Awaitable[int | None]]) -> None:
        self._console = console
        self._counter = counter

    async def of(self, candidates: Sequence[Linked]) -> tuple[Claim, ...]:
        """Return what is said now, for kernels that may be the one."""
        counter = await self._counter()
        said = self._said()
        return (
            *(() if counter is None else counter_claims(counter, candidates)),
            *(() if said is None else (said,)),
        )

    def _said(self) -> Claim | None:
        ring = self._console
        if ring is None:
            return None
        start = max(ring.oldest, ring.head - CONSOLE_BYTES)
        return console_claim(ring.read(start, ring.head - start) or b"")
