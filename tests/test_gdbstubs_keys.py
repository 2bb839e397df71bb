"""What is typed on a line that kgdb shares: when it is given, what is told, and what comes back from kgdb's hands."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rsp.kgdb import Kgdb

from gdbstubs.demux import SILENCE, Console, LineDemultiplexer, State, Stub
from gdbstubs.keys import AT_ONCE, MOST_GIVEN, MOST_TYPED, PACE, RECENT, RUNNING, UNECHOED, Told, Typing
from gdbstubs.wire import frame

STOP = frame(b"T05thread:fffffffd;")


def held(*, attended: bool = False) -> LineDemultiplexer:
    """A line whose guest stands since the time 0."""
    line = LineDemultiplexer()
    line.keys.is_attended = attended
    stops(line, 0.0)
    return line


def stops(line: LineDemultiplexer, now: float, data: bytes = STOP) -> None:
    line.received(data, now)
    line.expired(now + SILENCE)
    line.output.clear()


def given_to(line: LineDemultiplexer) -> bytes:
    """What the guest was given since the last time."""
    data = b"".join(one.data for one in line.output if isinstance(one, Typing))
    line.output.clear()
    return data


def told(line: LineDemultiplexer) -> list[Told]:
    return [one for one in line.output if isinstance(one, Told)]


def goes_on(line: LineDemultiplexer, now: float) -> None:
    line.sent_to_stub(b"+" + frame(b"c"))
    line.received(b"+", now)
    assert line.state is State.RUNS


# -- when -----------------------------------------------------------------------------------------------------


def test_typing_goes_through_at_once_while_the_guest_runs() -> None:
    line = LineDemultiplexer()
    line.typed(b"ls $HOME\r" * 100, 0.0)
    assert line.output == [Typing(b"ls $HOME\r" * 100)]
    line.typed(b"x", 0.0)
    assert line.output[1:] == [Typing(b"x")]


def test_typing_is_kept_while_the_guest_is_held_and_given_when_it_has_run_for_a_while() -> None:
    line = held()
    keys = bytes(range(0x41, 0x41 + 20))
    line.typed(keys[:3], 1.0)
    line.typed(keys[3:], 1.1)
    assert line.output == [Told.KEPT]
    assert line.deadline is None
    goes_on(line, 2.0)
    line.received(b"tick\r\n", 2.1)
    line.output.clear()
    # A step: kgdb is back before the second is over.
    stops(line, 2.5)
    assert line.deadline is None
    goes_on(line, 3.0)
    line.output.clear()
    now = 3.0 + RUNNING
    assert line.deadline == now
    line.expired(now - 0.01)
    assert given_to(line) == b""
    line.expired(now)
    assert given_to(line) == keys[:AT_ONCE]
    # It echoes, and gets more; where it does not, later.
    assert line.deadline == now + UNECHOED
    line.received(keys[:AT_ONCE], now + 0.01)
    assert line.deadline == pytest.approx(now + 0.01 + PACE)
    line.expired(now + 0.02)
    assert given_to(line) == keys[AT_ONCE : 2 * AT_ONCE]
    line.expired(now + 0.02 + UNECHOED)
    assert told(line) == [Told.DELIVERED]
    assert given_to(line) == keys[2 * AT_ONCE :]
    assert line.deadline is None
    line.typed(b"again", now + 1)
    assert given_to(line) == b"again"


def test_typing_is_given_in_small_pieces_while_a_debugger_is_there() -> None:
    line = LineDemultiplexer()
    line.keys.is_attended = True
    line.typed(b"0123456789abcdef01", 5.0)
    assert given_to(line) == b"01234567"
    line.received(b"01234567", 5.001)
    line.typed(b"!", 5.002)
    assert given_to(line) == b""
    line.expired(5.001 + PACE)
    assert given_to(line) == b"89abcdef"
    line.expired(5.001 + PACE + UNECHOED)
    assert given_to(line) == b"01!"
    assert told(line) == []


def test_nothing_is_given_in_the_middle_of_what_may_be_a_stop() -> None:
    line = held()
    line.typed(b"keys", 0.1)
    goes_on(line, 1.0)
    line.output.clear()
    line.received(STOP[:5], 1.999)
    line.expired(2.001)
    assert given_to(line) == b""
    line.expired(2.06)  # it was none
    assert given_to(line) == b"keys"
    line.received(STOP, 3.0)
    line.typed(b"a", 3.001)
    assert given_to(line) == b""
    line.received(b"\n", 3.002)
    assert Console(STOP + b"\n") in line.output
    assert given_to(line) == b"a"


def test_no_more_than_a_limit_is_kept_and_the_rest_is_counted() -> None:
    line = held()
    line.typed(b"x" * MOST_TYPED, 1.0)
    line.typed(b"yy", 1.0)
    line.typed(b"z", 1.0)
    assert line.output == [Told.KEPT, Told.FULL]
    assert line.keys.dropped == 3
    line.runs(2.0)
    now, data = 2.0, b""
    while (deadline := line.deadline) is not None:
        now = max(now, deadline)
        line.expired(now)
        data += given_to(line)
    assert data == b"x" * MOST_TYPED


def test_typing_waits_from_the_break_in_to_its_outcome() -> None:
    line = LineDemultiplexer()
    line.breaking_in(1.0)
    line.typed(b"a", 0.1)
    assert line.output == [Told.KEPT]
    assert line.deadline == 1.0
    line.expired(1.0)
    assert line.output == [Told.KEPT, Typing(b"a"), Told.DELIVERED]
    line.breaking_in(2.0)
    stops(line, 1.5)
    assert line.deadline is None
    line.typed(b"b", 1.6)
    assert told(line) == [Told.KEPT]
    assert line.state is State.HELD


# -- in the moment of a stop ----------------------------------------------------------------------------------


def acknowledges(line: LineDemultiplexer, now: float) -> None:
    """The debugger acknowledges the stop and asks; kgdb acknowledges that."""
    line.sent_to_stub(b"+" + frame(b"g"))
    line.received(b"+" + frame(b"00"), now)


def comes_back(line: LineDemultiplexer, now: float) -> bytes:
    goes_on(line, now)
    line.output.clear()
    data = b""
    while (deadline := line.deadline) is not None:
        line.expired(deadline)
        data += given_to(line)
    return data


def test_keys_that_kgdb_has_read_are_given_once_more() -> None:
    line = LineDemultiplexer()
    line.typed(b"abcdef", 1.0)
    # Of six keys the console's driver had read two; the others made kgdb repeat its stop, two of them late.
    line.received(STOP * 3, 1.1)
    line.expired(1.1 + SILENCE)
    line.output.clear()
    line.received(STOP * 2, 1.11)
    line.typed(b"gh", 1.2)
    assert given_to(line) == b""
    line.sent_to_stub(b"+" + frame(b"g"))
    line.received(b"+" + frame(b"00"), 1.3)
    assert comes_back(line, 2.0) == b"cdefgh"


def test_a_stop_that_is_not_repeated_has_swallowed_nothing() -> None:
    line = LineDemultiplexer()
    line.typed(b"abc", 1.0)
    stops(line, 1.1)
    acknowledges(line, 1.2)
    assert told(line) == []
    assert comes_back(line, 2.0) == b""


@pytest.mark.parametrize(
    ("typed", "repeats", "why"),
    [
        (b"a+b", 1, "kgdb took the + for an acknowledgement, and the b it skipped"),
        (b"a$b", 2, "kgdb must have given the stop up"),
        (b"a\x03b", 1, "kgdb passes 0x03 over"),
        (b"+", 0, "kgdb took the + for an acknowledgement, perhaps"),
        (b"ab", 3, "what else was on the line?"),
    ],
)
def test_where_keys_cannot_be_told_the_user_is(typed: bytes, repeats: int, why: str) -> None:
    line = LineDemultiplexer()
    line.typed(typed, 1.0)
    stops(line, 1.1, STOP * (repeats + 1))
    acknowledges(line, 1.2)
    assert told(line) == [Told.LOST], why
    assert comes_back(line, 2.0) == b""


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("typed", "repeats", "back"),
    [
        (b"echo $", 3, b"ho $"),
        (b"echo $HOME\r", 0, b"$HOME\r"),
        (b"$", 0, b"$"),
        (b"$a$bc", 1, b"a$bc"),
        (b"a$b$c", 1, None),
        (b"echo $", 6, None),
        (b"a+$", 1, None),
    ],
)
def test_a_dollar_ends_the_count(typed: bytes, repeats: int, back: bytes | None, late: bool) -> None:
    """Keys among which kgdb finds a ``$``: it gives up its stop, by a ``-``, and skips the rest."""
    line = LineDemultiplexer()
    line.typed(typed, 1.0)
    line.output.clear()
    line.received(STOP * (repeats + 1) + (b"" if late else b"-"), 1.1)
    line.expired(1.1 + SILENCE)
    assert line.state is State.HELD
    line.sent_to_stub(b"+" + frame(b"g"))
    line.received((b"-+" if late else b"+") + frame(b"00"), 1.2)
    assert line.state is State.HELD
    assert line.counts.doubts == 0
    assert (told(line) == [Told.LOST]) is (back is None)
    line.output.clear()
    assert comes_back(line, 2.0) == (back or b"")


def test_without_a_dollar_that_was_typed_a_stop_with_a_minus_behind_it_is_text() -> None:
    line = LineDemultiplexer()
    line.typed(b"ls $HOME\r", 1.0)
    line.received(STOP + b"-", 1.1 + RECENT)
    line.expired(9.0)
    assert Console(STOP + b"-") in line.output


def test_what_was_typed_long_before_is_not_what_kgdb_has_read() -> None:
    line = LineDemultiplexer()
    line.typed(b"abc", 1.0)
    stops(line, 1.1 + RECENT, STOP * 2)
    acknowledges(line, 3.0)
    assert told(line) == []
    assert comes_back(line, 4.0) == b""


def test_on_a_line_that_has_shown_damage_nothing_is_typed_twice() -> None:
    line = held()
    line.sent_to_stub(b"+" + frame(b"g"))
    line.received(b"+$00#ff", 0.1)
    assert line.counts.damaged == 1
    line.sent_to_stub(b"-")
    line.received(frame(b"00"), 0.2)
    goes_on(line, 0.3)
    line.typed(b"ab", 2.0)
    line.output.clear()
    line.expired(2.0)
    stops(line, 2.1, STOP * 2)
    acknowledges(line, 2.2)
    assert told(line) == [Told.LOST]
    assert comes_back(line, 3.0) == b""


def test_what_others_have_sent_is_not_taken_for_keys() -> None:
    line = LineDemultiplexer()
    line.typed(b"ab", 1.0)
    line.breaking_in(4.0)
    stops(line, 1.2, STOP * 3)
    acknowledges(line, 1.3)
    assert told(line) == []
    assert comes_back(line, 2.0) == b""


def test_a_stop_in_silence_is_told_to_who_has_just_typed() -> None:
    line = LineDemultiplexer()
    line.received(b"KGDB: KGDB or $3#33 for KDB\r\n", 1.0)
    assert told(line) == []
    line.typed(b"ls\r", 2.0)
    line.output.clear()
    line.received(b"KGDB: waiting... or $3#33 for KDB\r\n", 2.1)
    assert told(line) == [Told.LOST]


def test_a_stop_whose_acknowledgement_was_lost_takes_nothing_back() -> None:
    line = LineDemultiplexer()
    line.typed(b"ab", 1.0)
    stops(line, 1.1, STOP * 2)
    line.sent_to_stub(b"+" + frame(b"g"))
    line.received(frame(b"00"), 1.2)
    assert told(line) == [Told.LOST]


class Uart:
    """A kernel behind a UART that holds what it has not read yet; it reads at its own pace, and stops at any moment."""

    def __init__(self) -> None:
        self.kernel = Kgdb(connected=True)
        self.kernel.is_typed_at = True
        self.line = LineDemultiplexer()
        self.line.keys.is_attended = True
        self.fifo: deque[int] = deque()
        self.shell = b""
        self.now = 10.0
        self.owes = False
        self.lost = False

    def reads(self, most: int = 1 << 20) -> None:
        """The kernel reads some of what is in the UART: its console's driver does, or kgdb."""
        while self.fifo and most > 0:
            most -= 1
            byte = bytes((self.fifo.popleft(),))
            if self.kernel.in_debugger:
                self.kernel.receive(byte)
            else:
                self.shell += byte
                self.says(byte)

    def says(self, data: bytes) -> None:
        self.line.received(data, self.now)
        self.settle()

    def settle(self) -> None:
        while self.line.output or self.kernel.output:
            batch = list(self.line.output)
            self.line.output.clear()
            for one in batch:
                match one:
                    case Typing(data):
                        self.fifo += data
                    case Told.LOST:
                        self.lost = True
                    case Stub(data) if STOP_HERE in data and not self.owes:
                        self.owes = True
                        self.to_stub(b"+" + frame(b"g"))
                    case Stub(b"-"):
                        # What was typed stood before the question: it is asked again, as the link does.
                        self.to_stub(frame(b"g"))
            if self.kernel.output:
                said = bytes(self.kernel.output)
                self.kernel.output.clear()
                self.says(said)

    def to_stub(self, data: bytes) -> None:
        self.line.sent_to_stub(data)
        self.fifo += data

    def passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.line.deadline) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.line.expired(self.now)
            self.settle()
            if seconds >= RUNNING / 2:
                # No kernel that runs leaves keys unread for so long.
                self.reads()
        self.now = end

    def types(self, data: bytes) -> None:
        self.line.typed(data, self.now)
        self.settle()


