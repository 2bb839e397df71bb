"""The ``Code:`` bytes of an oops as instructions, and what the faulting one was about to do, in words.

x86-64, by capstone.  Instructions have no fixed length: which of the bytes before the fault one begins at is known only
where the function begins among them; else the first of them is taken from which the fault is met.

Sources: Linux, scripts/decodecode (which does the same), include/linux/poison.h (values that tell what memory was).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import capstone
from capstone import x86

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from symbols.backtrace import Code

_LONGEST: Final = 15
"""Bytes of an instruction."""
_FAULT: Final = 1 << 40
"""Where the fault is put, so that what is before it has an address too."""
_NUMBER: Final = re.compile(r"0x[0-9a-f]+|[0-9]+")
_LARGE: Final = re.compile(r"\$([0-9]{10,20})\b")
"""What capstone writes in decimal, addresses too."""
_WORD: Final = (1 << 64) - 1
_SMALL: Final = 1 << 12
_FOUR_LEVELS, _FIVE_LEVELS = 47, 56
"""The lowest of the bits that are alike in an address, by the levels of page tables."""
_CR4_LA57: Final = 1 << 12
_FREED, _UNUSED = 0x6B, 0x5A
_LIST_POISON: Final = {
    0xDEAD000000000100: "LIST_POISON1: the entry was deleted from its list",
    0xDEAD000000000122: "LIST_POISON2: the entry was deleted from its list",
}
_NEAR: Final = 4096
_PARTS: Final = {
    **{f"{letter}l": f"R{letter.upper()}X" for letter in "abcd"},
    **{f"{letter}h": f"R{letter.upper()}X" for letter in "abcd"},
    **{f"{width}{letter}x": f"R{letter.upper()}X" for letter in "abcd" for width in ("", "e", "r")},
    **{f"{width}{name}": f"R{name.upper()}" for name in ("si", "di", "bp", "sp") for width in ("", "e", "r")},
    **{f"{name}l": f"R{name.upper()}" for name in ("si", "di", "bp", "sp")},
}
"""Names of parts of registers, and of which they are; those of r8 to r15 are made out of the name."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction; ``offset`` in bytes from the faulting one."""

    offset: int
    data: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Access:
    """Memory that an instruction was about to use."""

    reads: bool
    writes: bool
    size: int
    expression: str
    """How the address is made, in the instruction's words."""
    parts: tuple[tuple[str, int | None], ...]
    """The registers in it, and what each held; None where that is not known."""
    address: int | None
    """What comes out; None where something in it is not known."""
    relative: int | None
    """Where it is counted from the instruction: the distance from the instruction's own beginning."""


class Disassembler:
    """Capstone, opened once: that takes as long as an oops.  For one thread at a time."""

    def __init__(self) -> None:
        self._engine: Any = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def disassemble(
        self,
        code: Code,
        function_offset: int | None = None,
        name: Callable[[int], str | None] = lambda _: None,
    ) -> tuple[Instruction, ...]:
        """Return the instructions around a fault; ``function_offset`` is how far into its function that is, if known.

        Before the fault none are returned where no beginning leads to it.  ``name`` names what is at a distance from
        the fault, for jumps and calls, which have the distance itself where it is not known.
        """
        at = code.at
        begins = range(min(at, _LONGEST + 1))
        if function_offset is not None and function_offset <= at:
            begins = range(at - function_offset, at - function_offset + 1)
        before: list[Instruction] = []
        for begin in begins:
            listed = self._listed(code.data[begin:at], begin - at, name)
            if sum(len(one.data) for one in listed) == at - begin:
                before = listed
                break
        return (*before, *self._listed(code.data[at:], 0, name))

    def _listed(
        self, data: bytes, offset: int, name: Callable[[int], str | None] = lambda _: None
    ) -> list[Instruction]:
        self._engine.syntax = capstone.CS_OPT_SYNTAX_ATT
        found = []
        at = 0
        for place, size, mnemonic, operands in self._engine.disasm_lite(data, _FAULT + offset):
            if mnemonic.startswith(("j", "call", "loop")) and _NUMBER.fullmatch(operands):
                distance = int(operands, 0) - _FAULT
                operands = name(distance) or f"{distance:+#x}"
            operands = _LARGE.sub(lambda match: f"${int(match[1]):#x}", operands)
            found.append(Instruction(place - _FAULT, data[at : at + size], f"{mnemonic} {operands}".rstrip()))
            at += size
        return found

    def access(self, code: Code, registers: Mapping[str, int]) -> Access | None:
        """Return what memory the faulting instruction uses; None where it uses none, or is none."""
        # In the other syntax the access of string instructions is told wrongly.
        self._engine.syntax = capstone.CS_OPT_SYNTAX_INTEL
        self._engine.detail = True
        try:
            one = next(self._engine.disasm(code.data[code.at :][:_LONGEST], 0, 1), None)
            if one is None or one.id in (x86.X86_INS_LEA, x86.X86_INS_NOP):
                return None
            operands = [operand for operand in one.operands if operand.type == x86.X86_OP_MEM]
            if not operands:
                return None
            # Of two, as string instructions have, the one that is written to.
            chosen = max(operands, key=lambda operand: operand.access & capstone.CS_AC_WRITE)
            return _access(one, chosen, registers)
        finally:
            self._engine.detail = False

    def words(self, code: Code, registers: Mapping[str, int], near: Callable[[int], str | None]) -> list[str]:
        """Say what the faulting instruction was about to do, a line for each thing to know.

        ``near`` tells what is at a distance in bytes from the instruction, by name, None where that is not known.
        """
        first = next(iter(self._listed(code.data[code.at :][:_LONGEST], 0)), None)
        if first is None:
            return [
                "the bytes at the fault are no instruction: the processor was led astray, or they were overwritten"
            ]
        if first.text.startswith("ud2"):
            return ["ud2 is how the kernel's own checks end: BUG() or WARN()"]
        if first.text.startswith("int3"):
            return ["int3 is a breakpoint, or filling between functions"]
        used = self.access(code, registers)
        return [] if used is None else _words(used, registers, near)


