"""A kernel's command line changed at its entry: made-up loaders, and memory that is none of theirs."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kbridge.boot.entry_x86 import (
    ENTRIES,
    ENTRY_64,
    LOADED,
    MOST_BYTES,
    MOST_READS,
    CannotChange,
    Change,
    Read,
    Write,
    edit,
    linear,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROTECTED = {"cr0": 0x11, "efer": 0, "cs": 0x10}
LONG = {"cr0": 0x8000_0011, "efer": 0x500, "cs": 0x10}
LIMIT = 2047
SIZE = 64 << 20
RAM = ((0, 0x9FC00), (0x10_0000, SIZE))
LOW_END = 0x9_0000


class Memory:
    """A guest's memory, and what was read and written of it."""

    def __init__(self, data: Callable[[int, int], bytes] | None = None) -> None:
        self._pages: dict[int, bytearray] = {}
        self._data = data
        self.written: list[Write] = []
        self.reads = 0

    def put(self, address: int, data: bytes) -> None:
        while data:
            at = address & 0xFFF
            piece, data = data[: 4096 - at], data[4096 - at :]
            self._pages.setdefault(address >> 12, bytearray(4096))[at : at + len(piece)] = piece
            address += len(piece)

    def read(self, address: int, length: int) -> bytes:
        if self._data is not None:
            return self._data(address, length)
        end = min(address + length, SIZE)
        found = b""
        while address < end:
            page = self._pages.get(address >> 12, bytes(4096))
            piece = page[address & 0xFFF :][: end - address]
            found += piece
            address += len(piece)
        return found

    def text(self, address: int) -> bytes:
        return self.read(address, 2 * LIMIT).partition(b"\0")[0]

    def run(self, registers: Mapping[str, int | None], new: Callable[[str], str]) -> Change | None:
        work = edit(registers, new)
        answer: Any = None
        try:
            while True:
                asked = work.send(answer)
                if isinstance(asked, Read):
                    self.reads += 1
                    assert 0 < asked.length <= MOST_BYTES
                    answer = self.read(asked.address, asked.length)
                else:
                    self.written.append(asked)
                    self.put(asked.address, asked.data)
                    answer = b""
        except StopIteration as done:
            change: Change | None = done.value
            return change


@dataclass
class Loader:
    """What a boot loader leaves in memory before it jumps to a kernel."""

    loaded: int = 0x10_0000
    params: int = 0x1_4000
    text: bytes = b"console=ttyS0 root=/dev/vda1"
    place: int = 0x2_0000
    limit: int = LIMIT
    version: int = 0x20F
    initrd: tuple[int, int] = (0x3F0_0000, 0x8_0000)
    setup_data: tuple[tuple[int, bytes], ...] = ()
    ram: tuple[tuple[int, int, int], ...] = tuple((start, end, 1) for start, end in RAM)
    efi: tuple[tuple[int, int, int], ...] = ()
    fields: Mapping[int, bytes] = field(default_factory=dict)

    def header(self) -> bytes:
        data = bytearray(4096)

        def put(offset: int, layout: str, *values: int) -> None:
            struct.pack_into("<" + layout, data, offset, *values)

        data[0x202:0x206] = b"HdrS"
        put(0x206, "H", self.version)
        data[0x211] = 1
        put(0x1F4, "I", 0x10_0000)
        put(0x214, "I", self.loaded)
        put(0x218, "II", *self.initrd)
        put(0x228, "I", self.place)
        put(0x230, "I", 0x20_0000)
        put(0x238, "I", self.limit)
        put(0x250, "QQI", self.setup_data[0][0] if self.setup_data else 0, 0x100_0000, 0x200_0000)
        data[0x1E8] = len(self.ram)
        for number, (start, end, kind) in enumerate(self.ram):
            put(0x2D0 + 20 * number, "QQI", start, end - start, kind)
        if self.efi:
            data[0x1C0:0x1C4] = b"EL64"
            put(0x1C8, "I", 48)
            put(0x1D0, "II", self.efi_map, 48 * len(self.efi))
        for offset, value in self.fields.items():
            data[offset : offset + len(value)] = value
        return bytes(data)

    @property
    def efi_map(self) -> int:
        return self.params + 0x3000

    def memory(self) -> Memory:
        memory = Memory()
        memory.put(self.params, self.header())
        if self.place:
            memory.put(self.place, self.text + b"\0")
        for number, (address, data) in enumerate(self.setup_data):
            following = self.setup_data[number + 1][0] if number + 1 < len(self.setup_data) else 0
            memory.put(address, struct.pack("<QII", following, 9, len(data)) + data)
        for number, (start, end, kind) in enumerate(self.efi):
            descriptor = struct.pack("<IIQQQQQ", kind, 0, start, 0, (end - start) >> 12, 0, 0)
            memory.put(self.efi_map + 48 * number, descriptor)
        return memory

    @property
    def registers(self) -> dict[str, int | None]:
        return {**PROTECTED, "rip": self.loaded, "rsi": self.params}

    def change(self, new: str) -> tuple[Memory, Change]:
        memory = self.memory()
        change = memory.run(self.registers, lambda old: new)
        assert change is not None
        after = memory.read(self.params, 4096)
        shown = int.from_bytes(after[0x228:0x22C], "little")
        assert shown == change.place
        assert after[0xC8:0xCC] == bytes(4)
        assert memory.text(shown) == new.encode() == change.new.encode()
        assert change.old.encode() == self.text
        return memory, change

    def refused(self, new: str) -> str:
        memory = self.memory()
        with pytest.raises(CannotChange) as caught:
            memory.run(self.registers, lambda old: new)
        assert memory.written == []
        return str(caught.value)


