"""Where EFI firmware lets go of a machine, and the command line there: made-up firmware, and memory that is none."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kbridge.boot.entry_efi import (
    STEP,
    Entry,
    Firmware,
    edit_at_exit,
    firmware,
    forget,
    has_exited,
    returns_to,
)
from kbridge.boot.entry_x86 import MOST_READS, CannotChange, Change, Read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SIZE = 16 << 20
RAM = ((0, 0xC_0000), (0x10_0000, SIZE))
TABLE, SERVICES, EXIT = 0xD0_0018, 0xE0_0100, 0xE1_000F
POINTER = 3 * STEP
PARAMS, TEXT, STACK, MAP = 0x30_0000, 0x30_4018, 0xF0_0740, 0x31_0020
OLD = b"console=ttyS0 initrd=initrd"
REGISTERS = {"efer": 0xD00, "rsp": STACK, "rax": 0}


class Memory:
    """A guest's memory, made of pieces; zeroes between them, and none beyond its end."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)
        self.reads = 0
        self.written: list[tuple[int, bytes]] = []

    def put(self, address: int, data: bytes) -> None:
        self.data[address : address + len(data)] = data

    def run(self, work: Any) -> Any:
        answer: Any = None
        try:
            while True:
                asked = work.send(answer)
                if isinstance(asked, Read):
                    self.reads += 1
                    answer = bytes(self.data[asked.address : asked.address + asked.length])
                else:
                    self.written.append((asked.address, asked.data))
                    self.put(asked.address, asked.data)
                    answer = b""
        except StopIteration as done:
            return done.value


def with_checksum(table: bytes) -> bytes:
    return table[:16] + struct.pack("<I", crc32(table[:16] + bytes(4) + table[20:])) + table[20:]


def services(size: int = 376, exit_at: int = EXIT) -> bytes:
    table = bytearray(b"BOOTSERV" + struct.pack("<III", 0x2_0046, size, 0)).ljust(size, b"\x11")
    table[16:24] = bytes(8)
    table[232:240] = struct.pack("<Q", exit_at)
    return with_checksum(bytes(table))


def started(at: int = POINTER) -> Memory:
    """Firmware that runs: its pointer, its system table, its boot services."""
    memory = Memory()
    memory.put(at, b"IBI SYST" + struct.pack("<QII", TABLE, 0, 0))
    table = bytearray(b"IBI SYST" + struct.pack("<III", 0x2_0046, 120, 0)).ljust(120, b"\0")
    table[96:104] = struct.pack("<Q", SERVICES)
    memory.put(TABLE, with_checksum(bytes(table)))
    memory.put(SERVICES, services())
    return memory


def left(header: bytes = b"", loader: int = 0x21, table: int = TABLE, old: bytes = OLD) -> Memory:
    """Memory when ``ExitBootServices`` has returned to a kernel's EFI stub."""
    memory = started()
    params = bytearray(4096)
    params[0x1F1 : 0x1F1 + len(header)] = header
    params[0x210] = loader
    params[0x228:0x22C] = struct.pack("<I", TEXT)
    memory_map = [(7, 0x1000, 0x9F), (2, 0x10_0000, 0x300), (7, 0x40_0000, 0x800), (4, 0xC0_0000, 0x400)]
    params[0x1C0:0x1E0] = b"EL64" + struct.pack("<IIIIIII", table, 48, 1, MAP, 48 * len(memory_map), 0, 0)
    memory.put(PARAMS, bytes(params))
    memory.put(TEXT, old + b"\0other data of the loader's")
    for number, (kind, start, pages) in enumerate(memory_map):
        memory.put(MAP + 48 * number, struct.pack("<IIQQQQQ", kind, 0, start, 0, pages, 0, 0))
    stack = [0, TEXT, PARAMS + 1, 0x1000, STACK & ~0xFFF, PARAMS, SIZE + 0x1000, PARAMS]
    memory.put(STACK, struct.pack(f"<{len(stack)}Q", *stack))
    return memory


FOUND = Firmware(TABLE, EXIT)


def test_firmware_is_found_by_the_pointer_that_it_keeps_for_debuggers() -> None:
    assert started().run(firmware(RAM)) == FOUND
    memory = started(at=STEP)
    assert memory.run(firmware(RAM)) == FOUND
    assert memory.reads == 3 + 3


def test_memory_in_which_no_firmware_runs_is_looked_at_in_few_places() -> None:
    memory = Memory()
    assert memory.run(firmware(RAM)) is None
    assert memory.reads == 3
    beyond = started()
    assert beyond.run(firmware(((1 << 32, 1 << 40),))) is None
    assert beyond.reads == 0


@pytest.mark.parametrize(
    "damage",
    [(POINTER, b"IBM"), (POINTER + 8, b"\xff\xff\xff\xff"), (TABLE, b"\0"), (TABLE + 96, bytes(8)),
     (SERVICES, b"\0"), (SERVICES + 12, b"\xff\xff"), (SERVICES + 12, bytes(4)), (SERVICES + 16, bytes(4)),
     (SERVICES + 232, b"\x10")],
)  # fmt: skip
def test_tables_that_are_not_whole_yet_are_not_believed(damage: tuple[int, bytes]) -> None:
    memory = started()
    memory.put(*damage)
    assert memory.run(firmware(RAM)) is None


