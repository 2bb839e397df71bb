"""One line with console text and kgdb's packets: what goes where, whatever the text is and however it is split."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rsp.kgdb import Kgdb

from gdbstubs.demux import (
    AGAIN,
    LONGEST,
    MOST_DAMAGED,
    MOST_DOUBT,
    SILENCE,
    UNFINISHED,
    UNFINISHED_REPLY,
    Again,
    Console,
    LineDemultiplexer,
    Output,
    State,
    Stub,
)
from gdbstubs.keys import RUNNING, Typing
from gdbstubs.link import Link
from gdbstubs.wire import frame

CAPTURES = Path(__file__).parent / "data" / "console"
STOP = frame(b"T05thread:fffffffd;")
LOG = (
    b"-> $?#3f\r\n<- +$T05thread:01;#05\r\n"
    + frame(b"T05thread:01;")
    + b"\r\n"
    + frame(b"OK")
    + b" + - done\r\n"
)
HOSTILE = (
    b"root@web1:~$ ",
    b"$ echo $HOME #1 +x -y\r\n",
    LOG,
    bytes(range(256)) * 8,
    b"$" * 300 + b"\r\n",
    b"#" * 300 + b"\r\n",
    b"$T05#00" * 100 + b"\r\n",
    b"+++---+++\r\n",
    frame(b"OK") * 40 + b"\n",
    b"[1]kdb> ",
    b"KGDB: waiting... or $3#33 for KDB\r\n",
)

PIECES = st.one_of(
    st.sampled_from(
        [b"$", b"#", b"+", b"-", b"$T05", b"b9", b"\r\n", b"$ ", b"T", b"\x00", STOP, STOP[:-1], frame(b"OK")]
    ),
    st.sampled_from(
        [frame(b"S05"), frame(b"O6869"), frame(b"W00"), frame(b"E22"), b"$S05#00", b"$#00", *HOSTILE]
    ),
    st.binary(max_size=20),
    st.binary(max_size=12).map(frame),
    st.text("$#+-T05abO:; ", max_size=12).map(str.encode),
)
# What reaches the machine: bytes, what was sent to the stub, and how long it was before the next.
STEPS = st.lists(
    st.tuples(
        st.lists(PIECES, max_size=6).map(b"".join),
        st.sampled_from([b"", b"", b"+", b"$?#3f", b"+$g#67", b"$c#63", b"$D#44", b"$s#73"]),
        st.sampled_from([0.0, 0.001, SILENCE, 0.02, UNFINISHED, 2.0]),
    ),
    max_size=8,
)
CUTS = st.lists(st.integers(0, 5000), max_size=8)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


def every_byte(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


def merged(output: list[Output]) -> list[Output]:
    """The outputs, neighbours of one kind as one; typing apart from the guest's bytes."""
    result: list[Output] = []
    for one in output:
        last = result[-1] if result else None
        match one, last:
            case Console(data), Console(before):
                result[-1] = Console(before + data)
            case Stub(data), Stub(before):
                result[-1] = Stub(before + data)
            case _:
                result.append(one)
    return result


def of(line: LineDemultiplexer) -> list[Output]:
    """What came out since the last time, typing left out."""
    result = merged([one for one in line.output if isinstance(one, Console | Stub)])
    line.output.clear()
    return result


def console(output: list[Output]) -> bytes:
    return b"".join(one.data for one in output if isinstance(one, Console))


def stub(output: list[Output]) -> bytes:
    return b"".join(one.data for one in output if isinstance(one, Stub))


def typing(output: list[Output]) -> bytes:
    return b"".join(one.data for one in output if isinstance(one, Typing))


def state(line: LineDemultiplexer) -> State:
    """The state as it is now; mypy takes an attribute to stay what it was."""
    return line.state


def silence(line: LineDemultiplexer) -> None:
    """Let time go by until nothing is kept."""
    for _ in range(4):
        if line.deadline is not None:
            line.expired(line.deadline)
    assert line.deadline is None


def held() -> LineDemultiplexer:
    """A line on which kgdb has reported a stop and was acknowledged."""
    line = LineDemultiplexer()
    line.received(STOP, 0.0)
    line.expired(SILENCE)
    assert of(line) == [Stub(STOP)]
    line.sent_to_stub(b"+")
    assert line.state is State.HELD
    return line