STOP_HERE = frame(b"T05thread:fffffffe;")
KEYS = st.binary(min_size=1, max_size=30).map(
    lambda data: bytes(one for one in data if one not in b"+$\x03#-")
)


@settings(deadline=None)
@given(st.lists(st.tuples(KEYS, KEYS, st.integers(0, 12)), min_size=1, max_size=6), st.integers(0, 2**32))
@example([(b"abcdefgh", b"", 0)], 0)
@example([(b"echo $(1)", b"$", 2), (b"$a$", b"", 0)], 1)
def test_whenever_the_kernel_stops_each_key_comes_once_and_in_order(
    rounds: list[tuple[bytes, bytes, int]], seed: int
) -> None:
    uart, chance = Uart(), random.Random(seed)
    typed = b""
    for before, meanwhile, read in rounds:
        uart.passes(RUNNING * chance.choice([0.5, 2]))
        uart.types(before)
        uart.passes(chance.choice([0.0, 0.001, 0.02]))
        uart.reads(read)
        uart.kernel.halt()
        uart.owes = False
        uart.settle()
        # kgdb finds what the driver had not read, now or a moment later.
        uart.reads(chance.randrange(10))
        uart.settle()
        uart.reads()
        uart.settle()
        uart.passes(2 * SILENCE)
        uart.types(meanwhile)
        uart.reads()
        uart.settle()
        uart.to_stub(b"+" + frame(b"c"))
        uart.reads()
        uart.settle()
        assert not uart.kernel.in_debugger
        typed += before + meanwhile
        uart.passes(chance.choice([0.0, 0.3, 5.0]))
        uart.reads()
    for _ in range(200):
        uart.passes(RUNNING)
        uart.reads()
    if uart.lost:
        left = iter(typed)
        assert all(key in left for key in uart.shell)
    else:
        assert uart.shell == typed


def test_a_paste_behind_a_stop_is_no_more_than_can_be_taken_back() -> None:
    uart = Uart()
    uart.types(b"x" * 400)
    assert len(uart.fifo) == AT_ONCE <= MOST_GIVEN
    uart.kernel.halt()
    uart.settle()
    uart.reads()
    uart.settle()
    uart.passes(2 * SILENCE)
    uart.reads()
    uart.settle()
    uart.to_stub(b"+" + frame(b"c"))
    uart.reads()
    uart.settle()
    for _ in range(100):
        uart.passes(RUNNING)
        uart.reads()
    assert uart.shell == b"x" * 400
