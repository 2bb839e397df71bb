"""Packets in words: what people read in a trace."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdbstubs import packets, requests
from gdbstubs.conversation import MOST_OPEN, MOST_PACKET_BYTES, Conversation, Kind, Said, Side
from gdbstubs.decode import _REQUESTS, answered, asked, notified
from gdbstubs.wire import compress_run_length, escape, frame

D, S = Side.DEBUGGER, Side.STUB

REQUESTS = {
    b"mffffffff81000000,40": "read 64 bytes at ffffffff81000000",
    b"m1000,1": "read 1 byte at 1000",
    b"x1000,800": "read 2048 bytes at 1000",
    b"M1000,2:0102": "write 2 bytes at 1000",
    b"X1000,0:": "probe whether such writes are known (at 1000)",
    b"vCont;s:1;c": "step thread 1, others run",
    b"vCont;c": "run",
    b"vCont;s:p1.2": "step thread 2",
    b"vCont;r1000,1010:1;c": "step thread 1 while within 1000 to 1010, others run",
    b"c": "run",
    b"s": "step",
    b"bs": "step backwards",
    b"bc": "run backwards",
    b"Z0,ffffffff81000000,1": "insert a breakpoint at ffffffff81000000",
    b"Z1,1000,1": "insert a hardware breakpoint at 1000",
    b"z2,1000,8": "remove a write watchpoint on 8 bytes at 1000",
    b"Hgp1.1": "select thread 1 for registers and memory",
    b"Hc-1": "select all threads for resuming",
    b"Hg0": "select any thread for registers and memory",
    b"g": "read all registers",
    b"p10": "read register 16",
    b"P10=0011223344556677": "write register 16 (8 bytes)",
    b"?": "why does it stand still?",
    b"D": "detach",
    b"T1": "is there thread 1?",
    b"qRcmd,737461747573": "monitor status",
    b"qXfer:features:read:target.xml:0,1000": "read features target.xml: 4096 bytes from 0 on",
    b"qSupported:multiprocess+;swbreak+": "knows multiprocess+, swbreak+",
    b"vMustReplyEmpty": "how are unknown packets answered?",
    b"qTStatus": "does a trace experiment run?",
    b"QNonStop:1": "threads stop one by one",
    b"qSearch:memory:1000;200;abc": "search 512 bytes at 1000 for 3 bytes",
    b"m1000": "malformed: a length is missing",
    b"Mzz,1:00": "malformed: b'zz' is no hexadecimal number",
    b"\xff\x00": "",
}


@pytest.mark.parametrize("payload", REQUESTS, ids=repr)
def test_a_request_in_words(payload: bytes) -> None:
    assert asked(payload).words == REQUESTS[payload]


REPLIES = [
    (b"mffffffff81000000,4", b"0f1f4400", "4 bytes"),
    (b"m1000,8", b"0f1f4400", "4 of 8 bytes"),
    (b"m1000,11", b"4c696e75782076657273696f6e20362e31", '17 bytes: "Linux version 6.1"'),
    (b"x1000,4", b"b\x00}\x03\x01\x02", "4 bytes"),
    (b"x1000,3", b"O6b", "3 bytes"),
    (b"m1000,4", b"E0e", "refused: EFAULT (bad address)"),
    (b"m1000,4", b"E14", "refused: EFAULT (bad address)"),  # QEMU's decimal digits
    (b"M1000,1:00", b"E22", "refused: EINVAL (invalid argument)"),
    (b"m1000,4", b"Ecc", "refused: error 204"),
    (b"c", b"E.the controller is ann", "refused: the controller is ann"),
    (b"c", b"E01;6e6f", "refused: no"),
    (b"c", b"O6b6272696467653a20676f0a", 'says "kbridge: go"'),
    (b"c", b"T05thread:01;", "stopped: SIGTRAP, thread 1"),
    (
        b"c",
        b"T05thread:p01.02;watch:0000000081000000;",
        "stopped: SIGTRAP, thread 2, write watchpoint at 81000000",
    ),
    (b"c", b"T05swbreak:;10:0011;", "stopped: SIGTRAP, breakpoint, 1 register"),
    (b"?", b"S02", "stopped: SIGINT"),
    (b"?", b"T00", "stopped: no signal"),
    (b"c", b"W03", "the target ended with status 3"),
    (b"c", b"X09", "the target ended by SIGKILL"),
    (b"g", b"00112233xxxxxxxx", "8 bytes, 4 not available"),
    (b"Z0,1000,1", b"OK", "done"),
    (b"qC", b"QC1", "thread 1"),
    (b"qfThreadInfo", b"m1,2", "2 threads: 1, 2"),
    (b"qsThreadInfo", b"l", "no more threads"),
    (b"qThreadExtraInfo,1", b"4350552330", '"CPU#0"'),
    (b"qXfer:features:read:target.xml:0,10", b"m<xml", "4 bytes, more follow"),
    (b"qXfer:features:read:target.xml:10,10", b"l", "no more bytes"),
    (b"vCont?", b"vCont;c;s", "knows c, s"),
    (b"qAttached", b"1", "yes: detach when done"),
    (b"qRcmd,00", b"OK", "done"),
    (b"T9", b"E03", "refused: ESRCH (no such thread)"),
    (b"qTStatus", b"", "not known here"),
]


@pytest.mark.parametrize(("request_", "reply", "words"), REPLIES, ids=repr)
def test_a_reply_in_the_light_of_its_request(request_: bytes, reply: bytes, words: str) -> None:
    assert answered(reply, asked(request_)) == words


def test_a_reply_to_nobody_knows_what_is_read_by_its_looks() -> None:
    assert answered(b"T05thread:01;", None) == "stopped: SIGTRAP, thread 1"
    assert answered(b"00ff", None) == "2 bytes"
    assert answered(b"whatever", None) == ""


def test_a_stop_notification() -> None:
    assert notified(b"Stop:T05thread:01;") == "stopped: SIGTRAP, thread 1"


def test_every_kind_of_request_has_words() -> None:
    assert set(get_args(requests.Request)) == set(_REQUESTS)


# -- connections ---------------------------------------------------------------------------------------------


def heard(said: list[Said]) -> list[tuple[str, bytes, str]]:
    return [(one.kind.value, one.payload, one.words) for one in said]


def test_replies_find_their_requests_in_order() -> None:
    talk = Conversation()
    talk.feed(D, frame(b"m1000,4") + frame(b"g"))
    said = talk.feed(S, b"+" + frame(b"00112233") + frame(b"0011xxxx"))
    assert [one.words for one in said] == ["4 bytes", "4 bytes, 2 not available"]


def test_output_before_a_stop_does_not_answer() -> None:
    talk = Conversation()
    talk.feed(D, frame(b"vCont;c"))
    said = talk.feed(S, frame(b"O6869") + frame(b"T05thread:01;"))
    assert [one.words for one in said] == ['says "hi"', "stopped: SIGTRAP, thread 1"]


def test_a_kill_gets_no_reply_and_an_interrupt_is_none() -> None:
    talk = Conversation()
    assert heard(talk.feed(D, frame(b"k") + b"\x03")) == [
        ("packet", b"k", "kill"),
        ("interrupt", b"\x03", "interrupt"),
    ]
    talk.feed(D, frame(b"qC"))
    assert [one.words for one in talk.feed(S, frame(b"QC1"))] == ["thread 1"]


def test_a_packet_sent_again_answers_once() -> None:
    talk = Conversation()
    talk.feed(D, frame(b"m1000,1"))
    assert heard(talk.feed(S, b"-"))[0][0] == "nack"
    assert talk.feed(D, frame(b"m1000,1"))[0].words == "once more"
    talk.feed(D, frame(b"qC"))
    assert [one.words for one in talk.feed(S, frame(b"00") + frame(b"QC1"))] == ["1 byte", "thread 1"]


def test_a_new_connection_of_the_same_name_begins_anew() -> None:
    talk = Conversation()
    talk.feed(D, frame(b"vCont;c"))
    talk.feed(D, frame(b"qSupported:swbreak+"))
    assert talk.feed(S, frame(b"PacketSize=1000"))[0].words == "knows PacketSize=1000"


def test_a_record_that_begins_within_a_packet_is_read_from_the_next() -> None:
    talk = Conversation()
    tail = (frame(b"X1000,4:" + escape(b"\x03+-%")))[9:]
    assert talk.feed(D, b"\x00" + tail) == []
    assert [one.payload for one in talk.feed(D, frame(b"g"))] == [b"g"]


def test_runs_are_written_out_and_damage_is_told() -> None:
    talk = Conversation()
    talk.feed(D, frame(b"m1000,8"))
    said = talk.feed(S, frame(compress_run_length(b"0" * 16)) + b"$OK#00")
    assert heard(said) == [("packet", b"0" * 16, "8 bytes"), ("damaged", b"", "a damaged packet")]


def test_a_stop_that_nobody_asked_for_answers_nothing() -> None:
    talk = Conversation()
    talk.feed(D, frame(b"qSupported:swbreak+"))
    said = talk.feed(S, b"+" + frame(b"T02thread:01;") + frame(b"PacketSize=1000"))
    assert [one.words for one in said] == ["stopped: SIGINT, thread 1", "knows PacketSize=1000"]


def test_a_packet_that_was_cut_is_told_and_answers() -> None:
    talk = Conversation()
    talk.feed(D, frame(b"m1000,2000") + frame(b"qC") + frame(b"g"))
    said = talk.feed(S, b"$" + b"00" * 100, missing=16187)
    assert [one.kind for one in said] == [Kind.CUT]
    assert said[0].words == "16187 bytes more were not recorded; answers: read 8192 bytes at 1000"
    assert [one.words for one in talk.feed(S, frame(b"QC1"))] == ["thread 1"]
    # A packet of which pieces of several chunks are missing is one.
    assert talk.feed(S, b"$00") == []
    assert [one.kind for one in talk.feed(S, b"00", missing=5000)] == [Kind.CUT]
    assert talk.feed(S, b"00", missing=5000) == []
    assert talk.feed(S, b"00#00") == []
    talk.feed(D, frame(b"qC"))
    assert [one.words for one in talk.feed(S, frame(b"QC1"))] == ["thread 1"]


@given(st.lists(st.tuples(st.sampled_from(Side), st.binary(max_size=300), st.integers(0, 3))))
def test_any_bytes_are_read_without_an_exception(pieces: list[tuple[Side, bytes, int]]) -> None:
    talk = Conversation()
    for side, data, missing in pieces:
        for one in talk.feed(side, data, missing):
            assert one.words.isprintable()


_heads = st.sampled_from(
    [
        *(bytes([letter]) for letter in packets.LETTERS),
        *packets.NAMES,
        b"vFile:",
        b"E",
        b"T05",
        b"O",
        b"F",
        b"b",
    ]
)


@given(_heads, st.binary(max_size=60), _heads, st.binary(max_size=60))
def test_any_packet_is_one_line_of_bounded_length(
    head: bytes, rest: bytes, reply: bytes, more: bytes
) -> None:
    request = asked(head + rest)
    for words in (request.words, answered(reply + more, request), notified(b"Stop:" + more), notified(rest)):
        assert words.isprintable()
        assert len(words) < 1000


@given(
    st.lists(st.sampled_from([b"m1000,4", b"c", b"vCont;s:1", b"qC", b"\x03", b"g"]), max_size=8), st.data()
)
def test_the_words_do_not_depend_on_how_the_bytes_were_split(
    payloads: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(one if one == b"\x03" else frame(one) for one in payloads)
    whole = Conversation().feed(D, stream)
    talk, pieces, at = Conversation(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        pieces += talk.feed(D, stream[at : at + size])
        at += size
    assert pieces == whole


def test_memory_is_bounded() -> None:
    talk = Conversation()
    for _ in range(3 * MOST_OPEN):
        talk.feed(D, frame(b"m1000,4"))
    assert len(talk._open) == MOST_OPEN
    talk.feed(S, b"$")
    kinds = set()
    for _ in range(2 * MOST_PACKET_BYTES // 4096):
        kinds |= {one.kind for one in talk.feed(S, b"0" * 4096)}
    assert kinds == {Kind.OVERLONG}
    assert len(talk._framers[S]._kept) <= MOST_PACKET_BYTES + 4