# -- for whatever input ---------------------------------------------------------------------------------------


@given(STEPS, CUTS)
@example([(STOP + b"x", b"", 0.0)], [3])
@example([(STOP, b"", SILENCE), (b"text$", b"", 0.0)], [1])
@example([(STOP, b"", SILENCE), (b"$$#", b"$c#63", 0.0)], [])
def test_however_the_line_is_split_the_same_comes_out_and_nothing_else(
    steps: list[tuple[bytes, bytes, float]], cuts: list[int]
) -> None:
    whole, pieces, single = LineDemultiplexer(), LineDemultiplexer(), LineDemultiplexer()
    now = 0.0
    for data, sent, passes in steps:
        for line, parts in ((whole, [data]), (pieces, split(data, cuts)), (single, every_byte(data))):
            if sent:
                line.sent_to_stub(sent)
            for part in parts:
                line.received(part, now)
        assert merged(whole.output) == merged(pieces.output) == merged(single.output)
        assert whole.deadline == pieces.deadline == single.deadline
        assert whole.state is pieces.state is single.state
        assert whole.counts == pieces.counts == single.counts
        now += passes
        # One is called when it wants to be, one late, with the next bytes.
        pieces.expired(now)
        whole.expired(now)
        single.expired(now)
    silence(whole)
    line_bytes = b"".join(data for data, _, _ in steps)
    assert b"".join(one.data for one in whole.output if isinstance(one, Console | Stub)) == line_bytes


@given(STEPS)
def test_a_deadline_that_is_called_late_changes_nothing(steps: list[tuple[bytes, bytes, float]]) -> None:
    prompt, late = LineDemultiplexer(), LineDemultiplexer()
    now = 0.0
    for data, _, passes in steps:
        prompt.received(data, now)
        late.received(data, now)
        now += passes
        prompt.expired(now)
    late.expired(now)
    assert merged(prompt.output) == merged(late.output)
    assert prompt.counts == late.counts


@given(STEPS)
def test_little_is_kept_and_not_for_long(steps: list[tuple[bytes, bytes, float]]) -> None:
    line = LineDemultiplexer()
    for data, sent, _ in steps:
        if sent:
            line.sent_to_stub(sent)
        line.received(data, 1.0)
        assert len(line._kept) <= 2 * (LONGEST + 4)
        assert (line.deadline is None) == (not line._kept)
        assert line.deadline is None or line.deadline <= 1.0 + UNFINISHED_REPLY


@given(st.lists(st.sampled_from(HOSTILE), max_size=6).map(b"".join), CUTS)
def test_hostile_text_of_a_guest_that_runs_is_text_and_a_packet_after_it_a_packet(
    text: bytes, cuts: list[int]
) -> None:
    line = LineDemultiplexer()
    for piece in split(text + b"\n", cuts):
        line.received(piece, 0.0)
    assert of(line) == [Console(text + b"\n")]
    assert line.deadline is None
    for piece in split(STOP, cuts):
        line.received(piece, 0.0)
    line.expired(SILENCE)
    assert of(line) == [Stub(STOP)]
    assert line.state is State.HELD


@pytest.mark.parametrize("cut", [1, 7, 64, 4096])
def test_a_kernel_that_prints_for_kgdb_is_heard_whole(cut: int) -> None:
    said = (
        b"[    3.1] sysrq: DEBUG\r\nKGDB or $3#33 for KDB\r\n"
        b"Entering kdb (current=0xffff888003a3, pid 0) on processor 1 due to NonMaskable Interrupt\r\n[1]kdb> "
    )
    line = LineDemultiplexer()
    for first in range(0, len(said), cut):
        line.received(said[first : first + cut], 0.0)
    assert of(line) == [Console(said)]
    assert line.at_prompt


@pytest.mark.parametrize(
    "words", [b"KGDB: waiting... or $3#33 for KDB\r\n", b"[  3.2] KGDB: Waiting for remote debugger\n"]
)
def test_a_kernel_that_waits_for_its_first_debugger_is_known_by_its_words(words: bytes) -> None:
    line = LineDemultiplexer()
    for piece in every_byte(b"sysrq: DEBUG\r\n" + words):
        assert not line.is_waiting
        line.received(piece, 0.0)
    assert line.is_waiting
    line.sent_to_stub(b"$?#3f")
    line.received(b"+$S05#b8", 1.0)
    line.expired(1.0 + SILENCE)
    assert not line.is_waiting
    assert of(line)[-1] == Stub(b"+$S05#b8")


