"""The exchange: debuggers on one side, one stub on the other, events in and effects out.

This is the whole pure core of a guest's debugging, wired: ``kbridge/relay.py`` feeds it with what happens on
sockets and executes ``effects``; tests feed it with bytes and read them.

in:      sessions opened, their bytes, closed; the stub connected, its bytes, closed; the monitor's word; time
out:     ``effects``, to be executed in order and cleared; ``deadline``
invariant: no event raises: a peer that breaks the protocol loses its connection, nothing else happens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from gdbstubs import commands
from gdbstubs.any_processor import AnyProcessor
from gdbstubs.client import State, StubClient
from gdbstubs.dialects import Dialect
from gdbstubs.effects import BreakIn, CloseSession, Effect, Report, SessionId, ToSession, ToStub
from gdbstubs.errors import LinkFailed, RemoteProtocolError
from gdbstubs.seat import Seat
from gdbstubs.server import Server
from gdbstubs.sharing import MachineStatus, Sharing
from gdbstubs.target import Breakpoint, Reply, ThreadId

MOST_SESSIONS: Final = 64


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session, as it is shown."""

    name: str
    controls: bool
    """Whether it is the controller; else it observes."""
    attached: bool
    """Whether it works on the guest now."""
    waits: bool
    """Whether it waits for a stop."""
    stop: int | None
    """The number of the stop that it was told last."""
    asks: bool
    """Whether it has asked for control."""


@dataclass(frozen=True, slots=True)
class BreakpointView:
    """A breakpoint or watchpoint that stands in the stub or is to, with the names of those who want it."""

    kind: str
    address: int
    size: int
    owners: tuple[str, ...]


class _Session:
    __slots__ = ("closed", "name", "output", "seat", "server")

    def __init__(self, name: str, server: Server, seat: Seat) -> None:
        self.name = name
        self.server = server
        self.output = server.output
        """Looked at after each event of whatever session: a call would cost more than all else there."""
        self.seat = seat
        self.closed = False


