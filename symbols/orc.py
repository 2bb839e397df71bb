"""The kernel's own unwind tables (ORC): for each address, how to find the caller's frame.

Source: Linux, arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c.  Two arrays run in parallel: places of
instructions, each an i32 relative to itself, sorted; and entries of 6 bytes: where the caller's stack pointer is (i16
offset from a register), where the base pointer was saved (likewise), and fields of bits, which moved in 6.3 and 6.4:
the kernel's BTF says where they are.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from symbols.btf import BtfError
from symbols.errors import SymbolError

if TYPE_CHECKING:
    from symbols.btf import Btf

ENTRY_BYTES: Final = 6
PLACE_BYTES: Final = 4
START: Final = "__start_orc_unwind"
STOP: Final = "__stop_orc_unwind"
START_PLACES: Final = "__start_orc_unwind_ip"
STOP_PLACES: Final = "__stop_orc_unwind_ip"
MOST_ENTRIES: Final = 4_000_000
_WORD: Final = (1 << 64) - 1


class OrcError(SymbolError):
    """The tables are damaged, or not as any known kernel's."""


class Shape(Enum):
    """What is found where an entry leads."""

    UNKNOWN = "unknown"
    """Nothing: no code, or code that cannot be unwound."""
    END = "end"
    """The end of the stack."""
    CALL = "call"
    """The caller's stack, its return address being the word below."""
    REGISTERS = "registers"
    """A ``struct pt_regs``, of an exception or a system call."""
    PARTIAL = "partial"
    """What the processor itself pushes at an exception: ``iretq``'s frame."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How to unwind from one place on, up to the next; registers as in the kernel's ``ORC_REG_…``."""

    shape: Shape
    base: int
    offset: int
    bp: int
    bp_offset: int


UNDEFINED, PREVIOUS_SP, DX, DI, BP, SP, R10, R13, BP_INDIRECT, SP_INDIRECT = range(10)
"""ORC_REG_UNDEFINED and so on, which have not changed."""
_OLD_SHAPES: Final = {0: Shape.CALL, 1: Shape.REGISTERS, 2: Shape.PARTIAL}
_SHAPES: Final = {1: Shape.END, 2: Shape.CALL, 3: Shape.REGISTERS, 4: Shape.PARTIAL}
"""Since 6.4."""


@dataclass(frozen=True, slots=True)
class OrcLayout:
    """Where the fields are in an entry, each as its first bit and how many there are."""

    base: tuple[int, int]
    bp: tuple[int, int]
    type: tuple[int, int]
    end: tuple[int, int] | None
    """None where the end of the stack is a type of its own (since 6.4)."""


def layout(btf: Btf) -> OrcLayout:
    """Return the layout of a kernel's entries.  Raises ``BtfError``."""
    entry = btf.struct("orc_entry")
    if btf.size(entry) != ENTRY_BYTES:
        raise BtfError("this kernel's struct orc_entry has another size")
    return OrcLayout(
        base=btf.bits(entry, "sp_reg"),
        bp=btf.bits(entry, "bp_reg"),
        type=btf.bits(entry, "type"),
        end=btf.bits(entry, "end") if btf.has(entry, "end") else None,
    )


def entry(where: OrcLayout, data: bytes) -> Entry:
    """Read one entry of 6 bytes."""
    bits = int.from_bytes(data, "little")

    def field(place: tuple[int, int]) -> int:
        return bits >> place[0] & (1 << place[1]) - 1

    base = field(where.base)
    if where.end is None:
        shape = _SHAPES.get(field(where.type), Shape.UNKNOWN)
    elif base == UNDEFINED:
        shape = Shape.END if field(where.end) else Shape.UNKNOWN
    else:
        shape = _OLD_SHAPES.get(field(where.type), Shape.UNKNOWN)
    return Entry(
        shape,
        base,
        int.from_bytes(data[0:2], "little", signed=True),
        field(where.bp),
        int.from_bytes(data[2:4], "little", signed=True),
    )


def places(data: bytes, address: int) -> list[int]:
    """Return the addresses that a table of places at ``address`` holds.  Raises ``OrcError``."""
    if len(data) % 4 or len(data) // 4 > MOST_ENTRIES:
        raise OrcError(f"a table of places of {len(data)} bytes")
    found = [
        at + offset & _WORD
        for at, offset in zip(range(address, address + len(data), 4), array("i", data), strict=True)
    ]
    if any(one > two for one, two in pairwise(found)):
        raise OrcError("the table of places is not sorted")
    return found
