"""The client half on a stub like QEMU's: what it sends, what it makes of the answers, how it ends."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rsp import grammar
from rsp.kgdb import CPUS, Kgdb
from rsp.stub import REGISTERS, Machine, memory_at, packet
from rsp.target import PlainTarget

from gdbstubs.client import OWED_SECONDS, State, StubClient
from gdbstubs.dialects import KGDB, PLAIN, QEMU, RELAY, Dialect
from gdbstubs.errors import EBUSY, EIO, ESRCH, LinkFailed, RemoteProtocolError, TargetError
from gdbstubs.link import REFUSED_SECONDS
from gdbstubs.registers import parse_description
from gdbstubs.server import Server
from gdbstubs.target import (
    Action,
    Breakpoint,
    BreakpointKind,
    Ended,
    Halted,
    Motion,
    Thread,
    ThreadId,
)
from gdbstubs.x86 import X86_64

if TYPE_CHECKING:
    from collections.abc import Callable

ONE, TWO = ThreadId(1), ThreadId(2)
TEXT = REGISTERS.hex().encode()
"""What `g` answers."""
HERE = Breakpoint(BreakpointKind.SOFTWARE, 0x1000, 1)
UNMAPPED = 0x14
"""What QEMU writes for EFAULT: its digits are decimal, the protocol's hexadecimal."""
GO, STEP = (Action(Motion.CONTINUE),), (Action(Motion.STEP, ONE), Action(Motion.CONTINUE))


class Bench:
    """A client on a machine's stub."""

    def __init__(self, dialect: Dialect = QEMU, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self.words: list[str] = []
        self.client = StubClient(dialect, self.words.append)
        self.answers: list[Any] = []
        self.inner = 0
        self.client.on_inner_step = self.stepped

    def stepped(self) -> None:
        self.inner += 1

    def connect(self) -> Bench:
        self.machine.connect()
        self.client.connected(self.answers.append)
        self.exchange()
        return self

    def exchange(self) -> None:
        """Carry bytes both ways until there are none."""
        for _ in range(1000):
            data = self.client.take_output()
            self.machine.receive(data)
            said = bytes(self.machine.output)
            self.machine.output.clear()
            if not data and not said:
                return
            self.client.receive(said)
        raise AssertionError("it never ends")

    def ask(self, operation: Any, *arguments: Any) -> Any:
        """Do one operation and return its only answer."""
        count = len(self.answers)
        operation(*arguments, self.answers.append)
        self.exchange()
        assert len(self.answers) == count + 1
        return self.answers[-1]

    def seen(self) -> list[bytes]:
        seen, self.machine.seen = self.machine.seen, []
        return seen


@pytest.fixture
def bench() -> Bench:
    made = Bench().connect()
    made.seen()
    return made


def error(answer: object) -> TargetError:
    assert isinstance(answer, TargetError), answer
    return answer


# ── greeting ────────────────────────────────────────────────────────────────────────────────────────────────


def test_greeting_asks_what_the_stub_can_do_and_why_it_stands() -> None:
    bench = Bench().connect()
    assert bench.answers == [Halted(5, ONE)]
    assert bench.client.state is State.STOPPED
    assert [one.partition(b":")[0] for one in bench.seen()] == [
        b"qSupported",
        b"vCont?",
        b"qqemu.sstep",
        b"qXfer",
        b"qXfer",
        b"?",
    ]
    assert bench.client.deadline is None


def test_the_stop_that_connecting_caused_answers_nothing() -> None:
    bench = Bench()
    bench.machine.connect()
    bench.client.connected(bench.answers.append)
    bench.client.receive(packet(b"T02thread:01;"))
    assert bench.answers == []
    assert bench.client.state is State.GREETING
    bench.machine.output.clear()
    bench.exchange()
    assert bench.answers == [Halted(5, ONE)]


def test_a_stub_that_can_do_nothing_is_greeted_too() -> None:
    bench = Bench(PLAIN)
    bench.client.connected(bench.answers.append)
    sent = []
    for reply in (b"", b"", b"", b"S05"):
        sent.append(bench.client.take_output())
        bench.client.receive(b"+" + packet(reply))
    assert sent[0].startswith(b"$qSupported:swbreak+")
    assert sent[1:] == [b"+" + packet(one) for one in (b"vCont?", b"qqemu.sstep", b"?")]
    assert bench.answers == [Halted(5)]
    bench.client.resume(GO, bench.answers.append)
    assert bench.client.take_output() == b"+" + packet(b"c")


def test_no_ack_mode_is_entered_where_it_is_offered() -> None:
    client = StubClient(QEMU, lambda words: None)
    answers: list[Any] = []
    client.connected(answers.append)
    client.take_output()
    client.receive(b"+" + packet(b"QStartNoAckMode+;PacketSize=4000"))
    assert packet(b"QStartNoAckMode") in client.take_output()
    client.receive(b"+" + packet(b"OK") + packet(b"vCont;c;s") + packet(b"") + packet(b"T05"))
    client.take_output()
    client.read_registers(ONE, answers.append)
    client.receive(packet(b"OK") + packet(b"0011"))
    assert answers == [Halted(5), b"0011"]
    assert b"+" not in client.take_output().replace(b"vCont", b"")


@pytest.mark.parametrize("size", [b"", b"zz", b"-", b"1x"])
def test_a_packet_size_that_is_no_number_breaks_the_protocol(size: bytes) -> None:
    client = StubClient(QEMU, lambda words: None)
    answers: list[Any] = []
    client.connected(answers.append)
    with pytest.raises(RemoteProtocolError, match="PacketSize"):
        client.receive(packet(b"PacketSize=" + size))


def test_connecting_again_begins_anew(bench: Bench) -> None:
    assert bench.ask(bench.client.insert, HERE) is None
    bench.client.closed("lost")
    bench.machine.close()
    bench.connect()
    assert bench.client.inserted == set()
    assert not bench.machine.breakpoints


# ── threads and registers ───────────────────────────────────────────────────────────────────────────────────


def test_a_thread_is_selected_once(bench: Bench) -> None:
    assert bench.ask(bench.client.read_registers, ONE) == TEXT
    assert bench.ask(bench.client.read_register, ONE, 0) == TEXT[:16]
    assert bench.ask(bench.client.read_memory, ONE, 0x1000, 4) == memory_at(0x1000, 4)
    assert bench.seen() == [b"Hgp1.1", b"g", b"p0", b"m1000,4"]
    bench.ask(bench.client.read_registers, TWO)
    assert bench.seen() == [b"Hgp1.2", b"g"]


def test_a_thread_that_is_refused_answers_nobody_and_is_selected_again(bench: Bench) -> None:
    bench.ask(bench.client.read_registers, ONE)
    refused: list[Any] = []
    answers: list[Any] = []
    for number in range(2):
        bench.client.read_register(ThreadId(0x3F), number, refused.append)
    bench.client.read_register(ONE, 0, answers.append)
    bench.exchange()
    assert [error(one).errno for one in refused] == [ESRCH, ESRCH]
    assert answers == [TEXT[:16]]
    bench.seen()
    assert error(bench.ask(bench.client.read_registers, ThreadId(0x3F))).errno == ESRCH
    assert bench.seen()[0] == b"Hgp1.3f"


def test_threads_are_listed_once_a_stop_with_what_is_said_of_them(bench: Bench) -> None:
    listed = (Thread(ONE, "CPU#0 [running]"), Thread(TWO, "CPU#0 [running]"))
    assert bench.ask(bench.client.list_threads) == listed
    assert bench.ask(bench.client.is_alive, TWO) is True
    assert bench.ask(bench.client.is_alive, ThreadId(9)) is False
    assert bench.seen() == [
        b"qfThreadInfo",
        b"qsThreadInfo",
        b"qsThreadInfo",
        b"qThreadExtraInfo,p01.01",
        b"qThreadExtraInfo,p01.02",
    ]
    bench.client.resume(STEP, bench.answers.append)
    bench.exchange()
    bench.machine.advance()
    bench.exchange()
    bench.ask(bench.client.list_threads)
    assert b"qfThreadInfo" in bench.seen()


def test_the_wire_s_own_thread_ids_are_used_again(bench: Bench) -> None:
    bench.ask(bench.client.list_threads)
    bench.seen()
    bench.ask(bench.client.read_registers, TWO)
    assert bench.seen() == [b"Hgp01.02", b"g"]


def test_the_description_is_read_whole_when_greeting_and_served_in_every_state(bench: Bench) -> None:
    client = bench.client
    served = bench.ask(client.read_description, "target.xml")
    assert [one.name for one in parse_description(served).registers][:4] == ["rax", "rbx", "rsp", "rip"]
    assert b"include" not in served
    assert bench.ask(client.read_description, "core.xml") is None
    client.resume(GO, bench.answers.append)
    assert bench.ask(client.read_description, "target.xml") == served
    client.closed("lost")
    assert bench.ask(client.read_description, "target.xml") == served
    assert not [one for one in bench.seen() if one.startswith(b"qXfer")]


def test_registers_are_written(bench: Bench) -> None:
    assert bench.ask(bench.client.write_register, ONE, 16, b"\x00\x10") is None
    assert bench.ask(bench.client.write_registers, ONE, b"\x01\x02") is None
    assert bench.seen() == [b"Hgp1.1", b"P10=0010", b"G0102"]


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=60)
@given(st.integers(0x1000, 0xFF000), st.integers(1, 9000))
def test_a_read_of_any_size_is_put_together(address: int, length: int) -> None:
    bench = Bench().connect()
    length = min(length, 0x100000 - address)
    assert bench.ask(bench.client.read_memory, ONE, address, length) == memory_at(address, length)
    assert all(len(payload) * 2 < 4096 for payload in bench.seen())


