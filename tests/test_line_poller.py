"""When the poller pauses, and when not: descriptors that are always ready, a reactor that only notes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from twisted.internet.task import Clock

from kbridge.transports.poller import BUSY_LINES, LINES_A_ROUND, PAUSE_SECONDS, READ, LinePoller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class NotingReactor(Clock):
    """A clock moved by hand that notes whether the poller is watched."""

    nameResolver = None  # noqa: N815
    watched = False

    def addReader(self, reader: object) -> None:  # noqa: N802
        self.watched = True

    def removeReader(self, reader: object) -> None:  # noqa: N802
        self.watched = False


class Lab:
    def __init__(self) -> None:
        self.reactor = NotingReactor()
        self.poller = LinePoller(self.reactor)  # type: ignore[arg-type]
        self.pipes: list[tuple[int, int]] = []
        self.served: list[int] = []

    def line(self, count: int) -> int:
        """Add a line that is ready once and gives ``count`` bytes; return the end to write to."""
        number = len(self.pipes)
        reading, writing = os.pipe()
        self.pipes.append((reading, writing))

        def ready(events: int) -> int:
            os.read(reading, 1)
            self.served.append(number)
            return count

        self.poller.add(reading, READ, ready, self.broken)
        return writing

    def broken(self) -> None:
        raise AssertionError("a line broke")

    def lines(self, number: int, count: int) -> None:
        for _ in range(number):
            os.write(self.line(count), b"x")

    def close(self) -> None:
        for reading, writing in self.pipes:
            self.poller.remove(reading)
            os.close(reading)
            os.close(writing)
        self.poller.close()
        assert not self.reactor.watched
        assert self.reactor.getDelayedCalls() == []


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def test_many_trickling_lines_make_a_pause_that_ends(lab: Lab) -> None:
    lab.lines(BUSY_LINES, 115)
    lab.poller.doRead()
    assert not lab.reactor.watched
    lab.reactor.advance(PAUSE_SECONDS)
    assert lab.reactor.watched


def test_few_lines_make_none(lab: Lab) -> None:
    lab.lines(BUSY_LINES - 1, 115)
    lab.poller.doRead()
    assert len(lab.served) == BUSY_LINES - 1
    assert lab.reactor.watched


def test_one_line_served_often_is_still_one(lab: Lab) -> None:
    writing = lab.line(115)
    for _ in range(BUSY_LINES * 2):
        os.write(writing, b"x")
        lab.poller.doRead()
    assert lab.reactor.watched


@pytest.mark.parametrize("count", [256, 278, 320, 4097, 65536])
def test_one_line_that_may_be_held_up_forbids_it(lab: Lab, count: int) -> None:
    lab.lines(1, count)
    lab.lines(BUSY_LINES, 115)
    lab.poller.doRead()
    assert lab.reactor.watched


@pytest.mark.parametrize("count", [1, 230, 345, 4096])
def test_larger_pieces_do_not(lab: Lab, count: int) -> None:
    lab.lines(1, count)
    lab.lines(BUSY_LINES, 115)
    lab.poller.doRead()
    assert not lab.reactor.watched


def test_lines_that_were_busy_long_ago_do_not_count(lab: Lab) -> None:
    lab.lines(BUSY_LINES - 1, 115)
    lab.poller.doRead()
    lab.reactor.advance(PAUSE_SECONDS)
    lab.lines(1, 115)
    lab.poller.doRead()
    lab.lines(1, 115)
    lab.poller.doRead()
    assert lab.reactor.watched


def test_lines_that_are_never_all_idle_make_a_pause_when_one_comes_round_again(lab: Lab) -> None:
    ends = [lab.line(115) for _ in range(3 * LINES_A_ROUND)]
    for end in ends:
        os.write(end, b"xxxxxx")  # ready for six rounds
    for _ in range(3):
        assert lab.reactor.watched or not lab.served
        lab.poller.doRead()
    assert sorted(lab.served) == list(range(len(ends))), "each line once before any is read twice"
    assert lab.reactor.watched
    lab.poller.doRead()
    assert not lab.reactor.watched


def test_there_is_no_pause_while_lines_are_ready(lab: Lab) -> None:
    lab.lines(LINES_A_ROUND + 1, 115)
    lab.poller.doRead()
    assert len(lab.served) == LINES_A_ROUND
    assert lab.reactor.watched
    lab.poller.doRead()
    assert sorted(lab.served) == list(range(LINES_A_ROUND + 1))
    assert not lab.reactor.watched


def test_a_write_ends_the_pause(lab: Lab) -> None:
    lab.lines(BUSY_LINES, 115)
    lab.poller.doRead()
    lab.poller.wake()
    assert lab.reactor.watched
    assert lab.reactor.getDelayedCalls() == []


def test_a_line_removed_by_one_before_it_is_not_served(lab: Lab) -> None:
    removed: list[int] = []

    def ready_of(mine: int, other: Callable[[], int]) -> Callable[[int], int]:
        def ready(events: int) -> int:
            removed.append(mine)
            lab.poller.remove(other())
            return 1

        return ready

    (one, write_one), (two, write_two) = os.pipe(), os.pipe()
    lab.poller.add(one, READ, ready_of(one, lambda: two), lab.broken)
    lab.poller.add(two, READ, ready_of(two, lambda: one), lab.broken)
    os.write(write_one, b"x")
    os.write(write_two, b"x")
    lab.poller.doRead()
    assert len(removed) == 1
    lab.poller.remove(removed[0])
    for fd in (one, two, write_one, write_two):
        os.close(fd)
