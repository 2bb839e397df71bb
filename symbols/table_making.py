"""The table of symbols of an index made out of a linked file.

Which of several symbols at one address is shown is the kernel's own rule for ``%pS`` (kernel/kallsyms.c, of the order
that scripts/kallsyms.c gives them): strong before weak, a linker script's last, fewer leading underscores, then by
name, for it reads what ``nm -n`` printed.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from symbols.elf import SHF_ALLOC, SHT_SYMTAB, check_inside, sections
from symbols.errors import NotAnElf
from symbols.table import ABSOLUTE, HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from symbols.elf import Image

_SYMBOL_BYTES: Final = 24
_SHN_ABS: Final = 0xFFF1
_PER_CPU: Final = ".data..percpu"
_KINDS: Final = frozenset((0, 1, 2))
_SHORTEST_OF_LINKER: Final = 8


def build(image: Image) -> bytes:
    """Make the arrays that ``table.py`` describes out of a linked file.  Raises ``NotAnElf``."""
    found = sections(image)
    table = next((one for one in found if one.kind == SHT_SYMTAB), None)
    if table is None or table.entry_size != _SYMBOL_BYTES or table.link >= len(found):
        raise NotAnElf("it has no table of 64-bit symbols: it is stripped of its symbols")
    check_inside(image, table)
    check_inside(image, found[table.link])
    names = found[table.link]
    text = bytes(image[names.offset : names.offset + names.size])
    size = table.size - table.size % _SYMBOL_BYTES
    words = array("Q", bytes(image[table.offset : table.offset + size]))
    moving = {index for index, one in enumerate(found) if one.flags & SHF_ALLOC and one.name != _PER_CPU}
    fixed = {index for index, one in enumerate(found) if one.flags & SHF_ALLOC and one.name == _PER_CPU} | {
        _SHN_ABS
    }
    rows: list[tuple[int, int, bytes, int, int]] = []
    for first, value, length in zip(words[0::3], words[1::3], words[2::3], strict=True):
        section, kind = first >> 48, first >> 32 & 15
        if kind not in _KINDS or not (section in moving or section in fixed):
            continue
        start = first & 0xFFFFFFFF
        name = text[start : text.find(b"\0", start)]
        if name and not name.startswith((b".L", b"__ksymtab_", b"__kstrtab", b"__crc_")):
            weak = first >> 36 & 15 == 2
            score = weak << 9 | _is_linkers(name) << 8 | min(len(name) - len(name.lstrip(b"_")), 255)
            rows.append((value, score, name, length, kind | (ABSOLUTE if section in fixed else 0)))
    rows.sort()
    return pack([(value, length, kind, name) for value, _, name, length, kind in rows])


def _is_linkers(name: bytes) -> bool:
    """Whether a name is one that linker scripts give to beginnings and ends (scripts/kallsyms.c)."""
    return (
        len(name) >= _SHORTEST_OF_LINKER
        and name.startswith(b"__")
        and (name.startswith((b"__start_", b"__stop_", b"__end_")) or name.endswith((b"_start", b"_end")))
    )


def pack(rows: Sequence[tuple[int, int, int, bytes]]) -> bytes:
    """Make the arrays out of rows in the order of addresses: address, size, kind with ``ABSOLUTE``, name."""
    addresses, sizes = array("Q"), array("Q")
    places, kinds, text = array("I"), bytearray(), bytearray()
    for value, length, kind, name in rows:
        addresses.append(value)
        sizes.append(length)
        places.append(len(text))
        kinds.append(kind)
        text += name + b"\0"
    by_name = array("I", sorted(range(len(rows)), key=lambda index: rows[index][3]))
    parts = [HEADER.pack(len(rows), len(text), 0)]
    parts += [
        addresses.tobytes(),
        sizes.tobytes(),
        places.tobytes(),
        bytes(kinds),
        by_name.tobytes(),
        bytes(text),
    ]
    return b"".join(part + bytes(-len(part) % 8) for part in parts)
