"""Looks at what all consoles have said since the last look, five times a second while any says something.

A crash report is a matter of tenths of a second, and a thousand consoles say something each hundredth: to look at each
piece as it comes would cost more than to record it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from kbridge.console.recorder import Recorder

SECONDS: Final = 0.2


class Sweep:
    """Calls those who were marked, once each, all at a time."""

    def __init__(self, reactor: Any, seconds: float = SECONDS) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._marked: dict[Callable[[], None], None] = {}
        self._timer: IDelayedCall | None = None

    def mark(self, look: Callable[[], None]) -> None:
        """Have ``look`` called with the next sweep."""
        self._marked[look] = None
        if self._timer is None:
            self._timer = self._reactor.callLater(self._seconds, self._sweep)

    def forget(self, look: Callable[[], None]) -> None:
        """Do not call ``look``."""
        self._marked.pop(look, None)

    def stop(self) -> None:
        """Call nobody any more."""
        self._marked.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        marked, self._marked = self._marked, {}
        for look in marked:
            look()


class Follow:
    """Has ``look`` called with the sweep after a console said something.

    Until then what more comes tells nothing: it comes a hundred times a second on each line, and nobody waits for it.
    """

    def __init__(self, sweep: Sweep, recorder: Recorder, look: Callable[[], None]) -> None:
        """Begin with what comes now."""
        self._sweep = sweep
        self._recorder = recorder
        self._call = look
        self._head = recorder.ring.head
        self._end_wait = recorder.watch(self._stirred)

    def again(self) -> None:
        """Have it called with the next sweep, whether or not more comes."""
        self._end_wait()
        self._sweep.mark(self._look)

    def stop(self) -> None:
        """Do not call it any more."""
        self._end_wait()
        self._sweep.forget(self._look)

    def _stirred(self) -> None:
        # What is noted beside the bytes stirs it too.
        if self._recorder.ring.head != self._head:
            self.again()

    def _look(self) -> None:
        self._head = self._recorder.ring.head
        self._end_wait = self._recorder.watch(self._stirred)
        self._call()
