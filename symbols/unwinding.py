"""A kernel's stack walked by its ORC tables, as the kernel itself walks it.

in          where a processor or a sleeping task is, unwind tables, stack memory
out         the calls, the innermost first, each with how far it can be trusted
invariant   a walk ends: after ``MOST_FRAMES``, or where it would come by the same place again.  What only stands on the
            stack is never told as a call: it is marked as a guess

Source: Linux, arch/x86/kernel/unwind_orc.c (``unwind_next_frame``), arch/x86/include/asm/ptrace.h (``struct pt_regs``).
Pointers are 64 bits, little-endian.

Where the tables do not lead on, the rest of the stack is looked through for addresses of code, as the kernel's own
backtraces do, which have ``?`` before them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from symbols import orc
from symbols.orc import ENTRY_BYTES, PLACE_BYTES, Entry, OrcLayout, Shape
from symbols.reads import Read, Search

MOST_FRAMES: Final = 128
MOST_GUESSES: Final = 48
STACK_BYTES: Final = 16384
"""THREAD_SIZE of x86-64; a task's stack begins at a multiple of it."""
PAGE_BYTES: Final = 4096
_WORD: Final = struct.Struct("<Q")
_PLACE: Final = struct.Struct("<i")
_MASK: Final = (1 << 64) - 1
_KERNEL_SPACE: Final = 1 << 63
_PT_REGS: Final = {
    "r15": 0, "r14": 8, "r13": 16, "r12": 24, "rbp": 32, "rbx": 40, "r11": 48, "r10": 56, "r9": 64, "r8": 72,
    "rax": 80, "rcx": 88, "rdx": 96, "rsi": 104, "rdi": 112, "rip": 128, "cs": 136, "rsp": 152,
}  # fmt: skip
_IRET: Final = {"rip": 0, "cs": 8, "rsp": 24}
_RING: Final = 3
_NULL: Final = Entry(Shape.CALL, orc.SP, 8, orc.UNDEFINED, 0)
"""For a call to nowhere: the return address is on top of the stack (``null_orc_entry``)."""
_OTHERS: Final = {orc.R10: "r10", orc.R13: "r13", orc.DI: "rdi", orc.DX: "rdx"}

Word = Generator[tuple[Read, ...], tuple[bytes, ...], int | None]
IsCode = Callable[[int], bool]
"""Tells whether an address is in code of the kernel's or of a module's."""


class Trust(Enum):
    """How far an address on a stack is one of the calls."""

    EXACT = "exact"
    """The processor is there, or was when it was interrupted: the address itself is looked up."""
    RETURN = "return"
    """It is returned to: the call is before it."""
    GUESS = "guess"
    """It only stands on the stack."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One call."""

    address: int
    trust: Trust
    stack: int
    """Where the stack pointer is in it; of a guess, where it stands."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The calls of one stack."""

    frames: tuple[Frame, ...]
    problem: str = ""
    """Why the calls end before the stack does, empty where they do not."""
    is_user: bool = False
    """It came to where user space was left."""


