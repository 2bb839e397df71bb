"""Waiting for a stub that takes no interrupt to say that its kernel stands, and breaking into that which runs.

in          ``connected``, for each connection to the stub; ``enter``, when who uses it needs the kernel to stand
out         the ways in of ``breakin``; on the time line what led in; ``failed`` with words
states      resting; entering, for one connection
invariant   one attempt for each connection: who has not seen yet that the last one's is over does not stand for the
            next one's, and does not report to it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from kbridge.breakin import BreakIn
from kbridge.errors import GuestError, KbridgeError

STANDS_SECONDS: Final = 0.5
"""How soon a kernel that stands in kgdb answers; software emulation takes a few milliseconds."""
UNBROKEN_SECONDS: Final = 2.0
"""The same, where it is not broken into if it does not: a machine under load takes its time."""
LOOK_SECONDS: Final = 0.02


class StubEntry:
    """How one guest's kernel is brought into its stub.

    ``ways`` are the ways in, None where none is configured.  ``is_answered`` tells whether the stub has said that the
    kernel stands, or is gone.  ``failed`` takes why it could not be brought there, ``sink`` the time line's event.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        guest: str,
        ways: BreakIn | None,
        *,
        is_answered: Callable[[], bool],
        failed: Callable[[str], None],
        sink: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._reactor = reactor
        self._guest = guest
        self._ways = ways
        self._is_answered = is_answered
        self._failed = failed
        self._sink = sink
        self._connection = 0
        self._entering: int | None = None
        self.may_break_in = True
        """Whether who waits may have a running kernel stopped; True again when the attempt is over."""

    def connected(self) -> None:
        """The stub was connected to, and knows nothing of the connection before."""
        self._connection += 1

    def enter(self) -> None:
        """Bring the kernel into its stub, unless that is under way for this connection."""
        if self._entering == self._connection:
            return
        self._entering = self._connection
        deferred: Deferred[None] = Deferred.fromCoroutine(self._enter(self._connection))
        deferred.addErrback(lambda failure: self._log.failure("{guest}: a bug", failure, guest=self._guest))

    async def _enter(self, connection: int) -> None:
        async def arrived(seconds: float) -> bool:
            return await self._arrived(connection, seconds)

        try:
            if await arrived(STANDS_SECONDS if self.may_break_in else UNBROKEN_SECONDS):
                return
            if not self.may_break_in:
                raise GuestError(
                    f"{self._guest} was not broken into", why="its kernel runs, and is not to be stopped"
                )
            if self._ways is None:
                raise GuestError(
                    f"{self._guest} runs, and its stub takes no interrupt", todo="set `break_in`"
                )
            way = await self._ways.enter(arrived)
            if way is not None:
                self._sink("debugger.break_in", {"way": way.value})
        except KbridgeError as error:
            if connection == self._connection:
                self._failed(str(error))
        finally:
            if self._entering == connection:
                self._entering = None
                self.may_break_in = True

    async def _arrived(self, connection: int, seconds: float) -> bool:
        """Wait until the stub has said that the kernel stands, or another connection has taken this one's place."""
        end = self._reactor.seconds() + seconds
        while connection == self._connection and not self._is_answered():
            if self._reactor.seconds() >= end:
                return False
            await deferLater(self._reactor, LOOK_SECONDS)
        return True
