"""Core files of machines: memory by physical and virtual address, processors, notes; damaged in any way."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_lab import (
    IMAGE_MAP,
    OTHERS,
    PAGE,
    PHYSICAL,
    STEXT,
    TEXT,
    core,
    packed,
    small_machine,
    state_note,
    status_note,
)

from kbridge.crash import elf_core, image_kernel
from kbridge.crash.core_file import CoreFile
from kbridge.crash.core_processors import processors
from kbridge.crash.elf_core import CoreError, Note
from kbridge.errors import ImageError


def opened(folder: Path, data: bytes) -> CoreFile:
    path = folder / "core"
    path.write_bytes(data)
    return CoreFile.open(path)


@pytest.mark.parametrize("as_it_is", [True, False])
def test_memory_is_read_by_both_kinds_of_address(tmp_path: Path, as_it_is: bool) -> None:
    memory, notes = small_machine(TEXT)
    whole = core(memory, notes)
    found = opened(tmp_path, whole if as_it_is else packed(whole, 10_000))
    assert found.size == len(memory)
    assert found.read_physical(PHYSICAL, 16) == b"the kernel's tex"
    tables = found.tables(1)
    assert tables is not None
    assert found.read_virtual(tables, STEXT + 4, 6) == b"kernel"
    # A read that goes on where nothing is mapped ends there.
    assert len(found.read_virtual(tables, STEXT + (1 << 21) - 10, 100)) == 10
    assert found.read_virtual(tables, IMAGE_MAP, 8) == b""
    assert b"".join(piece for _, piece in found.scan()) == memory
    found.close()


def test_ranges_of_memory_with_a_hole_between(tmp_path: Path) -> None:
    memory = random.Random(1).randbytes(3 * PAGE)
    whole = core(memory, [], pieces=[(0x10_0000, PAGE), (0, PAGE), (0x10_1000, PAGE)])
    found = opened(tmp_path, whole)
    assert found.read_physical(0x10_0000, 2 * PAGE + 5) == memory[:PAGE] + memory[2 * PAGE :]
    assert found.read_physical(0, 2 * PAGE) == memory[PAGE : 2 * PAGE]
    assert found.read_physical(PAGE, 8) == b""
    assert found.read_physical(0x20_0000, 8) == b""
    found.close()


def test_a_processor_that_translates_nothing_sees_physical_memory(tmp_path: Path) -> None:
    memory, _ = small_machine()
    real = {"cr0": 0x11, "cr3": 0, "rip": 0xFFF0}
    found = opened(tmp_path, core(memory, [status_note(real), state_note(real)]))
    assert found.tables(0) is None
    assert found.tables(7) is None
    assert found.read_virtual(found.tables(0), PHYSICAL, 10) == b"the kernel"
    found.close()


def test_registers_of_each_processor() -> None:
    one = {
        name: 0x1000 + number
        for number, name in enumerate(("rax", "rbx", "r8", "r15", "rip", "rsp", "rflags"))
    }
    one |= {"cs": 0x10, "ss": 0x18, "gs_base": 1 << 63, "idt_base": 0xFFFF_FE00_0000_0000, "cr3": 0x24E_6000}
    one |= {"cr0": 1 << 31, "cr2": 5, "cr4": 0x6B0, "k_gs_base": 7}
    two = {"rip": 99}
    found = processors(
        [status_note(one), status_note(two), state_note(one), state_note(two, kernel_gs=False)]
    )
    assert len(found) == 2
    registers = found[0].registers
    assert {name: registers[name] for name in ("rax", "rbx", "r8", "r15", "rip", "rsp")} == {
        name: one[name] for name in ("rax", "rbx", "r8", "r15", "rip", "rsp")
    }
    assert registers["eflags"] == one["rflags"]
    assert (registers["cs"], registers["ss"], registers["gs_base"]) == (0x10, 0x18, 1 << 63)
    assert (registers["idt"], registers["cr3"], registers["cr2"], registers["k_gs_base"]) == (
        0xFFFF_FE00_0000_0000, 0x24E_6000, 5, 7,
    )  # fmt: skip
    assert found[0].has_tables
    assert "cr1" not in registers
    assert found[1].registers["rip"] == 99
    assert "k_gs_base" not in found[1].registers


def test_general_registers_alone_where_the_hypervisor_says_no_more() -> None:
    (found,) = processors([status_note({"rip": 5, "fs_base": 9})])
    assert (found.registers["rip"], found.registers["fs_base"]) == (5, 9)
    assert not found.has_tables
    (found,) = processors(
        [Note(b"CORE", 1, bytes(100)), Note(b"QEMU", 0, struct.pack("<II", 2, 440) + bytes(432))]
    )
    assert found.registers == {}


# -- VMCOREINFO -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noted", "texts", "told"),
    [
        (TEXT, (), TEXT),
        (None, (TEXT,), TEXT),
        # One that was left behind, one that somebody has written down.
        (None, (OTHERS, TEXT.replace(b"phys_base)=", b"phys_base)=1"), TEXT), TEXT),
        (None, (OTHERS,), None),
        (None, (), None),
    ],
)
def test_vmcoreinfo_is_the_kernels_that_runs(
    tmp_path: Path, noted: bytes | None, texts: tuple[bytes, ...], told: bytes | None
) -> None:
    memory, notes = small_machine(*texts)
    if noted is not None:
        notes.append(Note(b"VMCOREINFO", 0, noted))
    found = opened(tmp_path, core(memory, notes))
    assert image_kernel.of_image(found) == told
    found.close()


def test_vmcoreinfo_across_two_pieces_of_memory(tmp_path: Path) -> None:
    memory, notes = small_machine(size=1 << 22)
    at = (1 << 20) - 50
    memory = memory[:at] + TEXT + memory[at + len(TEXT) :]
    found = opened(tmp_path, core(memory, notes))
    assert image_kernel.of_image(found) == TEXT
    found.close()


# -- the head written anew --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, TEXT, b"x" * 4096])
def test_a_head_with_room_for_vmcoreinfo_is_one_of_the_same_memory(text: bytes | None) -> None:
    memory, notes = small_machine()
    whole = core(memory[: 4 * PAGE], notes, pieces=[(0, PAGE), (0x10_0000, 3 * PAGE)])
    size = elf_core.head_bytes(whole[:20_000])
    assert size is not None
    plan = elf_core.rewrite(elf_core.read_head(len(whole), lambda at, length: whole[at : at + length]))
    anew = plan.bytes_with(text) + whole[size:]
    assert plan.size % PAGE == 0
    head = elf_core.read_head(len(anew), lambda at, length: anew[at : at + length])
    assert head.vmcoreinfo() == text
    assert head.notes[: len(notes)] == tuple(notes)
    assert [(one.physical, one.size) for one in head.loads] == [(0, PAGE), (0x10_0000, 3 * PAGE)]
    assert b"".join(anew[one.offset : one.offset + one.size] for one in head.loads) == memory[: 4 * PAGE]


def test_a_text_larger_than_any_kernels_has_no_room() -> None:
    memory, notes = small_machine()
    whole = core(memory, notes)
    plan = elf_core.rewrite(elf_core.read_head(len(whole), lambda at, length: whole[at : at + length]))
    with pytest.raises(CoreError, match="larger than any"):
        plan.bytes_with(b"x" * 20_000)


def test_how_long_a_head_is_is_known_when_its_program_headers_are_there() -> None:
    memory, notes = small_machine()
    whole = core(memory[:PAGE], notes)
    first = len(whole) - PAGE
    assert [elf_core.head_bytes(whole[:end]) for end in (0, 63, 64, 175, 176, 300)] == [None] * 4 + [
        first
    ] * 2


# -- hostile files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x" * 500, "no 64-bit little-endian ELF"),
        (b"\x7fELF\x02\x01\x01", "cut off in its headers"),
        (core(b"", []).replace(b"\x04\x00>\x00", b"\x02\x00>\x00"), "no core file"),
        (core(b"", []), "no memory in it"),
        (core(b"x" * PAGE, [])[:-1], "reaches past its end"),
        (core(b"x" * PAGE, []).replace(b"\x04\x00>\x00", b"\x04\x00\xb7\x00"), "is of machine 183"),
    ],
)
def test_what_is_no_core_file_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        opened(tmp_path, data)


@given(places=st.lists(st.tuples(st.integers(0, 1400), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=400, deadline=None)
def test_damaged_heads_are_an_error_or_are_read_within_bounds(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]]
) -> None:
    memory, notes = small_machine(TEXT, size=1 << 21)
    whole = bytearray(core(memory[: 1 << 20], notes))
    for at, value in places:
        whole[at] = value
    try:
        found = opened(tmp_path_factory.getbasetemp(), bytes(whole))
    except ImageError:
        return
    assert len(found.processors) <= 4
    assert found.size <= len(whole) * len(found.loads)
    for number in range(len(found.processors)):
        assert len(found.read_virtual(found.tables(number), STEXT, 1000)) <= 1000
    found.close()


@given(data=st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_notes_of_nonsense_end(data: bytes) -> None:
    found = list(elf_core.read_notes(data))
    assert sum(len(one.data) + len(one.owner) for one in found) <= len(data)
    processors(found)