def test_a_large_read_ends_where_memory_does(bench: Bench) -> None:
    most = (4096 - 32) // 2
    end = 0x100000
    assert bench.ask(bench.client.read_memory, ONE, end - most, 3 * most) == memory_at(end - most, most)
    assert error(bench.ask(bench.client.read_memory, ONE, end, 3 * most)).errno == UNMAPPED
    assert error(bench.ask(bench.client.read_memory, ONE, end, 8)).errno == UNMAPPED


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=9000))
def test_a_write_of_any_size_arrives(data: bytes) -> None:
    bench = Bench().connect()
    assert bench.ask(bench.client.write_memory, ONE, 0x1000, data) is None
    assert bytes(bench.machine.memory[0x1000 + offset] for offset in range(len(data))) == data
    assert all(len(payload) <= 4096 for payload in bench.seen())


def test_a_write_stops_at_the_first_piece_that_fails(bench: Bench) -> None:
    assert error(bench.ask(bench.client.write_memory, ONE, 0x100000 - 2000, b"a" * 9000)).errno == UNMAPPED
    assert sum(payload.startswith(b"M") for payload in bench.seen()) <= 2


# ── breakpoints ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_inserted_is_known_until_it_is_removed(bench: Bench) -> None:
    bench.client.insert(HERE, bench.answers.append)
    assert bench.client.inserted == {HERE}, "it may stand from here on"
    bench.exchange()
    assert bench.answers[-1] is None
    assert set(bench.machine.breakpoints) == {(0, 0x1000, 1)}
    assert bench.ask(bench.client.remove, HERE) is None
    assert bench.client.inserted == set()
    assert not bench.machine.breakpoints


def test_what_the_stub_refuses_does_not_stand(bench: Bench) -> None:
    nowhere = Breakpoint(BreakpointKind.SOFTWARE, 1 << 40, 1)
    assert isinstance(bench.ask(bench.client.insert, nowhere), TargetError)
    assert bench.client.inserted == set()
    assert isinstance(bench.ask(bench.client.remove, HERE), TargetError)


def test_what_was_asked_of_a_stub_that_is_lost_may_stand(bench: Bench) -> None:
    bench.client.insert(HERE, bench.answers.append)
    bench.client.closed("lost")
    assert isinstance(bench.answers[-1], TargetError)
    assert bench.client.inserted == {HERE}


# ── running ─────────────────────────────────────────────────────────────────────────────────────────────────


def running(bench: Bench) -> list[Any]:
    stops: list[Any] = []
    bench.client.resume(GO, stops.append)
    bench.exchange()
    assert bench.machine.running
    bench.seen()
    return stops


def test_a_resume_waits_for_what_was_asked_before_it(bench: Bench) -> None:
    answers: list[Any] = []
    bench.client.read_memory(ONE, 0x1000, 9000, answers.append)
    bench.client.insert(HERE, answers.append)
    bench.client.resume(GO, answers.append)
    while not bench.machine.running:
        bench.machine.receive(bench.client.take_output())
        bench.client.receive(bytes(bench.machine.output))
        bench.machine.output.clear()
    assert answers == [memory_at(0x1000, 9000), None]
    assert bench.machine.seen[-1] == b"vCont;c"
    bench.machine.advance()
    bench.exchange()
    assert answers[2:] == [Halted(5, ONE)]
    assert not bench.machine.spoilt


