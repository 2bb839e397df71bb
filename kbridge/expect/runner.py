"""A run of a script on a guest's console: holds the pen, reads the ring, keeps the time.

in          the ring's bytes by a cursor; the line's and the pen's changes; the reactor's time; the peer's end
out         keys on the line; the transcript for one peer; each of its entries on the guest's time line
states      not begun; going on; ended (the pen is free again, whatever ended it)
invariant   nothing is typed without the pen; a peer that does not read is kept ``MAX_ENTRIES`` entries; other
            guests have their turn after ``TURN_SECONDS``
"""

from __future__ import annotations

import json
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, assert_never

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from kbridge.console.readers import Cursor, Gap
from kbridge.console.timeline import time_text
from kbridge.errors import GuestError, KbridgeError, LineError
from kbridge.expect.machine import Break, Entry, Keys, Machine
from kbridge.transports.lines import LineState

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from kbridge.config import BreakInWay
    from kbridge.console.pen import Grip
    from kbridge.expect.machine import Effect, Outcome
    from kbridge.expect.script import Script
    from kbridge.guest import Guest
    from kbridge.transports.lines import ConsoleLine

MAX_ENTRIES: Final = 1000
PIECE_BYTES: Final = 128
"""What the largest expressions take about as long for as a turn."""
TURN_SECONDS: Final = 0.005
GONE: Final = "who ran it is gone"