def test_a_question_that_a_shell_echoes_is_text() -> None:
    line = LineDemultiplexer()
    line.sent_to_stub(b"$?#3f")
    line.received(b"$?#3f", 0.0)
    assert of(line) == [Console(b"$?#3f")]


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*.raw")), ids=lambda path: path.name)
@pytest.mark.parametrize("cut", [61, 1 << 20])
def test_what_real_guests_have_printed_is_text(path: Path, cut: int) -> None:
    said = path.read_bytes()
    line = LineDemultiplexer()
    for first in range(0, len(said), cut):
        line.received(said[first : first + cut], first * 1e-6)
    silence(line)
    assert of(line) == [Console(said)]
    assert line.counts.packets == 0


# -- beside a naive way ---------------------------------------------------------------------------------------


class Naive:
    """What agent-proxy does: from ``$`` to two bytes after ``#`` is the debugger's, and so is any ``+``."""

    def __init__(self) -> None:
        self.console = b""
        self.stub = b""

    def received(self, data: bytes) -> None:
        for piece in re.findall(rb"\$[^#]*#..|[+]|.", data, re.DOTALL):
            if len(piece) > 1 or piece == b"+":
                self.stub += piece
            else:
                self.console += piece


@pytest.mark.parametrize(
    "text",
    [
        LOG,
        b"KGDB: waiting... or $3#33 for KDB\r\n",
        b"$ echo $HOME #1 +x -y\r\n",
        b"a+b\r\n",
        bytes(range(256)),
    ],
)
def test_what_a_splitter_without_checksums_and_state_damages_arrives_unharmed(text: bytes) -> None:
    naive, line = Naive(), LineDemultiplexer()
    naive.received(text + STOP)
    line.received(text + STOP, 0.0)
    line.expired(SILENCE)
    assert of(line) == [Console(text), Stub(STOP)]
    assert naive.console != text
    assert naive.stub != STOP


# -- a guest that runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", [b"root@web1:~$ ", b"100$", b"a $b", b"$T0x", b"$S05 ", b"$S05#00", b"#", b"+", b"-"]
)
def test_text_waits_only_while_it_may_be_a_stop(prompt: bytes) -> None:
    line = LineDemultiplexer()
    line.received(prompt, 0.0)
    if prompt.endswith(b"$"):
        assert of(line) == [Console(prompt[:-1])]
        assert line.deadline == UNFINISHED
        line.expired(UNFINISHED)
        assert of(line) == [Console(b"$")]
        assert line.counts.unfinished == 1
    else:
        assert of(line) == [Console(prompt)]
        assert line.deadline is None


def test_what_was_kept_goes_out_with_the_byte_that_shows_it_to_be_text() -> None:
    line = LineDemultiplexer()
    line.received(STOP, 0.0)
    assert of(line) == []
    line.received(b"\n", SILENCE / 2)
    assert of(line) == [Console(STOP + b"\n")]
    assert line.state is State.RUNS


def test_a_stop_that_crosses_a_question_is_given_on_with_its_refusal() -> None:
    line = LineDemultiplexer()
    line.sent_to_stub(b"$?#3f")
    line.received(b"booting...\r\n" + STOP + b"-", 0.0)
    line.expired(SILENCE)
    assert of(line) == [Console(b"booting...\r\n"), Stub(STOP + b"-")]


def test_the_answer_to_a_question_that_waited_for_the_stop() -> None:
    line = LineDemultiplexer()
    line.sent_to_stub(b"$?#3f")
    line.received(b"1 + 1 = 2\r\n[1]kdb> ", 0.0)
    assert of(line) == [Console(b"1 + 1 = 2\r\n[1]kdb> ")]
    assert line.at_prompt
    line.received(b"+", 0.1)
    line.received(b"$S05#b8", 0.101)
    line.expired(0.101 + SILENCE)
    assert of(line) == [Stub(b"+$S05#b8")]
    assert line.state is State.HELD
    assert not line.at_prompt


