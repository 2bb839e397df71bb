"""The server half: what debuggers get for what they send, in which order, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rsp import grammar
from rsp.debugger import Debugger
from rsp.framing import expand
from rsp.stub import REGISTERS, memory_at, packet
from rsp.target import PlainTarget

from gdbstubs.errors import EBUSY, EIO, EPERM, LinkFailed, RemoteProtocolError, TargetError
from gdbstubs.packets import LETTERS, NAMES
from gdbstubs.rights import Right
from gdbstubs.server import MOST_HELD, MOST_PENDING, PACKET_SIZE, Server
from gdbstubs.target import Action, Breakpoint, BreakpointKind, Ended, Halted, Motion, ThreadId

ONE, TWO = ThreadId(1), ThreadId(2)


def _monitor(command: str, done: Callable[[str], None]) -> None:
    done(f"did {command}\n")


class Session:
    """A server on a plain target, and a strict debugger's end."""

    def __init__(
        self, right: Right = Right.CONTROLLER, *, slow: bool = False, compress: bool = False
    ) -> None:
        self.target = PlainTarget(right, slow=slow)
        self.server = Server(self.target, _monitor, compress=compress)
        self.debugger = Debugger()

    def send(self, *payloads: bytes) -> list[bytes]:
        """Send requests in one write and give the replies that came at once."""
        return self.raw(b"".join(self.debugger.ask(payload) for payload in payloads))

    def raw(self, data: bytes) -> list[bytes]:
        count = len(self.debugger.replies)
        self.server.receive(data)
        self.flush()
        return self.debugger.replies[count:]

    def flush(self) -> list[bytes]:
        """Deliver what the server has to say."""
        count = len(self.debugger.replies)
        while output := self.server.take_output():
            acks = self.debugger.receive(output)
            if acks and not self.server.finished:
                self.server.receive(acks)
        return self.debugger.replies[count:]


TRANSCRIPTS = Path(__file__).parent / "rsp" / "sessions"
"""What debuggers send at first (`>`) and what they get (`<`) from a plain target; the checksum is left out."""


def wire(text: str) -> bytes:
    return re.sub(r"\\x(..)|\\n", lambda m: chr(int(m[1], 16)) if m[1] else "\n", text).encode("latin-1")


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    session = Session()
    lines = path.read_text(encoding="ascii").splitlines()
    requests = [index for index, line in enumerate(lines) if line.startswith(">")]
    for start, end in zip(requests, [*requests[1:], len(lines)], strict=True):
        expected = [wire(line[3:]) for line in lines[start + 1 : end]]
        assert session.send(wire(lines[start][3:])) == expected, lines[start]
    assert session.debugger.acks


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 1 << 32))
def test_replies_keep_the_order_of_the_requests(choice: list[int], seed: int) -> None:
    session, chance = Session(slow=True), Random(seed)
    kinds = [b"g", b"m1000,4", b"qAttached", b"Z0,1000,1", b"p0", b"unknown"]
    replies = [
        REGISTERS.hex().encode(),
        memory_at(0x1000, 4).hex().encode(),
        b"1",
        b"OK",
        REGISTERS[:8].hex().encode(),
        b"",
    ]
    session.send(*(kinds[one] for one in choice))
    while session.target.pending:
        session.target.answer(chance.randrange(len(session.target.pending)))
        session.flush()
    assert session.debugger.replies == [replies[one] for one in choice]


def test_words_and_stops_do_not_overtake_replies() -> None:
    session = Session(slow=True)
    assert session.send(b"m1000,4", b"M0,1:00", b"vCont;c") == []
    session.target.answer(1)  # refused, in words that this packet cannot carry
    session.target.halt(Halted(5, ONE))
    assert session.flush() == []
    session.target.answer()
    replies = session.flush()
    assert replies[0] == memory_at(0x1000, 4).hex().encode()
    assert replies[1] == b"E0e"
    assert replies[2].startswith(b"O")
    assert replies[3] == b"T05thread:1;"


