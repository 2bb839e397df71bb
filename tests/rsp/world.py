"""Everything around an exchange: a machine with its stub and monitor, debuggers, a journal, a clock.

What the relay's shell does with effects is done here at once (sending) or when told to (connecting, answering queries),
so that a test decides the order of events.  Each step checks what must hold at every moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gdbstubs.client import State
from gdbstubs.dialects import QEMU, Dialect
from gdbstubs.effects import (
    CloseSession,
    CloseStub,
    ConnectStub,
    Journal,
    QueryMachine,
    ReadLive,
    Report,
    SessionId,
    ToSession,
    ToStub,
)
from gdbstubs.exchange import Exchange
from gdbstubs.seat import Seat
from gdbstubs.sharing import MachineStatus, Phase
from gdbstubs.target import SIGINT, Breakpoint, Ended, Halted, Stop
from rsp.debugger import RESUMES, Debugger
from rsp.stub import Machine, Place, memory_at


def place(breakpoint_: Breakpoint) -> Place:
    """A breakpoint as the stub has it."""
    return (breakpoint_.kind.value, breakpoint_.address, breakpoint_.size)


@dataclass
class Connected:
    """One debugger's connection."""

    debugger: Debugger
    clean: bool = True
    """Whether it sent nothing but packets that a debugger may send."""
    closing: bool = False
    told: list[int] = field(default_factory=list)
    """The numbers of the stops that answered its resumes."""