class Table:
    """The unwind tables of a kernel or a module, in memory or of a file; ``at`` is where ``places`` are in memory."""

    def __init__(
        self, layout: OrcLayout, entries: bytes | memoryview, places: bytes | memoryview, at: int
    ) -> None:
        self._layout = layout
        self._entries = entries
        self._places = places
        self._at = at
        self._count = min(len(places) // PLACE_BYTES, len(entries) // ENTRY_BYTES)
        self._known: dict[bytes, Entry] = {}

    def _place(self, index: int) -> int:
        where = index * PLACE_BYTES
        offset: int = _PLACE.unpack_from(self._places, where)[0]
        return self._at + where + offset & _MASK

    def entry(self, address: int) -> Entry | None:
        """Return how to unwind from an address; None where the tables are not about it."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._place(middle) <= address:
                low = middle + 1
            else:
                high = middle
        # What is behind the last place belongs to nobody, or to a module.
        if not 0 < low < self._count:
            return None
        raw = bytes(self._entries[(low - 1) * ENTRY_BYTES : low * ENTRY_BYTES])
        found = self._known.get(raw)
        if found is None:
            found = self._known[raw] = orc.entry(self._layout, raw)
        return found


class _Stack:
    """Words of stack memory, read a page at a time."""

    def __init__(self) -> None:
        self._pages: dict[int, bytes] = {}

    def word(self, address: int) -> Word:
        """Return a word; None where nothing is mapped."""
        data = yield from self._data(address, _WORD.size)
        return None if len(data) < _WORD.size else int(_WORD.unpack(data)[0])

    def _data(self, address: int, length: int) -> Search[bytes]:
        data = b""
        while len(data) < length:
            at = address + len(data)
            page = at & -PAGE_BYTES
            if not 0 <= page <= _MASK:
                break
            if page not in self._pages:
                (self._pages[page],) = yield (Read(page, PAGE_BYTES),)
            piece = self._pages[page][at - page : at - page + length - len(data)]
            if not piece:
                break
            data += piece
        return data

    def words(self, start: int, end: int) -> Search[list[int]]:
        """Return the words of a range, up to where nothing is mapped."""
        data = yield from self._data(start, max(0, end - start))
        return [one[0] for one in _WORD.iter_unpack(data[: len(data) & -_WORD.size])]


@dataclass(slots=True)
class _State:
    """Where the walk is."""

    pc: int
    sp: int
    bp: int
    exact: bool
    registers: Mapping[str, int]
    """All registers, where a ``pt_regs`` or the processor tells them; none after a call."""


def walk(registers: Mapping[str, int], tables: Sequence[Table], is_code: IsCode) -> Search[Trace]:
    """Walk the stack of a processor; ``registers`` by their names in lower case, as ``rip``."""
    state = _State(
        registers.get("rip", 0),
        registers.get("rsp", 0),
        registers.get("rbp", 0),
        exact=True,
        registers=registers,
    )
    if registers.get("cs", 0) & _RING == _RING or 0 < state.pc < _KERNEL_SPACE:
        return Trace((Frame(state.pc, Trust.EXACT, state.sp),), is_user=True)
    return (yield from _walk(state, tables, is_code))


def walk_sleeping(registers: Mapping[str, int], tables: Sequence[Table], is_code: IsCode) -> Search[Trace]:
    """Walk the stack of a task that does not run; ``registers``: where it was switched away from."""
    state = _State(registers["rip"], registers["rsp"], registers.get("rbp", 0), exact=False, registers={})
    return (yield from _walk(state, tables, is_code))


def _walk(state: _State, tables: Sequence[Table], is_code: IsCode) -> Search[Trace]:
    stack = _Stack()
    frames: list[Frame] = []
    seen: set[tuple[int, int]] = set()
    problem = ""
    while not problem:
        if len(frames) == MOST_FRAMES:
            return Trace(tuple(frames), f"more than {MOST_FRAMES} calls are not shown")
        frames.append(Frame(state.pc, Trust.EXACT if state.exact else Trust.RETURN, state.sp))
        if (state.pc, state.sp) in seen:
            problem = "the stack leads in a circle"
            break
        seen.add((state.pc, state.sp))
        entry = _entry(state, tables, is_code)
        if entry is None or entry.shape is Shape.UNKNOWN:
            problem = f"no unwind table knows {state.pc:#x}"
        elif entry.shape is Shape.END:
            return Trace(tuple(frames))
        else:
            ended = yield from _step(stack, state, entry)
            if ended == _USER:
                return Trace(tuple(frames), is_user=True)
            problem = ended
            if not problem and not is_code(state.pc - (not state.exact)) and state.pc != 0:
                problem = f"{state.pc:#x} is no code"
    guesses = yield from _guess(stack, state.sp, is_code)
    return Trace((*frames, *guesses), problem)


_USER: Final = "user space"


def _entry(state: _State, tables: Sequence[Table], is_code: IsCode) -> Entry | None:
    # A return address may be behind the function's end, where the call was its last instruction.
    address = state.pc - (not state.exact)
    if state.exact and not is_code(address):
        return _NULL
    for table in tables:
        found = table.entry(address)
        if found is not None:
            return found
    return None


def _step(stack: _Stack, state: _State, entry: Entry) -> Generator[tuple[Read, ...], tuple[bytes, ...], str]:
    """Go to the caller.  Returns why that cannot be, ``_USER`` where it is user space, nothing where it was done."""
    frame = yield from _frame(stack, state, entry)
    if frame is None:
        return f"what leads from {state.pc:#x} to its caller is not known"
    if entry.shape is Shape.CALL:
        address = yield from stack.word(frame - 8)
        if address is None:
            return f"the stack at {frame - 8:#x} is not mapped"
        if not (yield from _base(stack, state, entry, frame)):
            return f"the base pointer saved by {state.pc:#x} is not mapped"
        state.pc, state.sp, state.exact, state.registers = address, frame, False, {}
        return ""
    names = _PT_REGS if entry.shape is Shape.REGISTERS else _IRET
    found: dict[str, int] = {}
    for name, offset in names.items():
        word = yield from stack.word(frame + offset)
        if word is None:
            return f"the registers at {frame:#x} are not mapped"
        found[name] = word
    if found["cs"] & _RING == _RING:
        return _USER
    if entry.shape is Shape.REGISTERS:
        state.bp = found["rbp"]
        state.registers = found
    elif not (yield from _base(stack, state, entry, frame)):
        return f"the base pointer saved by {state.pc:#x} is not mapped"
    state.pc, state.sp, state.exact = found["rip"], found["rsp"], True
    return ""


def _frame(stack: _Stack, state: _State, entry: Entry) -> Word:
    """Return where the caller's frame is, or the registers are."""
    match entry.base:
        case orc.SP:
            return state.sp + entry.offset & _MASK
        case orc.BP:
            return state.bp + entry.offset & _MASK
        case orc.SP_INDIRECT:
            word = yield from stack.word(state.sp)
            return None if word is None else word + entry.offset & _MASK
        case orc.BP_INDIRECT:
            return (yield from stack.word(state.bp + entry.offset & _MASK))
        case other if other in _OTHERS:
            return state.registers.get(_OTHERS[other])
        case _:
            return None


def _base(stack: _Stack, state: _State, entry: Entry, frame: int) -> Search[bool]:
    """Set the caller's base pointer; False where it cannot be read."""
    match entry.bp:
        case orc.PREVIOUS_SP:
            word = yield from stack.word(frame + entry.bp_offset & _MASK)
        case orc.BP:
            word = yield from stack.word(state.bp + entry.bp_offset & _MASK)
        case _:
            return True
    if word is None:
        return False
    state.bp = word
    return True


def _guess(stack: _Stack, start: int, is_code: IsCode) -> Search[list[Frame]]:
    """Return what of a stack's rest may be calls."""
    start = start + 7 & -8
    end = (start & -STACK_BYTES) + STACK_BYTES
    if start < _KERNEL_SPACE:
        return []
    words = yield from stack.words(start, end)
    found = [
        Frame(word, Trust.GUESS, start + index * _WORD.size)
        for index, word in enumerate(words)
        if word >= _KERNEL_SPACE and is_code(word - 1)
    ]
    return found[:MOST_GUESSES]
