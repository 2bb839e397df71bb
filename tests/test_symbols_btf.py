"""Layouts of structures out of BTF: made-up, a real kernel's, and damaged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbols_lab import Types

from kbridge.debuginfo.mapping import mapped
from symbols import btf as btf_module
from symbols import elf, modules, orc
from symbols.btf import Btf, BtfError

ROOT = Path(__file__).resolve().parent.parent
CONST, TYPEDEF = 10, 8


def made() -> Types:
    types = Types()
    number = types.integer("int", 4)
    byte = types.integer("char", 1)
    name = types.array(byte, 56)
    pointer = types.pointer()
    inner = types.struct("module_layout", 16, [("base", pointer, 0), ("size", number, 8)])
    nameless = types.struct("", 8, [("one", number, 0), ("two", number, 4)], kind=5)
    constant = types.modifier(CONST, types.modifier(TYPEDEF, inner, "layout_t"))
    types.struct("module", 0, [])  # a declaration
    types.struct(
        "module",
        128,
        [("state", number, 0), ("name", name, 24), ("core_layout", constant, 80), ("", nameless, 100)],
    )
    types.bits(
        "orc_entry", 6, [("sp_offset", number, 0, 0), ("sp_reg", number, 32, 4), ("end", number, 42, 1)]
    )
    return types


DATA = made().data()


def test_members_paths_and_sizes() -> None:
    btf = Btf(DATA)
    module = btf.struct("module")
    assert btf.size(module) == 128
    assert btf.offset(module, "core_layout.size") == 88
    assert btf.offset(module, "two") == 104
    assert btf.size(btf.member(module, "name").type) == 56
    assert btf.size(btf.element(btf.member(module, "name").type)) == 1
    assert btf.size(btf.member(module, "core_layout.base").type) == 8
    assert not btf.has(module, "mem")
    assert btf.bits(btf.struct("orc_entry"), "sp_reg") == (32, 4)
    with pytest.raises(BtfError, match="no struct nothing"):
        btf.struct("nothing")
    with pytest.raises(BtfError, match="no member"):
        btf.offset(module, "core_layout.nothing")
    with pytest.raises(BtfError, match="bit-field"):
        btf.offset(btf.struct("orc_entry"), "end")
    with pytest.raises(BtfError, match="no bit-field"):
        btf.bits(module, "state")
    with pytest.raises(BtfError, match="no array"):
        btf.element(module)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut off"),
        (bytes(64), "no BTF"),
        (DATA[:-1], "cut off"),
        (DATA[:40], "cut off"),
        (b"\x9f\xeb\x02" + DATA[3:], "version 1"),
    ],
)
def test_what_is_no_btf_is_said_so(data: bytes, words: str) -> None:
    with pytest.raises(BtfError, match=words):
        Btf(data)


def test_types_that_contain_themselves_end() -> None:
    types = Types()
    types.struct("loop", 8, [("", 1, 0)])
    types.modifier(CONST, 2)
    types.array(3, 4)
    btf = Btf(types.data())
    with pytest.raises(BtfError, match="without end"):
        btf.members(1)
    with pytest.raises(BtfError, match="without end"):
        btf.size(2)
    with pytest.raises(BtfError, match="without end"):
        btf.size(3)


def test_structures_that_grow_as_powers_are_refused() -> None:
    types = Types()
    for level in range(1, 12):
        types.struct(f"level{level}", 8, [("", level + 1, 0)] * 60)
    types.struct("level12", 8, [])
    with pytest.raises(BtfError, match="more than 32768 members"):
        Btf(types.data()).members(1)


def test_names_without_end_are_refused() -> None:
    types = Types()
    number = types.integer("int", 4)
    types.struct("big", 8, [("m" * 5000, number, 0)])
    with pytest.raises(BtfError, match="longer than any"):
        Btf(types.data()).members(2)
    types = Types()
    for _ in range(100):
        types.struct("module", 8, [])
    with pytest.raises(BtfError, match="more often"):
        Btf(types.data()).struct("module")


def test_types_without_end_are_refused_before_they_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    types = Types()
    for _ in range(100):
        types.pointer()
    monkeypatch.setattr(btf_module, "MOST_TYPES", 50)
    with pytest.raises(BtfError, match="more than 50 types"):
        Btf(types.data())


def test_a_bit_field_is_one_wherever_it_begins() -> None:
    entry = Btf(DATA).struct("orc_entry")
    assert Btf(DATA).member(entry, "sp_reg").width == 4
    with pytest.raises(BtfError, match="bit-field"):
        Btf(DATA).offset(entry, "sp_reg")


@pytest.mark.parametrize("before", [0, 1, 4096, 12345])
def test_it_is_found_in_memory(before: int) -> None:
    decoy = b"\x9f\xeb\x01\x00\x18\x00\x00\x00" + bytes(100)
    found = btf_module.find(decoy * 3 + bytes(before) + DATA + bytes(500))
    assert found.size(found.struct("module")) == 128


@pytest.mark.parametrize("data", [b"", bytes(100), DATA[:-1], b"\x9f\xeb\x01\x00\x18\x00\x00\x00"])
def test_where_it_is_not_nothing_is_found(data: bytes) -> None:
    with pytest.raises(BtfError, match="no BTF in these bytes"):
        btf_module.find(data)


@given(
    st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(DATA)),
)
@settings(max_examples=300)
def test_damaged_btf_gives_layouts_or_an_error(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(DATA)
    for at, byte in changes:
        data[at] = byte
    try:
        btf = Btf(bytes(data[: cut if cut > len(DATA) - 8 else len(DATA)]))
        module = btf.struct("module")
        btf.size(module)
        btf.members(module)
        modules.layout(btf)
        orc.layout(btf)
    except BtfError:
        pass


@pytest.mark.guest
def test_a_real_kernel_as_gdb_shows_it(kgdb_built: str) -> None:
    listed = subprocess.run(
        [ROOT / "scripts" / "guest", "list", "--json"], capture_output=True, timeout=60, check=True
    )
    (vmlinux,) = (Path(one["vmlinux"]) for one in json.loads(listed.stdout) if one["name"] == kgdb_built)
    with mapped(vmlinux) as image:
        section = next(one for one in elf.sections(image) if one.name == ".BTF")
        btf = Btf(image[section.offset : section.offset + section.size])
    # gdb reads the same from DWARF.
    script = [
        f"print sizeof({what})"
        for what in ("struct module", "struct task_struct", "((struct module *)0)->name")
    ]
    paths = (
        "module *)0)->sect_attrs",
        "module *)0)->kallsyms",
        "task_struct *)0)->comm",
        "task_struct *)0)->mm",
    )
    script += [f"print (unsigned long)&((struct {path}" for path in paths]
    said = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", f"file {vmlinux}", *(word for one in script for word in ("-ex", one))],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    values = [
        int(line.partition(" = ")[2].split()[0], 0) for line in said.splitlines() if line.startswith("$")
    ]
    module, task = btf.struct("module"), btf.struct("task_struct")
    assert values == [
        btf.size(module),
        btf.size(task),
        btf.size(btf.member(module, "name").type),
        btf.offset(module, "sect_attrs"),
        btf.offset(module, "kallsyms"),
        btf.offset(task, "comm"),
        btf.offset(task, "mm"),
    ]
    assert modules.layout(btf).size == btf.size(module)
    assert orc.layout(btf).base == (32, 4)