def test_a_longer_line_grows_where_nothing_lives_behind_it() -> None:
    memory, change = Loader().change("console=ttyS0 root=/dev/vda1 single")
    assert (change.place, change.moved) == (0x2_0000, False)
    assert [one.address for one in memory.written] == [0x2_0000]


def test_a_shorter_line_needs_no_memory_that_is_free() -> None:
    assert Loader(ram=()).change("single")[1].moved is False


def test_a_line_that_is_right_already_is_not_written() -> None:
    memory = Loader().memory()
    change = memory.run(Loader().registers, lambda old: old)
    assert change is not None
    assert change.new == "console=ttyS0 root=/dev/vda1"
    assert memory.written == []


@pytest.mark.parametrize(
    "behind",
    [
        Loader(initrd=(0x2_0040, 0x1000)),
        Loader(setup_data=((0x2_0030, bytes(32)),)),
        Loader(setup_data=((0x5_0000, bytes(32)), (0x2_0030, bytes(32)))),
        Loader(params=0x2_0100),
        Loader(place=0x9FC00 - 40),
        Loader(place=0x200_0000),
        Loader(place=0x500, limit=LIMIT),
        Loader(ram=((0, 0x9FC00, 1), (0x2_0000, 0x2_1000, 2), (0x10_0000, SIZE, 1))),
    ],
    ids=["initrd", "setup_data", "second", "boot_params", "end of memory", "kernel", "vectors", "reserved"],
)
def test_a_line_is_moved_that_would_grow_into_something(behind: Loader) -> None:
    memory, change = behind.change("console=ttyS0 " + "x" * 300)
    assert change.moved
    assert 0x1_0000 <= change.place < LOW_END
    assert memory.text(behind.place) == behind.text


def test_a_line_is_moved_above_the_kernel_where_low_memory_is_taken() -> None:
    loader = Loader(
        params=0x9_2000,
        place=0x9_3000,
        initrd=(0x9_3030, 0x100),
        ram=((0x9_1000, 0x9F000, 1), (0x10_0000, SIZE, 1)),
    )
    _, change = loader.change("x" * 300)
    assert change.place == 0x100_0000 + 0x200_0000


def test_a_line_that_cannot_be_moved_is_refused() -> None:
    full = Loader(initrd=(0x2_0030, SIZE), ram=((0x1_F000, SIZE, 1),), params=0x1_F000)
    assert "no memory for it is known to be free" in full.refused("x" * 300)


def test_a_kernel_without_a_command_line_gets_one() -> None:
    loader = Loader(place=0, text=b"")
    _, change = loader.change("single")
    assert change.moved
    assert change.old == ""


def test_bytes_that_are_no_text_are_kept() -> None:
    loader = Loader(text=b"label=\xff\xe4 quiet")
    memory = loader.memory()
    change = memory.run(loader.registers, lambda old: old.replace("quiet", "öl"))
    assert change is not None
    assert memory.text(change.place) == b"label=\xff\xe4 \xc3\xb6l"