def test_firmware_that_ran_before_a_reset_is_not_found_again() -> None:
    memory = started()
    memory.run(forget(RAM))
    assert memory.written == [(POINTER, bytes(8))]
    assert memory.run(firmware(RAM)) is None


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=4))
def test_only_memory_is_looked_at(spans: list[tuple[int, int]]) -> None:
    looking = firmware(spans)
    seen = []
    try:
        asked = next(looking)
        while True:
            seen.append(asked)
            asked = looking.send(bytes(asked.length))
    except StopIteration:
        pass
    for one in seen:
        assert any(start <= one.address and one.address + one.length <= end for start, end in spans)
    assert all(one.address % STEP == 0 and one.address for one in seen)


def test_what_calls_it_is_where_it_returns_to() -> None:
    memory = started()
    memory.put(STACK, struct.pack("<Q", 0x40_1234))
    assert memory.run(returns_to(REGISTERS)) == 0x40_1234
    assert memory.run(returns_to({**REGISTERS, "efer": 0})) is None
    assert memory.run(returns_to({**REGISTERS, "rsp": SIZE})) is None
    assert has_exited(REGISTERS)
    assert not has_exited({**REGISTERS, "rax": 0x8000_0000_0000_0002})


def change(memory: Memory, new: Callable[[str], str], registers: Mapping[str, int] = REGISTERS) -> Any:
    return memory.run(edit_at_exit(FOUND, registers, new))


def test_a_kernels_line_is_moved_to_memory_that_the_firmware_calls_free() -> None:
    memory = left()
    found = change(memory, lambda old: f"{old} single")
    assert (found.old, found.new) == (OLD.decode(), f"{OLD.decode()} single")
    assert (found.place, found.moved) == (0x1_0000, True)
    assert memory.data[0x1_0000:].startswith(OLD + b" single\0")
    assert struct.unpack_from("<I", memory.data, PARAMS + 0x228) == (0x1_0000,)
    assert {address for address, _ in memory.written} == {0x1_0000, PARAMS + 0x228, PARAMS + 0xC8}


def test_a_shorter_line_stays_where_it_is() -> None:
    memory = left()
    assert change(memory, lambda old: "single").place == TEXT
    assert memory.data[TEXT:].startswith(b"single\0")
    assert b"other data of the loader's" in memory.data[TEXT : TEXT + 100]


def test_older_stubs_fill_in_the_header_of_their_kernel() -> None:
    header = bytearray(0x80)
    header[0x11:0x15] = b"HdrS"
    header[0x15:0x17] = b"\x0f\x02"
    header[0x47:0x4B] = struct.pack("<I", 40)
    with pytest.raises(CannotChange, match="41 bytes, and this kernel takes 40"):
        change(left(bytes(header)), lambda old: "x" * 41)


def test_pointers_in_registers_that_functions_keep_are_followed_too() -> None:
    memory = left()
    memory.put(STACK, bytes(8192))
    assert change(memory, lambda old: "single") is None
    assert change(memory, lambda old: "single", {**REGISTERS, "rbx": PARAMS}).new == "single"


def test_a_boot_loader_that_takes_the_machine_shows_where_it_will_start_its_kernel() -> None:
    header = bytearray(0x80)
    header[0x11:0x17] = b"HdrS\x0f\x02"
    header[0x20] = 1
    header[0x23:0x27] = struct.pack("<I", 0x860_0000)
    memory = left(bytes(header), loader=0x72)
    assert change(memory, lambda old: "single") == Entry(0x860_0000)
    assert memory.written == []
    # A kernel's file in memory, that nobody has filled in.
    assert change(left(bytes(header), loader=0), lambda old: "single") is None


@pytest.mark.parametrize("memory", [left(loader=0x72), left(table=0), Memory()])
def test_what_is_no_kernels_stub_is_left_alone(memory: Memory) -> None:
    assert change(memory, lambda old: "single") is None
    assert memory.written == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [PARAMS + 0x1C0, PARAMS + 0x1F1, PARAMS + 0x218, PARAMS + 0x250, MAP, STACK, TEXT, TABLE]
            )
            | st.integers(PARAMS, PARAMS + 4095),
            st.binary(min_size=1, max_size=48),
        ),
        max_size=6,
    ),
    st.integers(0, 2100),
)
def test_whatever_the_memory_holds_little_is_read_and_nothing_but_a_line_written(
    damage: list[tuple[int, bytes]], size: int
) -> None:
    memory = left()
    for address, data in damage:
        memory.put(address, data)
    new = "x" * size
    assume(new.encode() != OLD)
    try:
        found = change(memory, lambda old: new)
    except CannotChange:
        found = None
    assert memory.reads <= MOST_READS
    assert len(memory.written) <= 3
    if isinstance(found, Change) and found.new != found.old:
        assert memory.data[found.place :].startswith(new.encode() + b"\0")
