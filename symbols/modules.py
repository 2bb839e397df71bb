"""The modules of a running kernel, out of guest memory: names, sections, build-ids.

Source: Linux, include/linux/module.h, kernel/module/sysfs.c (``struct module_sect_attrs``).  ``modules`` is the head of
a list of ``struct module``, linked by their member ``list``.  Pointers are 64 bits, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.btf import BtfError
from symbols.elf import build_id_of_notes
from symbols.errors import SymbolError
from symbols.model import BuildId, Module, ModuleSection, ModuleState
from symbols.reads import Read, Search

if TYPE_CHECKING:
    from symbols.btf import Btf

LIST_SYMBOL: Final = "modules"
MOST_MODULES: Final = 4096
MOST_SECTIONS: Final = 1024
_MOST_SECTIONS_TOGETHER: Final = 1 << 16
_LARGEST: Final = 1 << 16
"""Bytes of ``struct module``, which has 1 to 2 KB; the layout is the guest's word, and decides what is read."""
_LARGEST_ENTRY: Final = 1 << 10
_MOST_NAME: Final = 64
_NOTES: Final = ".note.gnu.build-id"
_NOTES_BYTES: Final = 36
"""Of a note with a build-id of 20 bytes."""
_POINTER: Final = struct.Struct("<Q")
_NODE: Final = 16
_MOST_UNWIND: Final = 1 << 20
_CORE_KINDS: Final = 4
"""MOD_TEXT, MOD_DATA, MOD_RODATA and MOD_RO_AFTER_INIT; behind them is what the initialisation needs."""
_KERNEL_SPACE: Final = 1 << 63


class ModulesError(SymbolError):
    """The list of modules does not make sense: it is being changed, or the layout is another kernel's."""


@dataclass(frozen=True, slots=True)
class ModuleLayout:
    """Where the members are that are looked at, in bytes from the beginning of their structure."""

    size: int
    """Of ``struct module``."""
    list: int
    state: int
    taints: int | None
    """Of its taints, a word of 64 bits."""
    name: int
    name_size: int
    base: int
    """Of the code's address; the size of what is there is in ``text_size``."""
    text_size: int
    others: tuple[tuple[int, int], ...]
    """Of the addresses and sizes of its other memory, that of the initialisation left out (since 6.4)."""
    unwind: tuple[int, int, int] | None
    """Of the number of its unwind entries, the pointers to them and to their places."""
    symbols: int | None
    """Of the pointer to its table of symbols."""
    attributes: int
    """Of the pointer to ``struct module_sect_attrs``."""
    build_id: int | None
    count: int | None
    """Of the number of sections; None where a list of pointers ends with a zero (6.14 and later)."""
    pointers: int
    """Of the pointer to that list, where there is one."""
    entries: int
    """Of the sections in ``struct module_sect_attrs``."""
    entry_size: int
    entry_name: int
    """Of the pointer to a section's name in its entry."""
    entry_address: int


def layout(btf: Btf) -> ModuleLayout:
    """Return the layout of a kernel's modules.  Raises ``BtfError`` where it is not as any known kernel's."""
    found = _layout(btf)
    inside = (found.list + _NODE, found.name + found.name_size, found.base + 8, found.text_size + 4)
    if not max(inside) <= found.size <= _LARGEST:
        raise BtfError(f"a struct module of {found.size} bytes is not as any kernel's")
    if not max(found.entry_name, found.entry_address) + 8 <= found.entry_size <= _LARGEST_ENTRY:
        raise BtfError(f"an entry of a module's sections of {found.entry_size} bytes is not as any kernel's")
    if max(found.entries, found.pointers, found.count or 0) > _LARGEST_ENTRY:
        raise BtfError("a module's sections are not where any kernel has them")
    return found