def test_what_no_kernel_takes_is_refused() -> None:
    assert "2048 bytes, and this kernel takes 2047" in Loader().refused("x" * 2048)
    assert "takes 255" in Loader(version=0x205).refused("x" * 256)
    assert "control character 0x00" in Loader().refused("a\0b")
    assert "control character 0x0a" in Loader().refused("a\nb")
    assert "has no end within the 2047 bytes" in Loader(text=b"x" * 3000).refused("single")


def test_a_loader_that_is_not_understood_is_refused() -> None:
    for address, words in ((0x5_0000, "setup_data has no end"), (SIZE + 4096, "is in no memory")):
        loader = Loader(setup_data=((address, b""),))
        memory = loader.memory()
        memory.put(address, struct.pack("<QII", address, 9, 0) if address < SIZE else b"")
        with pytest.raises(CannotChange, match=words):
            memory.run(loader.registers, lambda old: old * 3)
    assert "EFI memory map" in Loader(efi=((0, 0x1000, 7),), fields={0x1C8: bytes(4)}).refused("x" * 300)


def test_on_efi_only_what_its_map_calls_free_is_used() -> None:
    firmware = ((0, 0x2_0000, 7), (0x2_0000, 0x2_1000, 2), (0x2_1000, 0x5_0000, 4), (0x5_0000, 0x9_0000, 7))
    shorter = Loader(efi=firmware).change("x" * 5)[1]
    assert shorter.moved is False
    assert Loader(efi=firmware).change("x" * 300)[1].place == 0x1_0000
    assert Loader(efi=firmware[1:]).change("x" * 300)[1].place == 0x5_0000
    # The kernel's EFI stub has not made the other map yet.
    assert Loader(efi=firmware[1:], ram=()).change("x" * 300)[1].place == 0x5_0000


def test_high_halves_count_only_where_the_loader_cleared_what_it_does_not_know() -> None:
    there = Loader(fields={0xC8: b"\x01\0\0\0", 0x1EF: b"\xff"})
    memory = there.memory()
    change = memory.run(there.registers, lambda old: "single")
    assert change is not None
    assert change.place == 0x2_0000
    high = Loader(fields={0xC8: b"\x01\0\0\0"})
    assert "has no end" in high.refused("single")


def test_a_64_bit_entry_is_found_by_its_registers() -> None:
    loader = Loader(loaded=0x100_0000)
    registers = {**LONG, "rip": 0x100_0000 + ENTRY_64, "rsi": loader.params}
    change = loader.memory().run(registers, lambda old: "single")
    assert change is not None
    assert change.old == "console=ttyS0 root=/dev/vda1"


@pytest.mark.parametrize(
    "registers",
    [
        {**PROTECTED, "rip": 0x10_0001},
        {**PROTECTED, "rip": 0x10_0000, "cr0": 0x10},
        {**PROTECTED, "rip": 0x10_0000, "cr0": 0x8000_0011},
        {**LONG, "rip": 0x10_0000},
        {**PROTECTED, "rip": 0x10_0200},
        {**PROTECTED, "rip": None},
        {**PROTECTED, "rip": 0x10_0000, "efer": None},
        {**PROTECTED, "rip": 0x10_0000, "rsi": 0x10_0000},
        {**PROTECTED, "rip": 0x10_0000, "rsi": 0xFFFF_F000},
        {**LONG, "rip": 0x20_0200},
        {**PROTECTED, "rip": 0x100_0000},
    ],
    ids=[
        "elsewhere", "real mode", "paging", "64-bit mode", "64-bit entry in 32-bit mode", "no counter", "no mode",
        "GRUB unpacked", "no memory", "64-bit entry elsewhere", "an entry that boot_params do not name",
    ],
)  # fmt: skip
def test_what_is_no_kernels_entry_is_not_taken_for_one(registers: dict[str, int | None]) -> None:
    memory = Loader().memory()
    assert memory.run({"rsi": 0x1_4000, **registers}, lambda old: "single") is None
    assert memory.written == []


def test_an_address_is_linear_in_real_mode() -> None:
    assert linear({"rip": 0x10, "cs": 0xFFFF, "cr0": 0x10}) == 0x10_0000
    assert linear({"rip": 0x10_0000, "cs": 0x10, "cr0": 0x11}) == 0x10_0000
    assert linear({"rip": 0x10, "cs": None, "cr0": 0x10}) is None


