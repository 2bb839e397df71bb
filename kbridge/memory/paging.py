"""x86-64's page tables, walked: where in physical memory a virtual address is.

in          the physical address of the topmost table, reads of physical memory
out         the page, or that nothing is mapped
invariant   as many reads as there are levels, whatever the tables hold

Source: Intel SDM volume 3, 4.5 (4-level and 5-level paging): each table has 512 entries of 8 bytes; bit 0 of an entry
says that it is there, bit 7 that it maps a page of 1 GiB or 2 MiB itself; bits 12 to 51 are where it leads.  Linux
under page-table isolation keeps a processor's two topmost tables side by side (arch/x86/entry/calling.h,
``PTI_USER_PGTABLE_BIT``): the kernel's, and 4096 bytes behind it the one for user mode.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from symbols.reads import Read, Search

_ENTRY: Final = struct.Struct("<Q")
_PRESENT: Final = 1
_LARGE: Final = 1 << 7
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_LARGE_LEVELS: Final = (2, 3)
"""Tables whose entries may map pages themselves: of 2 MiB, of 1 GiB."""
_INDEX_BITS: Final = 9
_PAGE_BITS: Final = 12
_FIVE_LEVELS: Final = 1 << 12
"""CR4.LA57."""
_PAGING: Final = 1 << 31
"""CR0.PG."""
_USER_TABLE: Final = 1 << 12
KERNEL_HALF: Final = 1 << 63
_WORD: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Page:
    """A page: where it begins in virtual and in physical memory, and how large it is."""

    virtual: int
    physical: int
    size: int


@dataclass(frozen=True, slots=True)
class Tables:
    """The page tables of one processor."""

    root: int
    """The physical address of the topmost table."""
    levels: int

    @classmethod
    def of_registers(cls, cr3: int, cr4: int) -> Tables:
        """Return those that a processor's registers name."""
        return cls(cr3 & _ADDRESS, 5 if cr4 & _FIVE_LEVELS else 4)

    @property
    def is_for_user_mode(self) -> bool:
        """Whether it may be the one for user mode, under page-table isolation: then the kernel's is beside it."""
        return bool(self.root & _USER_TABLE)

    @property
    def of_kernel(self) -> Tables:
        """Return the kernel's table beside one for user mode."""
        return Tables(self.root & ~_USER_TABLE, self.levels)


def is_on(cr0: int) -> bool:
    """Whether a processor translates addresses at all."""
    return bool(cr0 & _PAGING)


def is_canonical(address: int, levels: int) -> bool:
    """Whether an address has a place in tables of so many levels: the bits above are all as the highest one."""
    bits = _PAGE_BITS + levels * _INDEX_BITS
    above = address >> bits - 1
    return above in (0, _WORD >> bits - 1)


def walk(tables: Tables, address: int) -> Search[Page | None]:
    """Find the page of a virtual address, None where nothing is mapped; what is read are *physical* addresses."""
    if not is_canonical(address, tables.levels):
        return None
    table = tables.root
    for level in range(tables.levels, 0, -1):
        shift = _PAGE_BITS + (level - 1) * _INDEX_BITS
        index = address >> shift & (1 << _INDEX_BITS) - 1
        (data,) = yield (Read(table + index * _ENTRY.size, _ENTRY.size),)
        if len(data) < _ENTRY.size:
            return None
        (entry,) = _ENTRY.unpack(data)
        if not entry & _PRESENT:
            return None
        if level == 1 or (level in _LARGE_LEVELS and entry & _LARGE):
            size = 1 << shift
            # Of a large page bit 12 is no part of the address.
            return Page(address & -size, entry & _ADDRESS & -size, size)
        table = entry & _ADDRESS
    raise AssertionError("the last level maps a page or nothing")


def walk_kernel(tables: Tables, address: int) -> Search[Page | None]:
    """Find the page of an address as the kernel sees it, also where the processor was in user mode."""
    page = yield from walk(tables, address)
    if page is None and tables.is_for_user_mode and address >= KERNEL_HALF:
        page = yield from walk(tables.of_kernel, address)
    return page
