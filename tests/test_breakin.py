"""The ways into kgdb: their order, what is remembered, and the words for each that failed; no kernel here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kbridge.breakin import WAIT_SECONDS, BreakIn
from kbridge.config import BreakInWay
from kbridge.console.ring import Ring
from kbridge.errors import GuestError, LineError, MachineError
from kbridge.transports.endpoints import Unix

SYSRQ, NMI = BreakInWay.SYSRQ, BreakInWay.NMI
CONSOLE = Unix("/run/serial")


class Line:
    """A line that keeps what is sent on it."""

    def __init__(self, *, can_break: bool, fails: bool = False) -> None:
        self.can_break = can_break
        self.fails = fails
        self.sent: list[Any] = []
        self.log: list[Any] = []

    async def send_break(self) -> None:
        self.sent.append("BREAK")

    def write(self, data: bytes) -> None:
        if self.fails:
            raise LineError("cannot write", why="the line is lost", todo="try again")
        self.sent.append(data)
        self.log.append(data)


class Machine:
    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.sent: list[Any] = []
        self.log: list[Any] = []

    async def nmi(self) -> None:
        self.sent.append("NMI")
        self.log.append("NMI")

    async def send_break(self, console: str) -> None:
        if self.fails:
            raise MachineError("the monitor is gone", why="it closed")
        self.sent.append(("BREAK", console))


class World:
    """A guest's parts, and which way its kernel takes."""

    def __init__(
        self,
        *ways: BreakInWay,
        line: Line | None = None,
        machine: Machine | None = None,
        takes: BreakInWay | None = None,
        says: bytes = b"",
    ) -> None:
        self.line, self.machine, self.takes = line, machine, takes
        log: list[Any] = []
        for part in (line, machine):
            if part is not None:
                part.log = log
        self.log = log
        self.says = says
        self.ring = Ring.anonymous(65536)
        self.ring.append(b"sysrq: HELP from long ago\n")
        self.waited: list[float] = []
        self.break_in = BreakIn(
            "web1", ways, console=CONSOLE, line=lambda: line, machine=machine, said=self.ring
        )  # type: ignore[arg-type]

    async def arrived(self, seconds: float) -> bool:
        self.waited.append(seconds)
        self.ring.append(self.says)
        return self.takes is (NMI if self.log[-1] == "NMI" else SYSRQ)

    def enter(self) -> BreakInWay:
        return asyncio.run(self.break_in.enter(self.arrived))

    def refused(self) -> GuestError:
        with pytest.raises(GuestError) as caught:
            self.enter()
        return caught.value


def test_break_and_g_go_by_the_line_where_it_can_and_else_by_the_monitor() -> None:
    world = World(SYSRQ, line=Line(can_break=True), machine=Machine(), takes=SYSRQ)
    assert world.enter() is SYSRQ
    assert world.line is not None
    assert world.machine is not None
    assert (world.line.sent, world.machine.sent) == (["BREAK", b"g"], [])
    assert world.waited == [WAIT_SECONDS]
    world = World(SYSRQ, line=Line(can_break=False), machine=Machine(), takes=SYSRQ)
    assert world.enter() is SYSRQ
    assert world.line is not None
    assert world.machine is not None
    assert (world.machine.sent, world.line.sent) == ([("BREAK", "unix:/run/serial")], [b"g"])


def test_the_ways_are_tried_in_order_and_what_worked_is_tried_first_the_next_time() -> None:
    world = World(SYSRQ, NMI, line=Line(can_break=True), machine=Machine(), takes=NMI)
    assert world.enter() is NMI
    assert len(world.waited) == 2
    assert world.break_in.ways == (NMI, SYSRQ)
    assert world.enter() is NMI
    assert len(world.waited) == 3
    world.takes = SYSRQ
    assert world.enter() is SYSRQ
    assert world.break_in.ways == (SYSRQ, NMI)


def test_a_way_that_cannot_be_gone_does_not_keep_from_the_next() -> None:
    world = World(SYSRQ, NMI, line=Line(can_break=True, fails=True), machine=Machine(), takes=NMI)
    assert world.enter() is NMI
    assert len(world.waited) == 1


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"sysrq: This sysrq operation is disabled.\r\n", "kernel.sysrq=1, or a value with bit 8"),
        (b"sysrq: HELP : loglevel(0-9) reboot(b)", "boot it with kgdboc=PORT"),
        (b"tick 3\r\n", "no stop came within 2 s"),
    ],
)
def test_the_kernels_own_words_tell_why_sysrq_did_not_work(says: bytes, words: str) -> None:
    world = World(SYSRQ, line=Line(can_break=True), says=says)
    error = world.refused()
    assert "web1 was not broken into: BREAK and g were sent" in str(error)
    assert words in str(error)
    assert error.todo


def test_every_way_that_failed_is_named() -> None:
    world = World(
        SYSRQ, NMI, line=Line(can_break=False), machine=Machine(fails=True), says=b"Uhhuh. NMI received"
    )
    words = str(world.refused())
    assert "the monitor is gone: it closed" in words
    assert "the kernel took it for none of its own" in words
    assert world.break_in.ways == (SYSRQ, NMI)


def test_what_is_missing_is_said() -> None:
    assert "`break_in` is empty" in str(World().refused())
    assert "configure `console`" in str(World(SYSRQ).refused())
    assert "configure `qmp`" in str(World(NMI).refused())
    assert "this kind of line has none" in str(World(SYSRQ, line=Line(can_break=False)).refused())


def test_a_failed_attempt_can_be_repeated() -> None:
    world = World(SYSRQ, line=Line(can_break=True))
    world.refused()
    world.takes = SYSRQ
    assert world.enter() is SYSRQ
