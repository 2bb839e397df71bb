"""The guest's stub as sessions share it: who is attached, what stands in the stub, how the guest is left.

In this version one session at a time works on a guest; a second one is refused in words.

in:      operations of sessions (``Seat`` is one session's ``Target``), the ends of connections, what the
         machine monitor says
out:     effects (connect, close, query, journal, report), operations on the stub's client
states:  absent · connecting · attached · leaving
invariant: after the last session left, however it left, nothing of it stands in the stub, and the guest runs if
         it ran before debuggers stopped it and nobody else stopped it since; a resume gets one stop

Breakpoints are the set that stood at the last resume: an insertion of what stands already is answered at once, and
removals take effect with the next resume (gdb removes and inserts all of them around each stop).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from gdbstubs.client import State, StubClient
from gdbstubs.effects import CloseStub, ConnectStub, Effect, Journal, QueryMachine, Report, SessionId
from gdbstubs.errors import EBUSY, EIO, TargetError
from gdbstubs.pages import PageCache
from gdbstubs.rights import Right
from gdbstubs.target import (
    SIGINT,
    SIGTRAP,
    Action,
    Breakpoint,
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
WORDS_SECONDS: Final = 1.0
"""How long a stop waits for the monitor to say who stopped the guest."""
MOST_QUEUED: Final = 64
MOST_RECOVERIES: Final = 3
"""How often in a row a stub is connected to again to remove what was left in it."""


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
        self.stop_number = 0
        """How many times the guest was stopped for a debugger since the relay started."""
        self.resume_on_leave = resume_on_leave
        self.pages = PageCache(client.read_memory)
        self._emit = emit
        self._holder: Seat | None = None
        self._queue: deque[Seat] = deque()
        self._run_after = False
        self._journalled = Journal(attached=False, run=False)
        self._deadline: float | None = None
        self._expired: Callable[[], None] | None = None
        self._abandoned = False
        self._orphans: tuple[Breakpoint, ...] = ()
        """What may stand in the stub from an earlier connection."""
        self._resume_owed = False
        self._recoveries = 0
        self._is_closing = False
        self._held_stop: Halted | None = None
        self._generation = 0
        self._asked_generation = -1
        self._resumes_untold = 0
        """How many resumes of ours the monitor has not reported yet; it reports each once."""
        self._on_left: list[Callable[[], None]] = []

    # -- what the shell tells -------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When ``expire`` wants to be called."""
        return self._deadline

    def expire(self) -> None:
        """Act on a passed deadline."""
        if self._deadline is not None and self.client.now >= self._deadline:
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
        self.client.connected(self._greeted)

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
        if isinstance(stop, TargetError):
            self._refuse_holder(stop)
            if self.client.state is not State.CLOSED:
                self._close_stub(run=self._run_after, left_behind=self._orphans)
            return
        orphans, self._orphans = self._orphans, ()
        if self._abandoned:
            # The greeting's question has removed them from QEMU and kgdb; other stubs are asked one by one.
            self.client.inserted.update(orphans)
            self._leave()
            return
        self.phase = Phase.ATTACHED
        self._resumes_untold = 0
        self._count_stop(stop)
        if self._holder is not None:
            self._emit(Report("debugger.attach", {"session": self._holder.name, "stop": self.stop_number}))
            self._holder.attached()

    def stub_failed(self, words: str) -> None:
        """Take note that no connection to the stub could be made; the guest is as it was."""
        if self.phase is not Phase.CONNECTING:
            return
        self._refuse_holder(TargetError(EIO, words))
        self._recoveries = MOST_RECOVERIES
        if self._resume_owed:
            # What stands in the stub cannot be removed now; the guest at least is let go.
            self._close_stub(run=True, left_behind=self._orphans)
        else:
            self._absent()

    def _refuse_holder(self, error: TargetError) -> None:
        self._emit(Report("debugger.refused", {"why": str(error)}))
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.attach_failed(error)

    def stub_closed(self, reason: str) -> None:
        """Take note that the stub closed the connection: the guest, or its hypervisor, is gone."""
        self.pages.clear()
        if self.phase is Phase.ABSENT or self._is_closing:
            return
        was = self.phase
        self._clear_deadline()
        self._orphans = left_behind = tuple({*self.client.inserted, *self._orphans})
        holder = self._holder
        words = f"{self.guest}: {reason}"
        if was is Phase.ATTACHED and holder is not None:
            holder.lost(words)
        held, self._held_stop = self._held_stop, None
        # Nobody who is told of it is to close the stub once more.
        self._is_closing = True
        self.client.closed(words)
        self._is_closing = False
        if was is Phase.CONNECTING and self._holder is not None:
            self._refuse_holder(TargetError(EIO, words))
        if held is not None and holder is not None:
            holder.stopped(Ended(words=words))
        if was is not Phase.LEAVING:
            self._emit(Report("debugger.lost", {"why": reason}))
        run = self._run_after and (self.resume_on_leave or was is Phase.CONNECTING)
        self._close_stub(run=run, left_behind=left_behind)

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
        if self.phase not in (Phase.ATTACHED, Phase.LEAVING) or self._asked_generation != self._generation:
            return
        if status.runs is False and self.client.state is State.RUNNING:
            self.client.assume_stopped(Halted(SIGINT, None, words=self._foreign_words(status)))
        elif status.runs is True and self.client.state is State.STOPPED and self.phase is Phase.ATTACHED:
            self._generation += 1
            self.pages.clear()
            self.client.assume_running()
            self._emit(Report("debugger.overtaken", {"why": "somebody else has resumed the guest"}))
            self._run_after = True
            self._write_journal()
            if self._holder is not None:
                self._holder.say(
                    f"{self.guest} was resumed by its machine monitor: 'continue' waits for its next stop, "
                    "an interrupt stops it"
                )

    def machine_runs(self, *, runs: bool) -> None:
        """Take note that the monitor reported the guest resumed or stopped, by whomever.

        The stub's own reports are quicker as a rule; only when it stays silent is the monitor asked.
        """
        if self.phase not in (Phase.ATTACHED, Phase.LEAVING):
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

    def _ask_machine(self) -> None:
        self._asked_generation = self._generation
        self._emit(QueryMachine())

    # -- sessions -------------------------------------------------------------------------------------------

    def join(self, session: SessionId, name: str, say: Callable[[str], None]) -> Seat:
        """Return a seat for a new session; nothing is sent to the stub before it is needed."""
        return Seat(self, session, name, say)

    def want(self, seat: Seat) -> None:
        """Attach the guest for a seat; ``seat.attached`` or ``seat.attach_failed`` is called."""
        if self._holder is seat or seat in self._queue:
            return
        if self._holder is not None:
            self._refuse(seat, self._holder)
            return
        if self.phase is Phase.ABSENT:
            self._holder = seat
            self._connect()
        elif len(self._queue) < MOST_QUEUED:
            self._queue.append(seat)
        else:
            seat.attach_failed(TargetError(EBUSY, f"too many debuggers wait for {self.guest}"))

    def _refuse(self, seat: Seat, holder: Seat) -> None:
        seat.attach_failed(
            TargetError(
                EBUSY,
                f"{self.guest} is being debugged by {holder.name}: one debugger at a time; "
                "try again when it has left",
            )
        )

    def _connect(self, *, abandoned: bool = False) -> None:
        self.phase = Phase.CONNECTING
        self._abandoned = abandoned
        self._emit(ConnectStub())

    def left(self, seat: Seat) -> None:
        """Take note that a session is over, however it ended."""
        if seat in self._queue:
            self._queue.remove(seat)
        if seat is not self._holder:
            return
        self._holder = None
        if self.phase is Phase.CONNECTING:
            self._abandoned = True
        elif self.phase is Phase.ATTACHED:
            self._emit(Report("debugger.leave", {"session": seat.name}))
            self._leave()

    # -- leaving --------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Stop the guest if it runs, remove what stands in the stub, let go."""
        self.phase = Phase.LEAVING
        self._clear_deadline()
        self._held_stop = None
        if self.client.is_resuming:
            # What the session asked last is on its way: let it run and stop again.
            self._set_deadline(INTERRUPT_SECONDS, self._not_stopping)
            self.client.interrupt()
            return
        if self.client.state is not State.RUNNING:
            self._clean()
            return
        self._set_deadline(INTERRUPT_SECONDS, self._not_stopping)
        if not self.client.waits_for_stop:
            self.client.await_stop(self._stopped)
        self.client.interrupt()
        # Where the machine stands still already the stub throws the interrupt away.
        self._ask_machine()

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
            self.client.resume((Action(Motion.CONTINUE),), self._stopped)
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
        self.client.closed("the last debugger has left")
        self._orphans = left_behind
        # A guest that runs into what was left behind would stand there for ever: it is resumed afterwards.
        self._resume_owed = run and bool(left_behind) and self._recoveries < MOST_RECOVERIES
        self._emit(CloseStub(run and not self._resume_owed, detached))

    def when_left(self, told: Callable[[], None]) -> None:
        """Call ``told`` once the guest has been let go."""
        self._on_left.append(told)

    def _absent(self) -> None:
        self.phase = Phase.ABSENT
        self._holder = None
        if self._orphans and self._recoveries < MOST_RECOVERIES:
            self._recoveries += 1
            self._connect(abandoned=True)
            return
        self._recoveries = 0
        self._resume_owed = False
        told, self._on_left = self._on_left, []
        for tell in told:
            tell()
        self._clear_deadline()
        self._run_after = False
        if self._orphans:
            # The journal goes on naming them: the next connection, if only a successor's, removes them.
            self._emit(Report("debugger.left_behind", {"breakpoints": len(self._orphans)}))
        else:
            self._write_journal(attached=False)
        if self._queue:
            self._holder = holder = self._queue.popleft()
            self._connect()
            while self._queue:
                self._refuse(self._queue.popleft(), holder)

    # -- the journal ----------------------------------------------------------------------------------------

    def _write_journal(self, *, attached: bool = True) -> None:
        run = self._run_after and self.resume_on_leave
        standing = tuple({*self.client.inserted, *self._orphans}) if attached else ()
        entry = Journal(attached, run, standing)
        if entry != self._journalled:
            self._journalled = entry
            self._emit(entry)

    # -- what the holder asks -------------------------------------------------------------------------------

    def insert(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Insert in the stub what does not stand there yet."""
        if breakpoint_ in self.client.inserted:
            done(None)
            return
        self.pages.clear()
        # The journal first: a breakpoint that nobody knows of cannot be removed.
        planned = (*self.client.inserted, breakpoint_)
        self._journalled = Journal(
            attached=True, run=self._run_after and self.resume_on_leave, breakpoints=planned
        )
        self._emit(self._journalled)
        self.client.insert(breakpoint_, done)

    def resume(self, wanted: frozenset[Breakpoint], actions: tuple[Action, ...]) -> None:
        """Make the stub hold ``wanted``, then let the guest run; the holder is told of the stop."""
        self._generation += 1
        self.pages.clear()
        if self.client.state is State.RUNNING:
            # Somebody else resumed the guest: wait for its next stop.
            self.client.await_stop(self._stopped)
            return
        for breakpoint_ in tuple(self.client.inserted - wanted):
            self.client.remove(breakpoint_, _ignored)
        if any(action.motion is Motion.CONTINUE for action in actions) and not any(
            action.motion is Motion.STEP for action in actions
        ):
            self._run_after = True
            self._write_journal()
        self._resumes_untold += 1
        self.client.resume(actions, self._stopped)

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
        if isinstance(stop, Halted) and self._is_foreign(stop):
            self._run_after = False
            if not stop.words:
                # The monitor knows whether it was a panic, an I/O error or a colleague: ask before telling.
                self._held_stop = stop
                self._set_deadline(WORDS_SECONDS, lambda: self._deliver_foreign(MachineStatus(None)))
                self._emit(QueryMachine())
                return
        self._deliver(stop)

    def _is_foreign(self, stop: Halted) -> bool:
        """Whether somebody other than the debugger stopped the guest."""
        return stop.signal != SIGTRAP and not self.client.interrupt_sent

    def _deliver_foreign(self, status: MachineStatus) -> None:
        held, self._held_stop = self._held_stop, None
        self._clear_deadline()
        if held is not None:
            self._deliver(Halted(held.signal, held.thread, held.reason, self._foreign_words(status)))

    def _foreign_words(self, status: MachineStatus) -> str:
        detail = f" ({status.detail})" if status.detail else ""
        return f"{self.guest} was stopped by something else than this debugger{detail}"

    def _deliver(self, stop: Stop | TargetError) -> None:
        if isinstance(stop, Ended):
            if not stop.words:
                stop = Ended(stop.status, stop.signal, f"{self.guest} is gone: its hypervisor has ended")
            self._emit(Report("debugger.ended", {"why": stop.words}))
        elif isinstance(stop, Halted):
            self._count_stop(stop)
        self._write_journal()
        if self._holder is not None:
            self._holder.stopped(stop)

    def _count_stop(self, stop: Stop) -> None:
        self.stop_number += 1
        fields: dict[str, str | int | bool | None] = {"stop": self.stop_number}
        if isinstance(stop, Halted):
            fields |= {"signal": stop.signal, "thread": stop.thread}
            if stop.reason is not None:
                fields["reason"] = stop.reason[0]
            if stop.words:
                fields["words"] = stop.words
        self._emit(Report("debugger.stop", fields))


class Seat:
    """One session's target: attaches when first needed, and keeps what belongs to the session.

    ``say`` tells the session's user something.
    """

    def __init__(self, sharing: Sharing, session: SessionId, name: str, say: Callable[[str], None]) -> None:
        self.session = session
        self.name = name
        self.say = say
        self._sharing = sharing
        self._client = sharing.client
        self._is_attached = False
        self._gone: TargetError | None = None
        self._waiting: deque[tuple[Callable[[], None], Callable[[TargetError], Any]]] = deque()
        self._wanted: set[Breakpoint] = set()
        self._stopped: Reply[Stop] | None = None

    @property
    def is_attached(self) -> bool:
        """Whether this session works on the guest now."""
        return self._is_attached

    @property
    def wanted(self) -> frozenset[Breakpoint]:
        """The breakpoints that this session wants inserted at its next resume."""
        return frozenset(self._wanted)

    # -- told by Sharing ------------------------------------------------------------------------------------

    def attached(self) -> None:
        """Carry out what waited for the guest to be attached."""
        self._is_attached = True
        while self._waiting and self._is_attached:
            self._waiting.popleft()[0]()

    def attach_failed(self, error: TargetError) -> None:
        """Answer what waited with the reason."""
        waiting, self._waiting = self._waiting, deque()
        for _, refuse in waiting:
            refuse(error)

    def lost(self, words: str) -> None:
        """Take note that the guest is gone: this session cannot go on with another one under its feet."""
        self._is_attached = False
        self._gone = TargetError(EIO, words)

    def stopped(self, stop: Stop | TargetError) -> None:
        """Answer the resume under way."""
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped(stop)

    def close(self) -> None:
        """Leave, because the connection is gone or the session is over."""
        self._is_attached = False
        self._gone = TargetError(EIO, "this session has left")
        self._stopped = None
        self._waiting.clear()
        self._sharing.left(self)

    # -- the target port ------------------------------------------------------------------------------------

    @property
    def right(self) -> Right:
        """What this session may do now."""
        return Right.CONTROLLER

    @property
    def reverses(self) -> bool:
        """Whether the stub can run backwards."""
        return self._client.reverses

    def _when_attached(self, operation: Callable[[], None], refuse: Callable[[TargetError], Any]) -> None:
        if self._is_attached:
            operation()
        elif self._gone is not None:
            refuse(self._gone)
        else:
            self._waiting.append((operation, refuse))
            self._sharing.want(self)

    def attach(self, done: Reply[None]) -> None:
        """Attach the guest, if nobody else holds it."""
        self._when_attached(lambda: done(None), done)

    def why_stopped(self, done: Reply[Stop]) -> None:
        """Tell the last stop."""
        self._when_attached(lambda: self._client.why_stopped(done), done)

    def read_registers(self, thread: ThreadId, done: Reply[bytes]) -> None:
        """Read all general registers."""
        self._when_attached(lambda: self._client.read_registers(thread, done), done)

    def write_registers(self, thread: ThreadId, data: bytes, done: Reply[None]) -> None:
        """Write all general registers."""

        def write() -> None:
            self._sharing.pages.clear()
            self._client.write_registers(thread, data, done)

        self._when_attached(write, done)

    def read_register(self, thread: ThreadId, number: int, done: Reply[bytes]) -> None:
        """Read one register."""
        self._when_attached(lambda: self._client.read_register(thread, number, done), done)

    def write_register(self, thread: ThreadId, number: int, value: bytes, done: Reply[None]) -> None:
        """Write one register."""

        def write() -> None:
            self._sharing.pages.clear()
            self._client.write_register(thread, number, value, done)

        self._when_attached(write, done)

    def read_memory(self, thread: ThreadId, address: int, length: int, done: Reply[bytes]) -> None:
        """Read memory."""
        if self._is_attached:
            self._sharing.pages.read(thread, address, length, done)
        else:
            self._when_attached(lambda: self._sharing.pages.read(thread, address, length, done), done)

    def write_memory(self, thread: ThreadId, address: int, data: bytes, done: Reply[None]) -> None:
        """Write memory."""

        def write() -> None:
            self._sharing.pages.clear()
            self._client.write_memory(thread, address, data, done)

        self._when_attached(write, done)

    def insert(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Insert a breakpoint, now where it does not stand yet."""

        def inserted(result: TargetError | None) -> None:
            if result is not None:
                self._wanted.discard(breakpoint_)
            done(result)

        def insert() -> None:
            self._wanted.add(breakpoint_)
            self._sharing.insert(breakpoint_, inserted)

        self._when_attached(insert, done)

    def remove(self, breakpoint_: Breakpoint, done: Reply[None]) -> None:
        """Remove a breakpoint, with the next resume."""

        def remove() -> None:
            self._wanted.discard(breakpoint_)
            done(None)

        self._when_attached(remove, done)

    def resume(self, actions: tuple[Action, ...], done: Reply[Stop]) -> None:
        """Let the guest run until its next stop."""

        def resume() -> None:
            self._stopped = done
            self._sharing.resume(self.wanted, actions)

        def refuse(error: TargetError) -> None:
            # A debugger that waits for a guest that is gone must not be told that it merely stopped.
            done(Ended(words=str(error)) if error is self._gone else error)

        self._when_attached(resume, refuse)

    def interrupt(self) -> None:
        """Stop the guest."""
        if self._is_attached:
            self._client.interrupt()

    def list_threads(self, done: Reply[tuple[Thread, ...]]) -> None:
        """List the threads."""
        self._when_attached(lambda: self._client.list_threads(done), done)

    def is_alive(self, thread: ThreadId, done: Reply[bool]) -> None:
        """Tell whether a thread exists."""
        self._when_attached(lambda: self._client.is_alive(thread, done), done)

    def read_description(self, annex: str, done: Reply[bytes | None]) -> None:
        """Read a file of the target description."""
        self._when_attached(lambda: self._client.read_description(annex, done), done)

    def detach(self, done: Reply[None]) -> None:
        """Leave; the guest is left as configured before the answer is sent."""
        if self._is_attached:
            self._sharing.when_left(lambda: done(None))
            self.close()
        else:
            self.close()
            done(None)


def _ignored(result: TargetError | None) -> None:
    """Take no note: what could not be removed stays in ``StubClient.inserted`` and is removed when leaving."""
