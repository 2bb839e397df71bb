"""Following a guest's record over a WebSocket: each entry a JSON object in a text message."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kbridge.console.log import History, LogCursor, as_json
from kbridge.frontends.log_text import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbridge.guest import Guest


class LogSession:
    """One who follows the record of ``guest``; ``alive`` tells whether it may still be looked at."""

    def __init__(
        self, guest: Guest, *, since_ns: int | None, lines: int | None, alive: Callable[[], bool]
    ) -> None:
        self._guest = guest
        self._alive = alive
        self._cursor = LogCursor(History.of(guest.recorder), since_ns=since_ns, lines=lines)
        self._unwatch: Callable[[], None] | None = None

    @property
    def ended(self) -> str:
        """Why the session is over."""
        return "" if self._alive() else f"{self._guest.name} left the configuration"

    def start(self, wake: Callable[[], None]) -> None:
        """Begin."""
        self._unwatch = self._guest.recorder.watch(wake)

    def next(self) -> str | None:
        """Return the next entry."""
        if not self._alive():
            return None
        entry = self._cursor.next(PIECE_BYTES)
        return None if entry is None else json.dumps(as_json(entry))

    def text_received(self, text: str) -> None:
        """Refuse."""
        raise ValueError("a log takes no messages")

    def bytes_received(self, data: bytes) -> None:
        """Refuse."""
        raise ValueError("a log takes no messages")

    def stop(self) -> None:
        """End."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        self._cursor.close()
