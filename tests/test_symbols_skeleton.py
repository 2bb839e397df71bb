"""The small ELF files that a gdb is served: what pyelftools reads in them."""

from __future__ import annotations

import io
import struct
from itertools import accumulate
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from symbols_lab import note

from symbols import elf
from symbols.errors import SymbolError
from symbols.kallsyms import Kallsyms
from symbols.memory_skeleton import bare_module, kallsyms_skeleton
from symbols.module_symbols import ModuleSymbol
from symbols.skeleton import allocated, module_skeleton, vmlinux_skeleton

BASE = 0xFFFFFFFF81000000
SLIDE = 0x16800000
NOTES = note(b"Xen\0", 3, b"x") + note(b"GNU\0", 3, bytes(range(20)))
ALLOC, WRITE, EXEC = 2, 1, 4
ABS = 0xFFF1


def made(
    sections: list[tuple[str, int, int, int, bytes]],
    symbols: list[tuple[str, int, int, int, int]],
    kind: int = 2,
) -> bytes:
    """An ELF file: sections (name, type, flags, address, contents), symbols (name, info, section, value, size)."""
    strings = b"\0"
    table = bytes(24)
    for name, info, section, value, size in symbols:
        table += struct.pack("<IBBHQQ", len(strings), info, 0, section, value, size)
        strings += name.encode() + b"\0"
    every = [*sections, (".symtab", 2, 0, 0, table), (".strtab", 3, 0, 0, strings)]
    names = b"\0" + b"".join(one[0].encode() + b"\0" for one in every) + b".shstrtab\0"
    every.append((".shstrtab", 3, 0, 0, names))
    at, body, headers = 64, b"", bytes(64)
    places = accumulate((len(one[0]) + 1 for one in every), initial=1)
    for (_, type_, flags, address, contents), name_at in zip(every, places, strict=False):
        link = len(every) - 1 if type_ == 2 else 0
        entry = 24 if type_ == 2 else 0
        headers += struct.pack(
            "<IIQQQQIIQQ", name_at, type_, flags, address, at, len(contents), link, 1, 8, entry
        )
        if type_ != 8:
            body += contents
            at += len(contents)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01" + bytes(9), kind, 62, 1, 0, 0, at, 0, 64, 0, 0, 64,
        len(every) + 1, len(every),
    )  # fmt: skip
    return head + body + headers


KERNEL = made(
    [
        (".text", 1, ALLOC | EXEC, BASE, bytes(64)),
        (".notes", 7, ALLOC, BASE + 0x1000, NOTES),
        (".data..percpu", 1, ALLOC | WRITE, 0, bytes(32)),
        (".debug_info", 1, 0, 0, bytes(100)),
    ],
    [
        ("local", 2, 1, BASE + 16, 8),
        ("__ksymtab_local", 0, 1, BASE + 20, 0),
        ("a.c", 4, ABS, 0, 0),
        ("fixed", 0, ABS, 0x1234, 0),
        ("variable", 1, 3, 0x18, 8),
        ("elsewhere", 1, 4, 5, 8),
        ("nowhere", 16, 0, 0, 0),
        ("function", 18, 1, BASE, 16),
    ],
)


def read(image: bytes) -> tuple[ELFFile, dict[str, Any]]:
    file = ELFFile(io.BytesIO(image))
    table: Any = file.get_section_by_name(".symtab")
    return file, {one.name: one for one in table.iter_symbols() if one.name}


def test_a_kernel_is_moved_and_its_per_cpu_variables_are_not() -> None:
    image = vmlinux_skeleton(KERNEL, SLIDE)
    file, symbols = read(image)
    text, percpu = file.get_section_by_name(".text"), file.get_section_by_name(".data..percpu")
    assert (text["sh_addr"], text["sh_type"], text["sh_size"]) == (BASE + SLIDE, "SHT_NOBITS", 64)
    assert not percpu["sh_flags"] & ALLOC
    assert set(symbols) == {"local", "fixed", "variable", "function"}
    values = {name: one["st_value"] for name, one in symbols.items()}
    assert values == {"local": BASE + SLIDE + 16, "fixed": 0x1234, "variable": 0x18, "function": BASE + SLIDE}
    assert symbols["variable"]["st_shndx"] == symbols["fixed"]["st_shndx"] == "SHN_ABS"
    assert file.get_section(symbols["function"]["st_shndx"]).name == ".text"
    table: Any = file.get_section_by_name(".symtab")
    assert table["sh_info"] == 4  # locals first: the empty one, and three
    assert elf.build_id(image) == elf.build_id(KERNEL) == bytes(range(20)).hex()
    assert ".debug_info" not in [one.name for one in file.iter_sections()]


def test_instructions_for_unwinding_are_compressed_and_whole() -> None:
    frame = bytes(range(256)) * 100
    file, _ = read(vmlinux_skeleton(KERNEL, 0, frame))
    section = file.get_section_by_name(".debug_frame")
    assert section.compressed
    assert section.data() == frame
    assert section["sh_size"] < len(frame) / 4


