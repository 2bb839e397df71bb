"""The small ELF files for a kernel, or a module, whose file nobody has, out of its own table of symbols.

Like ``skeleton.py``'s, with sections made up: the code between the symbols that bound it, data where the other symbols
are.  A symbol's size is not in the table: it reaches to the next.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from symbols.elf import SHF_ALLOC, SHT_NOBITS, SHT_NOTE
from symbols.model import Section
from symbols.skeleton import ET_EXEC, ET_REL, SHN_ABS, Kept, compressed, write_elf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from symbols.kallsyms import Kallsyms
    from symbols.module_symbols import ModuleSymbol

_SHF_WRITE: Final = 1
_SHF_EXECINSTR: Final = 4
_MADE: Final = re.compile(
    r".*\.\d+$|__UNIQUE_ID|__initcall_|print_fmt_|trace_event_(?:fields|type_funcs)_|__tpstrtab_|__event_|event_\w+_fn"
    r"|__p_syscall|__syscall_meta_|types__|args__|__setup_|__param|__bpf_trace_tp_|str__"
)
"""Data whose names the kernel's macros make, or the compiler by a number, and nobody asks for: a fifth of all names."""
_CODE: Final = ((".text", "_stext", "_etext"), (".init.text", "_sinittext", "_einittext"))
_END: Final = "_end"
_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
_FUNCTION, _OBJECT = 2, 1
_LARGEST: Final = 1 << 24
"""No symbol reaches farther: what is behind it belongs to something without a name."""


def kallsyms_skeleton(table: Kallsyms, notes: tuple[int, bytes], debug_frame: bytes = b"") -> bytes:
    """Return the skeleton of a kernel with these symbols, and with its notes (their address, their bytes).

    ``debug_frame``: how to unwind it (DWARF 4, 6.4.1), with addresses as they are in memory.
    """
    section = Section(".notes", SHT_NOTE, SHF_ALLOC, notes[0], 0, len(notes[1]), 0, 0, 4, 0)
    kept = [*_sections(table), Kept(section, notes[1])]
    places = [
        (
            one.section.address,
            one.section.address + one.section.size,
            number,
            bool(one.section.flags & _SHF_EXECINSTR),
        )
        for number, one in enumerate(kept, 1)
        if one.section.kind == SHT_NOBITS
    ]
    if debug_frame:
        kept.append(compressed(".debug_frame", debug_frame))
    strings = [b""]
    at = 1
    out = array("Q", (0, 0, 0))
    globals_ = array("Q")
    locals_ = 1
    made = _MADE.match
    order = sorted(range(len(table.names)), key=table.addresses.__getitem__)
    addresses = [table.addresses[index] for index in order] + [0]
    for place, index in enumerate(order):
        address = addresses[place]
        letter = chr(table.types[index])
        if letter not in "tTwW" and made(table.names[index]):
            continue
        number, kind = SHN_ABS, _OBJECT
        if address >= _KERNEL_MAP:
            for start, end, candidate, is_code in places:
                if start <= address < end:
                    number, kind = candidate, _FUNCTION if is_code and letter in "tTwW" else _OBJECT
                    break
        size = 0
        following = place + 1
        while following < len(order) and addresses[following] == address:
            following += 1
        if following < len(order):
            size = min(addresses[following] - address, _LARGEST)
        name = table.names[index].encode()
        is_global = letter.isupper() or letter == "w"
        info = kind | (16 if is_global else 0)
        (globals_ if is_global else out).extend((at | info << 32 | number << 48, address, size))
        locals_ += not is_global
        strings.append(name)
        at += len(name) + 1
    strings.append(b"")
    return write_elf(ET_EXEC, kept, out.tobytes() + globals_.tobytes(), b"\0".join(strings), locals_)


def bare_module(
    sections: Mapping[str, int],
    base: int,
    size: int,
    symbols: Sequence[ModuleSymbol],
    debug_frame: bytes = b"",
) -> bytes:
    """Return the skeleton of a module whose file nobody has: its sections, each up to the next, and its own symbols.

    ``debug_frame``: how to unwind it, with addresses as they are in memory: gdb moves the sections of a relocatable
    file to where they are told to be, and takes what stands in ``.debug_frame`` for relocated (gdb/symfile.c,
    ``default_symfile_offsets``).
    """
    starts = sorted(sections.items(), key=lambda item: item[1]) or [(".text", base)]
    ends = [start for _, start in starts[1:]] + [max(base + size, starts[-1][1] + 1)]
    kept = [
        Kept(Section(name, SHT_NOBITS, _flags(name), 0, 0, end - start, 0, 0, 1, 0))
        for (name, start), end in zip(starts, ends, strict=True)
    ]
    if debug_frame:
        kept.append(compressed(".debug_frame", debug_frame))
    addresses = [start for _, start in starts]
    strings = [b""]
    at = 1
    local, global_ = array("Q", (0, 0, 0)), array("Q")
    for symbol in symbols:
        number = bisect_right(addresses, symbol.address)
        if not number or symbol.address >= ends[number - 1]:
            continue
        name = symbol.name.encode()
        into = global_ if symbol.info >> 4 else local
        into.extend(
            (at | symbol.info << 32 | number << 48, symbol.address - addresses[number - 1], symbol.size)
        )
        strings.append(name)
        at += len(name) + 1
    strings.append(b"")
    return write_elf(ET_REL, kept, local.tobytes() + global_.tobytes(), b"\0".join(strings), len(local) // 3)


def _flags(name: str) -> int:
    return SHF_ALLOC | (_SHF_EXECINSTR if ".text" in name else _SHF_WRITE)


def _sections(table: Kallsyms) -> list[Kept]:
    """Make up sections: code where it is bounded, data in the gaps and behind, up to the kernel's end."""
    bounds = table.find(*(name for _, *ends in _CODE for name in ends), _END)
    code = sorted(
        (bounds[start], bounds[end], name)
        for name, start, end in _CODE
        if start in bounds and end in bounds and bounds[start] < bounds[end]
    )
    data: list[tuple[int, int, str]] = [
        (before, start, f".data{index}")
        for index, ((_, before, _), (start, _, _)) in enumerate(pairwise(code))
        if before < start
    ]
    last = max((end for _, end, _ in code), default=0)
    end = bounds.get(_END, 0)
    if last < end:
        data.append((last, end, ".bss"))
    return [
        Kept(Section(name, SHT_NOBITS, flags, start, 0, stop - start, 0, 0, 1, 0))
        for pieces, flags in ((code, SHF_ALLOC | _SHF_EXECINSTR), (data, SHF_ALLOC | _SHF_WRITE))
        for start, stop, name in pieces
    ]
