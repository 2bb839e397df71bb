"""Line number programs and the units that they belong to: made-up ones, compilers' own, and damaged ones."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_symbols_skeleton import made

from kbridge.debuginfo.building import build
from symbols import elf, line_program
from symbols.dwarf_units import Units
from symbols.errors import SymbolError
from symbols.index import Index
from symbols.line_program import END, signed, unsigned

FIRST_SPECIAL, LINE_BASE, LINE_RANGE = 13, -5, 14
LENGTHS = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))


def leb(value: int, *, is_signed: bool = False) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        done = value in (0, -1) and bool(byte & 0x40) == (value < 0) if is_signed else not value
        out.append(byte | (0 if done else 0x80))
        if done:
            return bytes(out)


def program_of(code: bytes, version: int, *, wide: bool = False) -> bytes:
    """A whole program with two folders and two files."""
    if version >= 5:
        names = b"\x01\x01\x08\x02/tree\0sub\0" + b"\x02\x01\x08\x02\x0b\x02one.c\0\x00two.h\0\x01"
    else:
        names = b"sub\0\0" + b"one.c\0\0\0\0" + b"two.h\0\x01\0\0" + b"\0"
    head = struct.pack("<B", 1) + (b"\x01" if version >= 4 else b"") + b"\x01"
    head += struct.pack("<bBB", LINE_BASE, LINE_RANGE, FIRST_SPECIAL) + LENGTHS + names
    begin = struct.pack("<H", version) + (b"\x08\x00" if version >= 5 else b"")
    body = begin + struct.pack("<Q" if wide else "<I", len(head)) + head + code
    return (
        b"\xff\xff\xff\xff" + struct.pack("<Q", len(body)) if wide else struct.pack("<I", len(body))
    ) + body


def no_text(at: int) -> str:
    return "?"


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], bytes]:
    """Rows, and a program that makes them by opcodes of all kinds."""
    rows: list[tuple[int, int, int]] = []
    code = bytearray()
    for _ in range(draw(st.integers(1, 3))):
        address, file, line = draw(st.integers(0, 1 << 48)), 1, 1
        code += b"\0\x09\x02" + struct.pack("<Q", address)
        for _ in range(draw(st.integers(0, 8))):
            move, turn = draw(st.integers(0, 40)), draw(st.integers(-20, 20))
            if draw(st.booleans()):
                file = draw(st.integers(0, 3))
                code += b"\x04" + leb(file)
            code += draw(
                st.sampled_from([b"", b"\x05\x83\x01", b"\x06", b"\x0a", b"\x0c\x05", b"\0\x02\x04\x07"])
            )
            turn = max(turn, 1 - line)
            special = (turn - LINE_BASE) + LINE_RANGE * move + FIRST_SPECIAL
            address, line = address + move, line + turn
            if LINE_BASE <= turn < LINE_BASE + LINE_RANGE and special < 256 and draw(st.booleans()):
                code.append(special)
            else:
                code += b"\x03" + leb(turn, is_signed=True)
                fixed = b"\x09" + struct.pack("<H", move)
                code += draw(st.sampled_from([b"\x02" + leb(move), fixed])) + b"\x01"
            rows.append((address, file, line))
        if draw(st.booleans()):
            address += (255 - FIRST_SPECIAL) // LINE_RANGE
            code.append(8)
        code += b"\0\x01\x01"
        rows.append((address, END, 0))
    return rows, bytes(code)


@given(sequences(), st.integers(2, 5), st.booleans())
def test_rows_are_those_that_the_program_was_made_of(
    sequence: tuple[list[tuple[int, int, int]], bytes], version: int, wide: bool
) -> None:
    rows, code = sequence
    found = line_program.read(program_of(code, version, wide=wide), no_text, no_text)
    assert found.rows == rows
    # The first folder is the one that the compiler worked in, and files count from 0 since version 5.
    assert found.names == ["one.c", "sub/two.h"] if version >= 5 else [None, "one.c", "sub/two.h"]
    assert (found.name(-1), found.name(9)) == (None, None)


@given(sequences(), st.data())
def test_a_part_is_the_same_as_of_the_whole(
    sequence: tuple[list[tuple[int, int, int]], bytes], data: st.DataObject
) -> None:
    rows, code = sequence
    # Sequences that overlap have no right answer.
    rows = rows[: next(at for at, one in enumerate(rows) if one[1] == END) + 1]
    low = data.draw(st.sampled_from(rows))[0]
    high = low + data.draw(st.integers(1, 60))
    whole = line_program.read(program_of(code, 5), no_text, no_text)
    part = line_program.read(program_of(code, 5), no_text, no_text, (low, high))
    assert part.between(low, high) == whole.between(low, high)


@given(sequences(), st.integers(2, 5), st.data())
@settings(max_examples=300)
def test_a_damaged_program_is_refused_or_read(
    sequence: tuple[list[tuple[int, int, int]], bytes], version: int, data: st.DataObject
) -> None:
    program = bytearray(program_of(sequence[1], version))
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(program)))
    for damaged in (bytes(program), bytes(program[:cut])):
        try:
            found = line_program.read(damaged, no_text, no_text)
        except SymbolError:
            continue
        assert len(found.rows) <= len(damaged)


@given(st.integers(0, (1 << 64) - 1), st.integers(-(1 << 61), 1 << 61))
def test_numbers(value: int, other: int) -> None:
    assert unsigned(leb(value), 0) == (value, len(leb(value)))
    text = leb(other, is_signed=True)
    assert signed(b"x" + text, 1) == (other, 1 + len(text))


# -- compilers' own -----------------------------------------------------------------------------------------------

SOURCE = """
static inline __attribute__((always_inline)) int inner(volatile int *at) { return *at + 1; }
__attribute__((noinline)) int outer(volatile int *at)
{
    int one = 3 * *at;
    return one + inner(at);
}
int third(volatile int *at) { return outer(at) ? outer(at + 1) : 7; }
__attribute__((section(".text.unlikely"))) int far(volatile int *at) { return outer(at) + 2; }
"""
ENTRY = """
    .text
    .globl entry
    .type entry, @function
