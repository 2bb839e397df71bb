"""Framing, against a model of its rules that takes one byte at a time; escaping and run lengths there and back."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rsp.framing import Model, Seen, expand
from rsp.stub import packet

from gdbstubs.errors import RemoteProtocolError
from gdbstubs.wire import (
    Control,
    Event,
    Framer,
    Notification,
    checksum,
    compress_run_length,
    escape,
    expand_run_length,
    frame,
    unescape,
)

LIMIT = 12

# Bytes that mean something, and few others: random bytes alone would hardly ever make a packet.
PIECES = st.one_of(
    st.sampled_from(
        [b"$", b"#", b"%", b"+", b"-", b"\x03", b"*", b"}", b"a", b"62", b"6", b"$a#61", b"%a#61", b"\x00"]
    ),
    st.binary(max_size=LIMIT + 3).map(packet),
    st.binary(max_size=LIMIT + 3).map(lambda payload: b"%" + packet(payload)[1:]),
    st.text("a* }~$%#+0123456789abcdef", max_size=LIMIT + 3).map(lambda text: packet(text.encode())),
    st.integers(1, 3 * LIMIT).map(lambda count: b"a" * count),
    st.binary(max_size=4),
)
STREAMS = st.lists(PIECES, max_size=12).map(b"".join)


def told(events: list[Event]) -> list[Seen]:
    names = {
        Control.ACK: "+",
        Control.NACK: "-",
        Control.INTERRUPT: "interrupt",
        Control.DAMAGED: "damaged",
        Control.OVERLONG: "overlong",
    }
    seen: list[Seen] = []
    for event in events:
        match event:
            case bytes():
                seen.append(("packet", event))
            case Notification(payload):
                seen.append(("notification", payload))
            case Control():
                seen.append((names[event], b""))
    return seen


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(edges)]


def kept(framer: Framer) -> int:
    return len(framer._kept)


@given(STREAMS, st.lists(st.integers(0, 400), max_size=8), st.booleans())
@example(b"$a$b", [2], False)
@example(b"%" + b"a" * 20 + b"$", [3], False)
@example(b"$a" + b"b" * 40 + b"#", [2], False)
@example(b"$a#$b#62", [3], False)
@example(b"$a#6$b#62", [4], False)
def test_framing_is_as_the_rules_say_however_the_stream_is_split(
    stream: bytes, cuts: list[int], runs: bool
) -> None:
    framer, model = Framer(LIMIT, runs=runs), Model(LIMIT, runs=runs)
    events: list[Event] = []
    for piece in split(stream, cuts):
        events += framer.feed(piece)
        model.feed(piece)
        # At every cut, not only at the end: an event that is late keeps a peer waiting.
        assert told(events) == model.seen
        assert kept(framer) <= LIMIT + 4
    whole = Framer(LIMIT, runs=runs)
    assert told(whole.feed(stream)) == model.seen
    assert whole.noise == framer.noise


@given(STREAMS, st.booleans())
def test_framing_byte_by_byte(stream: bytes, runs: bool) -> None:
    framer, model = Framer(LIMIT, runs=runs), Model(LIMIT, runs=runs)
    for byte in stream:
        event = told(framer.feed(bytes([byte])))
        before = len(model.seen)
        model.byte(byte)
        assert event == model.seen[before:]
        assert kept(framer) <= LIMIT + 4


@given(STREAMS, st.lists(st.integers(0, 400), max_size=8))
def test_noise_is_counted_as_the_rules_say(stream: bytes, cuts: list[int]) -> None:
    # A packet after the stream ends what the model still holds back.
    stream += b"$#00"
    framer, model = Framer(LIMIT), Model(LIMIT)
    for piece in split(stream, cuts):
        framer.feed(piece)
    model.feed(stream)
    assert framer.noise == model.noise


@given(
    st.lists(st.binary(max_size=200).filter(lambda data: not set(data) & set(b"$#")), max_size=8), st.data()
)
def test_what_is_framed_is_found_again(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    framer = Framer(200)
    found: list[Event] = []
    for piece in split(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=6))):
        found += framer.feed(piece)
    assert found == payloads
    assert framer.noise == 0


@given(st.binary(max_size=2000))
def test_checksum_is_the_sum(data: bytes) -> None:
    assert checksum(data) == sum(data) % 256
    assert checksum(b"\xff" * 5000 + data) == (255 * 5000 + sum(data)) % 256
    assert checksum(b"\x7f" * 5000) == 0x7F * 5000 % 256


def test_checksum_of_upper_case_digits_is_accepted() -> None:
    assert Framer(9).feed(b"$OK#9A") == [b"OK"]


@given(st.binary())
def test_escaping_and_back(data: bytes) -> None:
    escaped = escape(data)
    assert unescape(escaped) == data
    assert not set(escaped) & set(b"#$*")
    assert Framer(1 << 16, runs=True).feed(frame(escaped)) == [escaped]


@given(st.binary())
def test_unescape_gives_bytes_or_one_error(data: bytes) -> None:
    try:
        result = unescape(data)
    except RemoteProtocolError:
        assert data.endswith(b"}")
    else:
        # Two characters become one for each escape; nothing else changes.
        expected, position = bytearray(), 0
        while position < len(data):
            if data[position] == 0x7D:
                expected.append(data[position + 1] ^ 0x20)
                position += 2
            else:
                expected.append(data[position])
                position += 1
        assert result == bytes(expected)


RUNS = st.lists(st.tuples(st.sampled_from(b"0afx }"), st.integers(1, 230)), max_size=12).map(
    lambda runs: b"".join(bytes([byte]) * count for byte, count in runs)
)


@given(RUNS)
def test_run_lengths_there_and_back(payload: bytes) -> None:
    packed = compress_run_length(payload)
    assert len(packed) <= len(payload)
    assert expand_run_length(packed, len(payload)) == payload
    assert expand(packed, len(payload)) == payload


@pytest.mark.parametrize("count", range(1, 300))
def test_every_length_of_run(count: int) -> None:
    packed = compress_run_length(b"0" * count)
    assert expand(packed, 300) == b"0" * count
    assert not set(packed) & set(b"#$+-"), packed
    assert all(32 <= byte < 127 for byte in packed)
    # gdb reads at most 97 equal bytes out of one run; each run and its rest take few bytes.
    assert len(packed) <= 9 + 3 * (count // 97)


@given(st.binary(max_size=60), st.integers(0, 300))
def test_expanding_anything_is_as_the_rules_say(payload: bytes, limit: int) -> None:
    try:
        result: bytes | None = expand_run_length(payload, limit)
    except RemoteProtocolError:
        result = None
    # Without a run nothing is expanded, and nothing checked: the framer has limited the length.
    assert result == (expand(payload, limit) if b"*" in payload else payload)


def test_a_count_may_itself_be_a_star() -> None:
    assert expand_run_length(b'a**b*"', 100) == b"a" * 14 + b"b" * 6


def test_a_bomb_is_refused_before_it_is_built() -> None:
    bomb = b"0" + b"*~" * 20_000  # 97 times as long when expanded
    framer = Framer(1 << 16, runs=True)
    assert framer.feed(packet(bomb)) == [Control.DAMAGED]
    with pytest.raises(RemoteProtocolError, match="expands to more than 65536"):
        expand_run_length(bomb, 1 << 16)


FLOODS = {
    "dollars": b"$",
    "hashes": b"#",
    "percents": b"%",
    "empty packets": b"$#",
    "beginnings": b"$a",
    "wrong sums": b"$a#00",
    "no digits": b"$a#zz",
    "notifications": b"%a",
    "damaged notifications": b"%a#00",
    "acknowledgements": b"+",
    "refusals": b"-",
    "interrupts": b"\x03",
    "text": b"a",
    "escapes": b"}",
    "stars": b"*",
    "text in an endless packet": b"",
}


def seconds(piece: bytes, size: int, step: int) -> float:
    stream = (b"$" + b"a" * size) if not piece else piece * (size // len(piece))
    best = 1e9
    for _ in range(3):
        framer = Framer(1 << 17, runs=True)
        begin = time.process_time()
        for start in range(0, len(stream), step):
            framer.feed(stream[start : start + step])
            assert kept(framer) <= (1 << 17) + 4
        best = min(best, time.process_time() - begin)
    return best


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("step", [61, 65536])
@pytest.mark.alone
def test_a_flood_takes_linear_time(name: str, step: int) -> None:
    """Four times the input takes about four times as long; sixteen times would be quadratic."""
    short, long = (seconds(FLOODS[name], size, step) for size in (1 << 16, 1 << 18))
    assert long < 9 * short + 0.05, f"{short:.4f} s, then {long:.4f} s"


def test_packets_after_a_flood_are_found() -> None:
    chance = random.Random(1)
    for name, piece in FLOODS.items():
        framer = Framer(100)
        stream = (piece or b"$a") * 5000 + b"$#00" + frame(b"g")
        events: list[Event] = []
        while stream:
            size = chance.randint(1, 700)
            events += framer.feed(stream[:size])
            stream = stream[size:]
        assert events[-1] == b"g", name
