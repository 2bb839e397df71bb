"""The relay of one guest: the shell round ``gdbstubs``.

          GUEST/gdb, GUEST/gdb-observe                             QEMU's gdbstub
    debugger ── Listener, Stream ──▶ Exchange (pure) ──▶ effects ──▶ Stream
                                        ▲   │
                  machine monitor ──────┘   └──▶ journal, time line

in:      connections and bytes of debuggers, bytes of the stub, events of the machine monitor, time
out:     what ``Exchange`` asks for in ``effects``, executed in order
invariant: the guest is not stopped before a debugger needs it to be; what stands in the stub is in the journal first
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, assert_never

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from gdbstubs.client import State
from gdbstubs.dialects import Dialect, InterruptBy
from gdbstubs.effects import (
    BreakIn,
    CloseSession,
    CloseStub,
    ConnectStub,
    Effect,
    Journal,
    QueryMachine,
    ReadLive,
    Report,
    SessionId,
    ToSession,
    ToStub,
)
from gdbstubs.errors import TargetError
from gdbstubs.exchange import BreakpointView, Exchange, SessionView
from gdbstubs.sharing import MachineStatus, Phase
from kbridge import journal
from kbridge.breakin import BreakIn as BreakInWays
from kbridge.console.ring import RingView
from kbridge.debuginfo.booting import BootWatch
from kbridge.debuginfo.claims import Claims
from kbridge.debuginfo.debuginfod import Debuginfod
from kbridge.debuginfo.finders import Finder
from kbridge.debuginfo.objects import DebuggerObjects
from kbridge.errors import GuestError, KbridgeError, RecordError
from kbridge.hypervisors.interface import Machine, MachineEvent, RunState
from kbridge.memory.stops import StopMemory
from kbridge.peers import uid_of, user_of
from kbridge.stub_entry import StubEntry
from kbridge.transports.endpoints import Endpoint, Unix
from kbridge.transports.stream_poller import StreamPoller
from kbridge.transports.streams import Listener, SocketAccess, Stream, connect

SAME_RESET_SECONDS: Final = 3.0
"""Resets that come closer than this are one to people."""
LEAVE_SECONDS: Final = 20.0
"""How long a relay that stops waits until its guest was let go."""

MACHINE_SECONDS: Final = 3.0
"""How long a debugger waits for a machine monitor that does not answer yet."""

Sink = Callable[[str, Mapping[str, Any]], None]
"""Takes an event for the time line: its kind and its fields."""


Tap = Callable[[str, bool, bytes], None]
"""Sees the bytes that pass: a session's name or ``stub``, whether they go to that peer, the bytes."""


Reach = Callable[[bool], Awaitable[socket.socket]]
"""Gives a connection to a stub that is behind no endpoint; told whether a predecessor may have left something in it."""