def _layout(btf: Btf) -> ModuleLayout:
    module = btf.struct("module")
    attributes = btf.struct("module_sect_attrs")
    others: tuple[tuple[int, int], ...] = ()
    if btf.has(module, "core_layout.base"):
        base, text_size = btf.offset(module, "core_layout.base"), btf.offset(module, "core_layout.size")
    else:
        # Since 6.4: an array of kinds of memory, MOD_TEXT being the first.
        memory = btf.member(module, "mem")
        element = btf.element(memory.type)
        base = memory.bits // 8 + btf.offset(element, "base")
        text_size = memory.bits // 8 + btf.offset(element, "size")
        step = btf.size(element)
        others = tuple((base + kind * step, text_size + kind * step) for kind in range(1, _CORE_KINDS))
    entry = btf.element(btf.member(attributes, "attrs").type)
    counted = btf.has(attributes, "nsections")
    return ModuleLayout(
        size=btf.size(module),
        list=btf.offset(module, "list"),
        state=btf.offset(module, "state"),
        taints=btf.offset(module, "taints") if btf.has(module, "taints") else None,
        name=btf.offset(module, "name"),
        name_size=min(btf.size(btf.member(module, "name").type), _MOST_NAME),
        base=base,
        text_size=text_size,
        others=others,
        unwind=_unwind(btf, module),
        symbols=btf.offset(module, "kallsyms") if btf.has(module, "kallsyms") else None,
        attributes=btf.offset(module, "sect_attrs"),
        build_id=btf.offset(module, "build_id") if btf.has(module, "build_id") else None,
        count=btf.offset(attributes, "nsections") if counted else None,
        pointers=0 if counted else btf.offset(attributes, "grp.bin_attrs"),
        entries=btf.offset(attributes, "attrs"),
        entry_size=btf.size(entry),
        entry_name=btf.offset(entry, "battr.attr.name" if btf.has(entry, "battr") else "attr.name"),
        entry_address=btf.offset(entry, "address" if btf.has(entry, "address") else "private"),
    )


def _unwind(btf: Btf, module: int) -> tuple[int, int, int] | None:
    names = ("arch.num_orcs", "arch.orc_unwind", "arch.orc_unwind_ip")
    if not all(btf.has(module, name) for name in names):
        return None
    count, entries, places = (btf.offset(module, name) for name in names)
    return count, entries, places


@dataclass(frozen=True, slots=True)
class ModuleList:
    """The list at one moment, with what tells whether it has changed since."""

    modules: tuple[Module, ...]
    nodes: tuple[tuple[int, bytes], ...]
    """Where each link of the list is, the head's first, and its bytes."""


def read(where: ModuleLayout, head: int) -> Search[ModuleList]:
    """Read the list whose head is at ``head``, newest module first.  Raises ``ModulesError``."""
    found, nodes = yield from _walk(where, head)
    attributes = [_pointer(data, where.attributes) for _, data in found]
    sections = yield from _sections(where, attributes)
    build_ids = yield from _build_ids(sections)
    return ModuleList(
        tuple(
            _module(where, address, data, its, build_id)
            for (address, data), its, build_id in zip(found, sections, build_ids, strict=True)
        ),
        nodes,
    )


def has_changed(known: ModuleList) -> Search[bool]:
    """Tell whether modules came or went since the list was read: in one batch."""
    found = yield tuple(Read(address, _NODE) for address, _ in known.nodes)
    return any(data != old for data, (_, old) in zip(found, known.nodes, strict=True))


def _walk(
    where: ModuleLayout, head: int
) -> Search[tuple[list[tuple[int, bytes]], tuple[tuple[int, bytes], ...]]]:
    (link,) = yield (Read(head, _NODE),)
    nodes = [(head, link)]
    found: list[tuple[int, bytes]] = []
    seen = {head}
    at = _pointer(link, 0)
    while at != head:
        if at in seen or at < _KERNEL_SPACE or len(found) >= MOST_MODULES:
            raise ModulesError(f"the list of modules leads to {at:#x}")
        seen.add(at)
        address = at - where.list
        (data,) = yield (Read(address, where.size),)
        if len(data) < where.size:
            raise ModulesError(f"a module at {address:#x} is not mapped")
        found.append((address, data))
        nodes.append((at, data[where.list : where.list + _NODE]))
        at = _pointer(data, where.list)
    return found, tuple(nodes)


