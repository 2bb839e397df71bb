"""Sessions that share a kernel's own stub: tasks that exit, a monitor that calls it running, breaking in."""

from __future__ import annotations

import pytest
from rsp.debugger import Debugger
from rsp.kgdb import Kgdb

from gdbstubs.dialects import KGDB
from gdbstubs.effects import (
    BreakIn,
    CloseStub,
    ConnectStub,
    Effect,
    QueryMachine,
    SessionId,
    ToSession,
    ToStub,
)
from gdbstubs.exchange import Exchange
from gdbstubs.reclaim import TRAP_FLAG
from gdbstubs.sharing import MachineStatus
from gdbstubs.target import Breakpoint, BreakpointKind

A, B = SessionId(1), SessionId(2)
BREAKPOINT = b"Z0,2000,1"
LASTING = 0.2


class Kernel:
    """An exchange on a kernel's own stub; effects are carried out at once."""

    def __init__(self, *sessions: SessionId) -> None:
        self.now = 0.0
        self.stub = Kgdb()
        self.exchange = Exchange("web1", KGDB, monitor=lambda who, command, done: done(command))
        self.debuggers: dict[SessionId, Debugger] = {}
        self.broken_in = 0
        self.runs: bool | None = True
        """What the machine monitor says."""
        for number in sessions:
            self.debuggers[number] = Debugger()
            assert self.exchange.session_opened(number, f"user-{number}", self.now)
            self.ask(number, b"?")

    def flow(self) -> None:
        exchange = self.exchange
        while exchange.effects or self.stub.output:
            if exchange.effects:
                self._carry_out(exchange.effects.pop(0))
            said = bytes(self.stub.output)
            self.stub.output.clear()
            if said:
                exchange.stub_data(said, self.now)

    def _carry_out(self, effect: Effect) -> None:
        exchange = self.exchange
        match effect:
            case ConnectStub(unless_running=True):
                exchange.guest_runs(self.now)
            case ConnectStub():
                exchange.stub_connected(self.now, running=True)
            case CloseStub():
                exchange.stub_left(self.now)
            case BreakIn():
                self.broken_in += 1
                self.stub.break_in()
            case ToStub(data):
                self.stub.receive(data)
            case ToSession(number, data):
                exchange.session_data(number, self.debuggers[number].receive(data), self.now)
            case QueryMachine():
                exchange.machine_status(MachineStatus(self.runs), self.now)
            case _:
                pass

    def ask(self, number: SessionId, payload: bytes) -> bytes:
        """Send a request; return its answer, empty for one that is still to come."""
        debugger = self.debuggers[number]
        before = len(debugger.answered)
        self.exchange.session_data(number, debugger.ask(payload), self.now)
        self.flow()
        return debugger.answered[-1][1] if len(debugger.answered) > before else b""

    def leave(self, number: SessionId) -> None:
        """Its connection is gone, as after SIGKILL."""
        del self.debuggers[number]
        self.exchange.session_closed(number, self.now)
        self.flow()

    def told(self, number: SessionId) -> bytes:
        return self.debuggers[number].answered[-1][1]

    def trap(self, address: int) -> None:
        self.stub.trap(address)
        self.flow()

    def elapse(self, seconds: float) -> None:
        self.now += seconds
        self.exchange.expire(self.now)
        self.flow()

    def interrupt(self, number: SessionId) -> None:
        self.exchange.session_data(number, b"\x03", self.now)
        self.flow()


def test_a_kernel_is_broken_into_for_the_first_and_not_for_the_second() -> None:
    kernel = Kernel(A, B)
    assert kernel.broken_in == 1
    assert kernel.ask(A, b"g") == kernel.ask(B, b"g")


def test_an_observer_that_ends_its_waiting_beside_a_running_kernel_sees_no_registers() -> None:
    kernel = Kernel(A, B)
    standing = kernel.ask(B, b"g")
    assert kernel.ask(B, b"vCont;c") == b""
    assert kernel.ask(A, b"D") == b"OK"
    assert not kernel.stub.in_debugger
    kernel.interrupt(B)
    assert kernel.told(B).startswith(b"T02")
    # gdb gives up in the middle of a stop whose registers it is refused.
    registers = kernel.ask(B, b"g")
    assert len(registers) == len(standing)
    assert set(registers) == set(b"x0")
    assert kernel.broken_in == 1


def test_a_task_that_exited_under_a_step_over_a_breakpoint_shows_nothing_rather_than_an_error() -> None:
    kernel = Kernel(A, B)
    assert kernel.ask(A, BREAKPOINT) == b"OK"
    assert kernel.ask(B, BREAKPOINT) == b"OK"
    assert kernel.ask(B, b"vCont;c") == b""
    assert kernel.ask(A, b"vCont;c") == b""
    kernel.stub.current = b"3f"
    kernel.trap(0x2000)
    kernel.elapse(LASTING)
    assert b"thread:3f;" in kernel.told(B)
    # As gdb goes on from a breakpoint of its own: without it, one step of the thread that met it.
    assert kernel.ask(B, b"z0,2000,1") == b"OK"
    assert kernel.ask(B, b"vCont;s:3f;c") == b""
    assert kernel.ask(A, b"vCont;c") == b""
    kernel.stub.exit_task(b"3f")
    kernel.stub.current = b"02"
    kernel.trap(0x2000)
    kernel.elapse(LASTING)
    assert b"thread:3f;" in kernel.told(B)
    registers = kernel.ask(B, b"g")
    assert set(registers) == {ord("0")}
    assert len(registers) == len(kernel.ask(A, b"g"))
    # It goes on, and is told of the stop as it is.
    assert kernel.ask(B, BREAKPOINT) == b"OK"
    assert b"thread:2;" in kernel.ask(B, b"vCont;c")
    assert set(kernel.ask(B, b"g")) != {ord("0")}
    # Asked for once more, it is one that is not there.
    kernel.ask(B, b"Hg3f")
    assert kernel.ask(B, b"g").startswith(b"E")