def test_a_module_keeps_what_is_in_memory() -> None:
    module = made(
        [
            (".note.gnu.build-id", 7, ALLOC, 0, NOTES),
            (".text", 1, ALLOC | EXEC, 0, bytes(64)),
            (".init.text", 1, ALLOC | EXEC, 0, bytes(64)),
        ],
        [("here", 2, 2, 8, 4), ("gone", 2, 3, 8, 4)],
        kind=1,
    )
    image = module_skeleton(module, {".text", ".note.gnu.build-id"})
    file, symbols = read(image)
    assert allocated(image) == (".note.gnu.build-id", ".text")
    assert set(symbols) == {"here"}
    assert symbols["here"]["st_value"] == 8
    assert file["e_type"] == "ET_REL"
    assert elf.build_id(image) == bytes(range(20)).hex()


@pytest.mark.parametrize(
    "make", [lambda data: vmlinux_skeleton(data, 0), lambda data: module_skeleton(data, {".text"})]
)
def test_a_stripped_file_is_refused(make: Any) -> None:
    stripped = made([(".text", 1, ALLOC, BASE, bytes(8))], [])
    at = stripped.index(b".symtab\0")
    assert at
    for data in (b"", stripped[:100], stripped.replace(struct.pack("<II", 7, 2), struct.pack("<II", 7, 1))):
        with pytest.raises(SymbolError):
            make(data)


@given(
    st.lists(st.tuples(st.integers(0, len(KERNEL) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 64)
)
def test_a_damaged_file_gives_a_skeleton_or_an_error(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(KERNEL)
    for at, byte in changes:
        data[at] = byte
    try:
        image = vmlinux_skeleton(bytes(data[: len(data) - cut]), SLIDE)
    except SymbolError:
        return
    assert len(image) < len(KERNEL) + 4096
    elf.sections(image)


# -- without a file -----------------------------------------------------------------------------------------------

TABLE = Kallsyms(
    (
        BASE, BASE, BASE + 0x40, BASE + 0x1000, BASE + 0x2000, BASE + 0x3000, BASE + 0x3010, BASE + 0x4000,
        0x18, BASE + 0x2010, BASE + 0x2018,
    ),
    b"TTtTDTtTAdd",
    (
        "_stext", "first", "second", "_etext", "data", "_sinittext", "begin", "_einittext", "variable",
        "__already_done.7", "other",
    ),
)  # fmt: skip


def test_a_kernels_own_symbols() -> None:
    table = Kallsyms((*TABLE.addresses, BASE + 0x5000), TABLE.types + b"B", (*TABLE.names, "_end"))
    image = kallsyms_skeleton(table, (BASE + 0x2800, NOTES), b"frame")
    file, symbols = read(image)
    assert elf.build_id(image) == bytes(range(20)).hex()
    assert {name: symbols[name]["st_value"] for name in ("first", "second", "begin", "data", "variable")} == {
        "first": BASE, "second": BASE + 0x40, "begin": BASE + 0x3010, "data": BASE + 0x2000, "variable": 0x18,
    }  # fmt: skip
    # A size reaches to the next symbol that is elsewhere.
    assert symbols["first"]["st_size"] == symbols["_stext"]["st_size"] == 0x40
    assert symbols["first"]["st_info"]["type"] == "STT_FUNC"
    assert symbols["first"]["st_info"]["bind"] == "STB_GLOBAL"
    assert symbols["second"]["st_info"]["bind"] == "STB_LOCAL"
    assert symbols["data"]["st_info"]["type"] == "STT_OBJECT"
    assert symbols["variable"]["st_shndx"] == "SHN_ABS"
    assert "__already_done.7" not in symbols
    sections = {one.name: one for one in file.iter_sections()}
    for name, section in (("second", ".text"), ("begin", ".init.text")):
        assert file.get_section(symbols[name]["st_shndx"]).name == section
        start = sections[section]["sh_addr"]
        assert start <= symbols[name]["st_value"] < start + sections[section]["sh_size"]
    assert sections[".debug_frame"].data() == b"frame"


def test_a_modules_own_symbols() -> None:
    at = 0xFFFFFFFFC0123000
    image = bare_module(
        {".text": at, ".data": at + 0x1000},
        at,
        0x2000,
        [
            ModuleSymbol("go", at + 0x10, 4, 18),
            ModuleSymbol("value", at + 0x1008, 8, 1),
            ModuleSymbol("outside", at - 8, 8, 1),
            ModuleSymbol("behind", at + 0x3000, 8, 1),
        ],
    )
    file, symbols = read(image)
    assert allocated(image) == (".text", ".data")
    assert {name: one["st_value"] for name, one in symbols.items()} == {"go": 0x10, "value": 8}
    assert file.get_section(symbols["value"]["st_shndx"]).name == ".data"
    assert [one["sh_size"] for one in file.iter_sections() if one["sh_flags"] & ALLOC] == [0x1000, 0x1000]


def test_a_module_of_which_nothing_is_known_is_listed_all_the_same() -> None:
    image = bare_module({}, BASE, 0x1000, [])
    assert allocated(image) == (".text",)
    assert read(image)[1] == {}
