"""The small ELF file for a kernel whose file nobody has, out of its own table of symbols.

Like ``skeleton.py``'s, with sections made up: the code between the symbols that bound it, data where the other symbols
are.  A symbol's size is not in the table: it reaches to the next.
"""

from __future__ import annotations

import re
import struct
import zlib
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from symbols.elf import SHF_ALLOC, SHT_NOBITS, SHT_NOTE
from symbols.model import Section
from symbols.skeleton import ET_EXEC, SHN_ABS, Kept, write_elf

if TYPE_CHECKING:
    from symbols.kallsyms import Kallsyms

_SHT_PROGBITS: Final = 1
_SHF_WRITE: Final = 1
_SHF_EXECINSTR: Final = 4
_SHF_COMPRESSED: Final = 0x800
_ELFCOMPRESS_ZLIB: Final = 1
_COMPRESSION: Final = struct.Struct("<IIQQ")
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
        kept.append(_compressed(".debug_frame", debug_frame))
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


def _compressed(name: str, contents: bytes) -> Kept:
    """Compress a section (System V ABI, "Section Compression"): half of the file would be these instructions."""
    data = _COMPRESSION.pack(_ELFCOMPRESS_ZLIB, 0, len(contents), 8) + zlib.compress(contents, 6)
    return Kept(Section(name, _SHT_PROGBITS, _SHF_COMPRESSED, 0, 0, len(data), 0, 0, 8, 0), data)


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
