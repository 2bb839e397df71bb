"""Reads that pass as they came: which do, and that nobody can tell from what comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rsp.stub import MAPPED, packet
from rsp.world import World

from gdbstubs.passage import Passage, read_asked
from gdbstubs.seat import Seat
from gdbstubs.wire import frame

INSIDE = MAPPED.start


class Lab(World):
    """A guest that stands, with debuggers that read; counts what is passed on as it came."""

    def __init__(self, *, short: bool = True) -> None:
        super().__init__()
        self.short = short
        self.passed = 0

    def come(self) -> int:
        number = self.open(no_ack=True)
        self.sessions[number].debugger.no_ack = True
        self.ask(number, b"qSupported:swbreak+", b"?")
        self.flow()
        self._count(self.seats[number])
        # The first read selects the thread.
        self.read(number, INSIDE, 1)
        self.passed = 0
        return number

    def _count(self, seat: Seat) -> None:
        pass_read = seat.pass_read

        def counted(*arguments: Any) -> bool:
            passes = self.short and pass_read(*arguments)
            self.passed += passes
            return passes

        seat.pass_read = counted  # type: ignore[method-assign]

    def read(self, number: int, address: int, length: int) -> bytes:
        answered = self.sessions[number].debugger.answered
        self.ask(number, b"m%x,%x" % (address, length))
        self.flow()
        return answered[-1][1]


def test_a_read_passes_and_its_data_comes_back() -> None:
    lab = Lab()
    one = lab.come()
    long_way = Lab(short=False)
    assert lab.read(one, INSIDE + 5, 100) == long_way.read(long_way.come(), INSIDE + 5, 100)
    assert (lab.passed, long_way.passed) == (1, 0)


@pytest.mark.parametrize("error", [b"E14", b"", b"E.not today", b"E.busy", b"0"])
def test_what_is_no_data_is_answered_as_on_the_long_way(
    error: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = []
    for short in (True, False):
        lab = Lab(short=short)
        one = lab.come()
        monkeypatch.setattr(lab.machine, "_read", lambda rest, machine=lab.machine: machine._say(error))
        lab.ask(one, b"m1000,8")
        lab.flow()
        replies.append(lab.sessions[one].debugger.answered[-1][1])
        assert lab.passed == short
    assert replies[0] == replies[1]


def test_two_reads_at_once_are_answered_in_order() -> None:
    lab = Lab()
    one = lab.come()
    wanted = [lab.read(one, INSIDE + start, 4) for start in range(6)]
    lab.passed = 0
    answered = lab.sessions[one].debugger.answered
    before = len(answered)
    for start in range(6):
        lab.ask(one, b"m%x,4" % (INSIDE + start))
    lab.flow()
    assert [reply for _, reply in answered[before:]] == wanted


def test_after_a_read_of_another_thread_the_long_way_selects_it_again() -> None:
    lab = Lab()
    one = lab.come()
    lab.ask(one, b"Hg2")
    assert lab.read(one, INSIDE, 4)
    assert lab.passed == 0
    assert lab.read(one, INSIDE, 4)
    assert lab.passed == 1


def test_nothing_passes_to_a_guest_that_runs() -> None:
    lab = Lab()
    one = lab.come()
    two = lab.come()
    lab.ask(one, b"vCont;c")
    lab.flow()
    lab.read(two, INSIDE, 4)
    assert lab.passed == 0


def test_a_session_that_left_is_sent_nothing() -> None:
    lab = Lab()
    one, two = lab.come(), lab.come()
    lab.ask(one, b"m1000,8")
    lab.close(one)
    lab.flow()
    assert lab.read(two, INSIDE, 4)


@given(st.lists(st.tuples(st.integers(0, 0x2000), st.integers(1, 3000)), max_size=8))
@settings(max_examples=25, deadline=None)
def test_any_reads_are_answered_as_on_the_long_way(reads: list[tuple[int, int]]) -> None:
    short, long_way = Lab(), Lab(short=False)
    one, two = short.come(), long_way.come()
    for address, length in reads:
        assert short.read(one, address, length) == long_way.read(two, address, length)
    assert long_way.passed == 0


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
def test_a_packet_that_asks_for_memory_is_recognised(address: int, length: int) -> None:
    assert read_asked(packet(b"m%x,%x" % (address, length))) == (address, length)


@pytest.mark.parametrize(
    "data",
    [
        b"$m1000,8#00",
        b"$m1000,8#",
        b"+" + packet(b"m1000,8"),
        packet(b"m1000,8") + b"+",
        packet(b"m1000,8") * 2,
        packet(b"m1000"),
        packet(b"m-1000,8"),
        packet(b"m0x10,8"),
        packet(b"m1000,8;"),
        packet(b"m11112222333344445,8"),
        packet(b"mA,8"),
        b"",
    ],
)
def test_anything_else_is_not(data: bytes) -> None:
    assert read_asked(data) is None


@given(st.binary(max_size=40))
def test_no_bytes_raise(data: bytes) -> None:
    assert read_asked(data) is None or data[:2] == b"$m"


@given(st.binary(max_size=60).filter(lambda data: not set(data) & set(b"$#")))
def test_a_reply_is_whole_or_is_read(payload: bytes) -> None:
    whole: list[bytes] = []
    other: list[Any] = []
    Passage(whole.append, other.append).take(frame(payload))
    assert whole + other in ([frame(payload)], [payload])
    if whole:
        assert payload
        assert len(payload) % 2 == 0
        assert payload[:1] != b"E"
