"""A record as the body of an HTTP answer: pieces are made while the peer takes them, never ahead of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

PIECES_A_TURN: Final = 16
"""Then the rest of the reactor has its turn."""


class PieceReader(Protocol):
    """A record that is read piece by piece."""

    def next(self) -> bytes | None:
        """Return the next piece, which may be empty; None when there is nothing (yet)."""

    @property
    def follows(self) -> bool:
        """Whether more may come when there is nothing now."""

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called when there may be more, until the function returned is called."""

    def close(self) -> None:
        """Let go of the record."""


@implementer(IPushProducer)
class LogStream:
    """Writes what ``reader`` has to ``request`` and finishes it; ``done`` is called at the end, however it comes."""

    def __init__(self, reactor: Any, request: Any, reader: PieceReader, done: Callable[[], None]) -> None:
        self._reactor = reactor
        self._request = request
        self._reader = reader
        self._done = done
        self._paused = False
        self._ended = False
        self._turn: Any = None
        self._unwatch: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin."""
        self._request.registerProducer(self, True)
        self._unwatch = self._reader.watch(self.wake)
        # The head goes out at once, even where there is nothing to send yet.
        self._request.write(b"")
        self._send_some()

    def wake(self) -> None:
        """Go on, unless the peer must read first or it happens soon anyway."""
        if not (self._paused or self._ended or self._turn is not None):
            self._send_some()

    def pauseProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Send no more: the peer does not read as fast."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """Go on sending."""
        self._paused = False
        self.wake()

    def stopProducing(self) -> None:  # noqa: N802 (Twisted's name)
        """End: the peer is gone."""
        self._end()

    def _send_some(self) -> None:
        for _ in range(PIECES_A_TURN):
            if self._paused or self._ended:
                return
            piece = self._reader.next()
            if piece is None:
                if not self._reader.follows:
                    self._end()
                    self._request.unregisterProducer()
                    self._request.finish()
                return
            self._request.write(piece)
        self._turn = self._reactor.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        self.wake()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._unwatch is not None:
            self._unwatch()
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        self._reader.close()
        self._done()
