"""A boot that is controlled: holds the pen, resets the machine, reads the ring from there, keeps the time.

in          the ring's bytes by a cursor; the line's, the pen's and the machine's changes; the reactor's time; the
            peer's end; answers to what it asks
out         keys on the line; a reset by the monitor, or a changed command line by the debug stub; the transcript for
            one peer; each of its entries on the guest's time line
states      not begun; going on; ended (the pen is free again, whatever ended it)
invariant   nothing is typed without the pen; a guest that a debugger holds is not reset unless that is forced; what is
            secret is in no entry; other guests have their turn after ``TURN_SECONDS``
"""

from __future__ import annotations

import secrets as random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, assert_never

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from kbridge.boot.by_stub import change_command_line, why_not
from kbridge.boot.control import Entry, Keys, Machine, Reset
from kbridge.boot.wishes import Way
from kbridge.console.readers import Gap
from kbridge.console.run import ConsoleRun
from kbridge.console.timeline import time_text
from kbridge.errors import GuestError, KbridgeError, LineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.python.failure import Failure

    from kbridge.boot.control import Effect, Outcome
    from kbridge.boot.wishes import Wishes
    from kbridge.guest import Guest
    from kbridge.hypervisors.interface import MachineEvent

PIECE_BYTES: Final = 512
"""What a screen takes about as long for as a turn."""
BY_STUB_SECONDS: Final = 600.0
"""For firmware and boot loader, when the debug stub waits for the kernel; the states have deadlines of their own."""