entry:
    call outer
    nop
    .p2align 5
    hlt
    .size entry, . - entry
    .section .note.GNU-stack,"",@progbits
"""


def linked(folder: Path, *flags: str) -> Path:
    (folder / "part.c").write_text(SOURCE)
    (folder / "entry.S").write_text(ENTRY)
    command = ["gcc", "-O2", "-g", "-static", "-nostdlib", "-no-pie", "-falign-functions=16", *flags]
    command += ["-Wl,--build-id,-e,entry,-Ttext=0x1000000", "-o", "program", "part.c", "entry.S"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "program"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return linked(tmp_path_factory.mktemp("program")).read_bytes()


def told_by_addr2line(path: Path, addresses: range) -> list[str]:
    said = subprocess.run(
        ["addr2line", "-e", path], input="\n".join(map(hex, addresses)), capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    places = (line.split(" ")[0].rpartition("/")[2] for line in said.splitlines())
    # Where it has no line it may name the file of the symbol before.
    return ["??:0" if place.endswith(":?") else place for place in places]


def text_of(image: bytes) -> range:
    (text,) = [one for one in elf.sections(image) if one.name == ".text"]
    return range(text.address, text.address + text.size)


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("flags", [(), ("-gz=zlib",)])
def test_every_address_has_the_line_of_addr2line(
    tmp_path: Path, version: int, flags: tuple[str, ...]
) -> None:
    path = linked(tmp_path, f"-gdwarf-{version}", *flags)
    image = path.read_bytes()
    units = Units(image)
    build_id = elf.build_id(image)
    assert build_id is not None
    index = Index(memoryview(b"".join(build(path, build_id))), build_id)
    addresses = text_of(image)
    known = 0
    for address, expected in zip(addresses, told_by_addr2line(path, addresses), strict=True):
        found, calls = units.line_at(address), index.frames(address)
        name = "??:0" if found is None or found[0] is None else f"{Path(found[0]).name}:{found[1]}"
        assert name == expected, hex(address)
        assert expected == (
            "??:0" if not calls or calls[0].file is None else f"{Path(calls[0].file).name}:{calls[0].line}"
        ), hex(address)
        known += name != "??:0"
    assert known > 60
    assert units.unit_at(1) is None


def test_a_file_without_dwarf_has_no_lines() -> None:
    image = made([(".text", 1, 6, 0x1000, bytes(16))], [("go", 18, 1, 0x1000, 16)])
    assert Units(image).ranges() == []
    assert Units(image).line_at(0x1000) is None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(program: bytes, data: st.DataObject) -> None:
    image = bytearray(program)
    parts = [one for one in elf.sections(program) if one.name.startswith(".debug_")]
    for _ in range(data.draw(st.integers(1, 4))):
        part = data.draw(st.sampled_from(parts))
        image[part.offset + data.draw(st.integers(0, part.size - 1))] = data.draw(st.integers(0, 255))
    units = Units(bytes(image))
    for address in text_of(program)[::7]:
        try:
            units.line_at(address)
        except SymbolError:
            continue


# -- links to other files -----------------------------------------------------------------------------------------


def with_link(contents: bytes) -> bytes:
    return made([(".gnu_debuglink", 1, 0, 0, contents)], [("go", 18, 1, 0x1000, 16)])


@given(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.binary(),
)
def test_a_link_is_a_name_and_a_checksum(name: str, contents: bytes) -> None:
    raw = name.encode()
    crc = zlib.crc32(contents)
    data = raw + bytes(4 - len(raw) % 4) + struct.pack("<I", crc)
    assert elf.debug_link(with_link(data)) == (None if name in (".", "..") else (name, crc))


@given(st.binary(max_size=400))
def test_a_damaged_link_is_none_or_a_plain_name(contents: bytes) -> None:
    found = elf.debug_link(with_link(contents))
    assert found is None or (found[0] not in ("", ".", "..") and "/" not in found[0])