def test_while_a_question_waits_in_the_uart_only_a_stop_answers_it() -> None:
    line = LineDemultiplexer()
    line.sent_to_stub(b"$?#3f")
    line.received(b"+" + frame(b"OK"), 0.0)
    assert of(line) == [Console(b"+" + frame(b"OK"))]
    line.received(b"user@web1 $", 1.0)
    line.received(b"ls", 1.01)
    assert of(line) == [Console(b"user@web1 $ls")]


def test_a_stop_that_is_repeated_is_one_piece() -> None:
    line = LineDemultiplexer()
    line.received(STOP * 3, 0.0)
    line.expired(SILENCE)
    assert of(line) == [Stub(STOP * 3)]
    assert line.counts.chained == 0


def test_text_after_a_silence_shows_that_the_packet_was_none() -> None:
    line = LineDemultiplexer()
    line.received(STOP, 0.0)
    line.expired(SILENCE)
    line.typed(b"ls\r", 0.01)
    line.received(b"\r\n", 0.02)
    assert line.counts.contradicted == 1
    assert line.state is State.RUNS
    line.expired(0.02 + RUNNING)
    assert typing(line.output) == b"ls\r"
    assert of(line) == [Stub(STOP), Console(b"\r\n")]


def test_output_as_packets_leaves_the_guest_running_and_so_does_its_farewell() -> None:
    for payload in (b"O68690a", b"W00"):
        line = LineDemultiplexer()
        line.received(frame(payload), 0.0)
        line.expired(SILENCE)
        assert of(line) == [Stub(frame(payload))]
        assert line.state is State.RUNS


# -- a guest that is held -------------------------------------------------------------------------------------


def test_replies_of_a_held_guest_need_no_silence() -> None:
    line = held()
    for request, reply in (
        (b"g", b"0" * 500),
        (b"m10,4", b"24232b2d"),
        (b"vCont?", b""),
        (b"qC", b"QCfffffffd"),
    ):
        line.sent_to_stub(b"+" + frame(request))
        line.received(b"+" + frame(reply), 1.0)
        assert of(line) == [Stub(b"+" + frame(reply))]
        assert line.deadline is None


def test_no_more_acknowledgements_are_taken_than_are_owed() -> None:
    line = held()
    line.sent_to_stub(b"+" + frame(b"qC"))
    line.received(b"+" + frame(b"QCfffffffd") + b"+", 1.0)
    assert of(line) == [Stub(b"+" + frame(b"QCfffffffd")), Console(b"+")]
    assert line.counts.doubts == 1


def test_after_the_acknowledgement_of_a_resume_all_is_text_again() -> None:
    line = held()
    line.sent_to_stub(frame(b"c"))
    line.received(b"+[  1.5] a + b $c#63\r\n", 1.0)
    assert of(line) == [Stub(b"+"), Console(b"[  1.5] a + b $c#63\r\n")]
    assert line.state is State.RUNS
    line.received(STOP, 2.0)
    line.expired(2.0 + SILENCE)
    assert of(line) == [Stub(STOP)]


def test_a_debugger_that_leaves_lets_the_guest_run() -> None:
    line = held()
    line.sent_to_stub(frame(b"D"))
    line.received(b"+" + frame(b"OK"), 1.0)
    assert state(line) is State.HELD
    line.sent_to_stub(b"+")
    assert state(line) is State.RUNS
    line.received(b"+1\r\n", 1.1)
    assert of(line) == [Stub(b"+" + frame(b"OK")), Console(b"+1\r\n")]


def test_a_damaged_reply_is_given_on_so_that_it_is_asked_for_again() -> None:
    line = held()
    line.sent_to_stub(frame(b"g"))
    damaged = b"+$0123#00"
    line.received(damaged, 1.0)
    line.received(frame(b"0123"), 1.1)
    assert of(line) == [Stub(damaged + frame(b"0123"))]
    assert line.counts.damaged == 1


def test_damage_upon_damage_puts_the_guest_in_doubt() -> None:
    line = held()
    line.sent_to_stub(b"+" + frame(b"g"))
    storm = b"$0123#00" * (MOST_DAMAGED + 1)
    line.received(storm, 1.0)
    assert line.state is State.DOUBT
    assert of(line) == [Stub(b"$0123#00" * MOST_DAMAGED), Console(b"$0123#00")]
    assert line.counts.damaged == MOST_DAMAGED


