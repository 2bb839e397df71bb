"""The list of modules and the kernel itself, found in made-up memory: of older and newer kernels, and damaged."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbols_lab import Image, Types, note

from symbols import kaslr, module_symbols, modules
from symbols.btf import Btf, BtfError
from symbols.errors import SlideUnknown, SymbolError
from symbols.kaslr import Claim, Linked
from symbols.model import BuildId, ModuleSection, ModuleState
from symbols.modules import ModuleLayout, ModuleList, ModulesError

HEAD = 0xFFFFFFFF82000100
CORE = 0xFFFFFFFFC0100000
SIZE = 512
IDS = [bytes([number]) * 20 for number in range(1, 9)]


def types_of(era: str) -> Btf:
    """`struct module` and its kin as kernels have them: 6.1, 6.6 (kinds of memory), 6.14 (sections by pointers)."""
    types = Types()
    number, byte, long = types.integer("int", 4), types.integer("char", 1), types.integer("long", 8)
    pointer, name = types.pointer(), types.array(byte, 56)
    links = types.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 8)])
    attribute = types.struct("attribute", 16, [("name", pointer, 0)])
    binary = types.struct("bin_attribute", 64, [("attr", attribute, 0), ("private", pointer, 24)])
    group = types.struct("attribute_group", 48, [("attrs", pointer, 24), ("bin_attrs", pointer, 32)])
    if era == "6.14":
        types.struct("module_sect_attrs", 40, [("grp", group, 0), ("attrs", types.array(binary, 0), 40)])
    else:
        section = types.struct("module_sect_attr", 72, [("battr", binary, 0), ("address", pointer, 64)])
        listed = types.array(section, 0)
        types.struct(
            "module_sect_attrs", 48, [("grp", group, 0), ("nsections", number, 40), ("attrs", listed, 48)]
        )
    arch = types.struct(
        "mod_arch_specific",
        24,
        [("num_orcs", number, 0), ("orc_unwind_ip", pointer, 8), ("orc_unwind", pointer, 16)],
    )
    members = [("state", number, 0), ("list", links, 8), ("name", name, 24), ("sect_attrs", pointer, 200)]
    members += [("kallsyms", pointer, 208), ("arch", arch, 216), ("taints", long, 250)]
    if era == "6.1":
        members.append(
            (
                "core_layout",
                types.struct("module_layout", 16, [("base", pointer, 0), ("size", number, 8)]),
                100,
            )
        )
    else:
        memory = types.struct("module_memory", 16, [("base", pointer, 0), ("size", number, 8)])
        members.append(("mem", types.array(memory, 7), 300))
    types.struct("module", SIZE, members)
    return Btf(types.data())


LAYOUTS = {era: modules.layout(types_of(era)) for era in ("6.1", "6.6", "6.14")}


def memory_of(where: ModuleLayout, count: int) -> Image:
    """A kernel with so many modules."""
    image = Image()
    links = [HEAD, *(CORE + number * 0x10000 + 0x8000 + where.list for number in range(count))]
    image.pieces[HEAD] = struct.pack("<QQ", links[1 % len(links)], links[-1])
    for number in range(count):
        base = CORE + number * 0x10000
        module = bytearray(SIZE)
        before, after = links[number], links[(number + 2) % len(links)]
        struct.pack_into("<QQ", module, where.list, after, before)
        module[where.name : where.name + 5] = b"mod_%d" % number
        struct.pack_into("<QI", module, where.base, base, 0x4000)
        if where.others:
            struct.pack_into("<QI", module, where.others[0][0], base + 0x5000, 0x1000)
        attributes = base + 0xC000
        struct.pack_into("<QQ", module, 200, attributes, base + 0xE000)
        struct.pack_into("<Q", module, 250, 1 << 12)
        struct.pack_into("<IIQQ", module, 216, 3, 0, base + 0x2000, base + 0x2100)
        image.pieces[base + 0x8000] = bytes(module)
        data = base + (0x5000 if where.others else 0x3800)
        sections = [
            (".text", base),
            (".note.gnu.build-id", base + 0x3000),
            (".data", data),
            (".init.text", base + 0x9000),
        ]
        table = bytearray(where.entries + where.entry_size * len(sections))
        for index, (text, address) in enumerate(sections):
            entry = where.entries + index * where.entry_size
            struct.pack_into("<Q", table, entry + where.entry_name, base + 0xD000 + index * 64)
            struct.pack_into("<Q", table, entry + where.entry_address, address)
            image.pieces[base + 0xD000 + index * 64] = text.encode() + b"\0" + bytes(40)
        if where.count is not None:
            struct.pack_into("<I", table, where.count, len(sections))
        else:
            struct.pack_into("<Q", table, 32, base + 0xDF00)
            image.pieces[base + 0xDF00] = struct.pack(
                f"<{len(sections) + 1}Q", *range(1, len(sections) + 1), 0
            )
        image.pieces[attributes] = bytes(table)
        image.pieces[base + 0x3000] = note(b"GNU\0", 3, IDS[number % len(IDS)])
    return image


@pytest.mark.parametrize("era", LAYOUTS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_modules_of_every_era(era: str, count: int) -> None:
    where = LAYOUTS[era]
    memory = memory_of(where, count)
    found = memory.run(modules.read(where, HEAD))
    assert [one.name for one in found.modules] == [f"mod_{number}" for number in range(count)]
    for number, one in enumerate(found.modules):
        base = CORE + number * 0x10000
        assert (one.base, one.size) == (base, 0x4000)
        data = base + (0x5000 if where.others else 0x3800)
        places = {".text": base, ".note.gnu.build-id": base + 0x3000, ".data": data}
        assert one.sections == tuple(ModuleSection(*place) for place in places.items())
        assert one.build_id == BuildId(IDS[number].hex())
        assert (one.state, one.taints) == (ModuleState.LIVE, 1 << 12)
        assert one.unwind == (3, base + 0x2100, base + 0x2000)
    # A walk asks once for each module, and a few times for all.
    assert memory.batches <= count + 8


def test_what_comes_and_goes_is_noticed_in_one_batch() -> None:
    where = LAYOUTS["6.1"]
    memory = memory_of(where, 4)
    known = memory.run(modules.read(where, HEAD))
    memory.batches = 0
    assert not memory.run(modules.has_changed(known))
    assert memory.batches == 1
    for count in (3, 5, 0):
        assert memory_of(where, count).run(modules.has_changed(known))
    assert Image().run(modules.has_changed(ModuleList((), ()))) is False


def test_a_list_that_leads_in_a_circle_or_away_is_refused() -> None:
    where = LAYOUTS["6.1"]
    memory = memory_of(where, 3)
    second = CORE + 0x10000 + 0x8000
    for target in (CORE + 0x8000 + where.list, 0x1234, CORE + 0x123456):
        data = bytearray(memory.pieces[second])
        struct.pack_into("<Q", data, where.list, target)
        memory.pieces[second] = bytes(data)
        with pytest.raises(ModulesError, match=r"leads to|not mapped"):
            memory.run(modules.read(where, HEAD))
    with pytest.raises(ModulesError, match="not mapped"):
        Image().run(modules.read(where, HEAD))


def test_a_module_that_is_coming_keeps_all_its_sections_and_one_in_no_state_is_refused() -> None:
    where = LAYOUTS["6.6"]
    memory = memory_of(where, 1)
    module = bytearray(memory.pieces[CORE + 0x8000])
    module[where.state] = ModuleState.COMING.value
    memory.pieces[CORE + 0x8000] = bytes(module)
    (found,) = memory.run(modules.read(where, HEAD)).modules
    assert found.state is ModuleState.COMING
    assert [one.name for one in found.sections] == [".text", ".note.gnu.build-id", ".data", ".init.text"]
    module[where.state] = 17
    memory.pieces[CORE + 0x8000] = bytes(module)
    with pytest.raises(ModulesError, match="state 17"):
        memory.run(modules.read(where, HEAD))


@pytest.mark.parametrize(("old", "new"), [(SIZE, 0xFFFFFFFF), (SIZE, 16), (72, 0), (72, 0x7FFFFFFF)])
def test_a_layout_that_would_make_us_read_all_memory_is_refused(old: int, new: int) -> None:
    types = Types()
    number, byte = types.integer("int", 4), types.integer("char", 1)
    pointer, name = types.pointer(), types.array(byte, 56)
    sizes = {size: new if size == old else size for size in (SIZE, 72)}
    links = types.struct("list_head", 16, [("next", pointer, 0)])
    attribute = types.struct("bin_attribute", 64, [("name", pointer, 0)])
    nested = types.struct("attribute", 64, [("attr", attribute, 0)])
    section = types.struct("module_sect_attr", sizes[72], [("battr", nested, 0), ("address", pointer, 64)])
    listed = types.array(section, 0)
    types.struct("module_sect_attrs", 48, [("nsections", number, 40), ("attrs", listed, 48)])
    core = types.struct("module_layout", 16, [("base", pointer, 0), ("size", number, 8)])
    members = [("state", number, 0), ("list", links, 8), ("name", name, 24), ("sect_attrs", pointer, 200)]
    types.struct("module", sizes[SIZE], [*members, ("core_layout", core, 100)])
    with pytest.raises(BtfError, match="not as any kernel's"):
        modules.layout(Btf(types.data()))


def test_modules_that_together_say_too_much_are_refused() -> None:
    where = LAYOUTS["6.1"]
    memory = memory_of(where, 5)
    assert where.count is not None
    for number in range(5):
        at = CORE + number * 0x10000 + 0xC000
        table = bytearray(memory.pieces[at])
        struct.pack_into("<I", table, where.count, modules.MOST_SECTIONS)
        memory.pieces[at] = bytes(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "_MOST_SECTIONS_TOGETHER", 4 * modules.MOST_SECTIONS)
        with pytest.raises(ModulesError, match="together"):
            memory.run(modules.read(where, HEAD))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_list_is_read_or_refused(data: st.DataObject) -> None:
    where = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    memory = memory_of(where, 3)
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.sampled_from(sorted(memory.pieces)))
        piece = bytearray(memory.pieces[start])
        piece[data.draw(st.integers(0, len(piece) - 1))] = data.draw(st.integers(0, 255))
        memory.pieces[start] = bytes(piece)
    try:
        found = memory.run(modules.read(where, HEAD))
        memory.run(module_symbols.read([one.symbols for one in found.modules]))
    except SymbolError:
        return
    assert len(found.modules) <= 3


# -- a module's own symbols ---------------------------------------------------------------------------------------


def symbols_at(at: int, listed: list[tuple[str, int, int, int]]) -> dict[int, bytes]:
    names, table = b"\0", b""
    for name, info, section, value in listed:
        table += struct.pack("<IBBHQQ", len(names), info, 0, section, value, 4)
        names += name.encode() + b"\0"
    return {
        at: struct.pack("<QI4xQ", at + 0x100, len(listed), at + 0x800),
        at + 0x100: table,
        at + 0x800: names,
    }


def test_a_modules_own_symbols_are_read() -> None:
    memory = Image(
        symbols_at(
            CORE,
            [("one", 2, 1, CORE + 8), ("undefined", 16, 0, 0), ("two", 17, 3, CORE + 64), ("", 3, 1, CORE)],
        )
    )
    (none, found) = memory.run(module_symbols.read([0, CORE]))
    assert none == ()
    assert [(one.name, one.address, one.info) for one in found] == [
        ("one", CORE + 8, 2),
        ("two", CORE + 64, 17),
    ]


def test_modules_that_together_have_too_many_symbols_are_refused() -> None:
    pieces = {CORE + number: struct.pack("<QI4xQ", CORE, 100_000, CORE) for number in range(0, 320, 32)}
    with pytest.raises(SymbolError, match="more symbols"):
        Image(pieces).run(module_symbols.read(list(pieces) * 2))


def test_a_table_that_makes_no_sense_is_refused() -> None:
    memory = Image({CORE: struct.pack("<QI4xQ", CORE, 1 << 20, CORE)})
    with pytest.raises(SymbolError, match="more symbols"):
        memory.run(module_symbols.read([CORE]))


@pytest.mark.parametrize("head", [b"", bytes(24)])
def test_a_table_that_is_not_there_is_empty(head: bytes) -> None:
    assert Image({CORE: head}).run(module_symbols.read([CORE])) == [()]


# -- the kernel itself --------------------------------------------------------------------------------------------

ONE = Linked(BuildId(IDS[0].hex()), 0xFFFFFFFF82437E70, 0x40, 0xFFFFFFFF81C00990)
TWO = Linked(BuildId(IDS[1].hex()), 0xFFFFFFFF82437E70, 0x40, 0xFFFFFFFF81C00AA0)


def kernel_in(memory: Image, linked: Linked, slide: int, *, table: bool = True) -> None:
    build_id = bytes.fromhex(linked.build_id)
    notes = note(b"Xen\0", 3, b"") + note(b"GNU\0", 3, build_id)
    memory.pieces[linked.notes + slide] = notes + bytes(linked.notes_size - len(notes))
    if table and linked.divide_error is not None:
        handler = linked.divide_error + slide
        gate = struct.pack(
            "<HHBBHII", handler & 0xFFFF, 0x10, 0, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0
        )
        memory.pieces[kaslr.INTERRUPT_TABLE] = gate


@pytest.mark.parametrize("slide", [0, 0x16800000, 0x3FE00000])
@pytest.mark.parametrize("table", [True, False])
def test_the_kernel_in_memory_is_found_among_files(slide: int, *, table: bool) -> None:
    memory = Image()
    kernel_in(memory, TWO, slide, table=table)
    found = memory.run(kaslr.find([ONE, TWO]))
    assert (found.index, found.slide) == (1, slide)
    assert found.way == ("interrupt table" if table else "scan")
    assert memory.batches <= 4
    assert memory.run(kaslr.is_at(TWO, slide))
    assert not memory.run(kaslr.is_at(ONE, slide))


def test_a_slide_is_not_believed_before_the_build_id_was_read_there() -> None:
    memory = Image()
    kernel_in(memory, ONE, 0x16800000)
    # Another build of the same layout: the interrupt table fits both.
    other = Linked(BuildId("ab" * 20), ONE.notes, ONE.notes_size, ONE.divide_error)
    with pytest.raises(SlideUnknown, match="no kernel is in memory whose file is known"):
        memory.run(kaslr.find([other]))


def test_what_is_claimed_is_believed_only_where_the_build_id_is_read() -> None:
    memory = Image()
    kernel_in(memory, TWO, 0x16800000, table=False)
    # What the kernel before it left, what nobody can have, what is said of another, and what is so.
    false = [Claim("console", 0x2E400000), Claim("console", 0x16800001), Claim("console", 1 << 40)]
    other = Claim("VMCOREINFO", 0x16800000, ONE.build_id)
    true = Claim("VMCOREINFO", 0x16800000, TWO.build_id)
    found = memory.run(kaslr.find([ONE, TWO], [*false, other, true]))
    assert (found.index, found.slide, found.way) == (1, 0x16800000, "VMCOREINFO")
    assert memory.batches == 2
    assert memory.run(kaslr.find([ONE, TWO], false)).way == "scan"


def test_the_program_counter_of_a_break_in() -> None:
    linked = replace(ONE, breakpoint=0xFFFFFFFF811A5E40)
    memory = Image()
    kernel_in(memory, linked, 0x2E400000, table=False)
    claims = kaslr.counter_claims(0xFFFFFFFF811A5E40 + 0x2E400000 + 11, [TWO, linked])
    assert claims == (Claim("program counter", 0x2E400000, linked.build_id),)
    assert memory.run(kaslr.find([TWO, linked], claims)).way == "program counter"
    # Somewhere else, or in user space.
    assert kaslr.counter_claims(0xFFFFFFFF811A5E40 + 0x2E400000 + 4096, [linked]) == ()
    assert kaslr.counter_claims(0x401000, [linked]) == ()


@pytest.mark.parametrize(
    ("text", "slide"),
    [
        (b"[    4.180918] Kernel Offset: 0x3a400000 from 0xffffffff81000000 (relocation range: ", 0x3A400000),
        (b"Kernel Offset: disabled\r\n", 0),
        (b"Kernel Offset: 0x200000 from\n...\nKernel Offset: 0x400000 from", 0x400000),
        (b"Kernel Offset: 0x1234567890abcdef12 from", None),
        (b"Kernel Offset: none", None),
        (b"", None),
    ],
)
def test_what_the_console_says_last(text: bytes, slide: int | None) -> None:
    assert kaslr.console_claim(text) == (None if slide is None else Claim("console", slide))


@given(st.binary(max_size=80))
def test_any_console_text_is_a_claim_or_none(text: bytes) -> None:
    for data in (text, b"Kernel Offset: " + text, b"Kernel Offset: 0x" + text):
        found = kaslr.console_claim(data)
        assert found is None or 0 <= found.slide < 1 << 64


def test_nothing_is_found_where_no_kernel_is() -> None:
    for files in ([], [ONE]):
        with pytest.raises(SlideUnknown):
            Image().run(kaslr.find(files))


@given(st.binary(max_size=80))
def test_any_notes_have_a_build_id_or_none(data: bytes) -> None:
    memory = Image({ONE.notes: data})
    result: Any = memory.run(kaslr.is_at(ONE, 0))
    assert result is (note(b"GNU\0", 3, IDS[0]) in data)
