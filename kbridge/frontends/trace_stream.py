"""A guest's packets for those who ask by HTTP (pieces of a body) or follow by a WebSocket (a message each)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Literal

from kbridge.trace.reader import Later, TraceReader, as_json
from kbridge.trace.text import TraceText

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from kbridge.trace.reader import Line
    from kbridge.trace.record import PacketRecord

TraceFormat = Literal["json", "text"]
MEDIA_TYPES: Final[Mapping[TraceFormat, str]] = {
    "json": "application/x-ndjson",
    "text": "text/plain; charset=utf-8",
}
LINES_A_PIECE: Final = 8


class TracePieces:
    """A trace as the body of an answer; ``alive`` tells whether the record may still be looked at."""

    def __init__(
        self, record: PacketRecord, reader: TraceReader, form: TraceFormat, alive: Callable[[], bool]
    ) -> None:
        self._record = record
        self._reader = reader
        self._text = TraceText() if form == "text" else None
        self._alive = alive

    def next(self) -> bytes | None:
        """Return the next piece, which is empty when there is more to do first; None when there is nothing."""
        if not self._alive():
            return None
        made: list[str] = []
        while len(made) < LINES_A_PIECE:
            line = self._reader.next()
            if line is None:
                break
            if isinstance(line, Later):
                return "".join(made).encode()
            made.append(self._render(line))
        return "".join(made).encode() if made else None

    @property
    def follows(self) -> bool:
        """Whether more may come when there is nothing now."""
        return self._reader.follows and self._alive()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called when there may be more, until the function returned is called."""
        return self._record.watch(wake)

    def close(self) -> None:
        """Let go; the record has its own owner."""

    def _render(self, line: Line) -> str:
        return json.dumps(as_json(line)) + "\n" if self._text is None else self._text.line(line)


class TraceSession:
    """One who follows the packets of ``guest`` (its name) over a WebSocket."""

    def __init__(
        self, guest: str, record: PacketRecord, reader: TraceReader, alive: Callable[[], bool]
    ) -> None:
        self._guest = guest
        self._record = record
        self._reader = reader
        self._alive = alive
        self._wake: Callable[[], None] | None = None
        self._unwatch: Callable[[], None] | None = None
        self._later: IDelayedCall | None = None

    @property
    def ended(self) -> str:
        """Why the session is over."""
        return "" if self._alive() else f"{self._guest} left the configuration"

    def start(self, wake: Callable[[], None]) -> None:
        """Begin."""
        self._wake = wake
        self._unwatch = self._record.watch(wake)

    def next(self) -> str | None:
        """Return the next line as a JSON object."""
        if not self._alive():
            return None
        line = self._reader.next()
        if line is None:
            return None
        if isinstance(line, Later):
            if self._later is None and self._wake is not None:
                self._later = self._record.wake_soon(self._go_on)
            return None
        return json.dumps(as_json(line))

    def text_received(self, text: str) -> None:
        """Refuse."""
        raise ValueError("a trace takes no messages")

    def bytes_received(self, data: bytes) -> None:
        """Refuse."""
        raise ValueError("a trace takes no messages")

    def stop(self) -> None:
        """End."""
        self._wake = None
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _go_on(self) -> None:
        self._later = None
        if self._wake is not None:
            self._wake()