def test_a_guest_that_was_reset_while_it_was_held_is_found_out() -> None:
    line = held()
    line.typed(b"x", 0.5)
    text = b"SeaBIOS (version 1.16)\r\n" * (MOST_DOUBT // 24 + 1)
    line.received(text, 1.0)
    assert console(line.output) == text
    assert line.state is State.RUNS
    line.expired(1.0 + RUNNING)
    assert typing(line.output) == b"x"
    assert line.counts.doubts == 1


def test_a_word_of_a_held_guest_is_text_and_the_next_reply_a_reply() -> None:
    line = held()
    line.received(b"KGDB: BP remove failed\r\n", 1.0)
    assert state(line) is State.DOUBT
    line.sent_to_stub(frame(b"z0,1,1"))
    line.received(b"+" + frame(b"E22"), 1.1)
    line.expired(1.1 + SILENCE)
    assert of(line) == [Console(b"KGDB: BP remove failed\r\n"), Stub(b"+" + frame(b"E22"))]
    assert state(line) is State.HELD


# -- the whole, with a kgdb -----------------------------------------------------------------------------------


class SharedLine:
    """A kernel that prints and stops on one line, a debugger's link on the other side, and a user who types."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kernel = Kgdb(connected=True)
        self.line = LineDemultiplexer()
        self.link = Link(LONGEST, runs=True, timeout=1.0)
        self.now = 0.0
        self.heard: list[object] = []
        self.shown = b""
        self.raw = b""
        """All that the guest has said."""
        self.given = b""
        """What the link was given of it."""
        self.read_by_shell = b""

    def from_guest(self, data: bytes) -> None:
        """Send what the guest says in pieces, as they may come."""
        while data:
            size = self.random.choice([1, 2, 7, len(data)])
            self.raw += data[:size]
            self.line.received(data[:size], self.now)
            data = data[size:]
            self.now += 0.0002
            self.settle()

    def to_guest(self, data: bytes) -> None:
        if self.kernel.in_debugger:
            self.kernel.receive(data)
        else:
            self.read_by_shell += data

    def settle(self) -> None:
        while self.line.output or self.link.output or self.kernel.output:
            outputs = list(self.line.output)
            self.line.output.clear()
            for one in outputs:
                match one:
                    case Console(data):
                        self.shown += data
                    case Stub(data):
                        self.given += data
                        self.heard += self.link.receive(data, self.now)
                    case Typing(data):
                        self.to_guest(data)
            for data in self.link.output:
                self.line.sent_to_stub(data)
                self.to_guest(data)
            self.link.output.clear()
            if self.kernel.output:
                said = bytes(self.kernel.output)
                self.kernel.output.clear()
                self.from_guest(said)

    def wait(self) -> None:
        """Let the line fall silent, and the guest have what was typed if it runs."""
        self.now += UNFINISHED
        self.line.expired(self.now)
        self.settle()
        while (deadline := self.line.deadline) is not None:
            self.now = max(self.now, deadline)
            self.line.expired(self.now)
            self.settle()

    def ask(self, payload: bytes) -> object:
        self.link.send(payload, self.now)
        count = len(self.heard)
        self.settle()
        return self.heard[-1] if len(self.heard) > count else None


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_stops_amid_hostile_text_and_typing(seed: int) -> None:
    shared = SharedLine(seed)
    printed, keys = b"", b""

    def type_something() -> None:
        nonlocal keys
        key = shared.random.choice([b"ls $HOME\r", b"+", b"$g#67", b"\x03"])
        keys += key
        shared.line.typed(key, shared.now)
        shared.settle()

    for number in range(100):
        text = b"".join(shared.random.choices(HOSTILE, k=3)) + b"# %d\n" % number
        printed += text
        shared.from_guest(text)
        type_something()
        shared.kernel.break_in()
        shared.settle()
        type_something()
        shared.wait()
        assert shared.heard.pop() == b"T05thread:fffffffe;"
        for request in (b"g", b"m1000,40", b"qC", b"Z0,1000,1", b"z0,1000,1"):
            assert shared.ask(request) is not None
            type_something()
        assert shared.ask(b"c") is None
        assert not shared.kernel.in_debugger
        shared.wait()
        type_something()
    assert shared.shown == printed
    assert shared.read_by_shell == keys
    assert len(shared.heard) == 500
    assert b"-" not in shared.heard
    assert shared.link.retransmissions == 0
    assert shared.line.counts.doubts == 0
    assert shared.line.counts.contradicted == 0
    assert shared.line.keys.dropped == 0
    assert shared.line.counts.by_silence == 100
    naive = Naive()
    naive.received(shared.raw)
    assert naive.console != printed
    assert naive.stub != shared.given


# -- speed ----------------------------------------------------------------------------------------------------


def floods() -> Iterator[bytes]:
    yield b"$" * 65536
    yield b"#" * 65536
    yield b"$S05#00" * 9362
    yield frame(b"S05") * 9362
    yield b"$T05" * 16384
    yield random.Random(1).randbytes(65536)


@pytest.mark.parametrize("begins", [LineDemultiplexer, held])
def test_no_flood_takes_more_than_linear_time(begins: Callable[[], LineDemultiplexer]) -> None:
    for flood in floods():
        for size in (512, 65536):
            line = begins()
            line.sent_to_stub(b"$?#3f")
            start = time.process_time()
            for first in range(0, len(flood), size):
                line.received(flood[first : first + size], 0.0)
            # A hundred times what it takes: only what grows with the square is so slow.
            assert time.process_time() - start < 1.0


def test_a_debugger_that_acknowledges_the_end_beforehand_lets_the_guest_run() -> None:
    line = LineDemultiplexer()
    line.sent_to_stub(b"$?#3f")
    line.received(b"+$S05#b8", 1.0)
    line.expired(1.0 + SILENCE)
    line.sent_to_stub(b"+$D#44+")
    line.output.clear()
    line.received(b"+$OK#9atick 1\r\n$ ", 2.0)
    assert line.state is State.RUNS
    assert line.output == [Stub(b"+$OK#9a"), Console(b"tick 1\r\n$ ")]


def test_a_reply_that_noise_has_made_text_is_asked_for_again() -> None:
    line = held()
    line.sent_to_stub(b"+" + frame(b"m1000,4"))
    line.received(b"+" + frame(b"01020304")[1:], 1.0)  # its ``$`` was lost
    assert line.state is State.DOUBT
    assert line.deadline == pytest.approx(1.0 + AGAIN)
    line.expired(1.0 + AGAIN)
    assert line.output[-1] == Again()
    line.output.clear()
    assert line.deadline is None
    # The link refuses what it was given instead, and kgdb repeats it.
    line.sent_to_stub(b"-")
    line.received(frame(b"01020304"), 1.4)
    line.expired(1.4 + SILENCE)
    assert line.output == [Stub(frame(b"01020304"))]
    assert line.state is State.HELD


@pytest.mark.parametrize("place", range(len(STOP)))
@pytest.mark.parametrize("harm", [b"", b"~", b"\x04"])
def test_a_stop_that_noise_has_made_text_is_asked_for_again(place: int, harm: bytes) -> None:
    harmed = STOP[:place] + harm + STOP[place + 1 :]
    for attended in (True, False):
        line = LineDemultiplexer()
        line.keys.is_attended = attended
        line.received(b"tick 1\r\n" + harmed, 1.0)
        line.expired(1.0 + UNFINISHED)
        line.expired(1.0 + AGAIN)
        assert console(line.output) == b"tick 1\r\n" + harmed
        # Nobody is there who could ask, or somebody is.
        assert (Again() in line.output) is attended
    line = LineDemultiplexer()
    line.keys.is_attended = True
    line.received(harmed + b"\r\n", 1.0)
    line.expired(2.0)
    assert Again() not in line.output


def test_a_reply_that_was_harmed_too_often_is_not_asked_for_for_ever() -> None:
    line = held()
    line.sent_to_stub(b"+" + frame(b"g"))
    now, asked = 1.0, 0
    for _ in range(2 * MOST_DAMAGED):
        line.received(b"0#", now)
        now += 1.0
        line.expired(now)
        asked += Again() in line.output
        line.output.clear()
    assert asked == MOST_DAMAGED