def test_more_requests_than_the_pipeline_holds_are_answered_in_order(bench: Bench) -> None:
    answers: list[Any] = []
    for address in range(0x1000, 0x1000 + 200):
        bench.client.read_memory(ONE, address, 1, answers.append)
    bench.exchange()
    assert b"".join(answers) == memory_at(0x1000, 200)


def test_nothing_is_sent_to_a_running_target_but_one_interrupt(bench: Bench) -> None:
    stops = running(bench)
    client = bench.client
    answers: list[Any] = []
    for ask in (
        lambda: client.read_registers(ONE, answers.append),
        lambda: client.read_memory(ONE, 0x1000, 9000, answers.append),
        lambda: client.write_memory(ONE, 0x1000, b"a", answers.append),
        lambda: client.insert(HERE, answers.append),
        lambda: client.remove(HERE, answers.append),
        lambda: client.list_threads(answers.append),
        lambda: client.why_stopped(answers.append),
        lambda: client.resume(GO, answers.append),
        lambda: client.detach(answers.append),
    ):
        ask()
        assert error(answers[-1]).errno == EBUSY
    assert client.take_output() == b""
    client.interrupt()
    client.interrupt()
    assert client.take_output() == b"\x03"
    bench.machine.receive(b"\x03")
    bench.exchange()
    assert stops == [Halted(2, ONE)]
    assert client.interrupt_sent
    client.interrupt()
    assert client.take_output() == b""


def test_text_of_the_target_is_passed_on(bench: Bench) -> None:
    stops = running(bench)
    bench.client.receive(packet(b"O" + b"hello\xff".hex().encode()))
    assert bench.words == ["hello\N{REPLACEMENT CHARACTER}"]
    assert stops == []
    with pytest.raises(RemoteProtocolError, match="printed"):
        bench.client.receive(packet(b"Oxyz"))


def test_file_requests_of_the_target_are_refused(bench: Bench) -> None:
    stops = running(bench)
    bench.client.receive(packet(b"Fopen,1/2,0,0"))
    assert packet(b"F-1,1") in bench.client.take_output()
    assert stops == []


@pytest.mark.parametrize(
    ("reply", "stop"),
    [
        (b"S05", Halted(5)),
        (b"T05", Halted(5)),
        (b"T05thread:p01.02;", Halted(5, TWO)),
        (b"T05thread:2;watch:ffff810000001000;", Halted(5, TWO, ("watch", "ffff810000001000"))),
        (b"T05swbreak:;thread:1;unknown:x;", Halted(5, ONE, ("swbreak", ""))),
        (b"T05core:0;10:0011;", Halted(5)),
        (b"W00", Ended(0)),
        (b"W2a;process:1", Ended(0x2A)),
        (b"X09", Ended(None, 9)),
    ],
    ids=repr,
)
def test_stop_replies(bench: Bench, reply: bytes, stop: Halted | Ended) -> None:
    stops = running(bench)
    bench.client.receive(packet(reply))
    assert stops == [stop]
    assert bench.client.state is State.STOPPED


@pytest.mark.parametrize(
    "reply", [b"T", b"T5", b"Txx", b"T05thread:zz;", b"OK", b"E01", b"E.no", b"hello", b"", b"W", b"\xff"]
)
def test_a_stop_reply_that_makes_no_sense_is_an_error_for_who_resumed(bench: Bench, reply: bytes) -> None:
    stops = running(bench)
    bench.client.receive(packet(reply))
    assert len(stops) == 1
    assert isinstance(stops[0], TargetError)


def test_another_witness_of_a_stop_and_of_a_resume(bench: Bench) -> None:
    stops = running(bench)
    bench.client.assume_stopped(Halted(2, words="the monitor says so"))
    assert stops == [Halted(2, words="the monitor says so")]
    # The stub's own word, late, is taken for nothing else.
    bench.machine.running = False
    bench.client.read_registers(ONE, bench.answers.append)
    bench.client.receive(packet(b"T02thread:01;"))
    bench.exchange()
    assert bench.answers[-1] == TEXT
    bench.client.assume_running()
    assert bench.client.state is State.RUNNING
    waiting: list[Any] = []
    bench.client.await_stop(waiting.append)
    bench.client.receive(packet(b"T05thread:01;"))
    assert waiting == [Halted(5, ONE)]


# ── loss and silence ────────────────────────────────────────────────────────────────────────────────────────


def test_everything_that_waits_is_answered_once_when_the_connection_is_lost(bench: Bench) -> None:
    answers: list[Any] = []
    client = bench.client
    for _ in range(100):
        client.read_memory(ONE, 0x1000, 5000, answers.append)
    client.write_memory(ONE, 0x1000, b"a" * 5000, answers.append)
    client.list_threads(answers.append)
    client.insert(HERE, answers.append)
    client.resume(GO, answers.append)
    client.closed("the peer closed the connection")
    client.closed("twice")
    assert len(answers) == 104
    assert {str(error(one)) for one in answers} == {"the peer closed the connection"}
    assert client.take_output() == b""
    assert client.deadline is None
    client.receive(packet(b"OK"))
    assert len(answers) == 104
    assert error(bench.ask(client.read_registers, ONE)).errno == EIO


def test_a_resume_under_way_ends_when_the_connection_is_lost(bench: Bench) -> None:
    stops = running(bench)
    bench.client.closed("QEMU is gone")
    assert stops == [Ended(signal=9, words="QEMU is gone")]


def test_a_stub_that_does_not_answer_is_given_up(bench: Bench) -> None:
    client = bench.client
    client.now = 100.0
    client.read_registers(ONE, bench.answers.append)
    assert client.deadline == 130.0
    client.now = 129.9
    client.expire()
    client.receive(packet(b"OK"))
    assert client.deadline == 159.9
    client.now = 160.0
    with pytest.raises(RemoteProtocolError, match="did not answer within 30 s"):
        client.expire()


def test_a_running_target_has_no_deadline(bench: Bench) -> None:
    running(bench)
    assert bench.client.deadline is None


def test_a_stub_that_does_not_acknowledge_is_given_up() -> None:
    client = StubClient(replace(PLAIN, request_timeout=1000.0), lambda words: None)
    client.connected(lambda stop: None)
    for _ in range(5):
        assert client.deadline is not None
        client.now = client.deadline
        client.expire()
    assert client.deadline is not None
    client.now = client.deadline
    with pytest.raises(LinkFailed):
        client.expire()


