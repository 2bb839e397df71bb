"""What a core file says of the processors: the registers of each, out of its notes.

Source: QEMU, target/i386/arch_dump.c: for each processor a note ``CORE`` of kind 1 (``struct elf_prstatus`` of Linux,
the general registers), and one ``QEMU`` of kind 0 (``QEMUCPUState``: segments with their bases, control registers
too).  Its ``size`` tells which fields it has; ``kernel_gs_base`` came later.  Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from kbridge.crash.elf_core import Note

_PRSTATUS: Final = 1
_STATUS_REGISTERS_AT: Final = 112
_STATUS_REGISTERS: Final = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
    *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
_STATUS: Final = struct.Struct(f"<{len(_STATUS_REGISTERS)}Q")
_STATE_HEAD: Final = struct.Struct("<II")
_STATE_VERSION: Final = 1
_STATE_REGISTERS: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "eflags"),
)
_GENERAL: Final = struct.Struct(f"<{len(_STATE_REGISTERS)}Q")
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
_SEGMENT: Final = struct.Struct("<IIIIQ")
_CONTROL: Final = struct.Struct("<5Q")
_KERNEL_GS: Final = struct.Struct("<Q")
_SEGMENTS_AT: Final = _STATE_HEAD.size + _GENERAL.size
_CONTROL_AT: Final = _SEGMENTS_AT + len(_SEGMENTS) * _SEGMENT.size
_KERNEL_GS_AT: Final = _CONTROL_AT + _CONTROL.size
MOST_PROCESSORS: Final = 4096


@dataclass(frozen=True, slots=True)
class Processor:
    """One processor; ``registers`` by the names of target descriptions, what is not known is not there.

    ``gdt``, ``idt``, ``ldt`` and ``tr`` stand for the bases of those.
    """

    registers: Mapping[str, int]

    @property
    def has_tables(self) -> bool:
        """Whether it is known where its page tables are."""
        return "cr3" in self.registers


def processors(notes: Iterable[Note]) -> tuple[Processor, ...]:
    """Return the processors that notes tell of, in their order."""
    known = list(notes)
    statuses = [_status(one.data) for one in known if one.owner == b"CORE" and one.kind == _PRSTATUS]
    states = [_state(one.data) for one in known if one.owner == b"QEMU" and one.kind == 0]
    count = min(max(len(statuses), len(states)), MOST_PROCESSORS)
    empty: dict[str, int] = {}
    statuses += [empty] * (count - len(statuses))
    states += [empty] * (count - len(states))
    return tuple(
        Processor({**status, **state}) for status, state in zip(statuses[:count], states[:count], strict=True)
    )


def _status(data: bytes) -> dict[str, int]:
    if len(data) < _STATUS_REGISTERS_AT + _STATUS.size:
        return {}
    found = dict(zip(_STATUS_REGISTERS, _STATUS.unpack_from(data, _STATUS_REGISTERS_AT), strict=True))
    del found["orig_rax"]
    return found


def _state(data: bytes) -> dict[str, int]:
    if len(data) < _CONTROL_AT + _CONTROL.size or _STATE_HEAD.unpack_from(data)[0] != _STATE_VERSION:
        return {}
    found = dict(zip(_STATE_REGISTERS, _GENERAL.unpack_from(data, _STATE_HEAD.size), strict=True))
    for number, name in enumerate(_SEGMENTS):
        selector, _, _, _, base = _SEGMENT.unpack_from(data, _SEGMENTS_AT + number * _SEGMENT.size)
        if name in ("ldt", "tr", "gdt", "idt"):
            found[name] = base
        else:
            found[name] = selector
        if name in ("fs", "gs"):
            found[f"{name}_base"] = base
    for number, value in enumerate(_CONTROL.unpack_from(data, _CONTROL_AT)):
        # The second stands for a register that does not exist.
        if number != 1:
            found[f"cr{number}"] = value
    if len(data) >= _KERNEL_GS_AT + _KERNEL_GS.size:
        (found["k_gs_base"],) = _KERNEL_GS.unpack_from(data, _KERNEL_GS_AT)
    return found
