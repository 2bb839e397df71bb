"""A kernel's log out of its memory: what ``dmesg`` would print, also where the console had nothing.

Source: Linux, kernel/printk/printk_ringbuffer.h (since 5.10), scripts/gdb/linux/dmesg.py, kernel/printk/printk.c
(``record_print_text``).  Three arrays: descriptors, information of the same number, and a ring of text.  A descriptor's
word has its number and, in the two uppermost bits, its state; its text lies between two logical positions, of which the
lowest bit says that there is none.  Words are 64 bits, little-endian.

A record that was overwritten, is being written or is damaged is left out, and counted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.btf import BtfError
from symbols.errors import SymbolError
from symbols.reads import Read, Search

if TYPE_CHECKING:
    from symbols.btf import Btf

POINTER_SYMBOL: Final = "prb"
"""A pointer to the ring buffer that is used."""
MOST_RECORDS_BITS: Final = 20
MOST_TEXT_BITS: Final = 26
MOST_LINE: Final = 4096
"""Bytes; the kernel's LOG_LINE_MAX and its prefix are 1024."""
_LARGEST: Final = 1 << 12
_PIECE: Final = 1 << 16
_WORD: Final = struct.Struct("<Q")
_STATE_SHIFT: Final = 62
_ID: Final = (1 << _STATE_SHIFT) - 1
_COMMITTED, _FINALIZED, _REUSABLE = 1, 2, 3
_NO_TEXT: Final = 1
_TOGETHER: Final = 256
"""Records whose information is read in one batch."""


class DmesgError(SymbolError):
    """The log is not as any known kernel's, or is damaged."""


@dataclass(frozen=True, slots=True)
class LogLayout:
    """Where members are, in bytes from the beginning of their structure."""

    ring: int
    """Bytes of ``struct printk_ringbuffer``."""
    count_bits: int
    descriptors: int
    infos: int
    head: int
    tail: int
    size_bits: int
    data: int
    descriptor: int
    """Bytes of ``struct prb_desc``."""
    state: int
    begin: int
    next: int
    info: int
    """Bytes of ``struct printk_info``."""
    sequence: int
    time: int
    length: int
    levels: int
    """Of the byte with flags (5 bits) and level (3 bits)."""
    facility: int


@dataclass(frozen=True, slots=True)
class Record:
    """A message."""

    sequence: int
    nanoseconds: int
    """Since the kernel began."""
    level: int
    facility: int
    text: str
    """Several lines where it has several."""


@dataclass(frozen=True, slots=True)
class KernelLog:
    """All messages that are whole, the oldest first."""

    records: tuple[Record, ...]
    damaged: int
    """How many are not."""

    def lines(self) -> list[str]:
        """Return the lines as ``dmesg`` prints them: each with its time."""
        return [
            f"[{one.nanoseconds // 1_000_000_000:5}.{one.nanoseconds // 1000 % 1_000_000:06}] {line}"
            for one in self.records
            for line in one.text.split("\n")
        ]


def layout(btf: Btf) -> LogLayout:
    """Return the layout of a kernel's log.  Raises ``BtfError`` for kernels before 5.10, which had another."""
    ring = btf.struct("printk_ringbuffer")
    descriptor = btf.struct("prb_desc")
    info = btf.struct("printk_info")
    level, width = btf.bits(info, "level")
    if width != 3 or level % 8 != 5:
        raise BtfError("the level of a message is not where any kernel has it")
    found = LogLayout(
        ring=btf.size(ring),
        count_bits=btf.offset(ring, "desc_ring.count_bits"),
        descriptors=btf.offset(ring, "desc_ring.descs"),
        infos=btf.offset(ring, "desc_ring.infos"),
        head=btf.offset(ring, "desc_ring.head_id"),
        tail=btf.offset(ring, "desc_ring.tail_id"),
        size_bits=btf.offset(ring, "text_data_ring.size_bits"),
        data=btf.offset(ring, "text_data_ring.data"),
        descriptor=btf.size(descriptor),
        state=btf.offset(descriptor, "state_var"),
        begin=btf.offset(descriptor, "text_blk_lpos.begin"),
        next=btf.offset(descriptor, "text_blk_lpos.next"),
        info=btf.size(info),
        sequence=btf.offset(info, "seq"),
        time=btf.offset(info, "ts_nsec"),
        length=btf.offset(info, "text_len"),
        levels=level // 8,
        facility=btf.offset(info, "facility"),
    )
    inside_ring = (found.descriptors, found.infos, found.head, found.tail, found.data)
    if not max(inside_ring) + 8 <= found.ring <= _LARGEST:
        raise BtfError(f"a struct printk_ringbuffer of {found.ring} bytes is not as any kernel's")
    if not max(found.state, found.begin, found.next) + 8 <= found.descriptor <= _LARGEST:
        raise BtfError(f"a struct prb_desc of {found.descriptor} bytes is not as any kernel's")
    if not max(found.sequence, found.time, found.length, found.levels) + 8 <= found.info <= _LARGEST:
        raise BtfError(f"a struct printk_info of {found.info} bytes is not as any kernel's")
    return found