def test_notifications_and_noise_change_nothing(bench: Bench) -> None:
    bench.client.read_registers(ONE, bench.answers.append)
    count = len(bench.answers)
    bench.client.receive(b"%" + packet(b"Stop:T05thread:1;")[1:] + b"\x03\x00junk")
    assert len(bench.answers) == count
    bench.exchange()
    assert bench.answers[-1] == TEXT


def test_a_reply_that_is_too_long_breaks_the_protocol(bench: Bench) -> None:
    bench.client.read_registers(ONE, bench.answers.append)
    with pytest.raises(RemoteProtocolError, match="more than 1048576 bytes"):
        bench.client.receive(b"$" + b"0" * ((1 << 20) + 1))


OPERATIONS = {
    "read_registers": (ONE,),
    "read_register": (ONE, 3),
    "read_memory": (ONE, 0x1000, 5000),
    "write_memory": (ONE, 0x1000, b"abc"),
    "write_registers": (ONE, b"abc"),
    "insert": (HERE,),
    "remove": (HERE,),
    "list_threads": (),
    "is_alive": (ONE,),
    "read_description": ("target.xml",),
    "resume": (STEP,),
    "detach": (),
    "monitor": ("help",),
    "program_counter": (ONE,),
}
RANGED = (Action(Motion.STEP, ONE, (0, 1 << 63)), Action(Motion.CONTINUE))
WORDS = [
    b"",
    b"OK",
    b"E01",
    b"E14",
    b"E.words",
    b"E",
    b"m",
    b"l",
    b"mzz",
    b"m1,",
    b"l<x",
    b"m}",
    b"0",
    b"00",
    b"xx",
    b"T05",
    b"T05thread:1;",
    b"bxyz",
    b"l<threads><thread id='1'>x</thread></threads>",
    b"l<threads>",
    TEXT,
    b"S",
    b"W00",
    b"O41",
    b"OZ",
    b"F1",
    b"E1",
    b"+",
    b"1*~*~",
]


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from((QEMU, KGDB, RELAY, PLAIN)),
    st.sampled_from((*sorted(OPERATIONS), "range")),
    st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=12)), max_size=14),
    st.integers(0, 1 << 48),
)
def test_any_replies_end_in_an_answer_or_a_protocol_error(
    dialect: Dialect, name: str, replies: list[bytes], seed: int
) -> None:
    bench = Bench(dialect).connect()
    client, chance = bench.client, Random(seed)
    answers: list[Any] = []
    if name == "range":
        client.resume(RANGED, answers.append)
    else:
        getattr(client, name)(*OPERATIONS[name], answers.append)
    try:
        for reply in replies:
            data = packet(bytes(byte for byte in reply if byte not in b"$#"))
            client.receive(data if chance.randrange(4) else grammar.mutated(chance, data))
            client.take_output()
    except (RemoteProtocolError, LinkFailed):
        pass
    client.closed("lost")
    assert len(answers) == 1


# ── asking ahead ────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_asked_at_the_last_stop_is_asked_ahead_at_the_next(bench: Bench) -> None:
    client = bench.client
    bench.ask(client.read_registers, ONE)
    bench.ask(client.list_threads)
    client.resume(GO, bench.answers.append)
    bench.exchange()
    bench.seen()
    bench.machine.halt(5)
    bench.exchange()
    asked = [one.partition(b",")[0] for one in bench.seen()]
    assert b"g" in asked
    assert b"qfThreadInfo" in asked
    # And the answers are there, without a word to the stub.
    bench.ask(client.read_registers, ONE)
    bench.ask(client.list_threads)
    assert bench.seen() == []


def test_nothing_follows_a_detach_at_a_stop(bench: Bench) -> None:
    """A byte after ``D`` would stop the guest that it let run."""
    client = bench.client
    bench.ask(client.read_registers, ONE)
    bench.ask(client.list_threads)
    client.resume(GO, lambda stop: client.detach(bench.answers.append))
    bench.exchange()
    bench.seen()
    bench.machine.halt(5)
    bench.exchange()
    assert bench.seen() == [b"D;1"]
    assert bench.machine.running


def test_what_goes_on_by_itself_ends_at_a_detach(bench: Bench) -> None:
    """QEMU dies of a read behind ``D``: it has no current processor any more."""
    client = bench.client
    pieces: list[Any] = []

    def goes_on(result: bytes | TargetError) -> None:
        pieces.append(result)
        if not isinstance(result, TargetError):
            client.read_memory(ONE, 0x1000, 4, goes_on)

    client.read_memory(ONE, 0x1000, 4, goes_on)
    client.detach(bench.answers.append)
    client.read_memory(TWO, 0x1000, 4, pieces.append)
    assert not client.pass_read(ONE, 0x1000, 4, packet(b"m1000,4"), lambda *_: None)
    bench.exchange()
    assert [str(one) for one in pieces if isinstance(one, TargetError)] == [
        "the last debugger is leaving"
    ] * 2
    assert [isinstance(one, bytes) for one in pieces] == [False, True, False]
    assert bench.answers[1:] == [None]
    assert bench.seen()[-1] == b"D;1"
    assert bench.machine.running


def test_who_was_not_let_go_may_be_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.machine, "_detach", lambda rest: bench.machine._say(b"E22"))
    assert isinstance(bench.ask(bench.client.detach), TargetError)
    assert bench.ask(bench.client.read_memory, ONE, 0x1000, 4) == memory_at(0x1000, 4)


# ── the registers' order ────────────────────────────────────────────────────────────────────────────────────


def test_a_description_is_served_before_there_is_a_connection() -> None:
    client = StubClient(QEMU, lambda words: None)
    answers: list[Any] = []
    client.read_description("target.xml", answers.append)
    assert answers == [X86_64.document]
    assert client.register_text_length == 1216
    text = client.unavailable_registers()
    assert len(text) == 1216
    values = X86_64.values(text)
    assert values.pop("rip") == 0, "gdb cannot attach without one"
    assert set(values.values()) == {None}
    nothing = StubClient(PLAIN, lambda words: None)
    nothing.read_description("target.xml", answers.append)
    assert isinstance(answers[-1], TargetError)
    assert nothing.unavailable_registers() == b""