def test_a_monitor_that_pauses_and_resumes_the_machine_says_nothing_of_a_kernel_s_stops() -> None:
    kernel = Kernel(A, B)
    registers = kernel.ask(A, b"g")

    def pause_and_resume() -> None:
        for runs in (False, True):
            kernel.runs = runs
            kernel.exchange.machine_runs(kernel.now, runs=runs)
            kernel.flow()
            kernel.elapse(1.0)

    # It stands in kgdb, which is to run, for the monitor.
    pause_and_resume()
    assert kernel.ask(A, b"g") == registers
    # It runs, and a machine that is paused has not entered kgdb.
    assert kernel.ask(A, b"vCont;c") == b""
    assert kernel.ask(B, b"vCont;c") == b""
    asked = len(kernel.stub.seen)
    pause_and_resume()
    assert kernel.debuggers[A].waits
    assert kernel.debuggers[B].waits
    assert len(kernel.stub.seen) == asked
    assert any("was paused" in words for words in kernel.debuggers[B].words)
    kernel.interrupt(A)
    assert kernel.told(A).startswith(b"T05")


def test_a_running_kernel_is_broken_into_to_remove_what_a_lost_debugger_left() -> None:
    kernel = Kernel(A, B)
    assert kernel.ask(A, BREAKPOINT) == b"OK"
    assert kernel.ask(B, b"vCont;c") == b""
    assert kernel.ask(A, b"vCont;c") == b""
    # What it leaves behind is to go: the kernel is broken into, and the monitor asked, which calls it running.
    kernel.leave(A)
    assert kernel.broken_in == 2
    assert not kernel.stub.breakpoints
    assert not kernel.stub.in_debugger
    assert kernel.debuggers[B].waits
    kernel.interrupt(B)
    assert kernel.told(B).startswith(b"T02")


# -- after a relay that was killed ---------------------------------------------------------------------------------

LEFT = (Breakpoint(BreakpointKind.SOFTWARE, 0x2000, 1), Breakpoint(BreakpointKind.SOFTWARE, 0x3000, 1))

FLAGS = 0x246


def recovered(kernel: Kernel) -> None:
    """Have a new relay clean up behind one whose kernel hit breakpoints, or still runs over them."""
    kernel.stub.connected = True  # nobody has detached
    kernel.stub.breakpoints.update({b"0,2000,1", b"0,3000,1"})
    assert kernel.exchange.recover(LEFT, kernel.now)
    kernel.flow()
    assert not kernel.stub.in_debugger
    assert not kernel.stub.breakpoints


def test_a_processor_that_comes_second_at_what_a_killed_relay_left_is_no_new_stop() -> None:
    kernel = Kernel()
    recovered(kernel)
    assert kernel.stub.removed == {b"0,2000,1", b"0,3000,1"}
    assert kernel.broken_in == 1


@pytest.mark.parametrize("place", [0x2000, 0x3000])
def test_a_processor_that_hit_a_breakpoint_without_a_relay_runs_the_instruction_there(place: int) -> None:
    kernel = Kernel()
    kernel.stub.trap(place, flags=FLAGS)
    recovered(kernel)
    assert kernel.stub.program_counter == place


@pytest.mark.parametrize(
    ("place", "stepped"), [(0x2000, True), (0x2FF0, False)], ids=["stepped", "elsewhere"]
)
def test_a_processor_that_hit_none_goes_on_where_it_is(place: int, stepped: bool) -> None:
    kernel = Kernel()
    kernel.stub.trap(place, flags=FLAGS | TRAP_FLAG if stepped else FLAGS)
    recovered(kernel)
    assert kernel.stub.program_counter == place + 1


def test_a_program_counter_that_cannot_be_put_back_keeps_no_kernel_standing() -> None:
    kernel = Kernel()
    kernel.stub.trap(0x2000, flags=FLAGS)
    kernel.stub.is_read_only = True
    recovered(kernel)
    assert kernel.stub.program_counter == 0x2001


def test_a_session_that_comes_while_a_killed_relay_s_breakpoints_are_removed_waits_and_is_served() -> None:
    kernel = Kernel()
    kernel.stub.trap(0x2000, flags=FLAGS)
    kernel.stub.connected = True
    kernel.stub.breakpoints.add(b"0,2000,1")
    assert kernel.exchange.recover(LEFT, kernel.now)
    kernel.debuggers[A] = Debugger()
    assert kernel.exchange.session_opened(A, "user-1", kernel.now)
    assert kernel.ask(A, b"?").startswith(b"T")
    assert kernel.stub.in_debugger
    assert kernel.stub.program_counter == 0x2000