class ExpectRun:
    """One run of ``script``, and the body of the answer that is its transcript (a ``PieceReader``).

    ``alive`` tells whether the guest is still there.
    """

    _log = Logger()

    def __init__(
        self, guest: Guest, script: Script, *, by: str, name: str = "", alive: Callable[[], bool]
    ) -> None:
        self._guest = guest
        self._reactor = guest.reactor
        self._by = by
        self._name = name
        self._alive = alive
        self._machine = Machine(script)
        self._id = secrets.token_hex(4)
        self._grip: Grip | None = None
        self._line: ConsoleLine | None = None
        self._cursor = Cursor(guest.recorder.ring, guest.recorder.ring.head)
        self._head = self._cursor.offset
        self._due: deque[tuple[int, Callable[[float], None]]] = deque()
        """What happened when the console's offset was so much: its turn comes when the bytes before it were read."""
        self._entries: deque[dict[str, Any]] = deque()
        self._skipped = 0
        self._stops: list[Callable[[], None]] = []
        self._timer: IDelayedCall | None = None
        self._timer_for = 0.0
        self._turn: IDelayedCall | None = None
        self._pumping = False
        self._finished = False
        self._wake: Callable[[], None] | None = None

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; ``None`` while it goes on."""
        return self._machine.outcome

    def start(self, *, force: bool = False) -> None:
        """Take the pen and begin; raises ``GuestError`` without a console, ``LineError`` without line or pen."""
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
        self._line = line
        holder = f"{self._by} (expect {self._name})" if self._name else f"{self._by} (expect)"
        self._grip = guest.pen.take(holder, force=force, taken=self._pen_taken)
        recorder = guest.recorder
        recorder.record("console.pen", holder=holder)
        recorder.record("expect.start", run=self._id, by=self._by, script=self._name)
        self._queue(Entry("start", 0, "", 0.0, {"run": self._id}))
        self._stops = [
            recorder.watch(self._stirred),
            line.subscribe(self._line_changed),
            line.on_words(self._line_said),
        ]
        self._machine.start(self._now())
        self._pump()

    def cancel(self, why: str) -> None:
        """End it; nothing happens when it has ended."""
        self._machine.cancel(why, self._now())
        if self._turn is not None:
            # At once: what it works on may be closed next.
            self._turn.cancel()
            self._turn = None
        self._pump()

    # What the answer's stream calls.

    def next(self) -> bytes | None:
        """Return the next entry of the transcript."""
        if not self._alive() and self.outcome is None:
            # Who asks has the entry at once.
            wake, self._wake = self._wake, None
            self.cancel(f"the relay lets {self._guest.name} go")
            self._wake = wake
        if self._skipped:
            skipped, self._skipped = self._skipped, 0
            # The entry before which they are missing has their time.
            found = {**self._entries[0], "kind": "skipped", "line": 0, "step": "", "lost": skipped}
            return _line({key: found[key] for key in ("time", "elapsed", "kind", "line", "step", "lost")})
        return _line(self._entries.popleft()) if self._entries else None

    @property
    def follows(self) -> bool:
        """Whether more may come when there is nothing now."""
        return not self._finished

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called when there may be more, until the function returned is called."""
        self._wake = wake

        def stop() -> None:
            self._wake = None

        return stop

    def close(self) -> None:
        """End: the peer is gone, or has the whole transcript."""
        self.cancel(GONE)

    # What happens meanwhile.

    def _stirred(self) -> None:
        head = self._guest.recorder.ring.head
        if head != self._head:
            self._head = head
            self._machine.stirred(self._now())
        self._pump()

    def _line_changed(self, state: LineState, reason: str) -> None:
        if state is LineState.LOST:
            self._later(lambda now: self._machine.line_lost(reason, now))
        elif state is LineState.CLOSED:
            self.cancel(f"the relay lets {self._guest.name} go")

    def _line_said(self, words: str) -> None:
        self._machine.notice(words, self._now())
        self._pump()

    def _pen_taken(self, holder: str) -> None:
        self._machine.pen_taken(holder, self._now())
        self._pump()

    def _timed(self) -> None:
        self._timer = None
        # What came in time counts, though it may not have been read yet.
        self._later(self._machine.tick)

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
        if self._wake is not None and self._entries:
            self._wake()

    def _next_turn(self) -> None:
        self._turn = None
        self._pump()

    def _some(self) -> bool:
        """Do one thing; return whether there may be another."""
        machine = self._machine
        if effects := machine.effects():
            self._carry_out(effects)
            return True
        if machine.outcome is not None:
            return False
        if self._due and (not machine.wants_bytes or self._cursor.offset >= self._due[0][0]):
            _, event = self._due.popleft()
            event(self._now())
            return True
        if not machine.wants_bytes:
            return False
        found = self._cursor.next(PIECE_BYTES)
        if found is None:
            return False
        if isinstance(found, Gap):
            machine.gap(found.lost, self._now())
        else:
            self._cursor.offset = found.offset + machine.receive(found.data, self._now())
        return True

    def _carry_out(self, effects: list[Effect]) -> None:
        # What becomes of one may have effects of its own: they are the next turn's, for a script may loop.
        for effect in effects:
            match effect:
                case Keys(data):
                    self._type(data)
                case Break(sysrq):
                    self._break(sysrq)
                case Entry():
                    self._tell(effect)
                case _:
                    assert_never(effect)

    def _type(self, keys: bytes) -> None:
        assert self._line is not None
        assert self._grip is not None
        if not self._grip.held:
            return
        try:
            self._line.write(keys)
        except LineError as error:
            self._machine.not_sent(str(error), self._now())
        else:
            self._machine.written(self._now())

    def _break(self, sysrq: str | None) -> None:
        sent: Deferred[BreakInWay] = Deferred.fromCoroutine(self._guest.break_in(self._by, sysrq=sysrq))
        sent.addCallbacks(lambda _: self._machine.written(self._now()), self._not_broken)
        sent.addCallback(lambda _: self._pump())
        sent.addErrback(lambda failure: self._log.failure("a bug in a script's BREAK", failure))

    def _not_broken(self, failure: Failure) -> None:
        failure.trap(KbridgeError)
        self._machine.not_sent(str(failure.value), self._now())

    def _tell(self, entry: Entry) -> None:
        self._queue(entry)
        fields = {"run": self._id, "line": entry.line, "step": entry.step, **entry.fields}
        if entry.kind == "end":
            self._finish({"run": self._id, "by": self._by, "elapsed": entry.elapsed, **entry.fields})
        elif entry.kind != "waits":
            self._guest.recorder.record("expect.step", did=entry.kind, elapsed=entry.elapsed, **fields)

    def _queue(self, entry: Entry) -> None:
        if len(self._entries) >= MAX_ENTRIES:
            self._entries.popleft()
            self._skipped += 1
        self._entries.append(
            {
                "time": time_text(time.time_ns()),
                "elapsed": entry.elapsed,
                "kind": entry.kind,
                "line": entry.line,
                "step": entry.step,
                **entry.fields,
            }
        )

    def _finish(self, fields: dict[str, Any]) -> None:
        for stop in self._stops:
            stop()
        self._stops = []
        self._finished = True
        self._due.clear()
        # A guest that is let go closes its line before its record: the run has ended then.
        recorder = self._guest.recorder
        recorder.record("expect.end", **fields)
        if self._grip is not None and self._grip.held:
            self._grip.release()
            recorder.record("console.pen", holder=None)

    def _set_timer(self) -> None:
        deadline = self._machine.deadline if self._turn is None else None
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


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
