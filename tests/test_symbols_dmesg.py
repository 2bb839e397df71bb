"""A kernel's log out of made-up memory: as it is written, wrapped around, and damaged."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from symbols_lab import Image, Types

from symbols.btf import Btf, BtfError
from symbols.dmesg import DmesgError, LogLayout, layout, read

POINTER, RING, DESCRIPTORS, INFOS, TEXT = (0xFFFF_FFFF_8200_0000 + 0x10_0000 * one for one in range(5))
FINALIZED, REUSABLE, RESERVED = 2, 3, 0
COUNT_BITS, TEXT_BITS = 4, 9


def types(level_first: bool = False) -> bytes:
    made = Types()
    u8, u16, u32, u64 = (made.integer(f"u{8 * size}", size) for size in (1, 2, 4, 8))
    atomic = made.struct("", 8, [("counter", u64, 0)])
    pointer = made.pointer()
    span = made.struct("prb_data_blk_lpos", 16, [("begin", u64, 0), ("next", u64, 8)])
    made.struct("prb_desc", 24, [("state_var", atomic, 0), ("text_blk_lpos", span, 8)])
    text = made.struct("prb_data_ring", 32, [("size_bits", u32, 0), ("data", pointer, 8)])
    descriptors = made.struct(
        "prb_desc_ring",
        48,
        [
            ("count_bits", u32, 0),
            ("descs", pointer, 8),
            ("infos", pointer, 16),
            ("head_id", atomic, 24),
            ("tail_id", atomic, 32),
        ],
    )
    made.struct("printk_ringbuffer", 88, [("desc_ring", descriptors, 0), ("text_data_ring", text, 48)])
    made.bits(
        "printk_info",
        88,
        [
            ("seq", u64, 0, 0),
            ("ts_nsec", u64, 64, 0),
            ("text_len", u16, 128, 0),
            ("facility", u8, 144, 0),
            ("flags", u8, 157 if level_first else 152, 5),
            ("level", u8, 152 if level_first else 157, 3),
            ("caller_id", u32, 160, 0),
        ],
    )
    return made.data()


LAYOUT: LogLayout = layout(Btf(types()))


class Log:
    """The kernel's side: `prb_reserve` and `prb_final_commit` of kernel/printk/printk_ringbuffer.c, in short."""

    def __init__(self) -> None:
        self.descriptors = bytearray(24 << COUNT_BITS)
        self.infos = bytearray(88 << COUNT_BITS)
        self.text = bytearray(1 << TEXT_BITS)
        self.head = -1
        self.tail = 0
        self.at = 0

    def say(self, text: bytes, nanoseconds: int = 0, state: int = FINALIZED, level: int = 6) -> None:
        self.head += 1
        self.tail = max(self.tail, self.head - (1 << COUNT_BITS) + 1)
        size = 8 + (len(text) + 7 & ~7)
        begin = self.at
        ring = len(self.text)
        if begin // ring != (begin + size - 1) // ring:
            place = 0
            self.at = (begin // ring + 1) * ring + size
        else:
            place = begin % ring
            self.at = begin + size
        span = (begin, self.at)
        if text:
            struct.pack_into("<Q", self.text, place, self.head)
            self.text[place + 8 : place + 8 + len(text)] = text
        else:
            self.at = begin
            span = (1, 1)
        index = self.head % (1 << COUNT_BITS)
        struct.pack_into("<QQQ", self.descriptors, index * 24, self.head | state << 62, *span)
        struct.pack_into("<QQHBB", self.infos, index * 88, self.head, nanoseconds, len(text), 1, level << 5)

    def image(self) -> Image:
        ring = bytearray(88)
        struct.pack_into("<I4xQQQQ", ring, 0, COUNT_BITS, DESCRIPTORS, INFOS, self.head, self.tail)
        struct.pack_into("<I4xQ", ring, 48, TEXT_BITS, TEXT)
        return Image(
            {
                POINTER: struct.pack("<Q", RING),
                RING: bytes(ring),
                DESCRIPTORS: bytes(self.descriptors),
                INFOS: bytes(self.infos),
                TEXT: bytes(self.text),
            }
        )


def test_messages_come_as_dmesg_prints_them() -> None:
    log = Log()
    log.say(b"Linux version 6.1.0", 0)
    log.say(b"two\nlines", 1_234_567_890)
    log.say(b"", 2_000_000_000)
    found = log.image().run(read(LAYOUT, POINTER))
    assert found.lines() == [
        "[    0.000000] Linux version 6.1.0",
        "[    1.234567] two",
        "[    1.234567] lines",
        "[    2.000000] ",
    ]
    assert [one.sequence for one in found.records] == [0, 1, 2]
    assert {(one.level, one.facility) for one in found.records} == {(6, 1)}
    assert found.damaged == 0


def test_a_text_that_ends_where_the_ring_does() -> None:
    log = Log()
    for number in range((1 << TEXT_BITS) // 32):
        log.say(b"%024d" % number)
    found = log.image().run(read(LAYOUT, POINTER))
    assert found.damaged == 0
    assert found.records[-1].text == f"{(1 << TEXT_BITS) // 32 - 1:024}"


def test_what_is_being_written_is_counted_and_what_is_free_is_not() -> None:
    log = Log()
    log.say(b"old", state=REUSABLE)
    log.say(b"whole")
    log.say(b"half", state=RESERVED)
    found = log.image().run(read(LAYOUT, POINTER))
    assert [one.text for one in found.records] == ["whole"]
    assert found.damaged == 1


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=60))
def test_the_last_messages_are_there_however_often_the_ring_went_round(said: list[bytes]) -> None:
    log = Log()
    for one in said:
        log.say(one)
    found = log.image().run(read(LAYOUT, POINTER))
    # Those whose text was overwritten by newer ones are not told by that.
    assert len(found.records) + found.damaged == min(len(said), 1 << COUNT_BITS)
    texts = [one.text for one in found.records]
    assert texts
    assert texts == [one.decode("utf-8", "replace") for one in said[len(said) - len(texts) :]]


