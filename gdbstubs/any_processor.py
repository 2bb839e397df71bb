"""Kernel memory at the present stop, as any processor sees it: what the one that stopped does not, another may.

Under page-table isolation a processor in user mode has next to nothing of the kernel mapped.  The others, in the kernel
as often as not, have all of it.

in:      reads of whoever owns the exchange
out:     reads of the target, answers
invariant: once a processor was seen to have the kernel mapped it is asked first for the rest of the stop, and nobody
         else is asked for what it does not have
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from gdbstubs.errors import EBUSY, TargetError
from gdbstubs.target import Reply, Thread, ThreadId

KERNEL_HALF: Final = 1 << 63
"""Addresses from here on are the kernel's, on x86-64 and arm64."""
KERNEL_IMAGE: Final = 0xFFFF_FFFF_8000_0000
"""Where x86-64's kernel is: what is before it, the interrupt table for one, is mapped in user mode too."""
MOST_TRIED: Final = 8
"""How many processors are asked for one read."""

Read = Callable[[ThreadId, int, int, Reply[bytes]], None]


class AnyProcessor:
    """Reads as the module's text says; ``read`` asks the target, ``threads`` lists its processors."""

    def __init__(self, read: Read, threads: Callable[[Reply[tuple[Thread, ...]]], None]) -> None:
        self.ask = read
        self.list = threads
        self._sees: tuple[int, ThreadId] | None = None
        """The number of a stop, and who had the kernel mapped at it."""

    def read(self, stop: int, stopped: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read memory at a stop, ``stopped`` being the processor that the stop is of."""
        seen = self._sees
        if address >= KERNEL_HALF and seen is not None and seen[0] == stop:
            self.ask(seen[1], address, length, done)
        elif address >= KERNEL_IMAGE:
            _Search(self, stop, address, length, done).start(stopped)
        else:
            self.ask(stopped, address, length, done)

    def saw(self, stop: int, thread: ThreadId) -> None:
        """Take note of who has the kernel mapped."""
        self._sees = stop, thread


class _Search:
    """One read, of one processor after the other."""

    def __init__(
        self, memory: AnyProcessor, stop: int, address: int, length: int, done: Reply[bytes]
    ) -> None:
        self._memory = memory
        self._stop = stop
        self._place = address, length
        self._done = done
        self._others: Iterator[ThreadId] | None = None

    def start(self, stopped: ThreadId) -> None:
        self._ask(stopped)

    def _ask(self, thread: ThreadId) -> None:
        self._memory.ask(thread, *self._place, partial(self._answered, thread))

    def _answered(self, thread: ThreadId, result: bytes | TargetError) -> None:
        if not isinstance(result, TargetError):
            self._memory.saw(self._stop, thread)
            self._done(result)
        elif result.errno == EBUSY:
            self._done(result)
        elif self._others is None:
            self._memory.list(partial(self._listed, thread, result))
        else:
            self._next(result)

    def _listed(
        self, stopped: ThreadId, before: TargetError, threads: tuple[Thread, ...] | TargetError
    ) -> None:
        known = () if isinstance(threads, TargetError) else threads
        self._others = islice((one.id for one in known if one.id != stopped), MOST_TRIED)
        self._next(before)

    def _next(self, error: TargetError) -> None:
        assert self._others is not None, "the processors were listed"
        another = next(self._others, None)
        if another is None:
            self._done(error)
        else:
            self._ask(another)