def test_more_pending_requests_than_allowed_end_the_connection() -> None:
    session = Session(slow=True)
    for _ in range(MOST_PENDING):
        session.server.receive(packet(b"g"))
    with pytest.raises(LinkFailed, match=f"more than {MOST_PENDING} requests"):
        session.server.receive(packet(b"g"))


# ── running ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_packets_sent_while_it_runs_wait_for_the_stop() -> None:
    session = Session()
    assert session.send(b"vCont;c", b"g", b"vCont;s:1", b"qC") == []
    session.target.halt(Halted(5, TWO))
    assert session.flush() == [b"T05thread:2;", REGISTERS.hex().encode()]
    session.target.halt(Halted(5, ONE))
    assert session.flush() == [b"T05thread:1;", b"QC1"]


def test_too_many_packets_while_it_runs_end_the_connection() -> None:
    session = Session()
    session.send(b"vCont;c")
    for _ in range(MOST_HELD):
        session.server.receive(packet(b"g"))
    with pytest.raises(RemoteProtocolError, match=f"more than {MOST_HELD} packets"):
        session.server.receive(packet(b"g"))


def test_an_interrupt_reaches_a_running_target_only() -> None:
    session = Session()
    session.raw(b"\x03")
    assert session.target.interrupts == 0
    session.send(b"vCont;c")
    session.raw(b"\x03")
    assert session.target.interrupts == 1
    session.target.halt(Halted(2, ONE))
    assert session.flush() == [b"T02thread:1;"]


def test_words_are_shown_at_once_while_it_runs_and_else_at_the_resume() -> None:
    session = Session()
    session.server.say("one")
    session.server.say("one")
    assert session.flush() == []
    session.send(b"vCont;c")
    session.server.say("two")
    session.flush()
    assert session.debugger.words == ["kbridge: one\n", "kbridge: two\n"]
    session.target.halt(Halted(5, ONE, words="three"))
    session.flush()
    assert session.debugger.words == ["kbridge: one\n", "kbridge: two\n", "kbridge: three\n"]
    assert session.debugger.replies[-1] == b"T05thread:1;"


def test_words_that_a_packet_cannot_carry_are_told_by_the_next_monitor_command() -> None:
    session = Session()
    assert session.send(b"M0,1:00") == [b"E0e"]
    session.send(b"qRcmd,61")
    assert "".join(session.debugger.words) == "nothing there\ndid a\n"


@pytest.mark.parametrize(
    ("payload", "actions"),
    [
        (b"c", (Action(Motion.CONTINUE),)),
        (b"s", (Action(Motion.STEP, TWO), Action(Motion.CONTINUE))),
        (b"S05", (Action(Motion.STEP, TWO), Action(Motion.CONTINUE))),
        (b"vCont;s:1;c", (Action(Motion.STEP, ONE), Action(Motion.CONTINUE))),
    ],
)
def test_old_resumes_act_on_the_thread_of_hc(payload: bytes, actions: tuple[Action, ...]) -> None:
    session = Session()
    session.send(b"?", b"Hc2", payload)
    assert session.target.calls[-1] == ("resume", actions)


def test_reads_go_to_the_thread_of_hg_until_it_runs_then_to_the_one_that_stopped() -> None:
    session = Session()
    session.send(b"?", b"Hg2", b"g", b"vCont;c")
    session.target.halt(Halted(5, ONE))
    session.send(b"g", b"Hg0", b"g")
    assert [call for call in session.target.calls if call[0] == "g"] == [("g", TWO), ("g", ONE), ("g", ONE)]


def test_reasons_are_told_to_who_announced_them() -> None:
    for features, reply in ((b"", b"T05thread:1;"), (b":swbreak+", b"T05thread:1;swbreak:;")):
        session = Session()
        session.send(b"qSupported" + features, b"c")
        session.target.halt(Halted(5, ONE, ("swbreak", "")))
        assert session.flush() == [reply]
    session.send(b"c")
    session.target.halt(Halted(5, ONE, ("watch", "1000")))
    assert session.flush() == [b"T05thread:1;watch:1000;"]


