"""The server half: what debuggers get for what they send, in which order, and how it ends."""

from __future__ import annotations

import inspect
import re
import sys
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
from rsp.stub import memory_at, packet
from rsp.target import REGISTERS, PlainTarget

from gdbstubs.errors import EBUSY, EIO, EPERM, LinkFailed, RemoteProtocolError, TargetError
from gdbstubs.ordering import MOST_PENDING
from gdbstubs.packets import LETTERS, NAMES, Malformed, Row, find
from gdbstubs.rights import Right
from gdbstubs.server import MOST_HELD, PACKET_SIZE, Server
from gdbstubs.target import Action, Breakpoint, BreakpointKind, Ended, Halted, Motion, ThreadId
from gdbstubs.wire import escape

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


@pytest.mark.parametrize("payload", [b"vCont;s:1", b"vCont;x"])
def test_resumes_that_waited_and_are_refused_at_once_do_not_pile_up(payload: bytes) -> None:
    session = Session()
    session.send(b"QStartNoAckMode", b"vCont;c", *[payload] * MOST_HELD)
    session.target.refusal = TargetError(EBUSY, "no")
    room = (
        len(inspect.stack()) + 60
    )  # frames that handling all of them may take, far fewer than there are packets
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(room)
    try:
        session.target.halt(Halted(5, ONE))
    finally:
        sys.setrecursionlimit(limit)
    session.flush()
    assert [reply[:3] for reply in session.debugger.replies if reply[:1] == b"T"] == [b"T05"] + [
        b"T02"
    ] * MOST_HELD


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
    "?": b"?", "C": b"C05", "D": b"D;1", "G": b"G00", "H": b"Hg1", "M": b"M1000,1:00", "P": b"P0=00", "S": b"S05",
    "T": b"T1", "X": b"X1000,1:a", "Z": b"Z0,1000,1", "b": b"bs", "c": b"c", "g": b"g", "k": b"k", "m": b"m1000,4",
    "p": b"p0", "s": b"s", "x": b"x1000,4", "z": b"z0,1000,1",
    "QEnableErrorStrings": b"QEnableErrorStrings", "QNonStop": b"QNonStop:1", "QStartNoAckMode": b"QStartNoAckMode",
    "qAttached": b"qAttached", "qC": b"qC", "qCRC": b"qCRC:1000,4", "qHostInfo": b"qHostInfo",
    "qProcessInfo": b"qProcessInfo", "qRcmd": b"qRcmd,68656c70", "qSearch": b"qSearch:memory:1000;100;zzz",
    "qSupported": b"qSupported", "qSymbol": b"qSymbol::", "qThreadExtraInfo": b"qThreadExtraInfo,1",
    "qXfer": b"qXfer:features:read:target.xml:0,1000", "qfThreadInfo": b"qfThreadInfo", "qsThreadInfo": b"qsThreadInfo",
    "vCont": b"vCont;s:1;c", "vCont?": b"vCont?", "vKill": b"vKill;1",
    "vFile": b"vFile:open:2f,0,0",
}  # fmt: skip

GREETINGS = {
    "gdb 13": [b"qSupported:swbreak+;xmlRegisters=i386"],
    "gdb 18": [b"qSupported:swbreak+;error-message+;xmlRegisters=i386"],
    "lldb": [b"qSupported:xmlRegisters=i386,arm,mips,arc;swbreak+", b"QEnableErrorStrings"],
}

WHY = "the guest has run since stop 3"

NEVER_REFUSED = {
    "QEnableErrorStrings", "QStartNoAckMode", "qAttached", "qC", "qSymbol", "qsThreadInfo", "vCont?", "H", "D", "k",
    "qRcmd", "T", "qfThreadInfo", "vFile",
}  # fmt: skip
"""What is answered by the session itself, or must not be an error: a thread that gdb asks for stays alive."""

SILENT = {"qHostInfo", "qProcessInfo", "qSearch", "qCRC"}
"""What gets the empty reply where it cannot be answered: the debugger then does without."""


def greeted(name: str, right: Right = Right.CONTROLLER, **more: Any) -> Session:
    session = Session(right, **more)
    session.send(*GREETINGS[name], b"?")
    return session


def usable(session: Session) -> None:
    """It is answered as before, and hears what was kept for it."""
    session.target.refusal = None
    assert session.send(b"qAttached", b"m1000,4")[-2:] == [b"1", memory_at(0x1000, 4).hex().encode()]
    session.send(b"qRcmd,61")
    assert session.debugger.answered[-1][1] == b"OK"


def seen(session: Session, reply: bytes) -> str:
    """What the user reads of a refusal, now or by the next `monitor` command."""
    text = "".join(session.debugger.words)
    if reply.startswith((b"E.", b"kbridge: ")):
        text += reply.decode()
    return text