@dataclass
class World:
    """The surroundings of one exchange."""

    resume_on_leave: bool = True
    machine: Machine = field(default_factory=Machine)
    now: float = 0.0
    dialect: Dialect = QEMU

    def __post_init__(self) -> None:
        self.exchange = Exchange(
            "web1",
            self.dialect,
            monitor=lambda who, command, done: done(f"{command}\n"),
            resume_on_leave=self.resume_on_leave,
        )
        self.sessions: dict[int, Connected] = {}
        self.seats: dict[int, Seat] = {}
        self._watch()
        self.journal: frozenset[Place] = frozenset()
        self.journalled = Journal(attached=False, run=False)
        self.wants_connection = False
        self.unless_running = False
        self.closing: bool | None = None
        self.queries = 0
        self.live_reads: list[tuple[int, int, int]] = []
        self.reports: list[Report] = []
        self.refused: list[str] = []
        self.should_run: bool | None = self.machine.running
        """Whether the guest is to run when nobody debugs it; None where nobody can tell."""
        self.was_connected = False
        self._acks: list[tuple[int, bytes]] = []
        self._foreign = False
        self._crossed = False
        self._garbled = False
        self._muddled = False
        self._dropped = False
        self._last = 0
        self._executing = False
        self._observing: Seat | None = None
        """Who asks for something now, if it only observes and goes on doing so."""
        self._sent = b""
        """What the stub was sent since the last event began."""
        self._holder: str | None = None
        """Who controls the guest, as the time line tells it."""
        self._late: set[Place] = set()
        """What sessions that stay have armed or let go of since the guest began to run: the next resume does it."""
        self._seen: dict[int, int] = {}
        """The highest stop that each session was seen to know."""

    # -- what is watched -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look at each stop that a session is told, and at what is asked of the stub on whose behalf."""
        sharing, client = self.exchange.sharing, self.exchange.client
        join = sharing.join

        def joined(session: SessionId, *arguments: Any, **more: Any) -> Seat:
            seat = join(session, *arguments, **more)
            self.seats[session] = seat
            self._watch_stops(seat)
            return seat

        def watched(name: str) -> None:
            operation = getattr(client, name)

            def asked(*arguments: Any) -> None:
                seat = self._observing
                if seat is not None and seat.is_attached:
                    assert seat.controls, (
                        f"{seat.name} observes, and the stub was asked for {name}{arguments[:2]}"
                    )
                operation(*arguments)

            setattr(client, name, asked)

        sharing.join = joined
        for name in (
            "write_memory",
            "write_registers",
            "write_register",
            "insert",
            "remove",
            "resume",
            "interrupt",
            "detach",
        ):
            watched(name)

    def _watch_stops(self, seat: Seat) -> None:
        stopped = seat.stopped
        again = 0

        def tell(stop: Stop | Exception) -> None:
            nonlocal again
            session = self.sessions.get(seat.session)
            if seat.waits and session is not None and isinstance(stop, Halted):
                number = self.exchange.sharing.stops.present
                last = session.told[-1] if session.told else 0
                if seat.seen == number > last:
                    session.told.append(number)
                    # A step over its own breakpoint: the `continue` after it gets the same stop once more.
                    again = seat.retell
                elif again == number > 0:
                    again = 0
                else:
                    assert stop.signal == SIGINT, (
                        f"{seat.name} was told {stop} of stop {number} after {session.told}"
                    )
            else:
                assert not isinstance(stop, Ended) or not seat.is_attached or not self.machine.running
            stopped(stop)

        seat.stopped = tell

    def _of_session(self, number: int, event: Callable[..., Any], *arguments: Any) -> None:
        """Something that one session does, which the others must not be changed by."""
        sharing, client = self.exchange.sharing, self.exchange.client
        seat = self.seats[number]
        before = sharing.armed.by_owner()
        ran = client.state is State.RUNNING
        waited = {one for one in sharing.seats if one.waits}
        held = seat.controls
        self._observing = None if held else seat
        self._sent = b""
        self.do(event, SessionId(number), *arguments)
        if held and not seat.controls and seat in sharing.seats:
            assert sharing.armed.of(seat) == before[seat], (
                f"{seat.name} let go of what it has armed with control"
            )
        observed, self._observing = self._observing is seat and not seat.controls, None
        if observed and ran and seat.is_attached:
            assert not self._sent, (
                f"{seat.name} observes a guest that runs, and its stub was sent {self._sent!r}"
            )
        for one in sharing.seats:
            if ran and client.state is State.RUNNING:
                self._late |= {place(its) for its in before.get(one, frozenset()) ^ sharing.armed.of(one)}
            answered = one in waited and not one.waits
            if one in before and one is not seat and one is not sharing.control.holder and not answered:
                assert sharing.armed.of(one) == before[one], f"{seat.name} changed what {one.name} has armed"

    # -- effects -------------------------------------------------------------------------------------------------

    def do(self, event: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Tell the exchange something and carry out what it asks for."""
        result = event(*arguments, **more)
        self._execute()
        self.check()
        return result

    def _execute(self) -> None:
        if self._executing:
            return
        self._executing = True
        try:
            effects = self.exchange.effects
            while effects:
                batch = effects.copy()
                effects.clear()
                for effect in batch:
                    self._carry_out(effect)
        finally:
            self._executing = False

    def _carry_out(self, effect: Any) -> None:
        match effect:
            case ToStub(data):
                self._to_stub(data)
            case ToSession(number, data):
                self._to_session(number, data)
            case CloseSession(number):
                if number in self.sessions:
                    assert not self.sessions[number].closing, "closed twice"
                    self.sessions[number].closing = True
            case ConnectStub(unless_running):
                assert not self.wants_connection, "two connections to one stub"
                assert self.closing is None, "a connection while the last is being closed"
                # What was left in the stub is removed from a guest that runs, too.
                meant = unless_running or self._holder is not None or self.journalled.attached
                assert meant, "a guest that runs would be stopped for an observer"
                self.wants_connection = True
                self.unless_running = unless_running
            case CloseStub(run):
                assert self.closing is None, "closed twice"
                self.closing = run
                # A guest that is left standing keeps the steps it owes: only running clears them.  If steps were just
                # switched off for that, the next connection switches them on.
                owes = bool(self.machine.flags) or self.machine.sstep != 7
                self._dropped = self._dropped or (not run and owes)
                if self.machine.connected:
                    self.machine.close()
                    # As a stream does that is told to close.
                    self.exchange.stub_closed("let go", self.now)
            case QueryMachine():
                self.queries += 1
            case ReadLive(token, address, length):
                self.live_reads.append((token, address, length))
            case Journal():
                self.journalled = effect
                self.journal = frozenset(place(one) for one in effect.breakpoints)
            case Report():
                self._note(effect)
            case _:
                raise AssertionError(effect)

    def _note(self, report: Report) -> None:
        self.reports.append(report)
        self._dropped = self._dropped or report.kind in ("debugger.stuck", "debugger.lost")
        if report.kind == "debugger.control":
            assert report.fields["from"] == self._holder, "the time line of control has a gap"
            self._holder = report.fields["to"]

    def _to_stub(self, data: bytes) -> None:
        machine = self.machine
        if not machine.connected:
            return
        self._sent += data
        assert self.journalled.attached, "bytes for the stub before the journal was written"
        if b"\x03" in data and self._foreign and not machine.running:
            # Somebody else stopped the machine, and was crossed by an interrupt that did not know of it.
            self.should_run = None
        crossed = self._crossed and machine.running
        if crossed:
            # Somebody resumed the machine, and was crossed by a request that did not know of it: the stub loses
            # that request, and all replies until the time-out are taken for those of the request before.
            self._garbled = self._muddled = True
        machine.receive(data)
        if data.strip(b"+") == b"\x03":
            machine.spoilt.clear()  # stopped by the acknowledgement before it: what was meant
        continued, machine.continued = machine.continued, False
        if continued and not crossed:
            self._foreign = False
            self.should_run = True

    def _to_session(self, number: int, data: bytes) -> None:
        session = self.sessions.get(number)
        if session is None:
            return
        assert not session.closing, "bytes after the end"
        if session.clean:
            acks = session.debugger.receive(data)
            if acks:
                self._acks.append((number, acks))

    # -- debuggers -----------------------------------------------------------------------------------------------

    def open(self, *, no_ack: bool = False, observes: bool = False, admin: bool = False) -> int:
        self._last += 1
        number = self._last
        self.sessions[number] = Connected(Debugger())
        opened = self.do(
            self.exchange.session_opened,
            SessionId(number),
            f"user-{number}",
            self.now,
            observes=observes,
            admin=admin,
        )
        if not opened:
            del self.sessions[number]
            self.seats.pop(number, None)
        elif no_ack:
            self.ask(number, b"QStartNoAckMode")
        return number

    def ask(self, number: int, *payloads: bytes) -> None:
        """Send requests in one write."""
        session = self.sessions[number]
        if session.closing:
            return
        data = b"".join(session.debugger.ask(payload) for payload in payloads)
        self.send(number, data)

    def send(self, number: int, data: bytes) -> None:
        """Send bytes, and the acknowledgements for what came back."""
        self._of_session(number, self.exchange.session_data, data, self.now)
        while self._acks:
            one, acks = self._acks.pop(0)
            if one in self.sessions and not self.sessions[one].closing:
                self._of_session(one, self.exchange.session_data, acks, self.now)

    def close(self, number: int) -> None:
        session = self.sessions.pop(number)
        self._interrupted(session)
        self._of_session(number, self.exchange.session_closed, self.now)
        del self.seats[number]

    def _interrupted(self, session: Connected) -> None:
        """It may have wanted the guest to run, and came to its end before that was done."""
        resumes = any(RESUMES.match(payload) for payload in session.debugger.asked)
        if self.should_run is False and (resumes or not session.clean):
            self.should_run = None

    # -- the stub and the monitor --------------------------------------------------------------------------------

    def connect(self, *, fails: bool = False) -> None:
        """Carry out the connection that the exchange asked for."""
        if not self.wants_connection:
            return
        self.wants_connection = False
        if fails or not self.machine.alive:
            self.do(self.exchange.stub_failed, "no stub there", self.now)
            return
        running = self.machine.running
        if self.unless_running and running:
            self.do(self.exchange.guest_runs, self.now)
            return
        if self.should_run is None and not self.journalled.attached:
            self.should_run = running
        self.was_connected = True
        self._muddled = self._muddled and self.journalled.attached
        self.machine.connect()
        self.do(self.exchange.stub_connected, self.now, running=running)

    def deliver(self, most: int = 1 << 30) -> None:
        """Deliver what the stub sent, at most so many bytes of it."""
        data = bytes(self.machine.output[:most])
        del self.machine.output[:most]
        if data and self.machine.connected:
            if not self.machine.output:
                self._foreign = False
            self.do(self.exchange.stub_data, data, self.now)

    def drop(self) -> None:
        """The stub's connection is lost; the machine lives on."""
        if self.machine.connected:
            if self._foreign:
                self.should_run = None  # its last word was lost
            for session in self.sessions.values():
                self._interrupted(session)
            self._dropped = True
            self.machine.close()
            self.do(self.exchange.stub_closed, "connection lost", self.now)

    def die(self) -> None:
        """The hypervisor is killed."""
        was = self.machine.connected
        self.machine.die()
        self.should_run = None
        if was:
            self.do(self.exchange.stub_closed, "connection lost", self.now)
        self.do(self.exchange.machine_lost, "the hypervisor has ended", self.now)

    def revive(self) -> None:
        """The hypervisor is started again."""
        if not self.machine.alive:
            self.machine = Machine()
            self.should_run = True
            self._foreign = False

    def left(self) -> None:
        """Finish the closing of the stub's connection that the exchange asked for."""
        if self.closing is None:
            return
        run, self.closing = self.closing, None
        if (
            run
            and self.machine.alive
            and not self.machine.running
            and self.machine.detail in ("paused", "debug")
        ):
            self.machine.start()
        self.do(self.exchange.stub_left, self.now)

    def answer(self) -> None:
        """Answer one query of the monitor."""
        if self.queries:
            self.queries -= 1
            machine = self.machine
            status = MachineStatus(machine.running, machine.detail) if machine.alive else MachineStatus(None)
            stood = self.exchange.client.state is State.STOPPED
            self.do(self.exchange.machine_status, status, self.now)
            if stood and status.runs and self.exchange.client.state is State.RUNNING:
                self.should_run = True  # told that somebody resumed the machine

    def read_live(self, *, fails: bool = False) -> None:
        """Answer one read of memory while the guest runs."""
        if self.live_reads:
            token, address, length = self.live_reads.pop(0)
            data = "not mapped" if fails else memory_at(address, length)
            self.do(self.exchange.live_memory, token, data, self.now)

    def notify(self) -> None:
        """Deliver the monitor's oldest event."""
        if self.machine.events:
            self.do(self.exchange.machine_runs, self.now, runs=self.machine.events.pop(0))

    def pause(self, *, panic: bool = False) -> None:
        """Somebody else stops the machine."""
        if self.machine.running:
            # In the moments in which the relay itself stops or resumes the machine it cannot tell who else did.
            lost = self.journalled.attached and not self.machine.connected
            greeting = self.exchange.client.state is State.GREETING
            leaving = self.exchange.sharing.phase is Phase.LEAVING
            # A resume and a pause of others that it was told of too late are no better.
            untold = self._crossed
            self.should_run = None if lost or greeting or leaving or untold else False
            self._foreign = True
            if panic:
                self.machine.panic()
            else:
                self.machine.halt(2)
            self.check()

    def resume(self) -> None:
        """Somebody else resumes the machine."""
        if self.machine.alive and not self.machine.running:
            # Until the relay was told, it may send to the stub what it would send to a guest that stands still.
            self._crossed = self.machine.connected
            self.machine.start()
            self.should_run = None if self._crossed else True
            self._foreign = False
            self.check()

    def elapse(self, seconds: float) -> None:
        self.now += seconds
        self._dropped = self._dropped or (seconds >= 10 and self.machine.connected)
        deadline = self.exchange.deadline
        if deadline is not None and deadline <= self.now:
            self.do(self.exchange.expire, self.now)

    # -- what must hold ------------------------------------------------------------------------------------------

    def check(self) -> None:
        self._check_sharing()
        if self.exchange.client.state is not State.RUNNING:
            self._late.clear()
        machine = self.machine
        if self._crossed and (self.exchange.client.state is State.RUNNING) == machine.running:
            self._crossed = bool(machine.output or machine.events or self.queries)
            machine.spoilt.clear()
        assert self._crossed or not machine.spoilt, f"a running guest was sent {machine.spoilt!r}"
        self._garbled = self._garbled and (self._muddled or bool(machine.breakpoints))
        if self._garbled:
            return
        if self.journalled.attached or machine.connected:
            assert frozenset(machine.breakpoints) <= self.journal, "a breakpoint stands that no journal names"
        else:
            assert not machine.breakpoints, "a breakpoint stands, and the journal says that nothing is left"

    def _check_sharing(self) -> None:
        views = self.exchange.session_views()
        holders = [one.name for one in views if one.controls]
        assert len(holders) <= 1, f"more than one controls the guest: {holders}"
        assert holders == ([] if self._holder is None else [self._holder]), "the time line tells it otherwise"
        for number, seat in self.seats.items():
            assert seat.seen == -1 or seat.seen >= self._seen.get(number, -1), (
                "a stop was told after a later one"
            )
            self._seen[number] = max(seat.seen, self._seen.get(number, -1))

    def check_armed(self) -> None:
        """At rest, and while the guest runs under the stub: what stands there is what sessions have armed."""
        sharing = self.exchange.sharing
        told = self.exchange.client.state is State.RUNNING and self.machine.running
        if sharing.phase is not Phase.ATTACHED or not told or self._crossed or self._garbled or self._muddled:
            return
        if not self.machine.resumed_by_stub:
            return  # by somebody else, who did not ask what debuggers want inserted
        standing = frozenset(self.machine.breakpoints)
        armed = frozenset(place(one) for one in sharing.armed.all())
        assert standing <= armed | self._late, f"nobody has armed {standing - armed}"
        full = sum(kind != 0 for kind, _, _ in standing) >= 4
        missing = {one for one in armed - standing - self._late if not full or one[0] == 0}
        assert not missing, f"armed, and not in the stub: {missing}"

    def flow(self) -> None:
        """Carry everything that is under way to where it goes, but for live reads, without time passing."""
        self.settle(patient=False)

    def settle(self, *, patient: bool = True) -> None:
        """Let everything that is under way end, in the usual order; what waits for the guest goes on waiting."""
        for _ in range(300):
            before = self.now
            busy = bool(self.machine.output) or self.wants_connection or self.closing is not None
            busy = (
                busy or bool(self.queries) or bool(self.machine.events) or (patient and bool(self.live_reads))
            )
            self.connect()
            self.deliver()
            self.answer()
            self.notify()
            if patient:
                self.read_live()
            self.left()
            for number in [number for number, session in self.sessions.items() if session.closing]:
                self.close(number)
                busy = True
            deadline = self.exchange.deadline
            if patient and not busy and deadline is not None:
                self.elapse(max(0.0, deadline - before))
                busy = True
            if not busy:
                return
        raise AssertionError("it does not come to rest")

    def leave(self) -> None:
        """Close every session, settle, and check what must hold when nobody is there."""
        for number in tuple(self.sessions):
            if number in self.sessions:
                self.close(number)
        self.settle()
        machine = self.machine
        if self.journalled.attached:
            # The stub could not be reached to clean it: that was said, and the next to come does it.
            # Who only observed a running guest in between did not touch its stub.
            assert any(report.kind == "debugger.left_behind" for report in self.reports)
            if not machine.alive:
                return
            self.ask(self.open(), b"?")
            self.settle()
            for number in tuple(self.sessions):
                self.close(number)
            self.settle()
            self.should_run = None
        assert self.exchange.sharing.phase is Phase.ABSENT
        assert not machine.connected
        if self._garbled:
            return  # closed without `D`, and without knowing what stands: see the protocol notes
        assert not machine.breakpoints, f"left behind: {machine.breakpoints}"
        assert not self.journalled.attached
        if self.was_connected and machine.running and not self._muddled and not self._dropped:
            assert not machine.flags, "a processor will trap, and nobody wants it to"
            assert machine.sstep == 7, "steps were left switched off"
        # A processor that still has to step stops a guest whose stub was lost, whenever it comes to it.
        told = self.should_run is not None and not self._muddled and not self._dropped
        if machine.alive and told and (self.resume_on_leave or not self.was_connected):
            assert machine.running is self.should_run, f"runs: {machine.running}"
