"""What runs on a guest's console by itself: the shell round a pure machine, for scripts and for boots.

in          the ring's bytes by a cursor; the line's and the pen's changes; the reactor's time; the peer's end
out         calls of the machine, in the order in which things happened; the transcript for one peer
states      not begun; going on; ended (the pen is free again, whatever ended it)
invariant   what happened is told after the bytes that came before it; other guests have their turn after
            ``TURN_SECONDS``
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from kbridge.console.readers import Cursor
from kbridge.console.transcript import Transcript
from kbridge.errors import GuestError, LineError
from kbridge.transports.lines import LineState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from kbridge.console.pen import Grip
    from kbridge.guest import Guest
    from kbridge.transports.lines import ConsoleLine

TURN_SECONDS: Final = 0.005
GONE: Final = "who ran it is gone"


class Driven(Protocol):
    """A machine: pure, told of the time with each event."""

    @property
    def outcome(self) -> Any:
        """How it ended; ``None`` while it goes on."""

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due."""

    def tick(self, now: float) -> None:
        """The time has come."""

    def line_lost(self, why: str, now: float) -> None:
        """The line is lost."""

    def notice(self, words: str, now: float) -> None:
        """The line says something."""

    def pen_taken(self, holder: str, now: float) -> None:
        """Somebody else took the pen."""

    def cancel(self, why: str, now: float) -> None:
        """End it; nothing happens when it has ended."""


class ConsoleRun:
    """A run, and the body of the answer that is its transcript (a ``PieceReader``).

    ``kind`` names its events on the time line.  ``alive`` tells whether the guest is still there.  A subclass makes
    ``_driven`` before it begins, and says what is to be done next (``_some``) and how many entries are missing
    (``_skipped``).
    """

    _driven: Driven

    def __init__(self, guest: Guest, kind: str, *, alive: Callable[[], bool]) -> None:
        self._guest = guest
        self._kind = kind
        self._reactor = guest.reactor
        self._alive = alive
        self._grip: Grip | None = None
        self._line: ConsoleLine | None = None
        self._cursor = Cursor(guest.recorder.ring, guest.recorder.ring.head)
        self._due: deque[tuple[int, Callable[[float], None]]] = deque()
        """What happened when the console's offset was so much: its turn comes when the bytes before it were read."""
        self._transcript = Transcript()
        self._stops: list[Callable[[], None]] = []
        self._timer: IDelayedCall | None = None
        self._timer_for = 0.0
        self._turn: IDelayedCall | None = None
        self._pumping = False
        self._asked = False
        """Whether the peer asks now, and has what comes at once."""
        self._finished = False

    def cancel(self, why: str) -> None:
        """End it; nothing happens when it has ended."""
        self._driven.cancel(why, self._now())
        if self._turn is not None:
            # At once: what it works on may be closed next.
            self._turn.cancel()
            self._turn = None
        self._pump()

    # What the answer's stream calls.

    def next(self) -> bytes | None:
        """Return the next entry of the transcript."""
        if not self._alive() and self._driven.outcome is None:
            self._asked = True
            try:
                self.cancel(f"the relay lets {self._guest.name} go")
            finally:
                self._asked = False
        return self._transcript.next(self._skipped)

    @property
    def follows(self) -> bool:
        """Whether more may come when there is nothing now."""
        return not self._finished

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called when there may be more, until the function returned is called."""
        return self._transcript.watch(wake)

    def close(self) -> None:
        """End: the peer is gone, or has the whole transcript."""
        self.cancel(GONE)

    # What a subclass says.

    def _some(self) -> bool:
        """Do one thing; return whether there may be another."""
        raise NotImplementedError

    def _skipped(self, entry: Mapping[str, Any], lost: int) -> dict[str, Any]:
        """Return the entry that says how many are missing before ``entry``."""
        raise NotImplementedError

    # What happens meanwhile.

    def _open_line(self) -> ConsoleLine:
        """Return the guest's line; raises ``GuestError`` without one, ``LineError`` where it is not open."""
        guest = self._guest
        line = guest.line
        if line is None:
            raise GuestError(f"{guest.name} has no console", todo="configure `console` for it")
        if line.state is not LineState.OPEN:
            raise LineError(
                f"the console line of {guest.name} is {line.state.value}",
                why=line.reason,
                todo="try again when it is back",
            )
        return line

    def _line_changed(self, state: LineState, reason: str) -> None:
        if state is LineState.LOST:
            self._later(lambda now: self._driven.line_lost(reason, now))
        elif state is LineState.CLOSED:
            self.cancel(f"the relay lets {self._guest.name} go")

    def _line_said(self, words: str) -> None:
        self._driven.notice(words, self._now())
        self._pump()

    def _pen_taken(self, holder: str) -> None:
        self._driven.pen_taken(holder, self._now())
        self._pump()

    def _timed(self) -> None:
        self._timer = None
        # What came in time counts, though it may not have been read yet.
        self._later(self._driven.tick)

    def _later(self, event: Callable[[float], None]) -> None:
        self._due.append((self._guest.recorder.ring.head, event))
        self._pump()

    # Carrying out.

    def _pump(self) -> None:
        """Do what can be done now; who calls from within has it done by the call that goes on."""
        if self._pumping or self._turn is not None:
            return
        self._pumping = True
        try:
            end = self._now() + TURN_SECONDS
            while self._some():
                if self._now() >= end:
                    self._turn = self._reactor.callLater(0, self._next_turn)
                    break
        finally:
            self._pumping = False
        self._set_timer()
        if not self._asked:
            self._transcript.wake()

    def _next_turn(self) -> None:
        self._turn = None
        self._pump()

    def _finish(self, fields: dict[str, Any]) -> None:
        for stop in self._stops:
            stop()
        self._stops = []
        self._finished = True
        self._due.clear()
        # A guest that is let go closes its line before its record: the run has ended then.
        recorder = self._guest.recorder
        recorder.record(f"{self._kind}.end", **fields)
        if self._grip is not None and self._grip.held:
            self._grip.release()
            recorder.record("console.pen", holder=None)

    def _set_timer(self) -> None:
        deadline = self._driven.deadline if self._turn is None else None
        if self._timer is not None:
            if deadline == self._timer_for:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer_for = deadline
            self._timer = self._reactor.callLater(max(0.0, deadline - self._now()), self._timed)

    def _now(self) -> float:
        found: float = self._reactor.seconds()
        return found
