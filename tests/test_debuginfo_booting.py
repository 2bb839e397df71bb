"""When a guest that was reset is looked at, and when no more."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from kbridge.debuginfo.booting import LOOK_SECONDS, MOST_SECONDS, BootWatch


class Lab:
    def __init__(self) -> None:
        self.clock = Clock()
        self.is_there = self.is_wanted = False
        self.looks = self.told = 0
        self.watch = BootWatch(self.clock, self.look, lambda: self.is_wanted, self.moved)

    async def look(self) -> bool:
        self.looks += 1
        return self.is_there

    def moved(self) -> None:
        self.told += 1

    def passes(self, seconds: float) -> None:
        self.clock.pump([LOOK_SECONDS] * round(seconds / LOOK_SECONDS))


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_it_looks_until_the_kernel_is_there_and_tells_once(lab: Lab) -> None:
    lab.is_wanted = True
    lab.passes(5)
    assert lab.looks == 0
    lab.watch.reset()
    lab.passes(5)
    assert lab.looks == round(5 / LOOK_SECONDS)
    lab.is_there = True
    lab.passes(5)
    assert lab.told == 1
    assert not lab.clock.getDelayedCalls()


def test_it_does_not_look_when_nobody_waits(lab: Lab) -> None:
    lab.watch.reset()
    lab.passes(5)
    assert lab.looks == 0
    assert not lab.clock.getDelayedCalls()


def test_another_reset_begins_anew(lab: Lab) -> None:
    lab.is_wanted = True
    lab.watch.reset()
    lab.passes(MOST_SECONDS - 1)
    lab.watch.reset()
    looks = lab.looks
    lab.passes(MOST_SECONDS - 1)
    assert lab.looks > 2 * looks - 5
    lab.is_there = True
    lab.passes(1)
    assert lab.told == 1


def test_it_ends_with_its_time_and_when_it_is_told_to(lab: Lab) -> None:
    lab.is_wanted = True
    lab.watch.reset()
    lab.passes(MOST_SECONDS + 5)
    assert not lab.clock.getDelayedCalls()
    lab.watch.reset()
    lab.watch.stop()
    lab.watch.stop()
    assert not lab.clock.getDelayedCalls()
    lab.is_there = True
    lab.passes(5)
    assert lab.told == 0
