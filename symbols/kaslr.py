"""Where KASLR put an x86-64 kernel: ways to find it out of guest memory, each verified before it is believed.

The interrupt table is at a fixed address (Documentation/arch/x86/x86_64/mm.rst: cpu_entry_area), and its entry 0 holds
the address of ``asm_exc_divide_error`` as moved.  Early in boot another table is in use and nothing is there.  A kernel
that is mapped is also found by looking at each place where its build-id note may be: 512, in one batch.

A slide is believed once the kernel's own build-id was read back at the place that it leads to: so nobody takes one
kernel for another, nor the remains of one for the one that runs.

A gate descriptor (Intel SDM volume 3, 6.14.1), 16 bytes, little-endian: offset 0..15, selector, IST, type and
attributes, offset 16..31, offset 32..63, reserved.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from symbols.elf import build_id_of_notes
from symbols.errors import SlideUnknown
from symbols.model import BuildId
from symbols.reads import Read, Search

INTERRUPT_TABLE: Final = 0xFFFF_FE00_0000_0000
"""CPU_ENTRY_AREA_RO_IDT of arch/x86/include/asm/pgtable_areas.h, without and with five-level paging."""
DIVIDE_ERROR_SYMBOL: Final = "asm_exc_divide_error"
"""Exception 0's handler in every kernel since 5.8."""
_GATE: Final = struct.Struct("<HHBBHII")
_PRESENT_INTERRUPT_GATE: Final = 0x8E
_KERNEL_CODE: Final = 0x10
_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
MAX_SLIDE: Final = 1 << 30
"""KERNEL_IMAGE_SIZE: the image and its slide fit in 1 GiB."""
ALIGNMENT: Final = 1 << 21
"""CONFIG_PHYSICAL_ALIGN's least value on x86-64."""


def divide_error_handler() -> Search[int]:
    """Find the address of exception 0's handler; raises ``SlideUnknown``."""
    (data,) = yield (Read(INTERRUPT_TABLE, _GATE.size),)
    return handler_of(data)


def handler_of(data: bytes) -> int:
    """Return the address that a gate descriptor leads to; raises ``SlideUnknown`` when it is none of Linux."""
    if len(data) != _GATE.size:
        raise SlideUnknown(
            "the guest has no interrupt table where Linux puts it: its kernel has not booted yet"
        )
    low, selector, _, kind, middle, high, reserved = _GATE.unpack(data)
    handler: int = low | middle << 16 | high << 32
    if kind != _PRESENT_INTERRUPT_GATE or selector != _KERNEL_CODE or reserved or handler < _KERNEL_MAP:
        raise SlideUnknown("what is at the interrupt table's address is not Linux's table")
    return handler


def slide(handler: int, symbol: int) -> int:
    """Return by how many bytes the kernel was moved, given where ``asm_exc_divide_error`` is and was linked.

    Raises ``SlideUnknown`` when no kernel is moved so: then the file is another kernel's.
    """
    distance = handler - symbol
    if not 0 <= distance < MAX_SLIDE or distance % ALIGNMENT:
        raise SlideUnknown(
            f"its exception handler at {handler:#x} does not fit the symbol at {symbol:#x}: "
            "the file is not this kernel's"
        )
    return distance


@dataclass(frozen=True, slots=True)
class Linked:
    """What a kernel's file says of where its parts are, for finding it in memory; addresses as linked."""

    build_id: BuildId
    notes: int
    notes_size: int
    divide_error: int | None
    """Of ``asm_exc_divide_error``; None where the kernel has none."""


@dataclass(frozen=True, slots=True)
class Found:
    """A kernel found in memory: the place of its file among those that were given, and by how much it was moved."""

    index: int
    slide: int
    way: str


def find(candidates: Sequence[Linked]) -> Search[Found]:
    """Find which of these kernels is in memory, and where.  Raises ``SlideUnknown``.

    The ways in their order: the interrupt table, every place in the gigabyte where a kernel may be put.
    """
    (gate,) = yield (Read(INTERRUPT_TABLE, _GATE.size),)
    try:
        handler = handler_of(gate)
    except SlideUnknown:
        handler = None
    if handler is not None:
        for index, linked in enumerate(candidates):
            if linked.divide_error is None:
                continue
            try:
                moved = slide(handler, linked.divide_error)
            except SlideUnknown:
                continue
            if (yield from is_at(linked, moved)):
                return Found(index, moved, "interrupt table")
    for index, linked in enumerate(candidates):
        places = range(0, MAX_SLIDE, ALIGNMENT)
        notes = yield tuple(Read(linked.notes + moved, linked.notes_size) for moved in places)
        for moved, data in zip(places, notes, strict=True):
            if build_id_of_notes(data) == linked.build_id:
                return Found(index, moved, "scan")
    raise SlideUnknown("no kernel is in memory whose file is known")


def is_at(linked: Linked, moved: int) -> Search[bool]:
    """Tell whether this very kernel is in memory, moved by so much."""
    (data,) = yield (Read(linked.notes + moved, linked.notes_size),)
    return build_id_of_notes(data) == linked.build_id
