"""Our own debugger without I/O, on a made-up machine: how it gets past its own breakpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from rsp.stub import PROGRAM_COUNTER, Machine

from gdbstubs.client import State
from gdbstubs.debugger import Debugger
from gdbstubs.dialects import QEMU
from gdbstubs.errors import TargetError
from gdbstubs.target import Breakpoint, BreakpointKind, Ended, Halted, ThreadId

ONE, TWO = ThreadId(1), ThreadId(2)
HERE, NEXT, THERE = 0x2000, 0x2004, 0x2008


class Trapping(Machine):
    """A machine that goes round ``HERE``, ``NEXT``, ``THERE``, and traps at a breakpoint before its instruction."""

    def __init__(self, *, steps_trap: bool) -> None:
        super().__init__()
        self.steps_trap = steps_trap
        self.counter = HERE
        self.executed: list[int] = []

    @property
    def counter(self) -> int:
        return int.from_bytes(self.registers[PROGRAM_COUNTER], "little")

    @counter.setter
    def counter(self, value: int) -> None:
        self.registers[PROGRAM_COUNTER] = value.to_bytes(8, "little")

    @property
    def places(self) -> set[int]:
        return {address for (kind, address, _), count in self.breakpoints.items() if count and kind < 2}

    def advance(self) -> None:
        if not self.running:
            return
        is_step = bool(self.flags)
        if is_step and not self.steps_trap:
            self._execute()
        elif self.counter not in self.places:
            self._execute()
            while not is_step and self.places and self.counter not in self.places:
                self._execute()
        if is_step or self.counter in self.places:
            self.halt(5, "debug")

    def _execute(self) -> None:
        self.executed.append(self.counter)
        self.counter = {HERE: NEXT, NEXT: THERE, THERE: HERE}[self.counter]


class Session:
    """A debugger on a machine; bytes are carried until nobody says anything more."""

    def __init__(self, *, steps_trap: bool = True) -> None:
        self.machine = Trapping(steps_trap=steps_trap)
        self.debugger = Debugger(on_words=lambda words: None, dialect=QEMU)
        self.machine.connect()
        self.pauses = False
        assert self.ask(self.debugger.connected) == Halted(5, ONE)

    def begin(self, operation: Callable[[Any], None]) -> list[Any]:
        answers: list[Any] = []
        operation(answers.append)
        self.carry()
        return answers

    def ask(self, operation: Callable[[Any], None]) -> Any:
        (answer,) = self.begin(operation)
        return answer

    def carry(self) -> None:
        while True:
            self.machine.receive(self.debugger.take_output())
            if not self.pauses:
                self.machine.advance()
            said = bytes(self.machine.output)
            self.machine.output.clear()
            if not said:
                return
            self.debugger.receive(said)

    def insert(self, *addresses: int, kind: BreakpointKind = BreakpointKind.SOFTWARE) -> None:
        for one in (Breakpoint(kind, address, 1) for address in addresses):
            assert self.ask(partial(self.debugger.insert, one)) is None

    @property
    def counter(self) -> int:
        return int(self.ask(lambda done: self.debugger.registers(None, done))["rip"])


@pytest.mark.parametrize("kind", [BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE])
@pytest.mark.parametrize("steps_trap", [True, False])
def test_a_resume_gets_past_its_own_breakpoint_and_comes_round_to_it(
    kind: BreakpointKind, steps_trap: bool
) -> None:
    session = Session(steps_trap=steps_trap)
    session.insert(HERE, kind=kind)
    for _ in range(3):
        session.machine.executed.clear()
        assert session.ask(session.debugger.resume) == Halted(5, ONE)
        assert session.machine.executed == [HERE, NEXT, THERE]
        assert session.counter == HERE
        assert session.machine.places == {HERE}


def test_a_breakpoint_right_behind_is_met() -> None:
    session = Session()
    session.insert(HERE, NEXT)
    assert session.ask(session.debugger.resume) == Halted(5, ONE)
    assert session.counter == NEXT
    assert session.machine.executed == [HERE]
    assert session.machine.places == {HERE, NEXT}


def test_a_step_is_one_instruction() -> None:
    session = Session()
    session.insert(HERE)
    assert session.ask(lambda done: session.debugger.step(None, done)) == Halted(5, ONE)
    assert session.machine.executed == [HERE]
    assert session.machine.places == {HERE}


@pytest.mark.parametrize(("end", "executed"), [(NEXT, [HERE]), (THERE, [HERE, NEXT])])
def test_a_range_is_left_where_it_ends(end: int, executed: list[int]) -> None:
    session = Session()
    session.insert(HERE)
    assert session.ask(lambda done: session.debugger.step_range(None, HERE, end, done)) == Halted(5, ONE)
    assert session.machine.executed == executed


def test_where_no_breakpoint_stands_nothing_more_is_asked() -> None:
    session = Session()
    session.insert(NEXT)
    del session.machine.seen[:]
    assert session.ask(session.debugger.resume) == Halted(5, ONE)
    assert not [one for one in session.machine.seen if one.startswith((b"z", b"Z", b"vCont;s"))]


def test_those_who_wait_hear_of_the_stop_and_not_of_the_step() -> None:
    session = Session()
    session.insert(HERE)
    session.pauses = True
    resumed = session.begin(session.debugger.resume)
    waited = session.begin(session.debugger.wait)
    again = session.begin(session.debugger.resume)
    assert (resumed, waited) == ([], [])
    assert isinstance(again[0], TargetError)
    session.pauses = False
    session.carry()
    assert resumed == waited == [Halted(5, ONE)]
    assert session.machine.executed == [HERE, NEXT, THERE]


def test_an_interrupt_meanwhile_stops_it() -> None:
    session = Session()
    session.insert(HERE)
    session.pauses = True
    resumed = session.begin(session.debugger.resume)
    session.debugger.interrupt()
    session.carry()
    session.pauses = False
    session.carry()
    assert resumed == [Halted(2, ONE)]
    assert session.machine.places == {HERE}
    assert not session.machine.running


def test_a_guest_that_goes_away_meanwhile_has_ended() -> None:
    session = Session()
    session.insert(HERE)
    session.pauses = True
    resumed = session.begin(session.debugger.resume)
    assert session.debugger.state is State.RUNNING
    session.debugger.closed("gone")
    assert resumed == [Ended(words="gone")]


def test_a_panic_in_the_step_is_told_and_the_breakpoint_stands_again() -> None:
    session = Session()
    session.insert(HERE)
    session.pauses = True
    resumed = session.begin(session.debugger.resume)
    session.machine.panic()
    session.carry()
    assert [one.signal for one in resumed] == [0x8F]
    assert session.machine.places == {HERE}