def test_what_was_served_first_holds_when_the_stub_has_another_layout() -> None:
    bench = Bench()
    assert bench.ask(bench.client.read_description, "target.xml") == X86_64.document
    bench.connect()
    assert bench.ask(bench.client.read_description, "target.xml") == X86_64.document
    text = bench.ask(bench.client.read_registers, ONE)
    assert len(text) == 1216
    for name, value in (
        ("rax", TEXT[:16]),
        ("rip", TEXT[48:64]),
        ("cs", TEXT[72:80]),
        ("xmm0", TEXT[96:128]),
    ):
        assert X86_64.names[name].of(text) == value
    assert set(X86_64.names["r8"].of(text)) == {ord("x")}
    assert bench.ask(bench.client.program_counter, ONE) == int.from_bytes(REGISTERS[24:32], "little")
    bench.seen()
    assert (
        bench.ask(bench.client.read_register, ONE, X86_64.names["rip"].number) == TEXT[:16]
    )  # it has no other
    assert bench.ask(bench.client.read_register, ONE, X86_64.names["r8"].number) == b"xx" * 8
    assert isinstance(bench.ask(bench.client.read_register, ONE, 1000), TargetError)
    assert bench.ask(bench.client.write_register, ONE, X86_64.names["rip"].number, b"\1" * 8) is None
    assert isinstance(
        bench.ask(bench.client.write_register, ONE, X86_64.names["r8"].number, b"\1" * 8), TargetError
    )
    assert bench.seen() == [b"p3", b"P3=0101010101010101"]
    assert bench.ask(bench.client.write_registers, ONE, b"\2" * 608) is None
    assert bench.seen() == [b"g", b"G" + b"02" * 64]


def test_a_description_is_learnt_once_as_long_as_the_stub_stays_the_same(bench: Bench) -> None:
    bench.client.closed("lost")
    bench.machine.close()
    bench.connect()
    assert [one for one in bench.seen() if one.startswith(b"qXfer")] == [
        b"qXfer:features:read:target.xml:0,fe0"
    ]
    assert bench.ask(bench.client.read_registers, ONE) == TEXT


def test_registers_never_grow_longer_than_sessions_were_told(bench: Bench) -> None:
    whole = bench.client.register_text_length
    assert whole == len(TEXT)
    bench.machine.registers = bytearray(40)
    assert bench.ask(bench.client.read_registers, ONE) == b"00" * 40
    assert len(bench.client.unavailable_registers()) == 80
    bench.machine.registers = bytearray(64)
    bench.client.forget_registers()
    assert bench.ask(bench.client.read_registers, ONE) == b"00" * 40


def test_a_stub_whose_description_makes_no_sense_counts_as_one_that_has_none() -> None:
    bench = Bench(machine=Machine(documents={b"target.xml": b"<target>"})).connect()
    assert bench.answers == [Halted(5, ONE)]
    assert bench.ask(bench.client.read_description, "target.xml") == X86_64.document


# ── ranges ──────────────────────────────────────────────────────────────────────────────────────────────────


def ranged(start: int, end: int) -> tuple[Action, ...]:
    return Action(Motion.STEP, ONE, (start, end)), Action(Motion.CONTINUE)


def walk(bench: Bench, path: list[int], steps: int = 100) -> list[Any]:
    """Step the range from 0x2000 to 0x2010 along a path."""
    stops: list[Any] = []
    bench.machine.path = path
    bench.client.resume(ranged(0x2000, 0x2010), stops.append)
    bench.exchange()
    for _ in range(steps):
        if stops:
            break
        bench.machine.advance()
        bench.exchange()
    return stops


def test_a_range_is_made_of_steps_and_one_stop(bench: Bench) -> None:
    stops = walk(bench, [0x2004, 0x2008, 0x2000, 0x200F, 0x2010, 0x3000])
    assert stops == [Halted(5, ONE)]
    assert bench.inner == 4
    step = [b"vCont;s:p1.1;c", b"Hgp1.1", b"g"]
    assert bench.seen() == 5 * step, "nothing but steps, and where they led"
    assert not bench.machine.spoilt
    assert bench.ask(bench.client.program_counter, ONE) == 0x2010
    assert bench.seen() == [], "known from the last step"


def test_a_range_ends_at_a_breakpoint_inside_it(bench: Bench) -> None:
    bench.ask(bench.client.insert, Breakpoint(BreakpointKind.SOFTWARE, 0x2008, 1))
    assert walk(bench, [0x2004, 0x2008, 0x2009]) == [Halted(5, ONE)]
    assert bench.inner == 1


@pytest.mark.parametrize(
    "reply", [b"T02thread:p01.01;", b"T05thread:p01.02;", b"T05thread:p01.01;swbreak:;", b"W00"]
)
def test_a_range_ends_with_a_stop_that_is_no_step(bench: Bench, reply: bytes) -> None:
    stops: list[Any] = []
    bench.client.resume(ranged(0x2000, 0x2010), stops.append)
    bench.exchange()
    bench.client.receive(packet(reply))
    assert len(stops) == 1
    assert bench.inner == 0


def test_a_range_is_interrupted_wherever_it_is(bench: Bench) -> None:
    for moment in range(3):
        stops: list[Any] = []
        bench.machine.path = [0x2000] * 50
        bench.client.resume(ranged(0x2000, 0x2010), stops.append)
        bench.exchange()
        bench.machine.advance()
        if moment == 0:
            # The interrupt meets a target that runs.
            bench.exchange()
            bench.client.interrupt()
        elif moment == 1:
            # It crosses the step's stop.
            bench.client.interrupt()
        else:
            # It comes while the program counter is asked for.
            bench.client.receive(bytes(bench.machine.output))
            bench.machine.output.clear()
            assert bench.client.is_resuming
            bench.client.interrupt()
        bench.exchange()
        assert stops == [Halted(2, ONE)], moment
        assert bench.client.interrupt_sent
        bench.exchange()
        assert not bench.machine.running


def test_a_range_that_is_lost_ends(bench: Bench) -> None:
    for between in (False, True):
        stops: list[Any] = []
        bench.machine.path = [0x2000] * 50
        bench.client.resume(ranged(0x2000, 0x2010), stops.append)
        bench.exchange()
        if between:
            bench.machine.advance()
            bench.client.receive(bytes(bench.machine.output))
        bench.client.closed("lost")
        assert stops == [Ended(words="lost")]
        bench.machine.close()
        bench.connect()


def test_a_range_is_left_to_a_stub_that_knows_it() -> None:
    bench = Bench(machine=Machine(resumes=b"vCont;c;C;s;S;r")).connect()
    bench.seen()
    assert walk(bench, [0x2010]) == [Halted(5, ONE)]
    assert bench.seen()[0] == b"vCont;r2000,2010:p1.1;c"