@given(st.integers(0, 3), st.integers(1, 3))
def test_of_the_texts_only_what_is_used_is_read(before: int, count: int) -> None:
    """Wherever in the ring it is: a line may be slow, and most of a ring is empty."""
    log = Log()
    log.at = (1 << TEXT_BITS) * before // 3 & ~7
    for number in range(count):
        log.say(b"message %d" % number)
    image = log.image()
    found = image.run(read(LAYOUT, POINTER))
    assert [one.text for one in found.records] == [f"message {number}" for number in range(count)]
    headers = 8 + 88 + count * (24 + 88)
    assert image.bytes_read <= headers + count * 24 + 24


pieces = st.sampled_from([POINTER, RING, DESCRIPTORS, INFOS, TEXT])


@given(
    st.lists(st.binary(max_size=40), max_size=30),
    st.lists(st.tuples(pieces, st.integers(0, 1500), st.binary(max_size=9)), max_size=8),
    st.lists(st.tuples(pieces, st.integers(0, 1500)), max_size=2),
)
def test_damage_never_raises_anything_else_and_is_never_long(
    said: list[bytes], damage: list[tuple[int, int, bytes]], cuts: list[tuple[int, int]]
) -> None:
    log = Log()
    for one in said or [b"x"]:
        log.say(one)
    image = log.image()
    for piece, at, data in damage:
        held = image.pieces[piece]
        image.pieces[piece] = (held[:at] + data + held[at + len(data) :])[: len(held)]
    for piece, length in cuts:
        image.pieces[piece] = image.pieces[piece][:length]
    try:
        found = image.run(read(LAYOUT, POINTER))
    except DmesgError:
        return
    assert len(found.records) + found.damaged <= 1 << 20
    assert all(len(one.text) <= 4096 for one in found.records)


def test_what_is_not_a_kernels_log_is_refused() -> None:
    with pytest.raises(BtfError):
        layout(Btf(types(level_first=True)))
    with pytest.raises(DmesgError, match="not mapped"):
        Image().run(read(LAYOUT, POINTER))
    log = Log()
    log.say(b"x")
    image = log.image()
    image.pieces[RING] = struct.pack("<I", 30) + image.pieces[RING][4:]
    with pytest.raises(DmesgError, match="larger than any"):
        image.run(read(LAYOUT, POINTER))