def read(where: LogLayout, pointer: int) -> Search[KernelLog]:
    """Read the log, given where the symbol ``prb`` is.  Raises ``DmesgError``."""
    (data,) = yield (Read(pointer, _WORD.size),)
    at = _word(data, 0, "the pointer to the log")
    (ring,) = yield (Read(at, where.ring),)
    if len(ring) < where.ring:
        raise DmesgError(f"the log at {at:#x} is not mapped")
    bits = int.from_bytes(ring[where.count_bits : where.count_bits + 4], "little")
    text_bits = int.from_bytes(ring[where.size_bits : where.size_bits + 4], "little")
    if bits > MOST_RECORDS_BITS or text_bits > MOST_TEXT_BITS:
        raise DmesgError(f"a log of 2^{bits} messages and 2^{text_bits} bytes is larger than any")
    count = 1 << bits
    head, tail = (_word(ring, one, "the log") & _ID for one in (where.head, where.tail))
    wanted = (head - tail & _ID) + 1
    if wanted > count:
        raise DmesgError(f"a log of {count} messages holds {wanted}")
    infos, descriptors, text_at = (
        _word(ring, one, "the log") for one in (where.infos, where.descriptors, where.data)
    )
    headers: list[tuple[int, bytes, bytes]] = []
    for start in range(0, wanted, _TOGETHER):
        numbers = [tail + index & _ID for index in range(start, min(wanted, start + _TOGETHER))]
        found = yield tuple(
            one
            for number in numbers
            for one in (
                Read(descriptors + number % count * where.descriptor, where.descriptor),
                Read(infos + number % count * where.info, where.info),
            )
        )
        headers += [
            one
            for one in zip(numbers, found[::2], found[1::2], strict=True)
            if _state(where, one[1]) != _REUSABLE
        ]
    text = yield from _text(text_at, 1 << text_bits, _used(where, [one[1] for one in headers]))
    records = [_record(where, *one, text) for one in headers]
    whole = tuple(one for one in records if one is not None)
    return KernelLog(whole, len(records) - len(whole))


def _used(where: LogLayout, descriptors: list[bytes]) -> tuple[int, int]:
    """Return from where to where texts are, counted on and on as the kernel counts them."""
    places = [
        place
        for one in descriptors
        if len(one) >= where.descriptor
        for place in (_word(one, where.begin, ""), _word(one, where.next, ""))
        if not place & _NO_TEXT
    ]
    return min(places, default=0), max(places, default=0)


def _text(at: int, size: int, used: tuple[int, int]) -> Search[bytes]:
    """Read what is used of the ring of texts: most of it is empty long after a boot, and a line may be slow."""
    begin, end = used
    if end - begin >= size:
        begin, end = 0, size
    first = begin % size
    # A text that does not fit before the end is at the beginning, whole.
    runs = [(first, min(first + end - begin, size)), (0, max(0, first + end - begin - size))]
    places = [(one, min(_PIECE, stop - one)) for start, stop in runs for one in range(start, stop, _PIECE)]
    pieces = yield tuple(Read(at + place, length) for place, length in places)
    if places and not any(pieces):
        raise DmesgError(f"the text of the log at {at:#x} is not mapped")
    data = bytearray(size)
    for (place, _), piece in zip(places, pieces, strict=True):
        data[place : place + len(piece)] = piece
    return bytes(data)


def _state(where: LogLayout, descriptor: bytes) -> int | None:
    """Return the state of a descriptor; None for one that is not mapped."""
    if len(descriptor) < where.descriptor:
        return None
    return _word(descriptor, where.state, "") >> _STATE_SHIFT


def _record(where: LogLayout, number: int, descriptor: bytes, info: bytes, text: bytes) -> Record | None:
    """Return a message; None for one that is not whole."""
    if len(descriptor) < where.descriptor or len(info) < where.info:
        return None
    state = _word(descriptor, where.state, "")
    if state & _ID != number or state >> _STATE_SHIFT not in (_COMMITTED, _FINALIZED):
        return None
    begin, end = _word(descriptor, where.begin, ""), _word(descriptor, where.next, "")
    length = int.from_bytes(info[where.length : where.length + 2], "little")
    said = b""
    if not begin & _NO_TEXT:
        # A text that was put at the beginning ends behind it: this one ends where the ring does.
        begin, end = begin % len(text), end % len(text) or len(text)
        # A text that does not fit before the end is at the beginning.
        start = (0 if begin > end else begin) + _WORD.size
        # The text begins with the number of its descriptor: another's has taken its place otherwise.
        if end < start or _word(text, start - _WORD.size, "the text of the log") != number:
            return None
        said = text[start : min(end, start + length, start + MOST_LINE)]
    levels = info[where.levels]
    return Record(
        _word(info, where.sequence, ""),
        _word(info, where.time, ""),
        levels >> 5,
        info[where.facility],
        said.decode("utf-8", "replace"),
    )


def _word(data: bytes, at: int, what: str) -> int:
    if at + _WORD.size > len(data):
        raise DmesgError(f"{what} is not mapped")
    value: int = _WORD.unpack_from(data, at)[0]
    return value
