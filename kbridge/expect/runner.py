"""A run of a script on a guest's console: holds the pen, reads the ring, keeps the time.

in          the ring's bytes by a cursor; the line's and the pen's changes; the reactor's time; the peer's end
out         keys on the line; the transcript for one peer; each of its entries on the guest's time line
states      not begun; going on; ended (the pen is free again, whatever ended it)
invariant   nothing is typed without the pen; a peer that does not read is kept ``MAX_ENTRIES`` entries; other
            guests have their turn after ``TURN_SECONDS``
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final, assert_never

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from kbridge.console.readers import Gap
from kbridge.console.run import ConsoleRun
from kbridge.console.timeline import time_text
from kbridge.errors import KbridgeError, LineError
from kbridge.expect.machine import Break, Entry, Keys, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.python.failure import Failure

    from kbridge.config import BreakInWay
    from kbridge.expect.machine import Effect, Outcome
    from kbridge.expect.script import Script
    from kbridge.guest import Guest

PIECE_BYTES: Final = 128
"""What the largest expressions take about as long for as a turn."""


class ExpectRun(ConsoleRun):
    """One run of ``script``, and the body of the answer that is its transcript (a ``PieceReader``).

    ``alive`` tells whether the guest is still there.
    """

    _log = Logger()

    def __init__(
        self, guest: Guest, script: Script, *, by: str, name: str = "", alive: Callable[[], bool]
    ) -> None:
        super().__init__(guest, "expect", alive=alive)
        self._by = by
        self._name = name
        self._machine = self._driven = Machine(script)
        self._id = secrets.token_hex(4)
        self._head = self._cursor.offset

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; ``None`` while it goes on."""
        return self._machine.outcome

    def start(self, *, force: bool = False) -> None:
        """Take the pen and begin; raises ``GuestError`` without a console, ``LineError`` without line or pen."""
        guest = self._guest
        line = self._open_line()
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

    def _skipped(self, entry: Mapping[str, Any], lost: int) -> dict[str, Any]:
        # The entry before which they are missing has their time.
        found = {**entry, "kind": "skipped", "line": 0, "step": "", "lost": lost}
        return {key: found[key] for key in ("time", "elapsed", "kind", "line", "step", "lost")}

    def _stirred(self) -> None:
        head = self._guest.recorder.ring.head
        if head != self._head:
            self._head = head
            self._machine.stirred(self._now())
        self._pump()

    # Carrying out.

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
        self._transcript.add(
            {
                "time": time_text(time.time_ns()),
                "elapsed": entry.elapsed,
                "kind": entry.kind,
                "line": entry.line,
                "step": entry.step,
                **entry.fields,
            }
        )
