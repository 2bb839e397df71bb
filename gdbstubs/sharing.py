"""The guest's stub as sessions share it: who is here, what stands in the stub, how the guest is found and left.

in:      operations of sessions (``Seat`` is one session's ``Target``), the ends of connections, what the
         machine monitor says
out:     effects (connect, close, query, journal, report), operations on the stub's client
states:  absent · connecting · attached · leaving
invariant: a resume gets one stop; what no session wants does not stay in the stub; after the last session left,
         however it left, nothing of it stands there, and the guest runs if it ran before debuggers stopped it and
         nobody else stopped it since; a running guest is never stopped for an observer

One session controls (``control.py``), the others observe; stops are one history (``stops.py``), breakpoints are
counted over those who have or had control (``armed.py``).  ``docs/sharing.md`` shows the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final

from gdbstubs.armed import Armed
from gdbstubs.client import State, StubClient
from gdbstubs.control import Control, change_in_words
from gdbstubs.dialects import InterruptBy
from gdbstubs.effects import (
    CloseStub,
    ConnectStub,
    Effect,
    Journal,
    QueryMachine,
    ReadLive,
    Report,
    SessionId,
)
from gdbstubs.errors import EAGAIN, EBUSY, EFAULT, EIO, EPERM, TargetError
from gdbstubs.pages import PageCache
from gdbstubs.seat import Seat
from gdbstubs.stops import TRANSIENT_SECONDS, Stops
from gdbstubs.target import (
    ALL_THREADS,
    SIGINT,
    SIGTRAP,
    Action,
    Breakpoint,
    BreakpointKind,
    Ended,
    Halted,
    Motion,
    Reply,
    Stop,
    Thread,
    ThreadId,
)

INTERRUPT_SECONDS: Final = 10.0
"""How long a guest may take to stop; software emulation under load is slow."""
SILENCE_SECONDS: Final = 0.3
"""How long the stub may be silent about a stop that the monitor reported before we ask the monitor."""
OF_THE_STUB: Final = "debug"
"""What a monitor says of a guest that stands because its stub stopped it (QEMU: ``RUN_STATE_DEBUG``)."""
WORDS_SECONDS: Final = 1.0
"""How long a stop waits for the monitor to say who stopped the guest."""
MOST_QUEUED: Final = 64
MOST_RECOVERIES: Final = 3
"""How often in a row a stub is connected to again to remove what was left in it."""
MOST_LIVE_READS: Final = 64
LONGEST_LIVE_READ: Final = 4096

_ONLY_CONTINUE: Final = (Action(Motion.CONTINUE),)
_INSTRUCTIONS: Final = (BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE)


class Phase(Enum):
    """Where the guest's stub stands."""

    ABSENT = "absent"
    CONNECTING = "connecting"
    ATTACHED = "attached"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """What the machine monitor says; ``runs`` is None where there is no monitor to ask."""

    runs: bool | None
    detail: str = ""