class Relay:
    """One guest's debug stub and those who use it; the module's text says how.

    ``finder`` finds the files of the symbols that debuggers are served.  ``stub`` is the stub's endpoint; with
    ``start_stub`` it is a path at which the machine monitor is asked to start the stub when it is first needed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        guest: str,
        stub: Endpoint | Reach,
        machine: Machine | None,
        sink: Sink,
        monitor: Callable[[str, str, Callable[[str], None]], None],
        *,
        journal_path: Path,
        start_stub: bool,
        stub_timeout_seconds: float,
        resume_on_leave: bool,
        dialect: Dialect,
        break_in: BreakInWays | None = None,
        tap: Tap | None = None,
        finder: Finder | None = None,
        servers: Debuginfod | None = None,
        console: RingView | None = None,
    ) -> None:
        self._reactor = reactor
        self._now: Callable[[], float] = reactor.seconds
        self._guest = guest
        self._endpoint = stub
        self._machine = machine
        self._sink = sink
        self._tap = tap
        self._entry = StubEntry(
            reactor,
            guest,
            break_in,
            is_answered=lambda: self._exchange.is_answered,
            failed=self._break_in_failed,
            sink=sink,
        )
        self._journal_path = journal_path
        self._start_stub = start_stub
        self._stub_started = False
        memory = StopMemory(
            reactor,
            lambda address, length, done: self._exchange.read_memory(address, length, done, self._now()),
            self._settle_answers,
            lambda: self._exchange.client.state is State.STOPPED,
            machine,
        )
        self.objects = None
        if finder is not None:
            links = debug_links(journal_path.parent)
            quick = dialect.interrupt_by is not InterruptBy.BREAK_IN
            claims = Claims(console, self._program_counter)
            self.objects = DebuggerObjects(
                reactor, guest, memory, finder, links, quick=quick, servers=servers, claims=claims, sink=sink
            )
        self._boots = None
        if self.objects is not None and quick and machine is not None:
            self._boots = BootWatch(
                reactor,
                self.objects.is_elsewhere,
                lambda: self._exchange.waits_to_read_again,
                self._kernel_moved,
            )
        self._was_reset = -SAME_RESET_SECONDS
        self._exchange = Exchange(
            guest,
            replace(dialect, request_timeout=stub_timeout_seconds),
            monitor=lambda session, command, done: monitor(session, command, self._answering(done)),
            library=None if self.objects is None else self._library,
            resume_on_leave=resume_on_leave,
        )
        self._poller = StreamPoller(reactor, self._settle)
        self._stub: Stream | None = None
        self._streams: dict[SessionId, Stream] = {}
        self._names: dict[SessionId, str] = {}
        self._listeners: list[Listener] = []
        self._executing = False
        self._is_settled = True
        """Whether all inputs have been acted on."""
        self._timer: IDelayedCall | None = None
        self._rings_at = 0.0
        self._last_session = 0
        self._recovery: Journal | None = None
        self._recovering = False
        self._stopping: Deferred[None] | None = None
        self._unsubscribe: Callable[[], None] = _nothing

    # -- the service ----------------------------------------------------------------------------------------

    def start(self, path: Path, observe_path: Path, access: SocketAccess) -> None:
        """Serve debuggers on two unix sockets; clean up first what a predecessor left in the stub.

        Who comes by ``observe_path`` is not given control for coming first.  Raises ``KbridgeError`` when a socket
        cannot be made.
        """
        self._listeners.append(Listener(self._reactor, path, self._accepted, access))
        self._listeners.append(Listener(self._reactor, observe_path, self._accepted_observer, access))
        if self._machine is not None:
            self._unsubscribe = self._machine.subscribe(self._machine_event)
        try:
            self._recovery = journal.read(self._journal_path)
        except RecordError as error:
            # Better a guest cleaned without need than a breakpoint left in it.
            self._log.error("{guest}: {error}", guest=self._guest, error=str(error))
            self._recovery = Journal(attached=True, run=True)
        self._recover()

    async def stop(self) -> None:
        """Close all sessions and let the guest go; returns when it was, or after ``LEAVE_SECONDS``."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        now = self._now()
        for number, stream in list(self._streams.items()):
            self._exchange.end_session(number, "the relay stops", now)
            self._execute()
            stream.close()
        if self._exchange.sharing.phase is not Phase.ABSENT:
            self._stopping = Deferred()
            self._stopping.addTimeout(LEAVE_SECONDS, self._reactor)
            try:
                await self._stopping
            except DeferredTimeout as error:
                self._log.error(
                    "{guest}: was not let go within {seconds} s: {error}",
                    guest=self._guest,
                    seconds=LEAVE_SECONDS,
                    error=error,
                )
        self._unsubscribe()
        if self._boots is not None:
            self._boots.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        streams = [*self._streams.values(), *([] if self._stub is None else [self._stub])]
        for stream in streams:
            stream.abort("the relay stops")
        self._poller.close()

    @property
    def sessions(self) -> tuple[SessionView, ...]:
        """The debuggers that are connected."""
        return self._exchange.session_views()

    @property
    def stop_number(self) -> int:
        """How many stops there were."""
        return self._exchange.sharing.stops.number

    @property
    def breakpoints(self) -> tuple[BreakpointView, ...]:
        """What stands in the stub or is to, with its owners."""
        return self._exchange.breakpoint_views()

    @property
    def attached(self) -> bool:
        """Whether a debugger holds the guest."""
        return self._exchange.sharing.phase is Phase.ATTACHED

    @property
    def is_kernels_own(self) -> bool:
        """Whether the stub is the guest's kernel's, so that there is none before the kernel."""
        return self._exchange.client.dialect.interrupt_by is InterruptBy.BREAK_IN

    @property
    def is_away(self) -> bool:
        """Whether the stub is not connected to, and nothing is left in it that a predecessor put there."""
        return self._exchange.sharing.phase is Phase.ABSENT and self._recovery is None

    # -- debuggers ------------------------------------------------------------------------------------------

    def _answering(self, done: Callable[[str], None]) -> Callable[[str], None]:
        """Return what answers a ``monitor`` command, now or later."""

        def answer(text: str) -> None:
            done(text)
            self._settle_answers()

        return answer

    def _library(self, session: str, kind: str, key: str, done: Callable[[bytes | None], None]) -> None:
        """Answer what a debugger reads beside the guest, now or later."""
        assert self.objects is not None

        def answer(contents: bytes | None) -> None:
            done(contents)
            self._settle_answers()

        self.objects.ask(session, kind, key, answer)

    def _settle_answers(self) -> None:
        """Send what was answered outside of an event."""
        if not self._executing:
            self._exchange.flush(self._now())
            self._execute()

    @property
    def dialect(self) -> Dialect:
        """Who speaks at the stub."""
        return self._exchange.client.dialect

    def open_session(
        self, name: str, *, observes: bool = False, breaks_in: bool = True
    ) -> tuple[str, socket.socket]:
        """Return the name and the debugger's end of a new session, for what this process does itself.

        It is one like any other, and closed at once if there are too many.  Without ``breaks_in`` it is refused by a
        running kernel whose own stub this is.
        """
        if self.is_away:
            self._entry.may_break_in = breaks_in
        ours, theirs = socket.socketpair()
        name = self._unique(name)
        self._accepted(theirs, observes=observes, name=name)
        return name, ours

    def leave_standing(self) -> None:
        """Let the guest stand on when those who are attached leave: it stood before they came."""
        self._exchange.leave_standing(self._now())
        self._execute()

    def _accepted_observer(self, connection: socket.socket) -> None:
        self._accepted(connection, observes=True)

    def _accepted(self, connection: socket.socket, *, observes: bool = False, name: str = "") -> None:
        self._last_session += 1
        number = SessionId(self._last_session)
        name = self._unique(name or user_of(connection))
        admin = uid_of(connection) in (0, os.getuid())
        if not self._exchange.session_opened(number, name, self._now(), observes=observes, admin=admin):
            connection.close()
            self._sink("debugger.refused", {"session": name, "why": "too many debuggers"})
            return
        self._names[number] = name
        self._streams[number] = Stream(
            self._poller,
            connection,
            lambda data: self._session_data(number, data),
            lambda reason: self._session_lost(number),
        )

    def _unique(self, user: str) -> str:
        """Return the name of the user at the other end, with a number where there are several."""
        taken = set(self._exchange.sessions.values())
        if user not in taken:
            return user
        return next(name for count in range(2, len(taken) + 3) if (name := f"{user}-{count}") not in taken)

    def _session_data(self, number: SessionId, data: bytes) -> None:
        if self._tap is not None:
            self._tap(self._names[number], False, data)
        self._is_settled = False
        self._exchange.session_input(number, data, self._now())

    def _settle(self) -> None:
        """Send what a round of inputs has led to: the requests of several sessions in one piece."""
        if self._is_settled:
            return
        self._is_settled = True
        self._settle_answers()

    def _session_lost(self, number: SessionId) -> None:
        del self._streams[number], self._names[number]
        self._exchange.session_closed(number, self._now())
        self._execute()

    # -- the machine ----------------------------------------------------------------------------------------

    def _machine_event(self, event: MachineEvent) -> None:
        match event.name:
            case "machine.stop":
                self._exchange.machine_runs(self._now(), runs=False)
            case "machine.resume":
                self._exchange.machine_runs(self._now(), runs=True)
            case "machine.reset":
                self._reset()
            case "machine.shutdown":
                self._exchange.say_to_all(f"{self._guest} was shut down", self._now())
            case "machine.panic":
                self._exchange.say_to_all(f"{self._guest} has panicked", self._now())
            case "machine.lost":
                self._stub_started = False
                why = str(event.data.get("why", "its machine monitor is gone"))
                self._exchange.machine_lost(f"{self._guest}: {why}", self._now())
            case "machine.found":
                self._stub_started = False
                self._recover()
            case _:
                return
        self._execute()

    def _reset(self) -> None:
        now = self._now()
        # Firmware may reset the machine again as it starts; people reset it once.
        if now - self._was_reset >= SAME_RESET_SECONDS:
            self._exchange.machine_reset(now)
        self._was_reset = now
        if self._boots is not None:
            self._boots.reset()

    def _kernel_moved(self) -> None:
        self._exchange.read_again(self._now())
        self._execute()

    def _recover(self) -> None:
        """Undo what a predecessor left behind, as soon as the stub can be reached."""
        if self._recovery is None or (self._machine is not None and not self._machine.connected):
            return
        if self._exchange.recover(self._recovery.breakpoints, self._now()):
            self._recovering = True
            self._sink("relay.recover", {"breakpoints": len(self._recovery.breakpoints)})
            self._execute()

    async def _program_counter(self) -> int | None:
        """Return where the processor that stopped is; None where none did, or the stub does not say."""
        if self._exchange.client.state is not State.STOPPED:
            return None
        read: Deferred[int | TargetError] = Deferred()
        self._exchange.program_counter(read.callback, self._now())
        self._settle_answers()
        found = await read
        return None if isinstance(found, TargetError) else found

    # -- effects --------------------------------------------------------------------------------------------

    def _execute(self) -> None:
        """Carry out what the exchange asks for; effects of effects are carried out by the outermost call."""
        if self._executing:
            return
        effects = self._exchange.effects
        self._executing = True
        try:
            while effects:
                batch = effects.copy()
                effects.clear()
                for effect in batch:
                    self._carry_out(effect)
        finally:
            self._executing = False
        self._arm()

    def _carry_out(self, effect: Effect) -> None:
        if type(effect) is ToStub:
            if self._stub is not None:
                self._stub.send(effect.data)
                if self._tap is not None:
                    self._tap("stub", True, effect.data)
        elif type(effect) is ToSession:
            stream = self._streams.get(effect.session)
            if stream is not None:
                # Sending may end the session, and with it go stream and name.
                name = self._names[effect.session]
                stream.send(effect.data)
                if self._tap is not None:
                    self._tap(name, True, effect.data)
        else:
            self._carry_out_rarely(effect)

    def _carry_out_rarely(self, effect: Effect) -> None:
        match effect:
            case ToStub() | ToSession():
                raise AssertionError("sent already")
            case CloseSession(session):
                stream = self._streams.get(session)
                if stream is not None:
                    stream.close()
            case ConnectStub(unless_running):
                self._launch(self._connect_stub(unless_running=unless_running))
            case CloseStub(run, detached):
                self._launch(self._close_stub(run=run, detached=detached))
            case BreakIn():
                self._entry.enter()
            case QueryMachine():
                self._launch(self._query_machine())
            case ReadLive():
                self._launch(self._read_live(effect))
            case Journal():
                self._write_journal(effect)
            case Report(kind, fields):
                self._sink(kind, fields)
            case _:
                assert_never(effect)

    def _launch(self, work: Coroutine[Any, Any, None]) -> None:
        deferred: Deferred[None] = Deferred.fromCoroutine(work)
        deferred.addErrback(lambda failure: self._log.failure("{guest}: a bug", failure, guest=self._guest))

    def _write_journal(self, entry: Journal) -> None:
        try:
            journal.write(self._journal_path, entry)
        except RecordError as error:
            # The session goes on: a full disk must not take the debugger away.
            self._log.error("{guest}: {error}", guest=self._guest, error=str(error))

    async def _connect_stub(self, *, unless_running: bool) -> None:
        try:
            running = await self._running_before()
            # A kernel in kgdb runs, for its monitor; only breaking in tells.
            blind = self._exchange.client.dialect.interrupt_by is InterruptBy.BREAK_IN
            if unless_running and (blind or running is not False):
                self._exchange.guest_runs(self._now())
                self._execute()
                return
            connection = await self._reach_stub()
        except KbridgeError as error:
            self._recovering = False
            self._exchange.stub_failed(str(error), self._now())
            self._execute()
            return
        self._recovering = False
        self._recovery = None
        self._stub = Stream(self._poller, connection, self._stub_data, self._stub_lost)
        self._entry.connected()
        self._exchange.stub_connected(self._now(), running=running)
        self._execute()

    async def _running_before(self) -> bool | None:
        """Tell whether the guest runs, or would if a predecessor had not been killed; None if nobody knows."""
        if self._machine is None:
            return None
        if not self._machine.connected and not await self._machine_found():
            raise GuestError(
                f"{self._guest} cannot be reached",
                why=self._machine.problem or "its machine monitor does not answer",
                todo="is the guest running? `kbridge ls` shows its state",
            )
        state = await self._machine.query()
        if self._recovering and self._recovery is not None and self._recovery.run:
            left_standing = state.run in (RunState.PAUSED, RunState.DEBUG) and state.detail != "prelaunch"
            return state.run.executes or left_standing
        return state.run.executes

    async def _machine_found(self) -> bool:
        """Wait for the monitor: a relay or a guest that has just started is not there at once."""
        assert self._machine is not None
        found: Deferred[bool] = Deferred()

        def heard(event: MachineEvent) -> None:
            if event.name == "machine.found" and not found.called:
                found.callback(True)

        unsubscribe = self._machine.subscribe(heard)
        found.addTimeout(MACHINE_SECONDS, self._reactor)
        try:
            return await found
        except DeferredTimeout:
            return False
        finally:
            unsubscribe()

    async def _reach_stub(self) -> socket.socket:
        if not isinstance(self._endpoint, Endpoint):
            return await self._endpoint(self._recovering or self._exchange.sharing.is_cleaning)
        if not self._start_stub or self._machine is None:
            return await connect(self._reactor, self._endpoint)
        assert isinstance(self._endpoint, Unix)
        if self._stub_started:
            try:
                return await connect(self._reactor, self._endpoint)
            except KbridgeError:
                # Somebody else told QEMU to close it: start it again.
                self._stub_started = False
        await self._machine.start_stub(self._endpoint.path)
        self._stub_started = True
        return await connect(self._reactor, self._endpoint)

    def _stub_data(self, data: bytes) -> None:
        if self._exchange.stub_input(data, self._now()):
            self._is_settled = False
            if self._tap is not None:
                self._tap("stub", False, data)

    def _stub_lost(self, reason: str) -> None:
        self._stub = None
        self._exchange.stub_closed(f"its debug stub is gone ({reason})", self._now())
        self._execute()

    async def _close_stub(self, *, run: bool, detached: bool) -> None:
        stub, self._stub = self._stub, None
        if stub is not None:
            stub.abort("let go")
        # What stands in the kernel's own stub runs, for the monitor: if it is paused, somebody else paused it.
        apart = self._exchange.client.dialect.interrupt_by is InterruptBy.BREAK_IN
        if run and not apart and self._machine is not None and self._machine.connected:
            try:
                state = await self._machine.query()
                if state.run is RunState.DEBUG or (state.run is RunState.PAUSED and not detached):
                    await self._machine.resume()
            except KbridgeError as error:
                self._log.error("{guest}: cannot be resumed: {error}", guest=self._guest, error=str(error))
                self._sink("relay.error", {"why": f"the guest could not be resumed: {error}"})
        self._exchange.stub_left(self._now())
        self._execute()
        if self._stopping is not None and self._exchange.sharing.phase is Phase.ABSENT:
            stopping, self._stopping = self._stopping, None
            stopping.callback(None)

    def _break_in_failed(self, why: str) -> None:
        self._exchange.break_in_failed(why, self._now())
        self._execute()

    async def _read_live(self, asked: ReadLive) -> None:
        found: bytes | str
        if self._machine is None:
            found = f"{self._guest} has no machine monitor, by which memory could be read while it runs"
        else:
            try:
                found = await self._machine.read_memory(asked.address, asked.length)
            except KbridgeError as error:
                found = str(error)
        self._exchange.live_memory(asked.token, found, self._now())
        self._execute()

    async def _query_machine(self) -> None:
        status = MachineStatus(None)
        if self._machine is not None and self._machine.connected:
            try:
                state = await self._machine.query()
                status = MachineStatus(state.run.executes, state.detail)
            except KbridgeError as error:
                self._log.warn("{guest}: {error}", guest=self._guest, error=str(error))
        self._exchange.machine_status(status, self._now())
        self._execute()

    # -- time -----------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have the exchange called when its deadline passes.

        A deadline moves with each request; a timer that rings too early and is set again costs less than one
        moved each time.
        """
        deadline = self._exchange.deadline
        if deadline is None:
            return
        if self._timer is not None:
            if self._rings_at <= deadline:
                return
            self._timer.cancel()
        self._rings_at = deadline
        self._timer = self._reactor.callLater(max(0.0, deadline - self._now()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._exchange.expire(self._now())
        self._execute()


def _nothing() -> None:
    """Stand in for an unsubscription that is not needed."""


def debug_links(state: Path) -> Path:
    """Return the folder in which a guest's debug files are named by their build-ids."""
    return state / "debug"


def stub_path(runtime: Path) -> Path:
    """Return where QEMU is asked to create its debug socket, beside the guest's own."""
    return Path(os.path.join(runtime, "stub"))  # noqa: PTH118 (kept short: a socket's path has 107 bytes)
