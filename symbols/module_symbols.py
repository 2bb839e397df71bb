"""A module's own table of symbols, out of guest memory: for a module whose file nobody has.

Source: Linux, include/linux/module.h (``struct mod_kallsyms``: table, how many, names; pointers of 64 bits,
little-endian), include/uapi/linux/elf.h (``Elf64_Sym``, whose values the kernel has made addresses).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from symbols.errors import SymbolError
from symbols.reads import Read, Search

if TYPE_CHECKING:
    from collections.abc import Sequence

_TABLE: Final = struct.Struct("<QI4xQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_LONGEST_NAME: Final = 512
MOST_SYMBOLS: Final = 1 << 17
MOST_NAME_BYTES: Final = 8 << 20
_MOST_SYMBOLS_TOGETHER: Final = 1 << 20
_MOST_NAME_BYTES_TOGETHER: Final = 64 << 20
_KINDS: Final = frozenset((0, 1, 2))


@dataclass(frozen=True, slots=True)
class ModuleSymbol:
    """A symbol of a module, where it is in memory."""

    name: str
    address: int
    size: int
    info: int
    """Binding and type, as in ELF."""


def read(tables: Sequence[int]) -> Search[list[tuple[ModuleSymbol, ...]]]:
    """Read the tables of several modules at once; 0 stands for none.  Raises ``SymbolError``."""
    known = [one for one in tables if one]
    heads = yield tuple(Read(one, _TABLE.size) for one in known)
    places = [_TABLE.unpack(data) if len(data) == _TABLE.size else (0, 0, 0) for data in heads]
    counts = [count for _, count, _ in places]
    if any(count > MOST_SYMBOLS for count in counts) or sum(counts) > _MOST_SYMBOLS_TOGETHER:
        raise SymbolError("a module says that it has more symbols than any has")
    raw = yield tuple(Read(table, count * _SYMBOL.size) for table, count, _ in places)
    entries = [list(_SYMBOL.iter_unpack(data[: len(data) - len(data) % _SYMBOL.size])) for data in raw]
    sizes = [max((entry[0] for entry in its), default=0) + _LONGEST_NAME for its in entries]
    if any(size > MOST_NAME_BYTES for size in sizes) or sum(sizes) > _MOST_NAME_BYTES_TOGETHER:
        raise SymbolError("a module says that its names are longer than any module's")
    names = yield from _names([(place[2], size) for place, size in zip(places, sizes, strict=True)])
    found = {
        one: tuple(
            ModuleSymbol(text, value, size, info)
            for name, info, _, section, value, size in its
            if section and info & 15 in _KINDS and value and (text := _text(strings, name))
        )
        for one, its, strings in zip(known, entries, names, strict=True)
    }
    return [found.get(one, ()) for one in tables]


def _names(places: list[tuple[int, int]]) -> Search[list[bytes]]:
    """Read names of which only an upper bound of their length is known: a page behind them may not be there."""
    page = 4096
    reads = [
        [Read(at, min(page - at % page, start + size - at)) for at in _pages(start, size, page)]
        for start, size in places
    ]
    data = yield tuple(one for its in reads for one in its)
    rest = iter(data)
    return [b"".join(next(rest) for _ in its) for its in reads]


def _pages(start: int, size: int, page: int) -> list[int]:
    return [start, *range(start - start % page + page, start + size, page)] if start else []


def _text(strings: bytes, at: int) -> str:
    return strings[at : at + _LONGEST_NAME].partition(b"\0")[0].decode("utf-8", "replace")
