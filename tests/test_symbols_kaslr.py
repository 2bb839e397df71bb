"""KASLR's slide out of the interrupt table, and symbols out of ELF files, real and made."""

from __future__ import annotations

import json
import mmap
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbols import elf, kaslr
from symbols.errors import NotAnElf, SlideUnknown
from symbols.reads import Read

ROOT = Path(__file__).resolve().parent.parent
LINKED = 0xFFFFFFFF81A00990


def gate(handler: int, kind: int = 0x8E, selector: int = 0x10) -> bytes:
    return struct.pack(
        "<HHBBHII", handler & 0xFFFF, selector, 0, kind, handler >> 16 & 0xFFFF, handler >> 32, 0
    )


def test_a_gate_that_was_seen() -> None:
    # Debian's cloud kernel 6.1.192-2 under QEMU 7.2.
    seen = bytes.fromhex("90091000008e809cffffffff00000000")
    assert kaslr.handler_of(seen) == 0xFFFFFFFF9C800990
    assert kaslr.slide(0xFFFFFFFF9C800990, 0xFFFFFFFF81A00990) == 0x1AE00000


@given(st.integers(0, kaslr.MAX_SLIDE // kaslr.ALIGNMENT - 1))
def test_every_slide_is_found(steps: int) -> None:
    slide = steps * kaslr.ALIGNMENT
    search = kaslr.divide_error_handler()
    assert next(search) == (Read(0xFFFFFE0000000000, 16),)
    with pytest.raises(StopIteration) as done:
        search.send((gate(LINKED + slide),) if LINKED + slide < 1 << 64 else (gate(LINKED),))
    assert done.value.value in (LINKED + slide, LINKED)
    assert kaslr.slide(LINKED + slide, LINKED) == slide


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not booted"),
        (gate(LINKED)[:15], "not booted"),
        (bytes(16), "not Linux's table"),
        (gate(LINKED, kind=0x0E), "not Linux's table"),
        (gate(LINKED, selector=0x33), "not Linux's table"),
        (gate(0x401000), "not Linux's table"),
    ],
)
def test_what_is_no_table_of_linux(data: bytes, words: str) -> None:
    with pytest.raises(SlideUnknown, match=words):
        kaslr.handler_of(data)


@pytest.mark.parametrize("distance", [-kaslr.ALIGNMENT, 0x1000, kaslr.MAX_SLIDE])
def test_another_kernels_file_is_refused(distance: int) -> None:
    with pytest.raises(SlideUnknown, match="not this kernel's"):
        kaslr.slide(LINKED + distance, LINKED)


@given(st.binary(max_size=40))
def test_any_bytes_give_a_handler_or_slide_unknown(data: bytes) -> None:
    try:
        handler = kaslr.handler_of(data)
    except SlideUnknown:
        return
    assert handler >= 0xFFFFFFFF80000000


# ── ELF ─────────────────────────────────────────────────────────────────────────────────────────────────────


def made_elf(names: list[tuple[bytes, int, int]]) -> bytes:
    """An ELF file with these symbols (name, value, section) and a tail-merged string table."""
    strings = b"\0"
    symbols = bytes(24)
    for name, value, section in names:
        at = strings.find(name + b"\0", 1)
        if at < 0:
            at = len(strings)
            strings += name + b"\0"
        symbols += struct.pack("<IBBHQQ", at, 0, 0, section, value, 0)
    body = symbols + strings
    table = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    table += struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 64, len(symbols), 2, 0, 8, 24)
    table += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, 64 + len(symbols), len(strings), 0, 0, 1, 0)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 3, 0)
    return head + body + table


def test_symbols_by_name() -> None:
    image = made_elf(
        [
            (b"xen_asm_exc_divide_error", 1, 1),
            (b"asm_exc_divide_error", 2, 1),
            (b"wanted", 9, 0),
            (b"z", 7, 1),
        ]
    )
    assert elf.symbol_values(image, ["asm_exc_divide_error", "z", "wanted", "absent"]) == {
        "asm_exc_divide_error": 2,
        "z": 7,
    }


def test_the_first_of_several_counts() -> None:
    assert elf.symbol_values(made_elf([(b"a", 5, 1), (b"a", 6, 1)]), ["a"]) == {"a": 5}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "0 bytes"),
        (bytes(100), "ELF's mark"),
        (b"\x7fELF\x01\x01" + bytes(100), "64-bit"),
        (made_elf([(b"a", 1, 1)])[:-1], "cut off"),
        (b"\x7fELF\x02\x01" + bytes(100), "no sections"),
    ],
)
def test_what_is_no_elf_file_is_said_so(image: bytes, words: str) -> None:
    with pytest.raises(NotAnElf, match=words):
        elf.symbol_values(image, ["a"])


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 400))
def test_a_damaged_file_gives_symbols_or_not_an_elf(noise: bytes, at: int, cut: int) -> None:
    image = bytearray(made_elf([(b"one", 1, 1), (b"two", 2, 1)]))
    image[at : at + len(noise)] = noise
    try:
        found = elf.symbol_values(bytes(image[: len(image) - cut] if cut < 200 else image), ["one", "two"])
    except NotAnElf:
        return
    assert set(found) <= {"one", "two"}


@pytest.mark.guest
@pytest.mark.parametrize("name", ["cloud", "kgdb"])
def test_symbols_of_real_kernels_are_those_of_nm(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{name}_built")
    listed = subprocess.run(
        [str(ROOT / "scripts" / "guest"), "list", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (vmlinux,) = (guest["vmlinux"] for guest in json.loads(listed.stdout) if guest["name"] == name)
    wanted = {kaslr.DIVIDE_ERROR_SYMBOL, "linux_banner", "start_kernel", "init_task", "_stext"}
    nm = subprocess.run(["nm", vmlinux], capture_output=True, text=True, timeout=60, check=True)
    expected = {
        words[2]: int(words[0], 16) for words in map(str.split, nm.stdout.splitlines()) if words[-1] in wanted
    }
    assert set(expected) == wanted
    with Path(vmlinux).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        assert elf.symbol_values(image, wanted) == expected
