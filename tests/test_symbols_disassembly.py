"""Bytes of code as instructions, and what the faulting one was about to do."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbols.backtrace import Code
from symbols.disassembly import Disassembler, is_canonical, whole

MADE = Disassembler()
access, disassemble, words = MADE.access, MADE.disassemble, MADE.words
EXCEPTION = Code(
    bytes.fromhex(
        "89df e8bb4be6ff 8b442418 5a 59 488b542410 65482b142528000000 7405 e88dbb0f00 4883c418 5b c3 31c0"
        "890425 00000000 c3 ebfe"
    ),
    42,
)
"""A real one: Linux 6.1, lkdtm_EXCEPTION+0x2/0xa."""
FREED = 0x6B6B6B6B6B6B6B6B


def code(text: str) -> Code:
    before, _, after = text.partition("|")
    return Code(bytes.fromhex(before + after), len(bytes.fromhex(before)))


def said(text: str, **registers: int) -> str:
    return "\n".join(words(code(text), registers, lambda _: None))


def test_instructions_around_a_fault() -> None:
    listed = disassemble(EXCEPTION, 2)
    assert [(one.offset, one.text) for one in listed] == [
        (-2, "xorl %eax, %eax"),
        (0, "movl %eax, 0"),
        (7, "retq"),
        (8, "jmp +0x8"),
    ]
    assert b"".join(one.data for one in listed) == EXCEPTION.data[40:]
    # Without knowing where the function begins they are found by how they meet the fault.
    guessed = disassemble(EXCEPTION)
    assert [one for one in guessed if one.offset >= -2] == list(listed)
    assert sum(len(one.data) for one in guessed) == len(EXCEPTION.data)


def test_jumps_and_calls_say_where_to() -> None:
    listed = disassemble(code("|e810000000 7405 ffd0"), None, {0x15: "callee"}.get)
    assert [one.text for one in listed] == ["callq callee", "je +0xc", "callq *%rax"]


def test_addresses_are_in_hexadecimal() -> None:
    (one,) = disassemble(code("|48c7c7f354b791"))
    assert one.text == "movq $0xffffffff91b754f3, %rdi"


def test_before_the_fault_nothing_may_lead_to_it() -> None:
    # Only the first byte of a longer instruction, wherever one begins.
    listed = disassemble(code("48|90"), 1)
    assert [one.offset for one in listed] == [0]


@pytest.mark.parametrize(
    ("text", "registers", "expected"),
    [
        ("|890425 00000000", {}, "it writes 4 bytes at 0x0"),
        ("|488b4318", {"RBX": 0}, "it reads 8 bytes at 0x18 = rbx + 0x18\nrbx is 0x0 (NULL)"),
        ("|488b43f8", {"RBX": 16}, "it reads 8 bytes at 0x8 = rbx - 0x8\nrbx is 0x10"),
        ("|428b84c8 00010000", {"RAX": 2, "R09": 3}, "it reads 4 bytes at 0x11a = rax + r9 * 8 + 0x100\n"),
        ("|f04883000a", {"RAX": 1 << 20}, "it reads and writes 8 bytes at 0x100000 = rax\nrax is 0x100000"),
        ("|f3ab", {"RDI": 1 << 20}, "it writes 4 bytes at 0x100000 = rdi"),
        ("|c60001", {"RAX": 1 << 20}, "it writes 1 byte at 0x100000 = rax"),
        ("|65488b042528000000", {"GS": 1 << 20}, "it reads 8 bytes at 0x100028 = gs + 0x28\ngs is 0x100000"),
        ("|488b03", {}, "it reads 8 bytes at an address that is not known = rbx\nrbx is not shown"),
        ("|48891df0ff0000", {"CR2": 0x5000}, "it writes 8 bytes at 0x5000 (CR2) = rip + 0xfff0"),
        ("|488b03", {"RBX": 0xDEAD000000000100}, "LIST_POISON1"),
        ("|488b03", {"RBX": FREED + 8}, "POISON_FREE"),
        ("|488b03", {"RBX": FREED}, "not canonical"),
        ("|488b03", {"RBX": 0x5A5A5A5A5A5A5A5A}, "POISON_INUSE"),
        ("|488b03", {"RBX": (1 << 64) - 12}, "an error, -12, taken for a pointer"),
        ("|488b03", {"RBX": 0x1000, "CR2": 0x2000}, "CR2 is 0x2000: another address"),
        ("|0f0b", {}, "BUG() or WARN()"),
        ("|cc", {}, "breakpoint"),
        ("|06", {}, "no instruction"),
    ],
)
def test_the_access_in_words(text: str, registers: dict[str, int], expected: str) -> None:
    assert expected in said(text, **registers)


@pytest.mark.parametrize("text", ["|c3", "|488d4318", "|4889c3", "|0f1f4000", "|f4"])
def test_what_uses_no_memory_that_matters(text: str) -> None:
    assert said(text, RBX=0, RAX=0) == ""


def test_what_is_counted_from_the_instruction_has_its_name() -> None:
    found = words(code("|48891df0ff0000"), {}, lambda at: "rodata" if at == 0xFFF7 else None)
    assert found == ["it writes 8 bytes at an address that is not known = rip + 0xfff0, which is rodata"]


def test_five_levels_of_page_tables_have_larger_addresses() -> None:
    far = 0xFF11000000000000
    assert "not canonical" in said("|488b03", RBX=far, CR4=0)
    assert "not canonical" not in said("|488b03", RBX=far, CR4=1 << 12)
    assert is_canonical(0x7FFF_FFFF_FFFF)
    assert is_canonical(0xFFFF_8000_0000_0000)
    assert not is_canonical(0x8000_0000_0000)


@pytest.mark.parametrize(
    ("part", "name"),
    [("al", "RAX"), ("ah", "RAX"), ("bx", "RBX"), ("ecx", "RCX"), ("rdx", "RDX"), ("sil", "RSI"), ("esp", "RSP"),
     ("r8", "R08"), ("r9d", "R09"), ("r10b", "R10"), ("r15w", "R15"), ("rbp", "RBP"), ("gs", "GS")],
)  # fmt: skip
def test_parts_of_registers(part: str, name: str) -> None:
    assert whole(part) == name


@given(st.binary(min_size=1, max_size=80), st.data())
def test_any_bytes_are_disassembled_without_loss(data: bytes, more: st.DataObject) -> None:
    at = more.draw(st.integers(0, len(data) - 1))
    registers = more.draw(
        st.dictionaries(
            st.sampled_from(["RAX", "RBX", "RSP", "R08", "R15", "GS", "FS", "CR2", "CR4"]),
            st.integers(0, (1 << 64) - 1),
        )
    )
    offset = more.draw(st.none() | st.integers(0, 100))
    listed = disassemble(Code(data, at), offset)
    for one in listed:
        assert data[at + one.offset : at + one.offset + len(one.data)] == one.data
    for before, after in pairwise(listed):
        assert before.offset + len(before.data) == after.offset
    used = access(Code(data, at), registers)
    assert used is None or used.address is None or 0 <= used.address < 1 << 64
    for text in words(Code(data, at), registers, lambda _: None):
        assert text
        assert "\n" not in text