def _sections(where: ModuleLayout, attributes: list[int]) -> Search[list[tuple[ModuleSection, ...]]]:
    """Read the sections of all modules at once; none for a module that keeps no list of them."""
    known = [one for one in attributes if one]
    counts = yield from _counts(where, known)
    tables = yield tuple(
        Read(one + where.entries, count * where.entry_size) for one, count in zip(known, counts, strict=True)
    )
    entries = [
        [data[at : at + where.entry_size] for at in range(0, count * where.entry_size, where.entry_size)]
        for data, count in zip(tables, counts, strict=True)
    ]
    names = yield tuple(Read(_pointer(one, where.entry_name), _MOST_NAME) for its in entries for one in its)
    rest = iter(names)
    by_place = {
        one: tuple(ModuleSection(_text(next(rest)), _pointer(entry, where.entry_address)) for entry in its)
        for one, its in zip(known, entries, strict=True)
    }
    return [by_place.get(one, ()) for one in attributes]


def _build_ids(sections: list[tuple[ModuleSection, ...]]) -> Search[list[BuildId | None]]:
    """Read the build-ids out of the modules' own notes."""
    notes = [next((one.address for one in its if one.name == _NOTES), 0) for its in sections]
    data = yield tuple(Read(one, _NOTES_BYTES) for one in notes if one)
    rest = iter(data)
    return [build_id_of_notes(next(rest)) if one else None for one in notes]


def _counts(where: ModuleLayout, attributes: list[int]) -> Search[list[int]]:
    if where.count is None:
        lists = yield tuple(Read(one + where.pointers, _POINTER.size) for one in attributes)
        tables = yield tuple(Read(_pointer(one, 0), (MOST_SECTIONS + 1) * _POINTER.size) for one in lists)
        counts = [next((i for i in range(len(one) // 8) if not _pointer(one, i * 8)), 0) for one in tables]
    else:
        numbers = yield tuple(Read(one + where.count, 4) for one in attributes)
        counts = [int.from_bytes(one, "little") for one in numbers]
    if any(count > MOST_SECTIONS for count in counts):
        raise ModulesError(f"a module with {max(counts)} sections")
    if sum(counts) > _MOST_SECTIONS_TOGETHER:
        raise ModulesError(f"modules with {sum(counts)} sections together")
    return counts


def _module(
    where: ModuleLayout,
    address: int,
    data: bytes,
    sections: tuple[ModuleSection, ...],
    build_id: BuildId | None,
) -> Module:
    state = _state(data[where.state : where.state + 4])
    # What only the initialisation needed is freed then, and may belong to somebody else.
    live = state is ModuleState.LIVE
    areas = [
        (_pointer(data, start), int.from_bytes(data[size : size + 4], "little"))
        for start, size in ((where.base, where.text_size), *where.others)
    ]
    if build_id is None and where.build_id is not None:
        raw = data[where.build_id : where.build_id + 20]
        build_id = BuildId(raw.hex()) if any(raw) else None
    return Module(
        name=_text(data[where.name : where.name + where.name_size]),
        address=address,
        base=_pointer(data, where.base),
        size=int.from_bytes(data[where.text_size : where.text_size + 4], "little"),
        sections=tuple(
            one
            for one in sections
            if not live or any(start <= one.address < start + size for start, size in areas)
        ),
        build_id=build_id,
        unwind=None if where.unwind is None else _unwind_of(data, where.unwind),
        state=state,
        taints=0 if where.taints is None else _pointer(data, where.taints),
        symbols=0 if where.symbols is None else _pointer(data, where.symbols),
    )


def _state(data: bytes) -> ModuleState:
    number = int.from_bytes(data, "little")
    try:
        return ModuleState(number)
    except ValueError:
        raise ModulesError(f"a module in state {number}, which does not exist") from None


def _unwind_of(data: bytes, where: tuple[int, int, int]) -> tuple[int, int, int] | None:
    count = int.from_bytes(data[where[0] : where[0] + 4], "little")
    return (count, _pointer(data, where[1]), _pointer(data, where[2])) if 0 < count <= _MOST_UNWIND else None


def _pointer(data: bytes, at: int) -> int:
    if at + _POINTER.size > len(data):
        raise ModulesError("a part of the list of modules is not mapped")
    value: int = _POINTER.unpack_from(data, at)[0]
    return value


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace")
