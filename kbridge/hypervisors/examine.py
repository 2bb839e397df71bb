"""Reading virtual memory through QEMU's human monitor: its ``x`` command and its answers; pure.

``x /16xb 0xfffffe0000000000`` answers eight bytes a line, and stops at the first line that is not wholly mapped
(seen with QEMU 7.2)::

    fffffe0000000000: 0x40 0x0b 0xe0 0x81 0x10 0x00 0x00 0x8e
    fffffe0000000008: Cannot access memory

It does not stop the guest.  Much is read faster by a file (``memory_file``); this needs nothing but the monitor.
"""

from __future__ import annotations

import re
from typing import Final

from kbridge.errors import MachineError

PAGE_BYTES: Final = 4096
"""What is read at once, at most; QEMU serves nobody else meanwhile (2.2 ms under software emulation)."""
END_OF_MEMORY: Final = 1 << 64

_LINE: Final = re.compile(r"[0-9a-f]{8,16}:((?: 0x[0-9a-f]{2})+)")
_REFUSED: Final = re.compile(r"[0-9a-f]{8,16}: cannot access memory", re.IGNORECASE)


def pieces(address: int, length: int) -> list[tuple[int, int]]:
    """Cut a read at the bounds of pages, so that each piece is mapped as a whole or not at all.

    What lies beyond the end of memory is left out.  ``ValueError`` for what no processor can address.
    """
    if not (length >= 0 and 0 <= address < END_OF_MEMORY):
        raise ValueError(f"{length} bytes at {address:#x} cannot be read")
    end = min(address + length, END_OF_MEMORY)
    found = []
    while address < end:
        until = min(end, (address // PAGE_BYTES + 1) * PAGE_BYTES)
        found.append((address, until - address))
        address = until
    return found


def command(address: int, length: int) -> str:
    """Give the command that reads ``length`` bytes: by bytes, for the order in words is the target's."""
    return f"x /{length}xb {address:#x}"


def parse(text: str, length: int) -> bytes:
    """Read the answer: ``length`` bytes, or fewer where the rest is not mapped; ``MachineError`` for any other text."""
    data = bytearray()
    wanted = range(length, length + 1)
    for line in text.splitlines():
        if _REFUSED.fullmatch(line):
            wanted = range(length)
            break
        found = _LINE.fullmatch(line.rstrip())
        if found is None:
            break
        data += bytes.fromhex(found.group(1).replace(" 0x", ""))
    if len(data) not in wanted:
        raise MachineError(
            "the monitor's answer to a read of memory is not understood",
            why=repr(text[:80]),
            todo="is it QEMU's?",
        )
    return bytes(data)


_PROCESSOR: Final = re.compile(r"^CPU#(\d+)", re.MULTILINE)
_REGISTER: Final = re.compile(r"\b([A-Z][A-Z0-9]{1,3}) ?=([0-9a-f]{8,16})\b")
_SEGMENT: Final = re.compile(r"^([CDEFGS]S) ?=([0-9a-f]{4}) ([0-9a-f]{8,16}) ", re.MULTILINE)
_NAMES: Final = {"RFL": "eflags", "EFL": "eflags"}
_WANTED: Final = re.compile(r"R[A-Z][XIP]|R[BS]P|R\d{1,2}|RFL|EFL|E[A-Z]{2}|CR[0-4]|EFER")


def parse_registers(text: str) -> list[tuple[int, dict[str, int]]]:
    """Read the answer to ``info registers -a``: for each processor its number and registers, names in lower case.

    Seen with QEMU 7.2, a block for each processor that begins with ``CPU#0``.  ``MachineError`` for any other text.
    """
    found = []
    starts = list(_PROCESSOR.finditer(text))
    ends = [*(one.start() for one in starts[1:]), len(text)]
    for start, end in zip(starts, ends, strict=False):
        block = text[start.end() : end]
        registers = {
            _NAMES.get(name, name.lower()): int(value, 16)
            for name, value in _REGISTER.findall(block)
            if _WANTED.fullmatch(name)
        }
        for name, selector, base in _SEGMENT.findall(block):
            registers[name.lower()] = int(selector, 16)
            if name in ("FS", "GS"):
                registers[f"{name.lower()}_base"] = int(base, 16)
        if "rip" not in registers and "eip" not in registers:
            break
        found.append((int(start[1]), registers))
    if not found or len(found) < len(starts):
        raise MachineError(
            "the monitor's list of registers is not understood", why=repr(text[:80]), todo="is it QEMU's?"
        )
    return found
