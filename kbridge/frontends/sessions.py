"""What a WebSocket of the API talks to: one session, which is asked for messages when there is room for them.

Whoever does not read is simply not asked; what a session keeps for him must not grow (a ring, a cursor, the
latest of each kind of notice).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class SocketSession(Protocol):
    """One peer's session, from the upgrade to the end of its connection."""

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; ``wake`` is to be called whenever there may be something to send."""

    def next(self) -> str | bytes | None:
        """Return the next message, text or binary, or ``None`` when there is nothing to send now."""

    @property
    def ended(self) -> str:
        """Why the session is over; empty while it is not."""

    def text_received(self, text: str) -> None:
        """Take a text message; raises ``ValueError`` when it is none that the session knows."""

    def bytes_received(self, data: bytes) -> None:
        """Take a binary message; raises ``ValueError`` when the session knows none."""

    def stop(self) -> None:
        """End: the peer is gone."""