def rows() -> dict[str, Row]:
    return {chr(letter): row for letter, row in LETTERS.items()} | {
        name.decode(): row for name, row in NAMES.items()
    }


def test_each_row_has_an_example() -> None:
    assert set(EXAMPLES) == set(rows())


@pytest.mark.parametrize("debugger", GREETINGS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_the_target_refuses_is_told_as_this_debugger_understands_it(name: str, debugger: str) -> None:
    session = greeted(debugger)
    session.target.refusal = TargetError(EBUSY, WHY)
    if name == "k":
        session.server.receive(packet(b"k"))
        assert session.server.finished
        return
    session.send(EXAMPLES[name])
    reply = session.debugger.answered[-1][1]
    if name == "D":
        assert reply == b"OK"
        assert session.server.finished
    elif name in ("?", "qSupported"):
        # Whoever is refused these listens for ever, or has nothing to work on: it is let go at its next packet.
        assert reply[:1] == b"E"
        session.server.receive(packet(b"g"))
        assert session.server.finished
    elif name in NEVER_REFUSED:
        assert reply[:1] != b"E"
        usable(session)
    elif name in SILENT:
        assert reply == b""
        usable(session)
    else:
        why = {"vKill": "does not kill", "QNonStop": "non-stop mode is not served"}.get(name, WHY)
        form = refusal_form(name, debugger)
        assert re.fullmatch(form, reply), reply
        usable(session)
        assert why in seen(session, reply)
        if debugger == "lldb" and name not in (*RESUMING, "qThreadExtraInfo"):
            assert why in bytes.fromhex(reply[4:].decode()).decode()


RESUMING = ("C", "S", "b", "c", "s", "vCont")


def refusal_form(name: str, debugger: str) -> bytes:
    """What stands in the table of docs/protocol-notes.md, said once more."""
    if name in RESUMING:
        return rb"T02thread:1;"
    if name == "qThreadExtraInfo":
        return rb""
    if debugger == "lldb":
        return rb"E[0-9a-f]{2};([0-9a-f]{2})+"
    if name in ("g", "G", "p", "P", "qXfer", "QNonStop"):
        return rb"E\.[^#$}*]+"
    if name == "vKill":
        return rb"E01"
    return rb"E[0-9a-f]{2}"


@pytest.mark.parametrize("debugger", GREETINGS)
def test_hardware_breakpoints_are_refused_in_words_where_they_are_read(debugger: str) -> None:
    session = greeted(debugger)
    session.target.refusal = TargetError(EBUSY, WHY)
    [reply] = session.send(b"Z1,1000,1")
    assert {"gdb 13": rb"E10", "gdb 18": b"E." + WHY.encode()}.get(debugger, reply) == reply
    usable(session)
    assert WHY in seen(session, reply)


@pytest.mark.parametrize("debugger", GREETINGS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_observer_is_refused_what_writes_and_nothing_else(name: str, debugger: str) -> None:
    session = greeted(debugger, Right.OBSERVER)
    before = len(session.target.calls)
    if name == "k":
        return
    replies = session.send(EXAMPLES[name])
    if rows()[name].right is Right.OBSERVER:
        if name in RESUMING:
            assert session.target.calls[-1][0] == "resume"
            session.target.halt(TargetError(EPERM, "this session observes"))
            replies = session.flush()
            assert replies[-1] == b"T02thread:1;"
        assert not any(
            b"observes" in reply or reply == b"E%02x" % EPERM for reply in replies if name != "vKill"
        )
    else:
        assert session.target.calls[before:] == []
        assert re.fullmatch(refusal_form(name, debugger), replies[0])
        usable(session)
        assert "this session observes" in seen(session, replies[0])
    if name != "D":
        usable(session)


@pytest.mark.parametrize("debugger", GREETINGS)
@pytest.mark.parametrize("right", Right)
def test_whoever_gains_or_loses_control_is_judged_by_what_it_has_now(debugger: str, right: Right) -> None:
    session = greeted(debugger, right)
    session.target.right = Right.CONTROLLER
    assert session.send(b"M1000,1:00") == [b"OK"]
    session.target.right = Right.OBSERVER
    assert session.send(b"M1000,1:00")[0][:3] == b"E01"
    assert session.send(b"X1000,0:") == [b"OK"]  # gdb asks by this whether binary writes are known


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 48), st.sampled_from(sorted(GREETINGS)), st.sampled_from(list(Right)))
def test_what_is_malformed_is_refused_and_the_session_goes_on(seed: int, debugger: str, right: Right) -> None:
    chance = Random(seed)
    session = greeted(debugger, right)
    payload = bytes(byte for byte in grammar.mutated(chance, grammar.request(chance)) if byte not in b"$#")
    found = find(payload)
    try:
        if found is not None:
            found[0].parse(found[1])
            return
    except (Malformed, RemoteProtocolError):
        pass
    session.send(payload)
    assert not session.server.waiting
    assert not session.debugger.asked
    calls = len(session.target.calls)
    assert session.send(b"qAttached") == [b"1"]
    assert len(session.target.calls) == calls