def test_a_range_of_a_stub_that_hides_its_registers_is_one_step() -> None:
    bench = Bench(machine=Machine(documents={b"target.xml": b"<target>"})).connect()
    assert walk(bench, [0x2004]) == [Halted(5, ONE)], "the program counter lies beyond what it sends"


def test_what_was_asked_before_a_range_is_asked_ahead_after_it(bench: Bench) -> None:
    bench.ask(bench.client.list_threads)
    walk(bench, [0x2004, 0x2010])
    asked = bench.seen()
    assert asked.index(b"qfThreadInfo", 1) > asked.index(b"g")
    bench.ask(bench.client.list_threads)
    assert bench.seen() == []


# ── backwards ───────────────────────────────────────────────────────────────────────────────────────────────


def test_ways_backwards_are_taken_where_the_stub_has_them() -> None:
    features = b"vContSupported+;ReverseStep+;ReverseContinue+"
    bench = Bench(machine=Machine(features=features)).connect()
    assert bench.client.reverses
    bench.seen()
    for motion, payload in ((Motion.REVERSE_STEP, b"bs"), (Motion.REVERSE_CONTINUE, b"bc")):
        stops: list[Any] = []
        bench.client.resume((Action(motion),), stops.append)
        bench.exchange()
        assert bench.seen() == [payload]
        bench.client.receive(packet(b"T05thread:p01.01;replaylog:begin;"))
        assert stops == [Halted(5, ONE, ("replaylog", "begin"))]
        bench.machine.running = False
    assert isinstance(
        bench.ask(bench.client.resume, (Action(Motion.REVERSE_STEP), Action(Motion.CONTINUE))), TargetError
    )


def test_ways_backwards_are_refused_in_words_where_there_are_none(bench: Bench) -> None:
    assert not bench.client.reverses
    for motion in (Motion.REVERSE_STEP, Motion.REVERSE_CONTINUE):
        assert "backwards" in str(error(bench.ask(bench.client.resume, (Action(motion),))))
    assert bench.seen() == []
    assert bench.client.state is State.STOPPED


# ── kgdb ────────────────────────────────────────────────────────────────────────────────────────────────────


class Line:
    """A client on a kernel's own stub."""

    def __init__(self, *, connected: bool = False) -> None:
        self.kernel = Kgdb(connected=connected)
        self.words: list[str] = []
        self.client = StubClient(KGDB, self.words.append, self.kernel.break_in)
        self.answers: list[Any] = []

    def connect(self, *, running: bool | None = None) -> Line:
        self.client.connected(self.answers.append, running=running)
        self.exchange()
        return self

    def exchange(self) -> None:
        for _ in range(1000):
            data = self.client.take_output()
            self.kernel.receive(data)
            said = bytes(self.kernel.output)
            self.kernel.output.clear()
            if not data and not said:
                return
            self.client.receive(said)
        raise AssertionError("it never ends")

    def ask(self, operation: Any, *arguments: Any) -> Any:
        count = len(self.answers)
        operation(*arguments, self.answers.append)
        self.exchange()
        assert len(self.answers) == count + 1
        return self.answers[-1]


SHADOW = ThreadId(0xFFFFFFFE)


@pytest.mark.parametrize("connected", [False, True], ids=["fresh", "left by a debugger that vanished"])
def test_a_kernel_is_broken_into_and_greeted(connected: bool) -> None:
    line = Line(connected=connected).connect()
    assert line.answers == [Halted(5, SHADOW)]
    assert line.kernel.seen == [b"?", b"qC"]
    assert line.client.state is State.STOPPED


def test_the_words_of_kdb_before_the_first_packet_are_noise() -> None:
    line = Line()
    line.client.connected(line.answers.append)
    line.client.receive(b"\r\nEntering kdb (current=0xffff9bbfc01e3140, pid 0) due to NMI\r\n[1]kdb> $#")
    line.exchange()
    assert line.answers == [Halted(5, SHADOW)]


def test_a_kernel_that_stands_is_not_broken_into() -> None:
    line = Line()
    line.kernel.in_debugger = True
    line.client = StubClient(KGDB, line.words.append, lambda: pytest.fail("broken into"))
    line.connect(running=False)
    assert line.answers == [Halted(5, SHADOW)]


def test_a_greeting_that_the_kernel_was_too_slow_for_is_sent_again() -> None:
    line = Line()
    line.client = StubClient(KGDB, line.words.append, lambda: None)
    line.connect()
    assert line.answers == []
    line.kernel.break_in()
    assert line.client.deadline == 3.0
    line.client.now = 3.0
    line.client.expire()
    line.exchange()
    assert line.answers == [Halted(5, SHADOW)]


def test_a_kernel_s_registers_come_in_the_order_of_the_full_description() -> None:
    line = Line().connect()
    client = line.client
    assert line.ask(client.read_description, "target.xml") == X86_64.document
    text = line.ask(client.read_registers, SHADOW)
    assert len(text) == client.register_text_length == 1216
    assert text[:312] == bytes(range(156)).hex().encode()
    assert set(text[312:]) == {ord("x")}
    written = bytes([7] * 608)
    assert line.ask(client.write_registers, SHADOW, written) is None
    assert line.kernel.registers == bytes([7] * 156)
    assert line.ask(client.write_register, SHADOW, 17, b"\1\2\3\4") is None
    assert line.kernel.registers[136:140] == b"\1\2\3\4"
    assert line.ask(client.read_register, SHADOW, 17) == b"01020304"
    assert line.ask(client.read_register, SHADOW, 25) == b"xx" * 8


def test_a_kernel_s_threads_are_tasks_and_processors() -> None:
    line = Line().connect()
    assert line.ask(line.client.is_alive, ThreadId(0x3F)) is True
    assert line.ask(line.client.is_alive, ThreadId(0x40)) is False
    threads = line.ask(line.client.list_threads)
    assert threads[0] == Thread(SHADOW, "shadowCPU0")
    assert threads[-1] == Thread(ThreadId(0x3F), "sh")


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=1, max_size=3000))
def test_a_kernel_s_memory_is_written_in_binary(data: bytes) -> None:
    line = Line().connect()
    assert line.ask(line.client.write_memory, SHADOW, 0x2000, data) is None
    assert line.ask(line.client.read_memory, SHADOW, 0x2000, len(data)) == data
    assert sum(one.startswith(b"X") for one in line.kernel.seen) > 1
    assert not any(one.startswith(b"M") for one in line.kernel.seen)