def test_a_refused_resume_is_words_and_a_stop_that_every_debugger_understands() -> None:
    session = Session()
    session.send(b"?", b"vCont;s:1")
    session.target.halt(TargetError(EBUSY, "somebody else is at it"))
    replies = session.flush()
    assert session.debugger.words == ["kbridge: somebody else is at it\n"]
    assert replies[-1] == b"T02thread:1;"


RESUMED = st.lists(
    st.one_of(
        st.just(Halted(5, ONE)),
        st.just(Halted(2, None, words="words")),
        st.just(TargetError(EIO, "no")),
        st.just(TargetError(EIO)),
    ),
    max_size=8,
)


@given(RESUMED, st.booleans())
def test_one_stop_reply_for_each_resume(stops: list[Any], pipelined: bool) -> None:
    session = Session()
    if pipelined:
        session.send(*[b"vCont;c"] * len(stops))
    for stop in stops:
        if not pipelined:
            session.send(b"vCont;c")
        before = len(session.debugger.answered)
        session.target.halt(stop)
        session.flush()
        assert len(session.debugger.answered) == before + 1
        assert session.debugger.answered[-1][1][:1] in (b"T", b"S")


# ── endings ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stop", "reply"), [(Ended(0), b"W00"), (Ended(), b"X09"), (Ended(words="gone"), b"X09")]
)
def test_a_target_that_ends_ends_the_session(stop: Ended, reply: bytes) -> None:
    session = Session()
    session.send(b"c", b"g")
    session.target.halt(stop)
    assert session.flush()[-1] == reply
    assert session.server.finished
    session.server.receive(packet(b"g") * 3)
    assert not re.search(rb"\$", session.server.take_output())


def test_nothing_is_answered_after_the_end() -> None:
    session = Session(slow=True)
    session.send(b"g", b"D", b"m1000,4")
    session.target.answer(1)
    assert session.server.finished
    session.server.receive(packet(b"qAttached"))
    while session.target.pending:
        session.target.answer()
    session.server.say("words")
    session.server.end("again")
    assert b"$" not in session.server.take_output()


def test_kill_leaves_and_is_not_answered() -> None:
    session = Session()
    session.server.receive(packet(b"k") + packet(b"g"))
    assert session.server.finished
    assert b"$" not in session.server.take_output()
    assert session.target.calls == []


def test_detaching_is_never_refused() -> None:
    session = Session()
    session.target.refusal = TargetError(EIO, "no")
    assert session.send(b"D") == [b"OK"]
    assert session.server.finished


def test_being_ended_tells_who_waits() -> None:
    session = Session()
    session.send(b"c")
    session.server.end("the relay stops")
    session.flush()
    assert session.debugger.words == ["kbridge: the relay stops\n"]
    assert session.debugger.replies[-1] == b"X09"
    assert session.server.finished


def test_who_is_refused_reads_why_and_is_let_go_at_its_next_packet() -> None:
    session = Session()
    session.target.refusal = TargetError(EBUSY, "web1 is being debugged by ada")
    assert session.send(b"qSupported:swbreak+") == [b"E.web1 is being debugged by ada"]
    assert not session.server.finished
    session.server.receive(packet(b"?"))
    assert session.server.finished
    assert b"$" not in session.server.take_output()


# ── what is not well-formed ─────────────────────────────────────────────────────────────────────────────────


def test_an_over_long_packet_is_refused_and_the_next_is_read() -> None:
    session = Session()
    session.debugger.asked.append(b"too long")
    assert session.raw(b"$" + b"a" * (PACKET_SIZE + 1) + b"#00") == [b"E16"]
    assert session.send(b"qAttached") == [b"1"]
    session.send(b"c")
    with pytest.raises(RemoteProtocolError, match="over-long"):
        session.server.receive(b"$" + b"a" * (PACKET_SIZE + 1))