class Sharing:
    """The sessions of one guest; the module's text says how."""

    def __init__(
        self, guest: str, client: StubClient, emit: Callable[[Effect], None], *, resume_on_leave: bool = True
    ) -> None:
        self.guest = guest
        self.client = client
        self.phase = Phase.ABSENT
        self.stops = Stops()
        self.armed: Armed[Seat] = Armed()
        self.control: Control[Seat] = Control(self._control_changed)
        self.resume_on_leave = resume_on_leave
        # A whole page is a second on a serial line, where requests are answered one at a time.
        self.pages = PageCache(client.read_memory, whole_pages=client.dialect.pipeline > 1)
        self.known_threads: tuple[Thread, ...] = (Thread(ThreadId(1), "as last known"),)
        """What observers of a running guest are told."""
        self._emit = emit
        self._here: list[Seat] = []
        self._arriving: deque[Seat] = deque()
        self._resumer: Seat | None = None
        """Who resumed the guest, and is told of its stop first."""
        self._run_after = False
        self._journalled = Journal(attached=False, run=False)
        self._deadline: float | None = None
        self._expired: Callable[[], None] | None = None
        self._tell_at: float | None = None
        """When the present stop has lasted long enough to be told to those who wait."""
        self._abandoned = False
        self._orphans: tuple[Breakpoint, ...] = ()
        """What may stand in the stub from an earlier connection."""
        self._resume_owed = False
        self._recoveries = 0
        self._is_closing = False
        self._held_stop: Halted | None = None
        self._going: object | None = None
        """A resume that waits for the program counter."""
        self._interrupt_planned = False
        self._is_inner = False
        """Whether the guest is being stopped for a moment, to remove what a session left behind."""
        self._wanting: Seat | None = None
        """Who wants the stop that an interrupt asks for."""
        self._rests = False
        """Whether the guest is being stopped because it is to rest after the controller."""
        self._stepping = False
        """Whether what the guest was resumed for ends by itself."""
        self._removing = 0
        self._generation = 0
        self._asked_generation = -1
        self._resumes_untold = 0
        """How many resumes of ours the monitor has not reported yet; it reports each once."""
        self._on_settled: list[Callable[[], None]] = []
        self._refused: dict[str, set[str]] = {}
        """What was refused to whom, and reported."""
        self._live_reads: dict[int, Reply[bytes]] = {}
        self._last_live = 0
        client.on_inner_step = self._inner_step

    # -- what the shell tells -------------------------------------------------------------------------------

    @property
    def seats(self) -> tuple[Seat, ...]:
        """The sessions that work on the guest, in the order in which they came."""
        return tuple(self._here)

    @property
    def is_cleaning(self) -> bool:
        """Whether the stub is connected to for what an earlier connection left in it."""
        return self.phase is Phase.CONNECTING and bool(self._orphans)

    @property
    def deadline(self) -> float | None:
        """When ``expire`` wants to be called."""
        if self._tell_at is None or self._deadline is None:
            return self._deadline if self._tell_at is None else self._tell_at
        return min(self._deadline, self._tell_at)

    def expire(self) -> None:
        """Act on a passed deadline."""
        now = self.client.now
        if self._tell_at is not None and now >= self._tell_at:
            self._tell_those_who_wait()
        if self._deadline is not None and now >= self._deadline:
            expired, self._expired, self._deadline = self._expired, None, None
            if expired is not None:
                expired()

    def _set_deadline(self, seconds: float, expired: Callable[[], None]) -> None:
        self._deadline = self.client.now + seconds
        self._expired = expired

    def _clear_deadline(self) -> None:
        self._deadline = self._expired = None

    def stub_connected(self, *, running: bool | None) -> None:
        """Greet the stub; ``running`` tells whether the guest ran before connecting stopped it.

        Unknown (None) counts as running: a guest that nobody stopped should not be left standing.
        """
        if self.phase is not Phase.CONNECTING:
            return
        self._run_after = running is not False or self._resume_owed
        self._resume_owed = False
        self._write_journal()
        self.client.connected(self._greeted, running=running)

    def leave_standing(self) -> None:
        """Let the guest stand on when the last session leaves: it stood before anybody attached."""
        if self.phase is Phase.ATTACHED:
            self._run_after = False
            self._write_journal()

    def guest_runs(self) -> None:
        """Take note that the stub was not connected to because the guest runs, as ``ConnectStub`` asked."""
        if self.phase is not Phase.CONNECTING:
            return
        self.phase = Phase.ABSENT
        self._let_in()

    def recover(self, breakpoints: tuple[Breakpoint, ...]) -> bool:
        """Clean up what a predecessor left in the stub; False when somebody is attached already.

        Sessions that come meanwhile wait.  Whether the guest is to run afterwards is what ``stub_connected`` is
        told.
        """
        if self.phase is not Phase.ABSENT:
            return False
        self._orphans = breakpoints
        self._connect(abandoned=True)
        return True

    def _greeted(self, stop: Stop | TargetError) -> None:
        if isinstance(stop, Ended):
            stop = TargetError(EIO, f"{self.guest} has ended")
        if isinstance(stop, TargetError):
            self._refuse_arriving(stop)
            if self.client.state is not State.CLOSED:
                self._close_stub(run=self._run_after, left_behind=self._orphans)
            return
        orphans, self._orphans = self._orphans, ()
        if self._abandoned:
            self.client.reclaim(orphans, self._reclaimed)
            return
        self.phase = Phase.ATTACHED
        self._resumes_untold = 0
        self._count(stop)
        self._tell_later(None)
        self._attach_arriving()
        if self.control.holder is None and self._run_after:
            # It was stopped for somebody who has left meanwhile.
            self._restore()

    def _reclaimed(self) -> None:
        """Leave a stub in which nothing of an earlier connection is unknown any more."""
        if self.phase is Phase.CONNECTING and self.client.state is State.STOPPED:
            self._leave()

    def stub_failed(self, words: str) -> None:
        """Take note that no connection to the stub could be made; the guest is as it was."""
        if self.phase is not Phase.CONNECTING:
            return
        self._refuse_arriving(TargetError(EIO, words))
        self._recoveries = MOST_RECOVERIES
        if self._resume_owed:
            # What stands in the stub cannot be removed now; the guest at least is let go.
            self._close_stub(run=True, left_behind=self._orphans)
        else:
            self._absent()

    def break_in_failed(self, words: str) -> None:
        """Take note that a guest whose stub takes no interrupt could not be stopped; it runs."""
        match self.phase:
            case Phase.CONNECTING:
                self._refuse_arriving(TargetError(EIO, words))
                self._close_stub(run=False, left_behind=self._orphans)
            case Phase.ATTACHED:
                self.client.give_up_interrupt()
                self._is_inner = self._rests = False
                if self._arriving:
                    self._clear_deadline()
                    self._refuse_arriving(TargetError(EIO, words))
                if self._wanting is not None:
                    self._wanting.say(words)
                    self._wanting = None
                self._settled()
            case Phase.LEAVING if self._expired == self._not_stopping:
                self._clear_deadline()
                self._not_stopping()
            case _:
                pass

    def _refuse_arriving(self, error: TargetError) -> None:
        self._emit(Report("debugger.refused", {"why": str(error)}))
        arriving, self._arriving = self._arriving, deque()
        for seat in arriving:
            self.control.leave(seat)
            seat.attach_failed(error)

    def stub_closed(self, reason: str) -> None:
        """Take note that the stub closed the connection: the guest, or its hypervisor, is gone."""
        self.pages.clear()
        if self.phase is Phase.ABSENT or self._is_closing:
            return
        was = self.phase
        self._clear_deadline()
        self._tell_at = self._going = None
        self._orphans = left_behind = tuple({*self.client.inserted, *self._orphans})
        words = f"{self.guest}: {reason}"
        self.stops.left()
        self._held_stop = None
        # Nobody who is told of it is to close the stub once more.
        self._is_closing = True
        if was is Phase.ATTACHED:
            self._lose_all(words)
        self.client.closed(words)
        self._is_closing = False
        if was is Phase.CONNECTING and self._arriving:
            self._refuse_arriving(TargetError(EIO, words))
        if was is not Phase.LEAVING:
            self._emit(Report("debugger.lost", {"why": reason}))
        run = self._run_after and (self.resume_on_leave or was is Phase.CONNECTING)
        self._close_stub(run=run, left_behind=left_behind)

    def machine_lost(self, words: str) -> None:
        """Take note that the machine is gone; who observes it without a connection to the stub hears it here."""
        if self.phase is not Phase.ATTACHED and self._here:
            self._lose_all(words)
            self._emit(Report("debugger.lost", {"why": words}))

    def _lose_all(self, words: str) -> None:
        """End the work of every session: another guest may come, and it is not theirs."""
        here, self._here = self._here, []
        for seat in here:
            self._forget(seat)
        for seat in here:
            seat.lost(words)

    def _forget(self, seat: Seat) -> bool:
        """Keep nothing of a session that is over; True if it had control, which is free now."""
        if self._resumer is seat:
            self._resumer = None
        if self._wanting is seat:
            self._wanting = None
        self.armed.drop(seat)
        for names in self._refused.values():
            names.discard(seat.name)
        return self.control.leave(seat)

    def stub_left(self) -> None:
        """Take note that a ``CloseStub`` was carried out."""
        if self._is_closing:
            self._is_closing = False
            self._absent()

    def machine_status(self, status: MachineStatus) -> None:
        """Take the answer to ``QueryMachine``."""
        if self._held_stop is not None:
            self._deliver_foreign(status)
            return
        if self._breaks_in:
            return
        if self.phase not in (Phase.ATTACHED, Phase.LEAVING) or self._asked_generation != self._generation:
            return
        if status.runs is False and self.client.state is State.RUNNING:
            if status.detail == OF_THE_STUB:
                # Its own word is late, and says no more of whose stop it is.
                self.client.assume_stopped(Halted(SIGTRAP, None))
            else:
                self.client.assume_stopped(Halted(SIGINT, None, words=self._foreign_words(status)))
        elif self._was_resumed(status):
            self._overtaken()
            if self.control.holder is not None:
                self.control.holder.say(
                    f"{self.guest} was resumed by its machine monitor: 'continue' waits for its next stop, "
                    "an interrupt stops it"
                )

    def _was_resumed(self, status: MachineStatus) -> bool:
        """Whether the monitor says that a guest runs which stands for all that its stub has said."""
        return status.runs is True and self.client.state is State.STOPPED and self.phase is Phase.ATTACHED

    def _overtaken(self) -> None:
        """Take note that somebody else has resumed the guest."""
        self._generation += 1
        self._moved_on()
        self.client.assume_running()
        self.client.await_stop(self._stopped)
        self._emit(Report("debugger.overtaken", {"why": "somebody else has resumed the guest"}))
        self._run_after = True
        self._write_journal()

    def machine_runs(self, *, runs: bool) -> None:
        """Take note that the monitor reported the guest resumed or stopped, by whomever.

        The stub's own reports are quicker as a rule; only when it stays silent is the monitor asked.
        """
        if self.phase in (Phase.ABSENT, Phase.CONNECTING):
            if self.phase is Phase.ABSENT and not runs and self._here:
                # A guest that stands is not disturbed by connecting, and those who observe want to look at it.
                self._connect(unless_running=True)
            return
        if self._breaks_in:
            self._say_machine(runs=runs)
            return
        foreign = runs and self._resumes_untold == 0
        if runs and not foreign:
            self._resumes_untold -= 1
        if self._held_stop is not None:
            return
        if foreign and self.client.state is State.STOPPED:
            # Every request that the stub gets from now on would stop the guest, and be lost: lose no time.
            self._ask_machine()
            return
        if self.phase is Phase.LEAVING and self._deadline is not None and not runs:
            if self.client.state is State.RUNNING:
                self._ask_machine()
            return
        if runs == (self.client.state is State.RUNNING):
            if self._expired == self._ask_machine:
                self._clear_deadline()
        elif self._deadline is None:
            self._set_deadline(SILENCE_SECONDS, self._ask_machine)

    def _say_machine(self, *, runs: bool) -> None:
        """Tell of a pause that is no stop.

        A kernel that stands in its own stub runs, for the monitor, and one that is paused stands in no stub.
        """
        words = "resumed" if runs else "paused: its stub answers again when it is resumed"
        for seat in self.seats:
            seat.say(f"the machine of {self.guest} was {words}")

    def _ask_machine(self) -> None:
        self._asked_generation = self._generation
        self._emit(QueryMachine())

    def _inner_step(self) -> None:
        """Take note of a resume within a range of steps, which the monitor reports too."""
        self._resumes_untold += 1

    # -- sessions come --------------------------------------------------------------------------------------

    def join(
        self,
        session: SessionId,
        name: str,
        say: Callable[[str], None],
        *,
        observes: bool = False,
        admin: bool = False,
    ) -> Seat:
        """Return a seat for a new session; nothing is sent to the stub before it is needed."""
        return Seat(self, session, name, say, observes=observes, admin=admin)

    def want(self, seat: Seat) -> None:
        """Attach a seat; ``seat.attached`` or ``seat.attach_failed`` is called."""
        if seat in self._arriving:
            return
        if len(self._arriving) >= MOST_QUEUED:
            seat.attach_failed(TargetError(EBUSY, f"too many debuggers wait for {self.guest}"))
            return
        if self.phase is Phase.LEAVING or (self.phase is Phase.CONNECTING and self._abandoned):
            self._arriving.append(seat)
            return
        controls = not seat.observes and self.control.take(seat)
        match self.phase:
            case Phase.ABSENT:
                self._arriving.append(seat)
                self._connect(unless_running=not controls)
            case Phase.ATTACHED:
                if self.stops.present and not self._is_about_to_run:
                    self._attach(seat)
                elif controls:
                    self._arriving.append(seat)
                    self._stop_for_arrival()
                elif self._held_stop is not None:
                    self._arriving.append(seat)
                else:
                    self._attach(seat)
            case Phase.CONNECTING | Phase.LEAVING:
                self._arriving.append(seat)

    @property
    def _is_about_to_run(self) -> bool:
        return self._going is not None or self.client.is_resuming

    def _attach(self, seat: Seat) -> None:
        fields: dict[str, str | int | bool | None] = {
            "session": seat.name,
            "role": "controller" if seat.controls else "observer",
        }
        if self.stops.present:
            fields["stop"] = self.stops.present
        self._emit(Report("debugger.attach", fields))
        self._here.append(seat)
        holder = self.control.holder
        if holder is not None and holder is not seat and not seat.observes:
            seat.say(
                f"{holder.name} controls {self.guest}, you observe; 'monitor control take' asks for control"
            )
        seat.attached()

    def _attach_arriving(self) -> None:
        arriving, self._arriving = self._arriving, deque()
        for seat in arriving:
            self._attach(seat)

    def _let_in(self) -> None:
        """Attach those who can work on a running guest; connect the stub for one who has control."""
        queue, self._arriving = self._arriving, deque()
        for seat in queue:
            if self.phase is Phase.ABSENT and not seat.controls:
                self._attach(seat)
        for seat in queue:
            if seat.controls:
                self.want(seat)

    def _stop_for_arrival(self) -> None:
        """Stop a guest that runs under observers only, for one who is to control it."""
        self._wanting = self.control.holder
        self._set_deadline(INTERRUPT_SECONDS, self._no_arrival)
        self._halt()

    def _halt(self) -> None:
        """Stop a guest that runs or is about to."""
        if self._going is not None:
            self._interrupt_planned = True
            return
        self.client.interrupt()
        # Where the machine stands still already the stub throws the interrupt away.
        self._ask_machine()

    def _no_arrival(self) -> None:
        self._refuse_arriving(TargetError(EIO, f"{self.guest} did not stop within {INTERRUPT_SECONDS:g} s"))

    def _connect(self, *, abandoned: bool = False, unless_running: bool = False) -> None:
        self.phase = Phase.CONNECTING
        self._abandoned = abandoned
        self._emit(ConnectStub(unless_running))

    # -- sessions leave -------------------------------------------------------------------------------------

    def left(self, seat: Seat) -> None:
        """Take note that a session is over, however it ended."""
        was_arriving = seat in self._arriving
        if was_arriving:
            self._arriving.remove(seat)
        was_here = seat in self._here
        if was_here:
            self._here.remove(seat)
            self._emit(Report("debugger.leave", {"session": seat.name}))
        held = self._forget(seat)
        match self.phase:
            case Phase.CONNECTING:
                if not self._arriving and not self._here:
                    self._abandoned = True
            case Phase.ATTACHED if was_here or was_arriving:
                if not self._here and not self._arriving:
                    self._leave()
                elif held:
                    self._restore()
                else:
                    self._disarm()
            case _:
                pass

    def when_settled(self, told: Callable[[], None]) -> None:
        """Call ``told`` once nothing of those who left stands in the stub, and the guest was let go if it was."""
        if self.phase is not Phase.LEAVING and not self._is_inner and not self._removing:
            told()
        else:
            self._on_settled.append(told)

    def _settled(self) -> None:
        if self.phase is Phase.LEAVING or self._is_inner or self._removing:
            return
        told, self._on_settled = self._on_settled, []
        for tell in told:
            tell()

    def _restore(self) -> None:
        """Put the guest back as it was before debuggers stopped it: nobody controls it, others are still here."""
        runs = self.client.state is State.RUNNING or self._is_about_to_run
        if runs and not self.resume_on_leave:
            self._rests = True
            self._halt()
        elif not (self._run_after and self.resume_on_leave):
            self._disarm()
        elif not self.armed.all():
            self._leave()
        elif runs:
            self._disarm()
        elif self._held_stop is None and self.client.state is State.STOPPED:
            self._go(None, _ONLY_CONTINUE)

    def _disarm(self) -> None:
        """Remove from the stub what no session wants there any more.

        A guest that runs is stopped for a moment for it, and gets what is wanted and missing as well.
        """
        wanted, inserted = self.armed.all(), self.client.inserted
        stale = inserted - wanted
        stands = self.client.state is State.STOPPED and not self._is_about_to_run
        if not stale and (stands or wanted <= inserted):
            return
        if stands:
            self.pages.clear()
            for breakpoint_ in tuple(stale):
                self._removing += 1
                self.client.remove(breakpoint_, self._removed)
            return
        self._is_inner = True
        self._halt()

    def _removed(self, result: TargetError | None) -> None:
        self._removing -= 1
        self._write_journal()
        self._settled()

    def _leave(self) -> None:
        """Stop the guest if it runs, remove what stands in the stub, let go."""
        self.phase = Phase.LEAVING
        self._clear_deadline()
        self._tell_at = self._held_stop = self._going = None
        self._is_inner = False
        self.stops.left()
        if self.client.is_resuming:
            # What the session asked last is on its way: let it run and stop again.
            self._set_deadline(INTERRUPT_SECONDS, self._not_stopping)
            self.client.interrupt()
            return
        if self.client.state is not State.RUNNING:
            self._clean()
            return
        self._set_deadline(INTERRUPT_SECONDS, self._not_stopping)
        self._halt()

    def _not_stopping(self) -> None:
        self._emit(
            Report("debugger.stuck", {"why": f"the guest did not stop within {INTERRUPT_SECONDS:g} s"})
        )
        self._close_stub(
            run=self._run_after and self.resume_on_leave, left_behind=tuple(self.client.inserted)
        )

    def _clean(self) -> None:
        left = len(self.client.inserted)
        if left == 0:
            self._cleaned()
            return

        def removed(result: TargetError | None) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._cleaned()

        for breakpoint_ in tuple(self.client.inserted):
            self.client.remove(breakpoint_, removed)

    def _cleaned(self) -> None:
        if self.phase is not Phase.LEAVING:
            return
        run = self._run_after and self.resume_on_leave
        if run and self.client.state is State.STOPPED and self.client.steps.any_owed:
            # A processor that is owed a single step would stop the guest again after we are gone.
            self._set_deadline(INTERRUPT_SECONDS, self._not_stopping)
            self.client.resume(_ONLY_CONTINUE, self._stopped)
            self.client.interrupt()
            return
        if not run or not self.client.dialect.detach_resumes or self.client.state is State.CLOSED:
            self._close_stub(run=run)
            return
        self.client.detach(lambda result: self._close_stub(run=True, detached=result is None))

    def _close_stub(
        self, *, run: bool, detached: bool = False, left_behind: tuple[Breakpoint, ...] = ()
    ) -> None:
        """Close the connection, once; what it left behind is removed by another one, if that can be made."""
        if self._is_closing:
            return
        self._is_closing = True
        self.phase = Phase.LEAVING
        self._clear_deadline()
        self.stops.left()
        self.client.closed("the last debugger has left")
        self._orphans = left_behind
        # A guest that runs into what was left behind would stand there for ever: it is resumed afterwards.
        self._resume_owed = run and bool(left_behind) and self._recoveries < MOST_RECOVERIES
        self._emit(CloseStub(run and not self._resume_owed, detached))

    def _absent(self) -> None:
        self.phase = Phase.ABSENT
        self._removing = 0
        self._is_inner = False
        if self._orphans and self._recoveries < MOST_RECOVERIES:
            self._recoveries += 1
            self._connect(abandoned=True)
            return
        self._recoveries = 0
        self._resume_owed = False
        self._clear_deadline()
        self._run_after = False
        if self._orphans:
            # The journal goes on naming them: the next connection, if only a successor's, removes them.
            self._emit(Report("debugger.left_behind", {"breakpoints": len(self._orphans)}))
        else:
            self._write_journal(attached=False)
        self._settled()
        queue, self._arriving = self._arriving, deque()
        for seat in queue:
            self.want(seat)

    # -- the journal ----------------------------------------------------------------------------------------

    def _write_journal(self, *, attached: bool = True, planned: frozenset[Breakpoint] = frozenset()) -> None:
        run = self._run_after and self.resume_on_leave
        standing = tuple({*self.client.inserted, *self._orphans, *planned}) if attached else ()
        entry = Journal(attached, run, standing)
        if entry != self._journalled:
            self._journalled = entry
            self._emit(entry)

    # -- control --------------------------------------------------------------------------------------------

    def _control_changed(self, former: Seat | None, holder: Seat | None, how: str) -> None:
        self._refused.clear()
        if holder is not None:
            self.armed.put(holder, holder.standing)
        fields: dict[str, str | int | bool | None] = {
            "from": None if former is None else former.name,
            "to": None if holder is None else holder.name,
            "how": how,
        }
        self._emit(Report("debugger.control", fields))
        words = change_in_words(self.guest, former, holder, how)
        for seat in self._here:
            if seat is not holder and (seat is not former or how == "forced"):
                seat.say(words)
        if holder is not None and holder in self._here:
            self._hold(holder, former, how)

    def _hold(self, holder: Seat, former: Seat | None, how: str) -> None:
        """Let a session that is here make use of the control that it got."""
        if self.phase is Phase.ATTACHED and self.client.state is State.RUNNING:
            self._disarm()
        if former is not None and how == "given":
            # Who forces or takes control is answered by the command.
            holder.say(f"{former.name} gave you control of {self.guest}")
        if holder.waits and holder.seen == self.stops.present:
            # It waits for somebody else to resume the guest, and there is nobody else now.
            holder.stopped(Halted(SIGINT, self.stops.thread))

    def take_control(self, seat: Seat) -> bool:
        """Give a session that is here control if that is free; a guest that runs without the stub is then stopped."""
        if not self.control.take(seat):
            return False
        self._take_hold()
        return True

    def force_control(self, seat: Seat) -> None:
        """Give a session that is here control, whoever has it."""
        self.control.force(seat)
        self._take_hold()

    def _take_hold(self) -> None:
        if self.phase is Phase.ABSENT:
            self._connect()

    # -- what sessions ask ----------------------------------------------------------------------------------

    def why_not_now(self, seat: Seat) -> TargetError:
        """Say why a session cannot read or write now."""
        present = self.stops.present
        if not present:
            return TargetError(EAGAIN, f"{self.guest} is running")
        since = "" if seat.seen < 0 else f" since stop {seat.seen}"
        return TargetError(
            EAGAIN, f"{self.guest} has run{since} and stands at stop {present} now: 'continue' shows it"
        )

    def insert(self, seat: Seat, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Insert in the stub what does not stand there yet."""
        inserted = self.client.inserted
        slots = self.client.dialect.hardware_slots
        if breakpoint_ not in inserted:
            # What nobody wants any more gives up its slot.
            standing = inserted & (self.armed.of_others(seat) | seat.wanted)
            error = self.armed.no_slot(breakpoint_, standing, slots)
            if error is not None:
                done(error)
                return
            for stale in tuple(inserted - standing) if slots is not None else ():
                self.client.remove(stale, _ignored)
        before = self.armed.of(seat)
        self.armed.put(seat, before | {breakpoint_})
        if breakpoint_ in self.client.inserted:
            done(None)
            return
        self.pages.clear()
        # The journal first: a breakpoint that nobody knows of cannot be removed.
        self._write_journal(planned=frozenset((breakpoint_,)))

        def inserted_in_stub(result: TargetError | None) -> None:
            if result is not None:
                self.armed.put(seat, self.armed.of(seat) - {breakpoint_})
            done(result)

        self.client.insert(breakpoint_, inserted_in_stub)

    def resume(self, seat: Seat, actions: tuple[Action, ...]) -> None:
        """Let the guest run for the controller; let the others wait for its next stop."""
        present, latest = self.stops.present, self.stops.latest
        if present and seat.seen != present:
            assert latest is not None
            if self._tell_at is None:
                self._tell(seat)
            return
        again, seat.retell = seat.retell, 0
        if present and again == present and seat.steps_over is None:
            self._tell(seat)
            return
        if not seat.controls:
            self._wait(seat, actions)
            return
        seat.steps_over = None
        self._resumer = seat
        if self.client.state is State.RUNNING:
            # Somebody else resumed the guest: wait for its next stop.
            return
        self._go(seat, actions)

    def _wait(self, seat: Seat, actions: tuple[Action, ...]) -> None:
        holder = self.control.holder
        if seat.steps_over is not None:
            return
        if any(action.motion is not Motion.CONTINUE for action in actions):
            who = (
                "nobody controls it: 'monitor control take'"
                if holder is None
                else f"{holder.name} controls it"
            )
            words = f"you observe {self.guest} and cannot step it; {who}"
            self.forbidden(seat, words)
            seat.stopped(TargetError(EPERM, words))
            return
        if self.armed.knows(seat):
            self.armed.put(seat, seat.wanted)
        elif seat.wanted:
            seat.say("you observe: your breakpoints are kept, and not inserted before you have control")
        if holder is None and self.stops.present:
            seat.say(f"nobody controls {self.guest}, which stands: interrupt, then 'monitor control take'")

    def forbidden(self, seat: Seat, words: str) -> None:
        """Report a refusal for want of control: each once, until a session gets control or leaves."""
        if seat.name not in self._refused.get(words, ()):
            self._refused.setdefault(words, set()).add(seat.name)
            self._emit(Report("debugger.refused", {"session": seat.name, "why": words}))

    def interrupt(self, seat: Seat) -> None:
        """Stop the guest for the controller; end the waiting of an observer."""
        if not seat.waits:
            return
        if seat.controls and (self.client.state is State.RUNNING or self._is_about_to_run):
            self._wanting = seat
            if self._going is not None:
                self._interrupt_planned = True
            else:
                self.client.interrupt()
        elif seat.controls and self._held_stop is not None:
            return
        elif self.stops.present and seat.seen != self.stops.present:
            self._tell(seat)
        else:
            if not self.stops.present:
                # It goes on as one that came to a running guest: a debugger that is told of a stop reads registers.
                seat.seen = -1
            seat.stopped(Halted(SIGINT, ThreadId(1) if self.stops.latest is None else self.stops.thread))

    def read_live(self, address: int, length: int, done: Reply[bytes]) -> None:
        """Read the memory of a running guest through the machine monitor; never more than 4 KB at once."""
        if len(self._live_reads) >= MOST_LIVE_READS:
            done(TargetError(EBUSY, "too many live reads are under way"))
            return
        self._last_live += 1
        self._live_reads[self._last_live] = done
        self._emit(ReadLive(self._last_live, address, min(length, LONGEST_LIVE_READ)))

    def live_memory(self, token: int, data: bytes | str) -> None:
        """Take the answer to ``ReadLive``: bytes, or words that say why there are none."""
        done = self._live_reads.pop(token, None)
        if done is not None:
            done(TargetError(EFAULT, data) if isinstance(data, str) else data)

    # -- running and stopping -------------------------------------------------------------------------------

    def _moved_on(self) -> None:
        """Forget the present stop: the guest runs."""
        self.pages.clear()
        if self._tell_at is not None:
            self._tell_at = None
            self.stops.passed()
        self.stops.left()

    def _go(self, seat: Seat | None, actions: tuple[Action, ...]) -> None:
        """Make the stub hold what sessions want, step over what only others want here, let the guest run."""
        self._generation += 1
        self._moved_on()
        self._wanting = None
        self._interrupt_planned = self._rests = False
        if seat is not None:
            self.armed.put(seat, seat.wanted)
        self._make_stub_match()
        thread = self.stops.thread
        others = self._only_of_others(seat)
        forward = all(action.motion in (Motion.CONTINUE, Motion.STEP) for action in actions)
        steps = any(action.motion is Motion.STEP for action in actions)
        if (
            not others
            or thread is None
            or not forward
            or (steps and self.client.dialect.steps_over_breakpoints)
        ):
            self._run(actions)
            return
        going = self._going = object()

        def known(counter: int | TargetError) -> None:
            if self._going is not going:
                return
            self._going = None
            here = frozenset() if isinstance(counter, TargetError) else frozenset(
                one for one in others if one.address == counter
            )  # fmt: skip
            if here:
                self._step_over(thread, here, actions, steps=steps)
            else:
                self._run(actions)

        self.client.program_counter(thread, known)

    def _make_stub_match(self) -> None:
        """Let the stub hold what sessions want, and nothing else, before the guest runs."""
        wanted, inserted = self.armed.all(), self.client.inserted
        for breakpoint_ in tuple(inserted - wanted):
            self.client.remove(breakpoint_, _ignored)
        missing = wanted - inserted
        if missing:
            self._write_journal(planned=missing)
            for breakpoint_ in missing:
                self.client.insert(breakpoint_, partial(self._inserted_again, breakpoint_))

    def _only_of_others(self, seat: Seat | None) -> frozenset[Breakpoint]:
        """Breakpoints at addresses where the session that resumes has none: it would not get past them itself."""
        own = frozenset() if seat is None else frozenset(one.address for one in self.armed.of(seat))
        return frozenset(
            one for one in self.armed.of_others(seat) if one.kind in _INSTRUCTIONS and one.address not in own
        )

    def _inserted_again(self, breakpoint_: Breakpoint, result: TargetError | None) -> None:
        if result is not None:
            for owner in self.armed.owners(breakpoint_):
                self.armed.put(owner, self.armed.of(owner) - {breakpoint_})
                owner.say(f"the breakpoint at {breakpoint_.address:#x} could not be inserted: {result}")

    def _step_over(
        self, thread: ThreadId, here: frozenset[Breakpoint], actions: tuple[Action, ...], *, steps: bool
    ) -> None:
        if not self.client.dialect.steps_over_breakpoints:
            for breakpoint_ in here:
                self.client.remove(breakpoint_, _ignored)
            if steps:
                # The next resume inserts them again.
                self._run(actions)
                return
        self._run((Action(Motion.STEP, thread),), partial(self._stepped_over, actions))

    def _stepped_over(self, actions: tuple[Action, ...], stop: Stop | TargetError) -> None:
        if (
            not isinstance(stop, Halted)
            or stop.signal != SIGTRAP
            or stop.reason is not None
            or self.phase is not Phase.ATTACHED
        ):
            self._stopped(stop)
            return
        if self._wanting is not None or self._rests:
            self._stopped(Halted(SIGINT, stop.thread))
            return
        self._generation += 1
        self._is_inner = False
        self._make_stub_match()
        self._run(actions)
        self._settled()

    def _run(self, actions: tuple[Action, ...], stopped: Reply[Stop] | None = None) -> None:
        self._stepping = any(action.motion is not Motion.CONTINUE for action in actions)
        if not self._stepping:
            self._run_after = True
            self._write_journal()
        self._resumes_untold += 1
        self.client.resume(actions, stopped or self._stopped)
        if self._interrupt_planned:
            self._interrupt_planned = False
            self.client.interrupt()

    def _stopped(self, stop: Stop | TargetError) -> None:
        if self._expired == self._ask_machine:
            self._clear_deadline()
        if self.phase is Phase.LEAVING:
            self._clear_deadline()
            if isinstance(stop, Halted) and self._is_foreign(stop):
                self._run_after = False
            if self.client.state is not State.CLOSED:
                self._clean()
            return
        self._is_inner = False
        if self._is_ours_alone(stop):
            self._go_on()
            return
        if isinstance(stop, Halted) and self._is_foreign(stop):
            self._run_after = False
            if not stop.words:
                # The monitor knows whether it was a panic, an I/O error or a colleague: ask before telling.
                self._held_stop = stop
                self._set_deadline(WORDS_SECONDS, lambda: self._deliver_foreign(MachineStatus(None)))
                self._emit(QueryMachine())
                return
        self._deliver(stop)

    @property
    def _breaks_in(self) -> bool:
        """Whether the stub is the kernel's own (kgdb): a stop that was asked for is a ``T05`` as any other.

        The machine monitor knows nothing of its stops.
        """
        return self.client.dialect.interrupt_by is InterruptBy.BREAK_IN

    def _is_ours_alone(self, stop: Stop | TargetError) -> bool:
        """Whether a stop came from the interrupt that was sent to remove breakpoints, and nobody else wants it."""
        return (
            isinstance(stop, Halted)
            and (stop.signal == SIGINT or self._breaks_in)
            and self.client.interrupt_sent
            and self._wanting is None
            and not self._rests
            and not self._arriving
            and self._run_after
        )

    def _go_on(self) -> None:
        """Let a guest run again that was stopped for a moment only."""
        self._generation += 1
        self._make_stub_match()
        if not self.armed.all() and self.control.holder is None and self.resume_on_leave:
            self._leave()
            return
        self._run(_ONLY_CONTINUE)
        self._settled()

    def _is_foreign(self, stop: Halted) -> bool:
        """Whether somebody other than the debugger stopped the guest."""
        return stop.signal != SIGTRAP and not self.client.interrupt_sent

    def _deliver_foreign(self, status: MachineStatus) -> None:
        held, self._held_stop = self._held_stop, None
        self._clear_deadline()
        if held is None:
            return
        if self._was_resumed(status):
            # The pause is over already.  Whoever went on from it would stop the guest anew.
            self._overtaken()
        else:
            self._deliver(Halted(held.signal, held.thread, held.reason, self._foreign_words(status)))

    def _foreign_words(self, status: MachineStatus) -> str:
        detail = f" ({status.detail})" if status.detail else ""
        return f"{self.guest} was stopped by something else than a debugger{detail}"

    def _deliver(self, stop: Stop | TargetError) -> None:
        """Tell a stop: to the session that resumed the guest at once, to others when it has lasted a while."""
        if isinstance(stop, Ended):
            words = stop.words or f"{self.guest} is gone: its hypervisor has ended"
            self._emit(Report("debugger.ended", {"why": words}))
            ended = Ended(stop.status, stop.signal, words)
            for seat in self.seats:
                seat.stopped(ended)
            return
        resumer, self._resumer = self._resumer, None
        if isinstance(stop, TargetError):
            if self.client.state is State.STOPPED:
                self.stops.stands_again()
            self._write_journal()
            if resumer is not None:
                resumer.stopped(stop)
            return
        self._clear_deadline()
        self._count(stop)
        self._disarm()
        self._write_journal()
        self._settled()
        self._tell_later(resumer)
        self._wanting = None
        self._rests = False
        if resumer is not None:
            self._tell(resumer)
        self._attach_arriving()
        if self.control.holder is None and self._stepping and self.stops.present:
            # The step of a controller that has left meanwhile.
            self._restore()

    def _tell(self, seat: Seat) -> None:
        """Tell a session the present stop, with what it missed."""
        latest = self.stops.latest
        if latest is not None and self.stops.present:
            missed = self.stops.missed(seat.seen)
            seat.seen = latest.number
            told = seat.as_told(latest.halted, missed)
            seat.stepped = None
            if seat.steps_over is not None:
                # gdb aborts when it hears of another thread than the one that it steps.
                thread = told.thread if seat.steps_over == ALL_THREADS else seat.steps_over
                told = Halted(SIGTRAP, thread, None, told.words)
                seat.stepped = thread
                seat.retell, seat.steps_over = latest.number, None
            seat.stopped(told)

    def _tell_later(self, told: Seat | None) -> None:
        if any(seat.waits and seat is not told for seat in self._here):
            self._tell_at = self.client.now + TRANSIENT_SECONDS

    def _tell_those_who_wait(self) -> None:
        self._tell_at = None
        for seat in self.seats:
            if seat.waits and seat.seen != self.stops.present:
                self._tell(seat)

    def _count(self, stop: Halted) -> None:
        number = self.stops.count(stop, self.client.now).number
        fields: dict[str, str | int | bool | None] = {
            "stop": number,
            "signal": stop.signal,
            "thread": stop.thread,
        }
        if stop.reason is not None:
            fields["reason"] = stop.reason[0]
        if stop.words:
            fields["words"] = stop.words
        self._emit(Report("debugger.stop", fields))


def _ignored(result: Any) -> None:
    """Take no note: what could not be removed stays in ``StubClient.inserted`` and is removed when leaving."""
