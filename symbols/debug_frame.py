"""A ``.debug_frame`` section out of a kernel's ORC tables: how a debugger without DWARF unwinds its stacks rightly.

Distribution kernels keep no frame pointers, and a gdb that has nothing else guesses from the code.

Source: DWARF 4, 6.4 and 7.23; System V ABI for AMD64, figure 3.36 (numbers of registers); gdb's ``S`` augmentation says
that a frame was interrupted, so that its address is looked up itself and not the one before.

An entry's rules are written as what changes from those before it; what to write is remembered for each pair, of which
a kernel has few.  A description ends after ``ROWS`` entries, because a debugger reads it from its beginning.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from symbols import orc
from symbols.orc import ENTRY_BYTES, Entry, OrcError, Shape

if TYPE_CHECKING:
    from symbols.orc import OrcLayout

ROWS: Final = 256
_WORD: Final = (1 << 64) - 1
_FARTHEST: Final = (1 << 32) - 1
GAP: Final = 64
"""Between two functions nothing can be executed, and what is said of it does not matter: half of all descriptions would
end there."""
_RBP, _RSP, _RIP = 6, 7, 16
_NUMBERS: Final = {orc.DX: 1, orc.DI: 5, orc.BP: _RBP, orc.SP: _RSP, orc.R10: 10, orc.R13: 13}
_PT_REGS: Final = (15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5, None, _RIP, None, 49, _RSP)
"""The registers in ``struct pt_regs``, each 8 bytes; None: not one that is unwound."""
_IRET: Final = (_RIP, None, 49, _RSP)

_ADVANCE, _OFFSET, _RESTORE = 0x40, 0x80, 0xC0
_ADVANCE_1, _ADVANCE_2, _ADVANCE_4 = 0x02, 0x03, 0x04
_DEF_CFA, _DEF_CFA_OFFSET, _DEF_CFA_EXPRESSION = 0x0C, 0x0E, 0x0F
_DEF_CFA_SF, _DEF_CFA_OFFSET_SF, _OFFSET_EXTENDED_SF, _UNDEFINED = 0x12, 0x13, 0x11, 0x07
_EXPRESSION: Final = 0x10
_BREG, _DEREF, _CONSTS, _PLUS = 0x70, 0x06, 0x11, 0x22
_DATA_ALIGNMENT: Final = -8
_CIE_ID: Final = 0xFFFF_FFFF
_INTERRUPTED: Final = (Shape.REGISTERS, Shape.PARTIAL)
_DESCRIBED: Final = (Shape.CALL, Shape.REGISTERS, Shape.PARTIAL, Shape.END)


def debug_frame(where: OrcLayout, entries: bytes, places: list[int], origin: int = 0) -> bytes:
    """Return the section for tables that run in parallel, addresses counted from ``origin``.

    Places must be sorted.  Raises ``OrcError``.
    """
    if len(entries) != ENTRY_BYTES * len(places):
        raise OrcError(f"{len(places)} places for {len(entries)} bytes of entries")
    writer = _Writer(where, origin)
    return writer.write(entries, places)


class _Writer:
    def __init__(self, where: OrcLayout, origin: int) -> None:
        self._where = where
        self._origin = origin
        self._known: dict[bytes, Entry] = {}
        self._changes: dict[tuple[bytes, bytes], bytes] = {}
        self._parts: list[bytes] = []
        self._at = 0
        self._cies = {shape: self._common(shape) for shape in _DESCRIBED}

    def _add(self, data: bytes) -> int:
        at = self._at
        padding = bytes(-len(data) % 8)
        self._parts.append(struct.pack("<I", len(data) + len(padding)) + data + padding)
        self._at += 4 + len(data) + len(padding)
        return at

    def _common(self, shape: Shape) -> int:
        """Write what the descriptions of one shape have in common; return where."""
        augmentation, data = (b"zS\0", b"\0") if shape in _INTERRUPTED else (b"\0", b"")
        match shape:
            case Shape.CALL:
                rules = bytes((_DEF_CFA, _RSP, 8, _OFFSET | _RIP, 1))
            case Shape.REGISTERS:
                rules = bytes((_DEF_CFA, _RSP, 0)) + _saved(_PT_REGS)
            case Shape.PARTIAL:
                rules = bytes((_DEF_CFA, _RSP, 0)) + _saved(_IRET)
            case _:
                rules = bytes((_DEF_CFA, _RSP, 8, _UNDEFINED, _RIP))
        # Version 4: the sizes of an address and of a segment's selector follow the augmentation.
        head = struct.pack("<IB", _CIE_ID, 4) + augmentation + bytes((8, 0, 1)) + _sleb(_DATA_ALIGNMENT)
        return self._add(head + _uleb(_RIP) + data + rules)

    def write(self, entries: bytes, places: list[int]) -> bytes:
        rows = [entries[at : at + ENTRY_BYTES] for at in range(0, len(entries), ENTRY_BYTES)]
        known, changes = self._known, self._changes
        begin, shape = 0, Shape.UNKNOWN
        last: bytes | None = None
        at = 0
        program: list[bytes] = []
        count = 0
        following = iter(places)
        next(following, None)
        for row, place in zip(rows, places, strict=True):
            entry = known.get(row)
            if entry is None:
                entry = known[row] = orc.entry(self._where, row)
            after = next(following, place)
            if entry.shape is Shape.UNKNOWN and after - place < GAP:
                continue
            if entry.shape is not shape or count >= ROWS or place - at > _FARTHEST:
                self._describe(shape, begin, place, program)
                program = []
                begin, shape, last, at, count = place, entry.shape, None, place, 0
            if row == last or shape is Shape.UNKNOWN:
                continue
            key = (last or b"", row)
            change = changes.get(key)
            if change is None:
                change = changes[key] = self._change(None if last is None else known[last], entry)
            delta = place - at
            if delta:
                program.append(_ADVANCES[delta] if delta < len(_ADVANCES) else _advance(delta))
            program.append(change)
            last, at = row, place
            count += 1
        if places:
            # The last entry bounds the one before it where it says nothing; else it holds for its own address at least.
            ends = known[rows[-1]].shape is Shape.UNKNOWN
            self._describe(shape, begin, places[-1] + (not ends), program)
        return b"".join(self._parts)

    def _describe(self, shape: Shape, begin: int, end: int, program: list[bytes]) -> None:
        if shape is not Shape.UNKNOWN and begin < end:
            head = struct.pack("<IQQ", self._cies[shape], begin - self._origin & _WORD, end - begin)
            if shape in _INTERRUPTED:
                head += b"\0"  # the length of its augmentation
            self._add(head + b"".join(program))

    def _change(self, before: Entry | None, entry: Entry) -> bytes:
        """Return the instructions that turn one entry's rules into another's of the same shape."""
        if entry.shape is Shape.END:
            return b""
        rules = b""
        if before is None or (before.base, before.offset) != (entry.base, entry.offset):
            rules += _cfa(before, entry)
        if entry.shape is not Shape.REGISTERS:
            saved = _base_pointer(entry)
            if saved != (b"" if before is None else _base_pointer(before)):
                rules += saved or bytes((_RESTORE | _RBP,))
        return rules


def _base_pointer(entry: Entry) -> bytes:
    """Return the rule for the caller's base pointer; none where it is still in its register.

    Functions that align their stack (the compiler's DRAP) saved it where their own base pointer leads.
    """
    if entry.bp == orc.PREVIOUS_SP:
        return _at_cfa(_RBP, entry.bp_offset)
    if entry.bp == orc.BP:
        what = bytes((_BREG + _RBP,)) + _sleb(entry.bp_offset)
        return bytes((_EXPRESSION, _RBP)) + _uleb(len(what)) + what
    return b""


def _cfa(before: Entry | None, entry: Entry) -> bytes:
    number = _NUMBERS.get(entry.base)
    if number is not None:
        if before is not None and before.base == entry.base and entry.offset >= 0:
            return bytes((_DEF_CFA_OFFSET,)) + _uleb(entry.offset)
        if entry.offset >= 0:
            return bytes((_DEF_CFA, number)) + _uleb(entry.offset)
        return bytes((_DEF_CFA_SF, number)) + _sleb(entry.offset // _DATA_ALIGNMENT)
    if entry.base == orc.SP_INDIRECT:
        what = bytes((_BREG + _RSP, 0, _DEREF, _CONSTS)) + _sleb(entry.offset) + bytes((_PLUS,))
    elif entry.base == orc.BP_INDIRECT:
        what = bytes((_BREG + _RBP,)) + _sleb(entry.offset) + bytes((_DEREF,))
    else:
        raise OrcError(f"an entry counts from register {entry.base}, which is unknown")
    return bytes((_DEF_CFA_EXPRESSION,)) + _uleb(len(what)) + what


def _saved(registers: tuple[int | None, ...]) -> bytes:
    return b"".join(
        _at_cfa(number, 8 * index) for index, number in enumerate(registers) if number is not None
    )


def _at_cfa(register: int, offset: int) -> bytes:
    """Say that a register was saved so many bytes from the frame's address, a multiple of 8."""
    factored = offset // _DATA_ALIGNMENT
    if factored >= 0 and register < 0x40:
        return bytes((_OFFSET | register,)) + _uleb(factored)
    return bytes((_OFFSET_EXTENDED_SF,)) + _uleb(register) + _sleb(factored)


def _advance(delta: int) -> bytes:
    if delta < 0x40:
        return bytes((_ADVANCE | delta,))
    if delta < 0x100:
        return bytes((_ADVANCE_1, delta))
    if delta < 0x10000:
        return struct.pack("<BH", _ADVANCE_2, delta)
    return struct.pack("<BI", _ADVANCE_4, delta)


_ADVANCES: Final = tuple(_advance(delta) for delta in range(0x400))


def _uleb(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _sleb(value: int) -> bytes:
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)
