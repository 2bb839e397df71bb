"""Looks for the kernel of a guest that was reset, while its debuggers wait for a stop that may never come.

Their breakpoints are where the kernel was before: until they read again where it is now, none is hit.

in          ``reset``, ``stop``; the clock
out         ``look``, every ``LOOK_SECONDS`` while somebody waits; ``moved``, once, when it has found another kernel
states      idle · looking
invariant   one look at a time; none after ``MOST_SECONDS``
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

LOOK_SECONDS: Final = 0.5
MOST_SECONDS: Final = 300.0
"""How long firmware and a boot loader may take; then the next stop tells, as always."""


class BootWatch:
    """Watches the boots of one guest; the module's text says how.

    ``look`` tells whether a kernel is in memory that somebody has not been told of, ``is_wanted`` whether anybody
    waits.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        look: Callable[[], Awaitable[bool]],
        is_wanted: Callable[[], bool],
        moved: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._look = look
        self._is_wanted = is_wanted
        self._moved = moved
        self._looking: Deferred[None] | None = None

    def reset(self) -> None:
        """Begin to look; one that looks already begins anew."""
        self.stop()
        self._looking = looking = Deferred.fromCoroutine(self._until_found())
        looking.addErrback(lambda failure: failure.trap(CancelledError))
        looking.addErrback(lambda failure: self._log.failure("a bug in looking for a kernel", failure))

    def stop(self) -> None:
        """Look no more."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()

    async def _until_found(self) -> None:
        end = self._reactor.seconds() + MOST_SECONDS
        while self._reactor.seconds() < end:
            await self._pause()
            if not self._is_wanted():
                return
            if await self._look():
                if self._is_wanted():
                    self._moved()
                return

    async def _pause(self) -> None:
        paused: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._reactor.callLater(LOOK_SECONDS, paused.callback, None)
        await paused