@pytest.mark.parametrize("payload", [b"vCont;x", b"vCont;r20,10:1", b"c1000", b"s1000", b"b9600", b"vCont;t"])
@pytest.mark.parametrize("debugger", GREETINGS)
def test_a_resume_that_is_not_understood_is_words_and_a_stop(payload: bytes, debugger: str) -> None:
    session = greeted(debugger)
    assert session.send(payload)[-1] == b"T02thread:1;"
    assert "malformed" in "".join(session.debugger.words)
    assert session.target.calls[-1][0] != "resume"
    usable(session)


def test_a_step_that_lldb_repeats_waits_after_it_was_refused_once() -> None:
    session = greeted("lldb", Right.OBSERVER)
    no = TargetError(EPERM, "this session observes")
    session.send(b"vCont;s:1")
    session.target.halt(no)
    assert session.flush()[-1] == b"T02thread:1;"
    for _ in range(2):  # interrupted, it is as it was
        session.send(b"vCont;s:1")
        assert session.target.calls[-1] == ("resume", (Action(Motion.CONTINUE),))
        assert "waits for the next stop" in session.debugger.words[-1]
        session.target.halt(Halted(2, ONE))
        session.flush()
    session.send(b"vCont;s:1")
    session.target.halt(Halted(5, ONE))  # the controller's stop: its step is over
    session.flush()
    session.send(b"vCont;s:1")
    assert session.target.calls[-1] == ("resume", (Action(Motion.STEP, ONE),))
    session.target.halt(no)
    session.target.right = Right.CONTROLLER
    session.send(b"vCont;s:1")
    assert session.target.calls[-1] == ("resume", (Action(Motion.STEP, ONE),))


def test_threads_that_cannot_be_listed_are_those_that_were_known() -> None:
    session = greeted("lldb")
    session.target.refusal = TargetError(EBUSY, WHY)
    assert session.send(b"qfThreadInfo", b"qsThreadInfo") == [b"m1", b"l"]
    session.target.refusal = None
    assert session.send(b"qfThreadInfo", b"qsThreadInfo") == [b"m1,2", b"l"]
    session.target.refusal = TargetError(EBUSY, WHY)
    assert session.send(b"qfThreadInfo", b"qsThreadInfo") == [b"m1,2", b"l"]
    [document] = session.send(b"qXfer:threads:read::0,1000")
    assert document.count(b"<thread ") == 2
    assert b"running" not in document
    session.target.refusal, session.target.threads = None, ()
    assert session.send(b"qfThreadInfo", b"qsThreadInfo") == [b"m1,2", b"l"]
    usable(session)
    assert WHY in "".join(session.debugger.words)


@pytest.mark.parametrize("debugger", ["gdb 13", "gdb 18"])
def test_a_step_of_gdb_is_refused_each_time(debugger: str) -> None:
    session = greeted(debugger, Right.OBSERVER)
    for _ in range(2):
        session.send(b"vCont;s:1")
        assert session.target.calls[-1] == ("resume", (Action(Motion.STEP, ONE),))
        session.target.halt(TargetError(EPERM, "this session observes"))
        session.flush()


def test_lldb_is_told_what_its_kill_did() -> None:
    session = greeted("lldb")
    assert session.send(b"k") == [b"kbridge: a debugger does not kill a guest: this session has left it"]
    assert session.server.finished
    assert "detach" not in [call[0] for call in session.target.calls]


@pytest.mark.parametrize("debugger", GREETINGS)
def test_what_is_not_mapped_is_not_told_twice(debugger: str) -> None:
    session = greeted(debugger)
    session.send(b"m0,8", b"x0,8", b"qRcmd,61")
    assert "nothing there" not in "".join(session.debugger.words)


# ── what is announced, and to whom ──────────────────────────────────────────────────────────────────────────


def test_ways_backwards_are_announced_where_there_are_any() -> None:
    for reverses in (False, True):
        session = Session()
        session.target.reverses = reverses
        [reply] = session.send(b"qSupported")
        assert (b"ReverseStep+;ReverseContinue+" in reply) is reverses
    session.send(b"bs")
    assert session.target.calls[-1] == ("resume", (Action(Motion.REVERSE_STEP),))
    session.target.halt(Halted(5, ONE, ("replaylog", "begin")))
    assert session.flush() == [b"T05thread:1;replaylog:begin;"]