def test_a_notification_of_a_debugger_breaks_the_protocol() -> None:
    with pytest.raises(RemoteProtocolError, match="no notifications"):
        Session().server.receive(b"%Stop#" + packet(b"Stop")[-2:])


def test_a_debugger_that_acknowledges_nothing_is_let_go_whoever_speaks() -> None:
    session = Session()
    session.server.receive(packet(b"c"))
    for number in range(3000):
        session.server.say(f"words {number}")
    assert session.server.finished
    assert "unacknowledged" in session.server.failed


def test_replies_are_compressed_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for compress, reply in ((True, b"0*~0*;"), (False, b"0" * 128)):
        session = Session(compress=compress)
        monkeypatch.setattr(session.target, "read_registers", lambda thread, done: done(b"0" * 128))
        session.server.receive(packet(b"g"))
        sent = session.server.take_output()
        payload = sent[2:-3]
        assert sent == b"+" + packet(payload)
        assert expand(payload, 128) == b"0" * 128
        assert len(payload) <= len(reply)


# ── rights ──────────────────────────────────────────────────────────────────────────────────────────────────

EXAMPLES = {
    "C": b"C05", "G": b"G00", "M": b"M1000,1:00", "P": b"P0=00", "S": b"S05", "X": b"X1000,1:a", "Z": b"Z0,1000,1",
    "c": b"c", "s": b"s", "z": b"z0,1000,1", "vCont": b"vCont;c", "vKill": b"vKill;1",
}  # fmt: skip


def test_an_observer_is_refused_what_acts() -> None:
    names = {chr(letter): row for letter, row in LETTERS.items()} | {
        name.decode(): row for name, row in NAMES.items()
    }
    acting = {name for name, row in names.items() if row.right is Right.CONTROLLER}
    assert acting == set(EXAMPLES)
    for name in sorted(acting):
        session = Session(Right.OBSERVER)
        replies = session.send(EXAMPLES[name])
        assert session.target.calls == [], name
        assert replies[0] == b"E%02x" % EPERM or replies[0].startswith(b"E.this session observes"), name


# ── anything ────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 1 << 48), st.integers(1, 40), st.booleans())
def test_anything_is_answered_or_ends_the_connection(seed: int, count: int, slow: bool) -> None:
    chance = Random(seed)
    target = PlainTarget(chance.choice(list(Right)), slow=slow)
    server = Server(target, _monitor)
    try:
        for _ in range(count):
            server.receive(
                grammar.garbage(chance) if chance.randrange(2) else packet(grammar.request(chance))
            )
            if target.stopped is not None and chance.randrange(2):
                target.halt(chance.choice((Halted(5, ONE), TargetError(EIO, "x"), Ended())))
            while target.pending and chance.randrange(3):
                target.answer(chance.randrange(len(target.pending)))
            server.take_output()
    except (RemoteProtocolError, LinkFailed):
        pass


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 1 << 48), st.integers(1, 30))
def test_every_request_gets_one_reply(seed: int, count: int) -> None:
    chance = Random(seed)
    session = Session(slow=bool(chance.randrange(2)))
    for _ in range(count):
        session.send(grammar.resume(chance) if chance.randrange(5) == 0 else grammar.request(chance))
        for _ in range(chance.randrange(3)):
            if session.target.pending:
                session.target.answer(chance.randrange(len(session.target.pending)))
    for _ in range(2 * count + 2):
        while session.target.pending:
            session.target.answer()
        if session.target.stopped is not None:
            session.target.halt(Halted(5, ONE))
        session.flush()
    assert not session.debugger.asked
    assert len(session.debugger.answered) == count + sum(
        request == b"QStartNoAckMode" for request, _ in session.debugger.answered
    )


def test_breakpoints_reach_the_target() -> None:
    session = Session()
    session.send(b"Z1,1000,1", b"z1,1000,1")
    place = Breakpoint(BreakpointKind.HARDWARE, 0x1000, 1)
    assert session.target.calls == [("Z", place), ("z", place)]
