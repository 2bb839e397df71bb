"""A kernel that EFI firmware starts as a program of its own: where it can be caught, and its command line then.

Such a kernel (its EFI stub) is loaded anywhere, so nobody knows where it begins.  But it must call ``ExitBootServices``
before it may have the machine, and by then its stub has made ``boot_params`` and the command line.  The firmware says
where that function is: its system table is found by a pointer that it keeps for debuggers at a boundary of 4 MiB.

A boot loader that starts kernels as a BIOS's does (GRUB without the EFI stub) calls it too.  It has ``boot_params`` in
hand then, which name the kernel's entry.

in:      memory of a machine whose firmware runs; registers at the call and where it returns
out:     reads, writes; the address of the function; where it returns to; the ``Change``, as ``entry_x86.py`` makes it,
         or the ``Entry`` where it can be made
invariant: nothing is believed without its signature, tables not without their checksum; at most ``MOST_READS`` reads;
         but for the signature of a pointer that is out of date, nothing is written before the firmware has let go of
         memory, and then nothing but what ``entry_x86.py`` writes

Before ``ExitBootServices`` returned, memory that is free may be used by the firmware; then its map holds.

Sources: the UEFI Specification 2.10, 4.2, 4.3, 7.4 and 18.4.2; Linux, drivers/firmware/efi/libstub/x86-stub.c.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final
from zlib import crc32

from gdbstubs.modes import LONG_MODE
from kbridge.boot.entry_x86 import (
    FOUR_GIB,
    PARAMS_BYTES,
    Change,
    Params,
    Read,
    Span,
    Write,
    replace,
)

STEP: Final = 4 << 20
"""The boundary that the pointer to the system table is at."""
MOST_CANDIDATES: Final = 48

_TABLE: Final = b"IBI SYST"
_SERVICES: Final = b"BOOTSERV"
_POINTER_BYTES: Final = 24
_TABLE_BYTES: Final = 120
_AT_SERVICES: Final = 96
"""Where a system table of 64 bits points to the boot services."""
_AT_EXIT: Final = 232
"""Where these point to ``ExitBootServices``."""
_HEADER: Final = range(_AT_EXIT + 8, 4097)
"""How long a table may call itself."""
_STACK_BYTES: Final = 8192
_SAVED: Final = ("rbx", "rbp", "rsi", "rdi", "r12", "r13", "r14", "r15")
"""What a function of the firmware leaves as it was."""
_PAGE: Final = 4096
_EFI_STUB: Final = 0x21
"""``type_of_loader``, as the EFI stub has it.  Newer stubs fill in little else of the header."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a boot loader will start a kernel, as a BIOS's does."""

    address: int


@dataclass(frozen=True, slots=True)
class Firmware:
    """EFI firmware that was found in memory."""

    table: int
    """Where its system table is."""
    exit: int
    """Where ``ExitBootServices`` begins."""


def firmware(memory: Iterable[Span]) -> Generator[Read, bytes, Firmware | None]:
    """Find EFI firmware in the memory of a machine; None as long as there is none.

    Memory above 4 GiB is not looked at.
    """
    for place in _places(memory):
        pointer = yield Read(place, _POINTER_BYTES)
        if pointer[:8] == _TABLE and len(pointer) == _POINTER_BYTES:
            found = yield from _of_table(_number(pointer, 8))
            if found is not None:
                return found
    return None


def forget(memory: Iterable[Span]) -> Generator[Read | Write, bytes, None]:
    """Have firmware not found that ran before the machine was reset: memory keeps its contents."""
    for place in _places(memory):
        if (yield Read(place, len(_TABLE))) == _TABLE:
            yield Write(place, bytes(len(_TABLE)))


def _places(memory: Iterable[Span]) -> Iterator[int]:
    """Return where the pointer to the system table may be: as high as possible, says the specification."""
    for start, end in sorted(memory, reverse=True):
        top = min(end, FOUR_GIB) - _POINTER_BYTES
        yield from range(top // STEP * STEP, -(-max(start, STEP) // STEP) * STEP - 1, -STEP)


def _of_table(where: int) -> Generator[Read, bytes, Firmware | None]:
    table = yield Read(where, _TABLE_BYTES)
    if table[:8] != _TABLE or len(table) < _TABLE_BYTES:
        return None
    address = _number(table, _AT_SERVICES)
    services = yield Read(address, _TABLE_BYTES)
    size = int.from_bytes(services[12:16], "little")
    if services[:8] != _SERVICES or size not in _HEADER:
        return None
    services = yield Read(address, size)
    if len(services) < size or crc32(services[:16] + bytes(4) + services[20:]) != _number(services, 16, 4):
        return None
    return Firmware(where, _number(services, _AT_EXIT))


def returns_to(registers: Mapping[str, int | None]) -> Generator[Read, bytes, int | None]:
    """Return where the function returns to at whose first instruction a processor stands; None if not in long mode."""
    pointer, efer = registers.get("rsp"), registers.get("efer")
    if pointer is None or efer is None or not efer & LONG_MODE:
        return None
    data = yield Read(pointer, 8)
    return _number(data, 0) if len(data) == 8 else None


def has_exited(registers: Mapping[str, int | None]) -> bool:
    """Tell whether ``ExitBootServices``, which has just returned, has done so with success."""
    return registers.get("rax") == 0


def edit_at_exit(
    found: Firmware, registers: Mapping[str, int | None], new: Callable[[str], str]
) -> Generator[Read | Write, bytes, Change | Entry | None]:
    """Change the command line of the kernel to which ``ExitBootServices`` has returned, as ``entry_x86.edit`` does.

    Where it has returned to a boot loader, tell where that will start its kernel; None where it does not show.
    """
    pointer = registers.get("rsp")
    stack = b"" if pointer is None else (yield Read(pointer, _STACK_BYTES))
    values = [registers.get(name) or 0 for name in _SAVED]
    values += [_number(stack, at) for at in range(0, len(stack) - 7, 8)]
    pages = dict.fromkeys(one for one in values if one and one % _PAGE == 0 and one < 1 << 46)
    later = None
    for where in islice(pages, MOST_CANDIDATES):
        params = Params((yield Read(where, PARAMS_BYTES)))
        if params.loader == _EFI_STUB and params.efi_table == found.table:
            return (yield from replace(params, where, params.preferred, new))
        if later is None and params.are_there and params.loader:
            # What it will copy to where the kernel is told to find it.
            later = Entry(params.code32)
    return later


def _number(data: bytes, at: int, size: int = 8) -> int:
    return int.from_bytes(data[at : at + size], "little")
