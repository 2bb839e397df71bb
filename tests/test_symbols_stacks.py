"""Stacks walked by unwind tables: made-up ones here, real kernels' in `test_crash_guest.py`."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from symbols_lab import Image

from symbols import orc
from symbols.orc import OrcLayout
from symbols.unwinding import (
    MOST_FRAMES,
    MOST_GUESSES,
    STACK_BYTES,
    Table,
    Trust,
    walk,
    walk_sleeping,
)

LAYOUT = OrcLayout(base=(32, 4), bp=(36, 4), type=(40, 2), end=(42, 1))
"""As in Linux 6.1."""
CALL, REGISTERS, PARTIAL = 0, 1, 2
TEXT = 0xFFFF_FFFF_8100_0000
STACK = 0xFFFF_C900_0001_0000
TABLES = 0xFFFF_FFFF_8300_0000


def entry(
    base: int, offset: int, kind: int = CALL, bp: int = orc.UNDEFINED, bp_offset: int = 0, end: int = 0
) -> bytes:
    bits = offset & 0xFFFF | (bp_offset & 0xFFFF) << 16 | base << 32 | bp << 36 | kind << 40 | end << 42
    return bits.to_bytes(6, "little")


def table(*rows: tuple[int, bytes]) -> Table:
    """Rows: how far into the code, and the entry from there on."""
    places = b"".join(
        struct.pack("<i", TEXT + at - (TABLES + 4 * index)) for index, (at, _) in enumerate(rows)
    )
    return Table(LAYOUT, b"".join(one for _, one in rows), places, TABLES)


def is_code(address: int) -> bool:
    return TEXT <= address < TEXT + 0x10000


END = (0x8000, entry(orc.UNDEFINED, 0, end=1)), (0x9000, entry(orc.UNDEFINED, 0))


def stack(*words: int, at: int = STACK) -> Image:
    return Image({at: struct.pack(f"<{len(words)}Q", *words).ljust(STACK_BYTES, b"\0")})


def test_calls_are_followed_to_the_end_of_the_stack() -> None:
    made = table((0, entry(orc.SP, 24)), (0x100, entry(orc.SP, 8)), *END)
    memory = stack(0x11, 0x22, TEXT + 0x105, TEXT + 0x8004)
    trace = memory.run(walk({"rip": TEXT + 0x10, "rsp": STACK, "rbp": 0}, [made], is_code))
    assert [(one.address - TEXT, one.trust) for one in trace.frames] == [
        (0x10, Trust.EXACT),
        (0x105, Trust.RETURN),
        (0x8004, Trust.RETURN),
    ]
    assert (trace.problem, trace.is_user) == ("", False)


def test_the_base_pointer_is_kept_where_functions_count_from_it() -> None:
    made = table(
        (0, entry(orc.SP, 16, bp=orc.PREVIOUS_SP, bp_offset=-16)),
        (0x100, entry(orc.BP, 16, bp=orc.PREVIOUS_SP, bp_offset=-16)),
        *END,
    )
    # The callee saved its caller's base pointer, from which the caller's frame is found.
    memory = stack(STACK + 0x40, TEXT + 0x105, *[0] * 6, 0, TEXT + 0x8004)
    trace = memory.run(walk({"rip": TEXT + 0x10, "rsp": STACK, "rbp": 0x1234}, [made], is_code))
    assert [one.address - TEXT for one in trace.frames] == [0x10, 0x105, 0x8004]
    assert not trace.problem


def test_an_interrupted_function_is_told_by_its_own_address() -> None:
    made = table((0, entry(orc.SP, 8)), (0x100, entry(orc.SP, 0, REGISTERS)), (0x200, entry(orc.SP, 8)), *END)
    registers = [0] * 21
    registers[16], registers[17], registers[19] = TEXT + 0x200, 0x10, STACK + 0x400
    memory = stack(TEXT + 0x105, *registers)
    memory.pieces[STACK] = memory.pieces[STACK][:0x400] + struct.pack("<Q", TEXT + 0x8004) + bytes(0x1000)
    trace = memory.run(walk({"rip": TEXT, "rsp": STACK}, [made], is_code))
    assert [(one.address - TEXT, one.trust.value) for one in trace.frames] == [
        (0, "exact"), (0x105, "return"), (0x200, "exact"), (0x8004, "return")
    ]  # fmt: skip


def test_user_space_ends_a_stack() -> None:
    made = table((0, entry(orc.SP, 0, PARTIAL)), *END)
    memory = stack(0x401000, 0x33, 0x202, 0x7FFF_0000, 0x2B)
    trace = memory.run(walk({"rip": TEXT, "rsp": STACK}, [made], is_code))
    assert (len(trace.frames), trace.is_user, trace.problem) == (1, True, "")
    trace = memory.run(walk({"rip": 0x401000, "rsp": 0x7FFF_0000, "cs": 0x33}, [made], is_code))
    assert (len(trace.frames), trace.is_user) == (1, True)


def test_a_call_to_nowhere_leads_to_its_caller() -> None:
    made = table((0, entry(orc.SP, 8)), (0x100, entry(orc.SP, 8)), *END)
    memory = stack(TEXT + 0x105, TEXT + 0x8004)
    trace = memory.run(walk({"rip": 0, "rsp": STACK}, [made], is_code))
    assert [one.address for one in trace.frames] == [0, TEXT + 0x105, TEXT + 0x8004]


def test_what_no_table_knows_leaves_guesses_that_are_marked() -> None:
    made = table((0, entry(orc.SP, 8)), (0x100, entry(orc.UNDEFINED, 0)), *END)
    memory = stack(TEXT + 0x105, 7, TEXT + 0x30, STACK, TEXT + 0x40)
    trace = memory.run(walk({"rip": TEXT, "rsp": STACK}, [made], is_code))
    assert "no unwind table knows" in trace.problem
    assert [(one.address - TEXT, one.trust) for one in trace.frames] == [
        (0, Trust.EXACT), (0x105, Trust.RETURN), (0x30, Trust.GUESS), (0x40, Trust.GUESS)
    ]  # fmt: skip


def test_without_any_table_there_are_guesses() -> None:
    trace = stack(1, TEXT + 0x20).run(walk({"rip": TEXT, "rsp": STACK}, [], is_code))
    assert [one.trust for one in trace.frames] == [Trust.EXACT, Trust.GUESS]
    assert trace.problem


def test_a_task_that_sleeps_is_walked_from_where_it_was_switched_away() -> None:
    made = table((0, entry(orc.SP, 8)), (0x100, entry(orc.SP, 8)), *END)
    trace = stack(TEXT + 0x105, TEXT + 0x8004).run(
        walk_sleeping({"rip": TEXT + 5, "rsp": STACK, "rbp": 0}, [made], is_code)
    )
    assert [(one.address - TEXT, one.trust.value) for one in trace.frames] == [
        (5, "return"), (0x105, "return"), (0x8004, "return")
    ]  # fmt: skip


def test_modules_have_tables_of_their_own() -> None:
    module_at = 0xFFFF_FFFF_C000_0000
    kernel = table((0, entry(orc.SP, 8)), *END)
    rows, places = entry(orc.SP, 16) + entry(orc.UNDEFINED, 0), struct.pack("<ii", 0x1000, 0x1FFC)
    module = Table(LAYOUT, rows, places, module_at)

    def code(address: int) -> bool:
        return is_code(address) or address >= module_at + 0x1000

    trace = stack(1, TEXT + 0x8004).run(
        walk({"rip": module_at + 0x1010, "rsp": STACK}, [kernel, module], code)
    )
    assert [one.address for one in trace.frames] == [module_at + 0x1010, TEXT + 0x8004]


words = st.one_of(
    st.integers(TEXT, TEXT + 0x9000),
    st.integers(STACK - 64, STACK + 0x200),
    st.sampled_from([0, 0x10, 0x33, (1 << 64) - 1, STACK, TEXT]),
    st.integers(0, (1 << 64) - 1),
)
entries = st.builds(
    entry,
    st.integers(0, 15),
    st.integers(-64, 128),
    st.integers(0, 3),
    st.integers(0, 15),
    st.integers(-64, 64),
    st.integers(0, 1),
)


@given(
    st.lists(words, max_size=80),
    st.lists(st.tuples(st.integers(0, 0x9000), entries), max_size=20),
    words,
    words,
    words,
)
def test_every_walk_ends_and_never_tells_a_guess_as_a_call(
    held: list[int], rows: list[tuple[int, bytes]], pc: int, sp: int, bp: int
) -> None:
    memory = stack(*held)
    made = table(*sorted(rows))
    trace = memory.run(walk({"rip": pc, "rsp": sp, "rbp": bp, "r10": sp}, [made], is_code))
    calls = [one for one in trace.frames if one.trust is not Trust.GUESS]
    guesses = [one for one in trace.frames if one.trust is Trust.GUESS]
    assert 1 <= len(calls) <= MOST_FRAMES
    assert len(guesses) <= MOST_GUESSES
    # Guesses come last, and only where something is said to be wrong.
    assert list(trace.frames) == calls + guesses
    assert not guesses or trace.problem
    assert all(is_code(one.address - 1) for one in guesses)


@given(st.binary(max_size=200), st.binary(max_size=200), words)
def test_damaged_tables_are_no_more_than_no_tables(rows: bytes, places: bytes, pc: int) -> None:
    made = Table(LAYOUT, rows, places, TABLES)
    trace = stack(*[TEXT + 0x10] * 30).run(walk({"rip": pc, "rsp": STACK}, [made], is_code))
    assert trace.frames[0].address == pc
