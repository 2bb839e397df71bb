"""Bringing a kernel into its stub: when it is broken into, and for which connection; a clock, and no kernel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from kbridge.config import BreakInWay
from kbridge.errors import GuestError
from kbridge.stub_entry import LOOK_SECONDS, STANDS_SECONDS, UNBROKEN_SECONDS, StubEntry

SYSRQ = BreakInWay.SYSRQ


class World:
    """A stub that answers when it is told to, and ways in that wait for it."""

    def __init__(self, *, has_ways: bool = True) -> None:
        self.clock = Clock()
        self.is_answered = False
        self.entered: list[float] = []
        self.failed: list[str] = []
        self.events: list[Any] = []
        own: Any = self
        self.entry = StubEntry(
            self.clock,
            "web1",
            own.Ways(self) if has_ways else None,
            is_answered=lambda: self.is_answered,
            failed=self.failed.append,
            sink=lambda kind, fields: self.events.append((kind, dict(fields))),
        )
        self.connect()

    class Ways:
        def __init__(self, world: World) -> None:
            self.world = world

        async def enter(self, arrived: Callable[[float], Awaitable[bool]]) -> BreakInWay | None:
            self.world.entered.append(self.world.clock.seconds())
            if await arrived(2):
                return SYSRQ
            raise GuestError("web1 was not broken into", why="nothing worked", todo="do something")

    def connect(self) -> None:
        self.is_answered = False
        self.entry.connected()

    def wait(self, seconds: float) -> None:
        self.clock.pump([LOOK_SECONDS] * round(seconds / LOOK_SECONDS + 2))


def test_a_kernel_that_stands_is_not_broken_into() -> None:
    world = World()
    world.entry.enter()
    world.is_answered = True
    world.wait(STANDS_SECONDS)
    assert (world.entered, world.failed, world.events) == ([], [], [])


def test_a_kernel_that_runs_is_broken_into_once() -> None:
    world = World()
    world.entry.enter()
    world.entry.enter()
    world.wait(STANDS_SECONDS)
    assert len(world.entered) == 1
    world.is_answered = True
    world.wait(0)
    assert world.events == [("debugger.break_in", {"way": "sysrq"})]
    assert world.failed == []


def test_what_did_not_work_is_said_and_can_be_repeated() -> None:
    world = World()
    for count in (1, 2):
        world.entry.enter()
        world.wait(STANDS_SECONDS + 2)
        assert len(world.entered) == len(world.failed) == count
        assert "nothing worked" in world.failed[-1]


def test_a_guest_without_a_way_in_says_what_to_set() -> None:
    world = World(has_ways=False)
    world.entry.enter()
    world.wait(STANDS_SECONDS)
    (why,) = world.failed
    assert "set `break_in`" in why


def test_a_kernel_that_is_not_to_be_stopped_is_waited_for_longer_and_left_alone() -> None:
    world = World()
    world.entry.may_break_in = False
    world.entry.enter()
    world.wait(STANDS_SECONDS)
    assert world.failed == []
    world.wait(UNBROKEN_SECONDS)
    assert world.entered == []
    (why,) = world.failed
    assert "is not to be stopped" in why
    # The next who comes is asked for anew.
    world.connect()
    world.entry.enter()
    world.wait(STANDS_SECONDS)
    assert len(world.entered) == 1


@pytest.mark.parametrize("seconds", [0.0, STANDS_SECONDS])
def test_a_connection_that_follows_at_once_has_an_attempt_of_its_own(seconds: float) -> None:
    """The last one's session left within the time of one look after its kernel stood: its attempt is not over yet."""
    world = World()
    world.entry.enter()
    world.wait(seconds)
    before = len(world.entered)
    world.is_answered = True
    world.connect()
    world.entry.enter()
    world.wait(STANDS_SECONDS)
    assert len(world.entered) == before + 1
    world.is_answered = True
    world.wait(0)
    assert world.events[-1] == ("debugger.break_in", {"way": "sysrq"})
    assert world.failed == []


def test_what_an_attempt_came_to_is_not_said_to_the_connection_after_its_own() -> None:
    world = World(has_ways=False)
    world.entry.enter()
    world.connect()
    world.wait(STANDS_SECONDS)
    assert world.failed == []


def test_that_a_kernel_may_not_be_stopped_lasts_beyond_the_attempt_before() -> None:
    world = World()
    world.entry.enter()
    world.connect()
    world.entry.may_break_in = False
    world.entry.enter()
    world.wait(UNBROKEN_SECONDS)
    assert world.entered == []
    assert len(world.failed) == 1