def _access(one: Any, operand: Any, registers: Mapping[str, int]) -> Access:
    memory = operand.mem
    parts: list[tuple[str, int | None]] = []
    total: int | None = memory.disp
    terms: list[str] = []
    relative = None
    if memory.segment in (x86.X86_REG_GS, x86.X86_REG_FS):
        name = one.reg_name(memory.segment)
        base = registers.get(name.upper())
        parts.append((name, base))
        terms.append(name)
        total = None if base is None or total is None else total + base
    for register, scale in ((memory.base, 1), (memory.index, memory.scale)):
        if not register or register in (x86.X86_REG_RIZ, x86.X86_REG_EIZ):
            continue
        if register == x86.X86_REG_RIP:
            relative = one.size + memory.disp
            total = None
            terms.append("rip")
            continue
        name = one.reg_name(register)
        value = registers.get(whole(name))
        parts.append((name, value))
        terms.append(name if scale == 1 else f"{name} * {scale}")
        total = None if value is None or total is None else total + value * scale
    if memory.disp or not terms:
        sign = "-" if memory.disp < 0 else "+"
        terms.append(f"{sign} {abs(memory.disp):#x}" if terms else f"{memory.disp & _WORD:#x}")
    expression = " + ".join(terms).replace("+ + ", "+ ").replace("+ - ", "- ")
    return Access(
        bool(operand.access & capstone.CS_AC_READ),
        bool(operand.access & capstone.CS_AC_WRITE),
        operand.size,
        expression,
        tuple(parts),
        None if total is None else total & _WORD,
        relative,
    )


def whole(name: str) -> str:
    """Return the name in an oops of the register that ``name`` is (a part of), such as ``RAX`` of ``al``."""
    known = _PARTS.get(name)
    if known is not None:
        return known
    if name[:1] == "r" and name[1:].rstrip("dwb").isdigit():
        return f"R{int(name[1:].rstrip('dwb')):02}"
    return name.upper()


def _words(used: Access, registers: Mapping[str, int], near: Callable[[int], str | None]) -> list[str]:
    does = {(True, False): "reads", (False, True): "writes", (True, True): "reads and writes"}.get(
        (used.reads, used.writes), "uses"
    )
    bytes_ = "1 byte" if used.size == 1 else f"{used.size} bytes"
    target = near(used.relative) if used.relative is not None else None
    if used.address is None and "CR2" in registers and used.relative is not None:
        where = f"{registers['CR2']:#x} (CR2)"
    elif used.address is None:
        where = "an address that is not known"
    else:
        where = f"{used.address:#x}"
    made = "" if where == used.expression else f" = {used.expression}"
    lines = [f"it {does} {bytes_} at {where}{made}" + (f", which is {target}" if target else "")]
    lines += [
        f"{name} is {value:#x}{_said(value)}" if value is not None else f"{name} is not shown"
        for name, value in used.parts
    ]
    if used.address is not None:
        lines += _of_address(used.address, used.size, registers)
    return lines


def _of_address(address: int, size: int, registers: Mapping[str, int]) -> list[str]:
    lines = []
    bits = _FIVE_LEVELS if registers.get("CR4", 0) & _CR4_LA57 else _FOUR_LEVELS
    if not is_canonical(address, bits):
        lines.append(
            "no address is like that (it is not canonical): a general protection fault, and CR2 is an old one"
        )
    elif "CR2" in registers and not address <= registers["CR2"] < address + max(size, 1):
        lines.append(f"CR2 is {registers['CR2']:#x}: another address, of an earlier fault or another access")
    if 0 < address < _SMALL:
        lines.append(f"as of a member at {address:#x} of a structure at NULL")
    return lines


def is_canonical(address: int, bits: int = _FOUR_LEVELS) -> bool:
    """Return whether an address has its upper bits alike: from ``bits`` on, counted from 0."""
    return address >> bits in (0, _WORD >> bits)


def _said(value: int) -> str:
    """Say what a value tells by itself, in brackets; nothing where it is a value like any other."""
    poison = _LIST_POISON.get(value)
    if poison is not None:
        return f" ({poison})"
    if value == 0:
        return " (NULL)"
    if value > _WORD - _NEAR:
        return f" (an error, {value - _WORD - 1}, taken for a pointer)"
    data = value.to_bytes(8, "little")
    # All but what was added to it.
    if data.count(_FREED) >= 7:
        return " (POISON_FREE: out of memory that was freed)"
    if data.count(_UNUSED) >= 7:
        return " (POISON_INUSE: out of memory that was never written)"
    return ""
