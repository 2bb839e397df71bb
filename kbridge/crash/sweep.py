"""Looks at what all consoles have said since the last look, five times a second while any says something.

A crash report is a matter of tenths of a second, and a thousand consoles say something each hundredth: to look at each
piece as it comes would cost more than to record it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

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
