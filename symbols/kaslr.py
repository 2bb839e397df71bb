"""Where KASLR put an x86-64 kernel: ways to find it out of guest memory, each verified before it is believed.

The interrupt table is at a fixed address (Documentation/arch/x86/x86_64/mm.rst: cpu_entry_area), and its entry 0 holds
the address of ``asm_exc_divide_error`` as moved.  Early in boot another table is in use and nothing is there.  A kernel
that is mapped is also found by looking at each place where its build-id note may be: 512, in one batch.

Others may have said where it is: the console at a panic, VMCOREINFO, the program counter of a kernel that stopped in
its own breakpoint.  Each is a ``Claim``.

A slide is believed once the kernel's own build-id was read back at the place that it leads to: so nobody takes one
kernel for another, nor the remains of one for the one that runs.

A gate descriptor (Intel SDM volume 3, 6.14.1), 16 bytes, little-endian: offset 0..15, selector, IST, type and
attributes, offset 16..31, offset 32..63, reserved.
"""

from __future__ import annotations

import re
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
BREAKPOINT_SYMBOL: Final = "kgdb_breakpoint"
_BREAKPOINT_BYTES: Final = 64
"""No more than the function is long: at a SysRq break-in the program counter is 11 bytes into it."""
_KERNEL_OFFSET: Final = re.compile(rb"Kernel Offset: (disabled|0x[0-9a-f]{1,16})(?![0-9a-z])")


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
    if not _is_possible(distance):
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
    breakpoint: int | None = None
    """Of ``kgdb_breakpoint``; None where the kernel has no debugger of its own, or nobody looked."""


@dataclass(frozen=True, slots=True)
class Claim:
    """By how much somebody says that a kernel was moved; nothing is believed of it that is not verified."""

    way: str
    slide: int
    build_id: BuildId | None = None
    """Of the kernel that it is said of; None for whichever is there."""


def console_claim(text: bytes) -> Claim | None:
    """Return what a panic on the console says last, if it does: ``Kernel Offset: 0x16800000 from 0xffffffff81000000``.

    Source: Linux, arch/x86/kernel/setup.c (``dump_kernel_offset``); ``Kernel Offset: disabled`` without KASLR.
    """
    said = _KERNEL_OFFSET.findall(text)
    if not said:
        return None
    return Claim("console", 0 if said[-1] == b"disabled" else int(said[-1], 16))


def counter_claims(counter: int, candidates: Sequence[Linked]) -> tuple[Claim, ...]:
    """Return by how much these kernels were moved if a program counter is in ``kgdb_breakpoint``, as at a break-in."""
    return tuple(
        Claim("program counter", distance & -ALIGNMENT, linked.build_id)
        for linked in candidates
        if linked.breakpoint is not None
        and (distance := counter - linked.breakpoint) >= 0
        and distance % ALIGNMENT < _BREAKPOINT_BYTES
    )


@dataclass(frozen=True, slots=True)
class Found:
    """A kernel found in memory: the place of its file among those that were given, and by how much it was moved."""

    index: int
    slide: int
    way: str


def find(candidates: Sequence[Linked], claims: Sequence[Claim] = ()) -> Search[Found]:
    """Find which of these kernels is in memory, and where.  Raises ``SlideUnknown``.

    The ways in their order: the interrupt table, what is claimed, every place in the gigabyte where a kernel may be.
    """
    (gate,) = yield (Read(INTERRUPT_TABLE, _GATE.size),)
    found = yield from _first(candidates, _gate_places(candidates, gate))
    if found is None:
        found = yield from _first(candidates, _claimed_places(candidates, claims))
    if found is not None:
        return found
    # One file after the other: where each has 512 places, few kernels are looked for in vain.
    for index in range(len(candidates)):
        places = [Found(index, moved, "scan") for moved in range(0, MAX_SLIDE, ALIGNMENT)]
        found = yield from _first(candidates, places)
        if found is not None:
            return found
    raise SlideUnknown("no kernel is in memory whose file is known")


def _gate_places(candidates: Sequence[Linked], gate: bytes) -> list[Found]:
    try:
        handler = handler_of(gate)
    except SlideUnknown:
        # Not yet, or not where it is looked for: other ways are left.
        return []
    return [
        Found(index, handler - linked.divide_error, "interrupt table")
        for index, linked in enumerate(candidates)
        if linked.divide_error is not None and _is_possible(handler - linked.divide_error)
    ]


def _claimed_places(candidates: Sequence[Linked], claims: Sequence[Claim]) -> list[Found]:
    return [
        Found(index, claim.slide, claim.way)
        for claim in claims
        if _is_possible(claim.slide)
        for index, linked in enumerate(candidates)
        if claim.build_id in (None, linked.build_id)
    ]


def _is_possible(moved: int) -> bool:
    return 0 <= moved < MAX_SLIDE and moved % ALIGNMENT == 0


def _first(candidates: Sequence[Linked], places: Sequence[Found]) -> Search[Found | None]:
    """Return the first place at which the build-id is its kernel's; None if there is none.  One batch."""
    if not places:
        return None
    notes = yield tuple(
        Read(candidates[one.index].notes + one.slide, candidates[one.index].notes_size) for one in places
    )
    for one, data in zip(places, notes, strict=True):
        if build_id_of_notes(data) == candidates[one.index].build_id:
            return one
    return None


def is_at(linked: Linked, moved: int) -> Search[bool]:
    """Tell whether this very kernel is in memory, moved by so much."""
    (data,) = yield (Read(linked.notes + moved, linked.notes_size),)
    return build_id_of_notes(data) == linked.build_id