class Exchange:
    """One guest's debugging, without I/O; the module's text says how.

    ``monitor`` answers the ``monitor`` commands that are the shell's: it gets the session's name, the command and
    what to call, once, with the answer.  ``library``, too: it gets the session's name and what ``Library`` gets.
    """

    def __init__(
        self,
        guest: str,
        dialect: Dialect,
        *,
        monitor: Callable[[str, str, Callable[[str], None]], None],
        library: Callable[[str, str, str, Callable[[bytes | None], None]], None] | None = None,
        resume_on_leave: bool = True,
    ) -> None:
        self.effects: list[Effect] = []
        self.client = StubClient(dialect, self.announce, lambda: self.effects.append(BreakIn()))
        self.sharing = Sharing(guest, self.client, self.effects.append, resume_on_leave=resume_on_leave)
        self._any = AnyProcessor(self.sharing.pages.read, self.client.list_threads)
        self._monitor = monitor
        self._library = library
        self._sessions: dict[SessionId, _Session] = {}

    # -- debuggers ------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> dict[SessionId, str]:
        """The names of the sessions that are open."""
        return {number: session.name for number, session in self._sessions.items()}

    def session_opened(
        self, number: SessionId, name: str, now: float, *, observes: bool = False, admin: bool = False
    ) -> bool:
        """Take a new debugger; False if there are too many, and its connection is to be closed.

        ``name`` is unique among the sessions.  ``observes``: it is not given control for coming first.  ``admin``: it
        may force control.
        """
        if len(self._sessions) >= MOST_SESSIONS:
            return False

        def monitor(command: str, done: Callable[[str], None]) -> None:
            if command.split() in ([], ["help"]):
                self._monitor(name, "help", lambda text: done(commands.HELP + text))
                return
            text = commands.answer(self.sharing, seat, command)
            if text is None:
                self._monitor(name, command, done)
            else:
                done(text)

        seat = self.sharing.join(
            number,
            name,
            lambda words: server.say(words),  # noqa: PLW0108 server comes below
            observes=observes,
            admin=admin,
        )
        library = self._library
        server = Server(seat, monitor, library=None if library is None else partial(library, name))
        server.on_forbidden = partial(self.sharing.forbidden, seat)
        server.now = now
        self._sessions[number] = _Session(name, server, seat)
        return True

    def session_data(self, number: SessionId, data: bytes, now: float) -> None:
        """Take bytes of a debugger."""
        self.session_input(number, data, now)
        self._flush(now)

    def session_input(self, number: SessionId, data: bytes, now: float) -> None:
        """Take bytes of a debugger, one of several inputs that ``flush`` ends."""
        session = self._sessions.get(number)
        if session is None:
            return
        self.client.now = now
        session.server.now = now
        try:
            session.server.receive(data)
        except (RemoteProtocolError, LinkFailed) as error:
            self._break_off(session, str(error))

    def session_closed(self, number: SessionId, now: float) -> None:
        """Take note that a debugger's connection is gone."""
        session = self._sessions.pop(number, None)
        if session is not None:
            self.client.now = now
            session.seat.close()
            self._flush(now)

    def end_session(self, number: SessionId, words: str, now: float) -> None:
        """End a session from our side, in words that its user sees; its connection is then closed."""
        session = self._sessions.get(number)
        if session is not None:
            session.server.now = now
            session.server.end(words)
            self._flush(now)

    def session_views(self) -> tuple[SessionView, ...]:
        """Return all sessions, in the order in which they came."""
        asking = self.sharing.control.asking
        return tuple(
            SessionView(
                session.name,
                session.seat.controls,
                session.seat.is_attached,
                session.seat.waits,
                session.seat.seen if session.seat.seen > 0 else None,
                session.seat in asking,
            )
            for session in self._sessions.values()
        )

    def breakpoint_views(self) -> tuple[BreakpointView, ...]:
        """Return what stands in the stub or is to, by address."""
        armed, inserted = self.sharing.armed, self.client.inserted
        return tuple(
            BreakpointView(
                one.kind.name.lower(), one.address, one.size, tuple(seat.name for seat in armed.owners(one))
            )
            for one in sorted(armed.all() | inserted, key=lambda one: (one.address, one.kind.value, one.size))
        )

    def recover(self, breakpoints: tuple[Breakpoint, ...], now: float) -> bool:
        """Clean up what a predecessor left in the stub; False when somebody is attached already."""
        self.client.now = now
        return self.sharing.recover(breakpoints)

    def read_memory(self, address: int, length: int, done: Reply[bytes], now: float) -> None:
        """Read virtual memory at the present stop, as the processor that stopped sees it; ``flush`` sends it.

        For whoever owns this exchange; answers with an error while the guest runs, or where no debugger is attached.
        What that processor does not see of the kernel, another may: under page-table isolation one in user mode sees
        next to nothing.
        """
        self.client.now = now
        if self.client.dialect.pipeline == 1:
            # kgdb's threads are tasks, and each read is a round trip on a slow line.
            self.sharing.pages.read(self._stopped_thread, address, length, done)
        else:
            self._any.read(self.sharing.stops.present, self._stopped_thread, address, length, done)

    def program_counter(self, done: Reply[int], now: float) -> None:
        """Read the address of the next instruction of what stopped; for the owner, like ``read_memory``."""
        self.client.now = now
        self.client.program_counter(self._stopped_thread, done)

    @property
    def _stopped_thread(self) -> ThreadId:
        return max(self.sharing.stops.thread or ThreadId(1), ThreadId(1))

    def _break_off(self, session: _Session, why: str) -> None:
        self.effects.append(Report("debugger.protocol_error", {"session": session.name, "why": why}))
        session.server.finished = True

    # -- the stub -------------------------------------------------------------------------------------------

    def stub_connected(self, now: float, *, running: bool | None) -> None:
        """Take a new connection to the stub; ``running``: whether the guest ran before it."""
        self.client.now = now
        self.sharing.stub_connected(running=running)
        self._flush(now)

    def leave_standing(self, now: float) -> None:
        """Let the guest stand on when the last session leaves: it stood before anybody attached."""
        self.client.now = now
        self.sharing.leave_standing()
        self._flush(now)

    def stub_failed(self, words: str, now: float) -> None:
        """Take note that the stub could not be reached."""
        self.client.now = now
        self.sharing.stub_failed(words)
        self._flush(now)

    def stub_data(self, data: bytes, now: float) -> None:
        """Take bytes of the stub."""
        self.stub_input(data, now)
        self._flush(now)

    def stub_input(self, data: bytes, now: float) -> bool:
        """Take bytes of the stub, one of several inputs that ``flush`` ends; False if they lead to nothing."""
        if data == b"+" and self.client.acknowledged(data):
            return False
        self.client.now = now
        try:
            self.client.receive(data)
        except (RemoteProtocolError, LinkFailed) as error:
            self.sharing.stub_closed(f"the stub broke the protocol: {error}")
        return True

    def stub_closed(self, reason: str, now: float) -> None:
        """Take note that the connection to the stub is gone."""
        self.client.now = now
        self.sharing.stub_closed(reason)
        self._flush(now)

    def stub_left(self, now: float) -> None:
        """Take note that ``CloseStub`` was carried out."""
        self.client.now = now
        self.sharing.stub_left()
        self._flush(now)

    def guest_runs(self, now: float) -> None:
        """Take note that ``ConnectStub`` was not carried out, because the guest runs."""
        self.client.now = now
        self.sharing.guest_runs()
        self._flush(now)

    # -- the machine ----------------------------------------------------------------------------------------

    def machine_lost(self, words: str, now: float) -> None:
        """Take note that the machine is gone."""
        self.client.now = now
        self.sharing.machine_lost(words)
        self._flush(now)

    def live_memory(self, token: int, data: bytes | str, now: float) -> None:
        """Take the answer to ``ReadLive``: bytes, or words that say why there are none."""
        self.client.now = now
        self.sharing.live_memory(token, data)
        self._flush(now)

    @property
    def is_answered(self) -> bool:
        """Whether nothing is left to break in for: the stub has said that the guest stands, or is gone."""
        return self.client.state in (State.STOPPED, State.CLOSED) or self.client.is_heard

    def break_in_failed(self, words: str, now: float) -> None:
        """Take note that ``BreakIn`` led nowhere: the guest runs."""
        self.client.now = now
        self.sharing.break_in_failed(words)
        self._flush(now)

    def flush(self, now: float) -> None:
        """Send what inputs have led to, and what was answered outside of an event, such as a ``monitor`` command."""
        self._flush(now)

    def machine_runs(self, now: float, *, runs: bool) -> None:
        """Take note that the monitor reported a stop or a resume."""
        self.client.now = now
        self.sharing.machine_runs(runs=runs)
        self._flush(now)

    def machine_status(self, status: MachineStatus, now: float) -> None:
        """Take the answer to ``QueryMachine``."""
        self.client.now = now
        self.sharing.machine_status(status)
        self._flush(now)

    def machine_reset(self, now: float) -> None:
        """Take note that the machine was reset: its kernel may come to another place."""
        for session in self._sessions.values():
            words = f"{self.sharing.guest} was reset"
            if not session.server.follows:
                words += ": its kernel may come to another place, where breakpoints have to be set anew"
            session.server.say(words)
        self._flush(now)

    @property
    def waits_to_read_again(self) -> bool:
        """Whether a debugger waits for a stop, and would read again what has changed."""
        return any(session.server.is_to_be_stopped for session in self._sessions.values())

    def read_again(self, now: float) -> None:
        """Have a debugger that waits read again what has changed, by a stop of which it tells its user nothing."""
        self.client.now = now
        for session in self._sessions.values():
            session.server.read_again()
        self._flush(now)

    def say_to_all(self, words: str, now: float) -> None:
        """Tell every debugger's user something and send it."""
        self.announce(words)
        self._flush(now)

    def announce(self, words: str) -> None:
        """Tell every debugger's user something; shown at once by those that wait for a stop."""
        for session in self._sessions.values():
            session.server.say(words)

    # -- time -----------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When ``expire`` wants to be called, in monotonic seconds."""
        client, sharing = self.client.deadline, self.sharing.deadline
        if client is None or sharing is None:
            return sharing if client is None else client
        return min(client, sharing)

    def expire(self, now: float) -> None:
        """Act on passed deadlines."""
        self.client.now = now
        try:
            self.client.expire()
        except (RemoteProtocolError, LinkFailed) as error:
            self.sharing.stub_closed(str(error))
        self.sharing.expire()
        self._flush(now)

    def _flush(self, now: float) -> None:
        """Turn what the halves want to send into effects."""
        effects = self.effects
        data = self.client.take_output()
        if data:
            effects.append(ToStub(data))
        for number, session in self._sessions.items():
            server = session.server
            server.now = now
            if session.output:
                effects.append(ToSession(number, server.take_output()))
            if server.finished and not session.closed:
                session.closed = True
                if server.failed:
                    why: dict[str, str | int | bool | None] = {"session": session.name, "why": server.failed}
                    effects.append(Report("debugger.protocol_error", why))
                effects.append(CloseSession(number))