def test_a_kernel_steps_the_thread_that_stopped_and_no_other() -> None:
    line = Line().connect()
    client = line.client
    refused = line.ask(client.resume, (Action(Motion.STEP, ThreadId(0x3F)), Action(Motion.CONTINUE)))
    assert "kgdb steps the thread that stopped only" in str(error(refused))
    line.kernel.path = [0x2004, 0x2008, 0x3000]
    ranged_step = (Action(Motion.STEP, SHADOW, (0x2000, 0x2010)), Action(Motion.CONTINUE))
    assert line.ask(client.resume, ranged_step) == Halted(5, SHADOW)
    assert line.ask(client.program_counter, SHADOW) == 0x3000
    assert [one for one in line.kernel.seen if one[:1] in b"sc"] == [b"s"] * 3
    assert not any(one.startswith(b"Hc") for one in line.kernel.seen)


def test_a_kernel_is_interrupted_by_breaking_in() -> None:
    line = Line().connect()
    line.client.resume(GO, line.answers.append)
    line.exchange()
    assert not line.kernel.in_debugger
    line.client.interrupt()
    assert b"\x03" not in line.client.take_output()
    line.exchange()
    assert line.answers[-1] == Halted(5, SHADOW)
    assert line.client.interrupt_sent
    nobody = StubClient(KGDB, line.words.append)
    nobody.state = State.RUNNING
    nobody.interrupt()
    assert "cannot be interrupted" in line.words[-1]


def test_a_kernel_is_let_go_by_a_detach() -> None:
    line = Line().connect()
    assert line.ask(line.client.insert, HERE) is None
    line.client.read_registers(SHADOW, line.answers.append)
    # The line is closed in the very moment in which the answer comes.
    line.client.detach(lambda result: line.client.closed("left"))
    line.exchange()
    assert not line.kernel.in_debugger
    assert not line.kernel.connected
    assert not line.kernel.breakpoints


TRAP = Breakpoint(BreakpointKind.SOFTWARE, 0x2000, 1)
MET = Halted(5, SHADOW, ("swbreak", ""))


def running_line(*breakpoints: Breakpoint) -> Line:
    """A kernel that runs, with breakpoints, and what its debugger was told since."""
    line = Line().connect()
    for one in breakpoints:
        assert line.ask(line.client.insert, one) is None
    line.client.resume(GO, line.answers.append)
    line.exchange()
    assert not line.kernel.in_debugger
    line.answers.clear()
    line.kernel.seen.clear()
    return line


def caught(line: Line) -> Line:
    """A breakpoint was hit, and what it takes to put the program counter back has not been sent yet."""
    line.kernel.trap(TRAP.address)
    said = bytes(line.kernel.output)
    line.kernel.output.clear()
    line.client.receive(said)
    assert line.answers == []
    assert line.client.is_resuming
    assert line.client.waits_for_stop
    return line


def test_the_program_counter_is_put_back_to_the_breakpoint_that_a_kernel_hit() -> None:
    line = running_line(TRAP)
    for _ in range(2):
        line.kernel.trap(TRAP.address)
        line.exchange()
        assert line.answers == [MET]
        assert line.kernel.program_counter == TRAP.address
        assert line.ask(line.client.program_counter, SHADOW) == TRAP.address
        assert line.ask(line.client.why_stopped) == MET
        assert not line.client.is_resuming
        line.client.resume(GO, line.answers.append)
        line.exchange()
        line.answers.clear()


def test_the_other_registers_stay_when_the_program_counter_is_put_back() -> None:
    line = running_line(TRAP)
    before = bytes(line.kernel.registers)
    line.kernel.trap(TRAP.address)
    line.exchange()
    after = bytes(line.kernel.registers)
    assert after[:128] + after[136:] == before[:128] + before[136:]


@pytest.mark.parametrize(
    "breakpoints",
    [(TRAP,), (Breakpoint(BreakpointKind.HARDWARE, 0x4000, 1),), ()],
    ids=["elsewhere", "in hardware", "none"],
)
def test_a_trap_that_is_no_breakpoint_of_ours_is_told_as_it_is(breakpoints: tuple[Breakpoint, ...]) -> None:
    line = running_line(*breakpoints)
    line.kernel.trap(0x4000)
    line.exchange()
    assert line.answers == [Halted(5, SHADOW)]
    assert line.kernel.program_counter == 0x4001
    # Nothing is asked of a stub that has no breakpoint to be past of.
    assert line.kernel.seen == ([b"Hgfffffffe", b"g"] if breakpoints == (TRAP,) else [])


def test_a_step_that_ends_one_byte_past_a_breakpoint_is_no_hit() -> None:
    line = Line().connect()
    assert line.ask(line.client.insert, TRAP) is None
    line.kernel.path = [TRAP.address + 1]
    assert line.ask(line.client.resume, (Action(Motion.STEP, SHADOW),)) == Halted(5, SHADOW)
    assert line.kernel.program_counter == TRAP.address + 1


def test_a_breakpoint_that_another_processor_hits_during_a_step_is_one() -> None:
    line = Line().connect()
    assert line.ask(line.client.insert, TRAP) is None
    line.kernel.path = [TRAP.address + 1]
    line.kernel.current = CPUS[1]
    told = line.ask(line.client.resume, (Action(Motion.STEP, SHADOW),))
    assert told == Halted(5, ThreadId(0xFFFFFFFD), ("swbreak", ""))
    assert line.kernel.program_counter == TRAP.address


def owing_line() -> Line:
    """A kernel of two processors, of which the second hit a breakpoint while the first was to step."""
    line = Line().connect()
    assert line.ask(line.client.insert, TRAP) is None
    line.kernel.path = [TRAP.address + 1]
    line.kernel.current = CPUS[1]
    line.ask(line.client.resume, (Action(Motion.STEP, SHADOW),))
    line.answers.clear()
    return line


def trap_owed(line: Line) -> None:
    """The first processor comes to the end of its step."""
    line.kernel.current = CPUS[0]
    line.kernel.trap(0x5000)
    line.exchange()


def test_a_step_that_another_s_stop_came_before_is_no_stop_of_a_kernel_that_was_continued() -> None:
    line = owing_line()
    line.client.resume(GO, line.answers.append)
    line.exchange()
    trap_owed(line)
    assert line.answers == []
    assert not line.kernel.in_debugger
    # Once: the next is one.
    trap_owed(line)
    assert line.answers == [Halted(5, SHADOW)]


