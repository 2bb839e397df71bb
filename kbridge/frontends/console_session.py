"""A console over a WebSocket: its bytes in binary messages both ways, all else as JSON in text messages.

in          typed bytes; ``break`` and ``pen`` requests; changes of the pen and the line; bytes in the ring
out         console bytes by cursor; the latest state of pen and line; what was lost; words for the user
invariant   what waits for a slow peer is one cursor and at most one notice of each kind, and a few words
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from kbridge.console.readers import Cursor, Gap
from kbridge.errors import KbridgeError, LineError
from kbridge.frontends.models import (
    BreakMessage,
    ConsoleRequest,
    GapNotice,
    LineNotice,
    PenMessage,
    PenNotice,
    WordsNotice,
)
from kbridge.frontends.typist import Typist
from kbridge.frontends.window import window_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.python.failure import Failure

    from kbridge.config import BreakInWay
    from kbridge.guest import Guest
    from kbridge.transports.lines import LineState

PIECE_BYTES: Final = 16384
MOST_WORDS: Final = 8
"""Words for a user who does not read: the older ones go."""
_REQUEST: Final[TypeAdapter[BreakMessage | PenMessage]] = TypeAdapter(ConsoleRequest)


class ConsoleSession:
    """One who looks at, or types on, the console of ``guest``."""

    _log = Logger()

    def __init__(
        self, guest: Guest, by: str, *, read_only: bool, history_bytes: int, alive: Callable[[], bool]
    ) -> None:
        self._guest = guest
        self._by = by
        self._read_only = read_only
        self._alive = alive
        self._typist = Typist(guest, by, self._say)
        ring = guest.recorder.ring
        self._cursor = Cursor(ring, window_start(ring, history_bytes))
        self._pen_due = True
        self._line_due: LineNotice | None = None
        self._words: list[str] = []
        self._wake: Callable[[], None] = _nobody
        self._stops: list[Callable[[], None]] = []
        self._breaking = False
        self._acting = False

    @property
    def ended(self) -> str:
        """Why the session is over."""
        return "" if self._alive() else f"{self._guest.name} left the configuration"

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; the first messages tell who holds the pen and how the line is."""
        self._wake = wake
        line = self._guest.line
        assert line is not None
        self._line_due = LineNotice(state=line.state.value, reason=line.reason)
        self._stops = [
            self._guest.recorder.watch(wake),
            self._guest.pen.subscribe(self._pen_changed),
            line.subscribe(self._line_changed),
            line.on_words(self._say),
        ]

    def next(self) -> str | bytes | None:
        """Return the next message: notices first, they are few."""
        if self._acting or not self._alive():
            return None
        if self._pen_due:
            self._pen_due = False
            return PenNotice(holder=self._guest.pen.holder, mine=self._typist.holds).model_dump_json()
        if self._line_due is not None:
            notice, self._line_due = self._line_due, None
            return notice.model_dump_json()
        if self._words:
            return WordsNotice(text=self._words.pop(0)).model_dump_json()
        found = self._cursor.next(PIECE_BYTES)
        if isinstance(found, Gap):
            return GapNotice(offset=found.offset, lost=found.lost).model_dump_json()
        return None if found is None else found.data

    def bytes_received(self, data: bytes) -> None:
        """Type."""
        if self._read_only:
            self._say("you joined to read only: what you type is discarded")
        elif data:
            with self._action():
                self._typist.type(data)

    def text_received(self, text: str) -> None:
        """Take a request; raises ``ValueError`` when it is none."""
        try:
            request = _REQUEST.validate_json(text)
        except ValidationError as error:
            raise ValueError(f"this is no request: {error.errors(include_url=False)[0]['msg']}") from None
        if self._read_only:
            self._say("you joined to read only")
            return
        match request:
            case BreakMessage(sysrq=key):
                self._break(key)
            case PenMessage(action="take", force=force):
                with self._action():
                    try:
                        self._typist.take(force=force)
                    except LineError as error:
                        self._say(str(error))
            case PenMessage():
                with self._action():
                    self._typist.release()

    def stop(self) -> None:
        """End; the pen is laid down."""
        for stop in self._stops:
            stop()
        self._stops = []
        self._wake = _nobody
        if self._alive():
            self._typist.release()

    def _break(self, sysrq: str | None) -> None:
        if self._breaking:
            self._say("a BREAK is being sent already")
            return
        holder = self._guest.pen.holder
        if holder is not None and not self._typist.holds:
            self._say(f"{holder} holds the pen: BREAK was not sent")
            return
        self._breaking = True
        deferred: Deferred[BreakInWay] = Deferred.fromCoroutine(self._guest.break_in(self._by, sysrq=sysrq))
        deferred.addCallbacks(lambda _: self._broke(""), self._break_failed)
        deferred.addErrback(lambda failure: self._log.failure("a bug in BREAK", failure))

    def _broke(self, words: str) -> None:
        self._breaking = False
        self._say(words or "BREAK was sent")

    def _break_failed(self, failure: Failure) -> None:
        self._breaking = False
        failure.trap(KbridgeError)
        self._say(str(failure.value))

    @contextmanager
    def _action(self) -> Iterator[None]:
        """Hold back what changes within until it is done: whose the pen is, is not settled before."""
        self._acting = True
        try:
            yield
        finally:
            self._acting = False
        if self._pen_due or self._words:
            self._wake()

    def _say(self, words: str) -> None:
        self._words = [*self._words, words][-MOST_WORDS:]
        self._tell()

    def _pen_changed(self, _holder: str | None) -> None:
        self._pen_due = True
        self._tell()

    def _tell(self) -> None:
        if not self._acting:
            self._wake()

    def _line_changed(self, state: LineState, reason: str) -> None:
        self._line_due = LineNotice(state=state.value, reason=reason)
        self._wake()


def _nobody() -> None:
    """Stand in for one to wake, before the start and after the end."""