# -- any memory at all --------------------------------------------------------------------------------------------

ADDRESSES = st.integers(0, 1 << 40) | st.integers(0, SIZE)


def spans(most: int) -> Any:
    pair = st.tuples(st.integers(0, most), st.integers(0, most)).map(lambda one: (min(one), max(one)))
    return st.lists(pair, max_size=6)


@given(spans(200), spans(200))
def test_what_is_left_of_ranges_is_what_is_in_them_and_not_taken(one: Any, taken: Any) -> None:
    def points(of: Any) -> set[int]:
        return {point for start, end in of for point in range(start, end)}

    assert points(without(one, taken)) == points(one) - points(taken)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_memory_that_anybody_wrote_is_read_within_bounds_and_written_only_where_a_kernel_is(
    data: Any,
) -> None:
    plausible = data.draw(st.booleans())
    loader = Loader()
    damage = data.draw(
        st.dictionaries(
            st.sampled_from(
                [
                    0x1C0,
                    0x1C8,
                    0x1D0,
                    0x1D4,
                    0x1E8,
                    0x1EF,
                    0x206,
                    0x218,
                    0x21C,
                    0x228,
                    0x238,
                    0x250,
                    0x258,
                    0x260,
                ]
            )
            | st.integers(0, 4080),
            st.binary(min_size=1, max_size=8),
            max_size=8,
        )
    )
    loader.fields = damage
    filler = data.draw(st.binary(min_size=1, max_size=64))
    header = loader.header()

    def read(address: int, length: int) -> bytes:
        if plausible and address == loader.params:
            return header[:length]
        return (filler * (length // len(filler) + 1))[: data.draw(st.integers(0, length))]

    memory = Memory(read)
    new = data.draw(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=2100))
    rip = data.draw(st.sampled_from(ENTRIES))
    base = PROTECTED if rip in LOADED else LONG
    try:
        change = memory.run({**base, "rip": rip, "rsi": loader.params}, lambda old: new)
    except CannotChange:
        change = None
    assert memory.reads <= MOST_READS
    if not plausible:
        assert change is None
        assert memory.written == []


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0x1000, 0x9F000),
    params=st.integers(0x1, 0x9E).map(lambda page: page << 12),
    initrd=st.tuples(st.integers(0x1000, SIZE - 0x10_0000), st.integers(0, 0x10_0000)),
    extra=st.lists(st.tuples(st.integers(0x1000, 0x9F000), st.binary(max_size=100)), max_size=3),
    size=st.integers(0, LIMIT),
)
def test_nothing_that_lives_is_overwritten(
    place: int, params: int, initrd: tuple[int, int], extra: list[tuple[int, bytes]], size: int
) -> None:
    """Whatever the loader's layout: all that it hands over is as it was, but for the text and the pointers to it."""
    loader = Loader(place=place, params=params, initrd=initrd)
    parts = [
        (params, params + 4096),
        (place, place + len(loader.text) + 1),
        (initrd[0], sum(initrd)),
    ]
    assume(all(one[1] <= other[0] or other[1] <= one[0] for one, other in combinations(parts, 2)))
    kept = []
    for address, data in extra:
        part = (address, address + 16 + len(data))
        if all(part[1] <= start or end <= part[0] for start, end in parts):
            parts.append(part)
            kept.append((address, data))
    loader.setup_data = tuple(kept)
    before = loader.memory()
    memory = loader.memory()
    try:
        change = memory.run(loader.registers, lambda old: "y" * size)
    except CannotChange:
        assert memory.written == []
        return
    assert change is not None
    assert memory.text(change.place) == b"y" * size
    written = [(one.address, one.address + len(one.data)) for one in memory.written]
    for start, end in (*parts[2:], (0x10_0000, 0x300_0000)):
        assert start == end or all(last <= start or end <= first for first, last in written), hex(start)
    old, new = bytearray(before.read(params, 4096)), bytearray(memory.read(params, 4096))
    for offset in (0xC8, 0x228):
        old[offset : offset + 4] = new[offset : offset + 4] = bytes(4)
    assert old == new
    assert all(any(start <= first and last <= end for start, end in RAM) for first, last in written)