def test_a_range_is_stepped_as_one_resume() -> None:
    session = Session()
    session.send(b"vCont;r1000,1010:1")
    assert session.target.calls[-1] == ("resume", (Action(Motion.STEP, ONE, (0x1000, 0x1010)),))


@pytest.mark.parametrize("debugger", GREETINGS)
def test_binary_memory_has_its_prefix_where_that_was_announced(debugger: str) -> None:
    session = Session()
    [reply, *_] = session.send(*GREETINGS[debugger])
    announced = b"binary-upload+" in reply.split(b";")
    assert announced is (debugger != "lldb")
    [data] = session.send(b"x1000,4")
    assert data == (b"b" if announced else b"") + memory_at(0x1000, 4)
    assert session.send(b"x0,0") == [b"OK"]
    [unmapped] = session.send(b"x0,8")
    assert unmapped[:3] == b"E0e"


@pytest.mark.parametrize("memory", [b"OK", b"E01", b"E0e;61", b"EFF"])
def test_bare_memory_is_never_taken_for_a_reply(memory: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    session = greeted("lldb")
    monkeypatch.setattr(
        session.target, "read_memory", lambda thread, address, length, done: done(memory[:length])
    )
    assert session.send(b"x1000,%x" % len(memory)) == [memory[:1]]
    assert session.send(b"x1000,1") == [memory[:1]]


def test_a_host_is_described_only_where_its_architecture_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    [host] = session.send(b"qHostInfo")
    assert dict(one.split(b":") for one in host.split(b";") if one) == {
        b"triple": b"x86_64-unknown-linux-gnu".hex().encode(), b"ptrsize": b"8", b"endian": b"little",
    }  # fmt: skip
    for description in (None, b"<architecture>aarch64</architecture>", b"<target/>"):
        monkeypatch.setattr("rsp.target.DESCRIPTION", description)
        assert session.send(b"qHostInfo", b"qProcessInfo") == [b"", b""]


def test_registers_that_are_not_there_are_never_an_empty_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    monkeypatch.setattr(session.target, "read_registers", lambda thread, done: done(b""))
    monkeypatch.setattr(session.target, "read_register", lambda thread, number, done: done(b""))
    for reply in session.send(b"g", b"p0"):
        assert reply == b"E.no registers are available now"
    monkeypatch.setattr(session.target, "read_registers", lambda thread, done: done(b"x" * 16))
    assert session.send(b"g") == [b"x" * 16]


def test_an_observer_of_a_running_guest_gets_t00() -> None:
    session = Session(Right.OBSERVER)
    session.target.stop = Halted(0, ONE)
    assert session.send(b"?") == [b"T00thread:1;"]


# ── memory that is searched ─────────────────────────────────────────────────────────────────────────────────


def test_memory_is_searched_and_summed() -> None:
    session = Session()
    pattern = memory_at(0x5432, 9)
    first = memory_at(0x1000, 0x10000).index(pattern) + 0x1000
    assert session.send(b"qSearch:memory:1000;10000;" + escape(pattern)) == [b"1,%x" % first]
    assert session.send(b"qSearch:memory:1000;100;zzzz") == [b"0"]
    assert session.send(b"qCRC:1000,9") == [b"C%x" % crc(memory_at(0x1000, 9))]


def crc(data: bytes) -> int:
    """GDB's CRC-32, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value & 0x80000000 else 0)
    return value


def test_a_search_that_fails_is_left_to_gdb_the_first_time_and_told_later() -> None:
    session = Session()
    assert session.send(b"qSearch:memory:ff000;10000;zzzz") == [b""]
    assert session.send(b"qCRC:ff000,10000") == [b""]
    session.send(b"qSearch:memory:1000;100;zzzz", b"qCRC:1000,4")
    [reply] = session.send(b"qSearch:memory:ff000;10000;zzzz")
    assert reply == b"kbridge: memory cannot be read at 0x100000: nothing there"
    assert session.send(b"qCRC:ff000,10000") == [b"E0e"]
    usable(session)


def test_one_search_at_a_time_with_one_read_under_way() -> None:
    session = Session(slow=True)
    assert session.send(b"qSearch:memory:1000;8000;zzzz") == []
    assert len(session.target.pending) == 1
    session.send(b"qSearch:memory:1000;8000;zzzz", b"qAttached")
    assert session.debugger.replies == []
    while session.target.pending:
        assert len(session.target.pending) == 1
        session.target.answer()
    replies = session.flush()
    assert replies[0] == b"0"
    assert replies[1] == b"kbridge: another search is under way"
    assert replies[2] == b"1"
    assert session.send(b"qSearch:memory:1000;8000;zzzz") == []
    assert len(session.target.pending) == 1


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
        session.send(grammar.any_resume(chance) if chance.randrange(5) == 0 else grammar.request(chance))
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