def test_a_breakpoint_that_is_hit_at_the_end_of_an_owed_step_is_told() -> None:
    line = owing_line()
    line.client.resume(GO, line.answers.append)
    line.exchange()
    line.kernel.current = CPUS[0]
    line.kernel.trap(TRAP.address)
    line.exchange()
    assert line.answers == [MET]


def test_a_kernel_that_owes_a_step_is_stayed_with_until_it_was_made() -> None:
    line = owing_line()
    assert line.ask(line.client.remove, TRAP) is None
    line.answers.clear()
    line.client.detach(line.answers.append)
    line.exchange()
    assert line.answers == []
    trap_owed(line)
    assert line.answers == [None]
    assert not line.kernel.in_debugger
    assert b"D" not in line.kernel.seen


def test_a_kernel_whose_owed_step_does_not_come_is_left_in_time() -> None:
    line = owing_line()
    assert line.ask(line.client.remove, TRAP) is None
    line.answers.clear()
    line.client.detach(line.answers.append)
    line.exchange()
    assert line.client.deadline == OWED_SECONDS
    line.client.now = OWED_SECONDS
    line.client.expire()
    assert line.answers == [None]


def test_a_kernel_that_holds_nothing_is_left_by_a_continue() -> None:
    line = Line().connect()
    assert line.ask(line.client.detach) is None
    assert not line.kernel.in_debugger
    # It reports its next stop by itself then, and knows which breakpoints were removed.
    assert line.kernel.connected
    assert b"D" not in line.kernel.seen


def test_a_line_lost_before_a_kernel_took_the_last_continue_is_told() -> None:
    line = Line().connect()
    line.client.detach(line.answers.append)
    line.client.closed("the line is gone")
    assert "the line is gone" in str(error(line.answers[-1]))


def test_a_program_counter_that_cannot_be_put_back_is_told() -> None:
    line = running_line(TRAP)
    line.kernel.is_read_only = True
    line.kernel.trap(TRAP.address)
    line.exchange()
    (told,) = line.answers
    assert (told.signal, told.thread, told.reason) == (5, SHADOW, None)
    assert "could not be put back" in told.words


@pytest.mark.parametrize("packets", [0, 1, 2])
def test_a_line_lost_while_the_program_counter_is_put_back_ends_the_resume_once(packets: int) -> None:
    line = caught(running_line(TRAP))
    for _ in range(packets):
        line.kernel.receive(line.client.take_output())
        said = bytes(line.kernel.output)
        line.kernel.output.clear()
        line.client.receive(said)
    assert line.answers == []
    line.client.closed("the line is gone")
    assert [type(one) for one in line.answers] == [Ended]
    assert not line.client.is_resuming
    assert line.client.state is State.CLOSED
    # The next connection begins anew; nothing of the last one is told on it.
    line.answers.clear()
    line.kernel.output.clear()
    line.connect(running=False)
    line.exchange()
    # The kernel gave its stop up for the question, which it lost.
    line.client.now += REFUSED_SECONDS
    line.client.expire()
    line.exchange()
    assert line.answers == [Halted(5, SHADOW)]


def test_an_interrupt_while_the_program_counter_is_put_back_breaks_in_nowhere() -> None:
    line = caught(running_line(TRAP))
    line.kernel.break_in = lambda: pytest.fail("broken into while it stands")  # type: ignore[method-assign]
    line.client.interrupt()
    line.exchange()
    assert line.answers == [MET]
    assert not line.client.interrupt_sent


def test_who_is_told_of_a_breakpoint_may_leave_at_once() -> None:
    line = Line().connect()
    assert line.ask(line.client.insert, TRAP) is None
    line.answers.clear()
    left: list[Any] = []

    def leave(stop: Any) -> None:
        line.answers.append(stop)
        line.client.remove(TRAP, left.append)
        line.client.detach(left.append)

    line.client.resume(GO, leave)
    line.exchange()
    line.kernel.trap(TRAP.address)
    line.exchange()
    assert line.answers == [MET]
    assert left == [None, None]
    assert line.kernel.program_counter == TRAP.address
    assert not line.kernel.in_debugger
    assert not line.kernel.breakpoints


# ── another relay ───────────────────────────────────────────────────────────────────────────────────────────


def served() -> tuple[StubClient, Server, PlainTarget, Callable[[], None]]:
    """A client on our own server half, on a target that is memory and registers."""
    target = PlainTarget()
    server = Server(target, lambda command, done: done(f"you said {command}\n"))
    words: list[str] = []
    client = StubClient(RELAY, words.append)

    def exchange() -> None:
        for _ in range(1000):
            data, said = client.take_output(), server.take_output()
            if not data and not said:
                return
            server.receive(data)
            client.receive(said)
        raise AssertionError("it never ends")

    return client, server, target, exchange


def test_another_relay_is_asked_in_its_own_modern_words() -> None:
    client, _, target, exchange = served()
    answers: list[Any] = []
    client.connected(answers.append)
    exchange()
    assert answers == [Halted(5, ONE)]
    answers.clear()
    client.read_memory(ONE, 0x1000, 70000, answers.append)
    client.list_threads(answers.append)
    client.monitor("status", answers.append)
    client.write_memory(ONE, 0x2000, bytes(range(256)), answers.append)
    exchange()
    data, threads, said, written = answers
    assert data == memory_at(0x1000, 70000)
    assert threads == target.threads
    assert said == "you said status\n"
    assert written is None
    assert ("M", ONE, 0x2000, bytes(range(256))) in target.calls
    client.resume((Action(Motion.STEP, ONE, (0x10, 0x20)), Action(Motion.CONTINUE)), answers.append)
    exchange()
    assert target.calls[-1][0] == "resume"
    target.halt(Halted(5, TWO))
    exchange()
    assert answers[-1] == Halted(5, TWO)


def test_a_stub_s_words_are_no_answer(bench: Bench) -> None:
    bench.client.read_registers(ONE, bench.answers.append)
    bench.client.receive(packet(b"O" + b"hello".hex().encode()))
    assert bench.words == ["hello"]
    bench.exchange()
    assert bench.answers[-1] == TEXT


def test_what_a_command_prints_has_a_limit(bench: Bench) -> None:
    bench.client.monitor("help", bench.answers.append)
    printed = packet(b"O" + b"41" * 200_000)
    for _ in range(5):
        bench.client.receive(printed)
    with pytest.raises(RemoteProtocolError, match="printed more than"):
        bench.client.receive(printed)
