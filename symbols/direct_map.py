"""Where an x86-64 kernel maps all physical memory, so that physical addresses can be read as virtual ones.

Source: Linux, Documentation/arch/x86/x86_64/mm.rst, arch/x86/include/asm/page_64.h: a physical address is at
``page_offset_base`` plus itself, for what lies below ``max_pfn`` pages; the kernel's image is mapped once more, at
``__START_KERNEL_map``, and there ``phys_base`` leads to the physical address.  All three are variables of 8 bytes,
little-endian.  A kernel built without CONFIG_DYNAMIC_MEMORY_LAYOUT has no ``page_offset_base``: its map is at a fixed
address.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from symbols.elf import build_id_of_notes
from symbols.errors import SymbolError
from symbols.kaslr import Linked
from symbols.reads import Read, Search

OFFSET_SYMBOL: Final = "page_offset_base"
PHYSICAL_SYMBOL: Final = "phys_base"
END_SYMBOL: Final = "max_pfn"
IMAGE_MAP: Final = 0xFFFF_FFFF_8000_0000
"""``__START_KERNEL_map``."""
FIXED_OFFSET: Final = 0xFFFF_8880_0000_0000
"""``__PAGE_OFFSET_BASE_L4``."""
KERNEL_HALF: Final = 0xFF00_0000_0000_0000
"""No address of a kernel is lower, with four and with five levels of page tables."""
MOST_BYTES: Final = 1 << 52
"""Physical addresses of x86-64 have 52 bits."""
PAGE_BYTES: Final = 4096
_WORD: Final = struct.Struct("<Q")
_MASK: Final = (1 << 64) - 1


class DirectMapError(SymbolError):
    """Memory does not show where the kernel maps physical memory."""


@dataclass(frozen=True, slots=True)
class DirectMap:
    """The map of one kernel that runs."""

    offset: int
    """The virtual address of physical address 0."""
    size: int
    """Bytes of physical address space that it maps, holes included."""

    def virtual(self, physical: int) -> int | None:
        """Return where a physical address is mapped; None for one that is not."""
        return self.offset + physical if 0 <= physical < self.size else None


def find(at: Mapping[str, int], kernel: Linked) -> Search[DirectMap]:
    """Find the map, given where the three variables and the kernel's notes are in memory.

    It is believed once the kernel's own build-id was read back through it.  Raises ``DirectMapError``.
    """
    missing = [name for name in (PHYSICAL_SYMBOL, END_SYMBOL) if name not in at]
    if missing:
        raise DirectMapError(f"the kernel's file has no symbol {' and no '.join(missing)}")
    names = [name for name in (PHYSICAL_SYMBOL, END_SYMBOL, OFFSET_SYMBOL) if name in at]
    words = yield tuple(Read(at[name], _WORD.size) for name in names)
    for name, word in zip(names, words, strict=True):
        if len(word) != _WORD.size:
            raise DirectMapError(f"the kernel's {name} at {at[name]:#x} cannot be read")
    values = {name: int(_WORD.unpack(word)[0]) for name, word in zip(names, words, strict=True)}
    offset = values.get(OFFSET_SYMBOL, FIXED_OFFSET)
    size = values[END_SYMBOL] * PAGE_BYTES
    if offset < KERNEL_HALF or offset % PAGE_BYTES or not 0 < size <= min(MOST_BYTES, IMAGE_MAP - offset):
        raise DirectMapError(f"the kernel says that {size:#x} bytes are mapped at {offset:#x}")
    physical = (kernel.notes - IMAGE_MAP + values[PHYSICAL_SYMBOL]) & _MASK
    found = DirectMap(offset, size)
    notes_at = found.virtual(physical)
    if notes_at is None:
        raise DirectMapError(f"the kernel says that it is at {physical:#x} of {size:#x} bytes")
    (notes,) = yield (Read(notes_at, kernel.notes_size),)
    if build_id_of_notes(notes) != kernel.build_id:
        raise DirectMapError(
            f"the kernel's build-id is not at {notes_at:#x}, where physical memory should be mapped"
        )
    return found