_STOPS: Final = {
    "panic": "its kernel reported a panic to the hypervisor",
    "io-error": "its disk had an error",
    "watchdog": "its watchdog bit",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A secret that a run asks for: one of ``dialogue.SECRETS``."""

    run: str
    secret: str


class BootRun(ConsoleRun):
    """One boot by ``wishes``, and the body of the answer that is its transcript (a ``PieceReader``).

    ``alive`` tells whether the guest is still there.
    """

    _log = Logger()

    def __init__(
        self,
        guest: Guest,
        wishes: Wishes,
        *,
        by: str,
        alive: Callable[[], bool],
        secrets: Mapping[str, str] | None = None,
        user: str = "root",
        may_ask: bool = False,
        reset: bool = True,
        patience: float = 1.0,
        way: Way = Way.AUTO,
    ) -> None:
        super().__init__(guest, "boot", alive=alive)
        self._wishes = wishes
        self._by = by
        self._way = way
        self._reset = reset
        self._patience = patience
        self._changing: Deferred[Any] | None = None
        """What changes the command line by the debug stub."""
        self._machine = self._driven = Machine(
            wishes,
            nonce=f"kb{random.token_hex(3)}",
            secrets=secrets,
            user=user,
            may_ask=may_ask,
            patience=patience,
            reset=reset,
            way=self._possible(),
            guest=guest.name,
        )
        self._id = random.token_hex(4)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; ``None`` while it goes on."""
        return self._machine.outcome

    @property
    def question(self) -> Question | None:
        """What somebody is asked for now."""
        return Question(self._id, self._machine.asking) if self._machine.asking else None

    def answer(self, question: Question, secret: str | None) -> None:
        """Give the secret that is asked for, or with ``None`` give up; raises ``KbridgeError`` where it is another."""
        if self.question != question:
            raise KbridgeError(
                f"run {self._id} on {self._guest.name} does not ask for that now",
                why="it asks for another" if self._machine.asking else "it asks for nothing",
                todo="the transcript and `GET /guests/NAME` say what is asked for, by which run",
            )
        self._later(lambda now: self._give(question, secret, now))

    def _give(self, question: Question, secret: str | None, now: float) -> None:
        # Between the answer and its turn the guest may have gone on.
        if self.question == question:
            self._machine.give(secret, now)

    def start(self, *, force: bool = False) -> None:
        """Take the pen and begin.

        Raises ``GuestError`` where the guest lacks what it takes or a debugger holds it, ``LineError`` without line or
        pen.
        """
        guest = self._guest
        line = self._open_line()
        if self._reset:
            self._check_machine(force=force)
        self._line = line
        self._grip = guest.pen.take(f"{self._by} (boot)", force=force, taken=self._pen_taken)
        guest.boot = self
        recorder = guest.recorder
        recorder.record("console.pen", holder=self._grip.holder)
        recorder.record("boot.start", run=self._id, by=self._by, **self._wished())
        self._tell_peer({"kind": "start", "elapsed": 0.0, "state": "unknown", "program": "", "run": self._id})
        self._stops = [
            recorder.watch(self._pump),
            line.subscribe(self._line_changed),
            line.on_words(self._line_said),
        ]
        if guest.machine is not None:
            self._stops.append(guest.machine.subscribe(self._machine_event))
        self._machine.start(self._now())
        self._pump()

    def _check_machine(self, *, force: bool) -> None:
        guest = self._guest
        if guest.machine is None:
            raise GuestError(
                f"{guest.name} cannot be reset",
                why="it has no machine monitor",
                todo="configure `qmp`; or restart it yourself and give --no-reset",
            )
        if not guest.machine.connected:
            raise GuestError(
                f"{guest.name} cannot be reset",
                why=f"its machine monitor does not answer: {guest.machine.problem}",
            )
        relay = guest.relay
        if relay is None or force:
            return
        holders = [one.name for one in relay.sessions if one.controls]
        if holders or relay.attached:
            raise GuestError(
                f"{guest.name} is not reset: a debugger holds it",
                why=f"{', '.join(holders) or 'a session'} would lose what it looks at",
                todo="ask them to leave, or reset it by --force",
            )

    def _possible(self) -> Way:
        """Return which way there is; raises ``GuestError`` where the wanted one is none."""
        why = why_not(self._guest) if self._reset else "somebody else restarts the machine"
        if self._way is Way.STUB and why:
            raise GuestError(
                f"the command line of {self._guest.name} cannot be changed by its debug stub",
                why=why,
                todo="leave it to the boot loader: --way loader",
            )
        return Way.LOADER if why else self._way

    def _wished(self) -> dict[str, Any]:
        wishes = self._wishes
        wished = {
            "single_user": wishes.single_user,
            "emergency": wishes.emergency,
            "init": wishes.init,
            "append": wishes.append,
            "break_at": wishes.break_at,
            "entry": wishes.entry,
            "stop_at": wishes.stop_at.value if wishes.stop_at is not None else "",
        }
        return {name: value for name, value in wished.items() if value}

    def _skipped(self, entry: Mapping[str, Any], lost: int) -> dict[str, Any]:
        return {
            **{key: entry[key] for key in ("time", "elapsed", "state", "program")},
            "kind": "skipped",
            "lost": lost,
        }

    # What happens meanwhile.

    def _machine_event(self, event: MachineEvent) -> None:
        match event.name:
            case "machine.reset":
                self._later(self._machine.restarted)
            case "machine.shutdown":
                self._later(self._machine.machine_off)
            case "machine.lost":
                why = str(event.data.get("why", ""))
                self._later(lambda now: self._machine.machine_lost(why, now))
            case "machine.stop" if event.data.get("cause") in _STOPS:
                words = _STOPS[event.data["cause"]]
                self._later(lambda now: self._machine.machine_stopped(words, now))
            case _:
                return

    # Carrying out.

    def _some(self) -> bool:
        """Do one thing; return whether there may be another."""
        machine = self._machine
        if effects := machine.effects():
            self._carry_out(effects)
            return True
        if machine.outcome is not None:
            return False
        if self._due and self._cursor.offset >= self._due[0][0]:
            _, event = self._due.popleft()
            event(self._now())
            return True
        found = self._cursor.next(PIECE_BYTES)
        if found is None:
            return False
        if isinstance(found, Gap):
            machine.gap(found.lost, self._now())
        else:
            data = found.data
            if self._due:
                # What happened at an offset happens there, not in the middle of a piece.
                data = data[: max(self._due[0][0] - found.offset, 1)]
            self._cursor.offset = found.offset + len(data)
            machine.receive(data, self._now())
        return True

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Keys(data):
                    self._type(data)
                case Reset(by_stub):
                    self._start_anew(by_stub=by_stub)
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

    def _start_anew(self, *, by_stub: bool) -> None:
        if by_stub:
            self._change_by_stub()
            return
        done: Deferred[None] = Deferred.fromCoroutine(self._guest.power("cycle", self._by))
        done.addErrback(self._not_reset)
        done.addErrback(lambda failure: self._log.failure("a bug in a boot's reset", failure))

    def _change_by_stub(self) -> None:
        machine = self._guest.machine
        assert machine is not None
        if machine.state.detail == "prelaunch":
            # It was reset already, as it were: nobody will say so.
            self._later(self._machine.restarted)
        changing = Deferred.fromCoroutine(
            change_command_line(
                self._guest,
                self._caught,
                by=self._by,
                seconds=BY_STUB_SECONDS * self._patience,
                said=self._line_said,
            )
        )
        self._changing = changing
        changing.addErrback(self._not_changed)
        changing.addErrback(lambda failure: self._log.failure("a bug in a boot by the debug stub", failure))

    def _caught(self, old: str) -> str:
        self._machine.caught()
        return self._wishes.new_command_line(old)

    def _not_changed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        failure.trap(KbridgeError)
        self._machine.not_changed(str(failure.value), self._now())
        self._pump()

    def _not_reset(self, failure: Failure) -> None:
        failure.trap(KbridgeError)
        self._machine.not_reset(str(failure.value), self._now())
        self._pump()

    def _tell(self, entry: Entry) -> None:
        self._tell_peer(
            {
                "kind": entry.kind,
                "elapsed": entry.elapsed,
                "state": entry.state.value,
                "program": entry.program,
                **entry.fields,
            }
        )
        if entry.kind == "end":
            self._finish({"run": self._id, "by": self._by, "elapsed": entry.elapsed, **entry.fields})
        else:
            self._guest.recorder.record(
                "boot.step",
                run=self._id,
                did=entry.kind,
                elapsed=entry.elapsed,
                state=entry.state.value,
                program=entry.program,
                **entry.fields,
            )

    def _tell_peer(self, entry: dict[str, Any]) -> None:
        self._transcript.add({"time": time_text(time.time_ns()), **entry})

    def _finish(self, fields: dict[str, Any]) -> None:
        if self._changing is not None:
            self._changing.cancel()
        if self._guest.boot is self:
            self._guest.boot = None
        super()._finish(fields)
