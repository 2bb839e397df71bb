"""VMCOREINFO: as text, in a note, by symbol, found in memory; cut off and damaged."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symbols_lab import Image, note

from symbols import vmcoreinfo
from symbols.kaslr import Claim
from symbols.model import BuildId
from symbols.vmcoreinfo import MOST_BYTES, VmcoreinfoError

ID = "0123456789abcdef0123456789abcdef01234567"
TEXT = (
    f"OSRELEASE=6.1.0-39-cloud-amd64\nBUILD-ID={ID}\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff9a21b0c0\n"
    "OFFSET(uts_namespace.name)=0\nNUMBER(phys_base)=-12582912\nNUMBER(pgtable_l5_enabled)=1\n"
    "SYMBOL(_stext)=ffffffff97800000\nKERNELOFFSET=16800000\nCRASHTIME=1764000000\n"
).encode()
PAGE = 0xFF11000003A5C000


def test_what_it_says() -> None:
    found = vmcoreinfo.parse(TEXT + bytes(100))
    assert found.release == "6.1.0-39-cloud-amd64"
    assert found.build_id == ID
    assert found.slide == 0x16800000
    assert found.symbol("_stext") == 0xFFFFFFFF97800000
    assert found.number("phys_base") == -12582912
    assert found.number("pgtable_l5_enabled") == 1
    assert found.symbol("absent") is None
    assert found.number("absent") is None
    assert found.claim() == Claim("VMCOREINFO", 0x16800000, BuildId(ID))


def test_an_older_kernel_without_build_id_and_a_kernel_that_was_not_moved() -> None:
    found = vmcoreinfo.parse(b"OSRELEASE=5.4.0\nPAGESIZE=4096\nKERNELOFFSET=0\n")
    assert found.claim() == Claim("VMCOREINFO", 0, None)
    # arm64 and others may leave the line out.
    assert vmcoreinfo.parse(b"OSRELEASE=5.4.0\nPAGESIZE=4096\n").claim() is None


@pytest.mark.parametrize("data", [b"", bytes(100), b"PAGESIZE=4096\n", TEXT[1:]])
def test_what_is_none_is_said_so(data: bytes) -> None:
    with pytest.raises(VmcoreinfoError, match="no VMCOREINFO"):
        vmcoreinfo.parse(data)


def test_in_a_note() -> None:
    whole = note(b"VMCOREINFO\0", 0, TEXT)
    assert vmcoreinfo.of_note(whole) == vmcoreinfo.parse(TEXT)
    with pytest.raises(VmcoreinfoError, match="cut off"):
        vmcoreinfo.of_note(whole[:40])
    with pytest.raises(VmcoreinfoError, match="cut off"):
        vmcoreinfo.of_note(b"")
    with pytest.raises(VmcoreinfoError, match="not VMCOREINFO's"):
        vmcoreinfo.of_note(note(b"GNU\0", 0, TEXT))


def test_by_symbol_in_two_batches() -> None:
    pointer, size = 0xFFFFFFFF9A000010, 0xFFFFFFFF9A000040
    memory = Image(
        {pointer: struct.pack("<Q", PAGE), size: struct.pack("<Q", len(TEXT)), PAGE: TEXT + bytes(4000)}
    )
    assert memory.run(vmcoreinfo.by_symbol(pointer, size)) == vmcoreinfo.parse(TEXT)
    assert memory.batches == 2
    memory.pieces[size] = struct.pack("<Q", 1 << 40)
    with pytest.raises(VmcoreinfoError, match="bytes"):
        memory.run(vmcoreinfo.by_symbol(pointer, size))
    with pytest.raises(VmcoreinfoError, match="not mapped"):
        Image().run(vmcoreinfo.by_symbol(pointer, size))


# A page may lie anywhere, at the border of what one batch reads too.
@pytest.mark.parametrize(
    "at", [0, 4096, (1 << 20) - 100, (1 << 20) - 4096, (2 << 20) + 0x33000, (3 << 20) - 4096]
)
def test_it_is_found_in_memory_by_its_text(at: int) -> None:
    decoys = b"OSRELEASE=%s\n\0OSRELEASE=" + b"x" * 40 + b"\0"
    data = bytearray(3 << 20)
    data[0x2000 : 0x2000 + len(decoys)] = decoys
    data[at : at + len(TEXT)] = TEXT
    image = Image({at_: bytes(data[at_ : at_ + 0x10000]) for at_ in range(0, len(data), 0x10000)})
    (found,) = image.run(vmcoreinfo.search(0, len(data)))
    assert found == vmcoreinfo.parse(TEXT)
    assert image.batches == 3


def test_of_what_several_kernels_left_each_is_found_once() -> None:
    other = TEXT.replace(b"KERNELOFFSET=16800000", b"KERNELOFFSET=2e400000")
    data = TEXT + bytes(50) + other + bytes(50) + TEXT
    assert [one.slide for one in vmcoreinfo.find(data)] == [0x16800000, 0x2E400000]


def test_much_that_looks_like_it_takes_bounded_work() -> None:
    flood = b"OSRELEASE=x\nPAGESIZE=1\n" * 40_000
    assert vmcoreinfo.find(flood) == ()


@given(
    st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, 255)), max_size=10),
    st.integers(0, len(TEXT)),
)
@settings(max_examples=300, deadline=None)
def test_a_damaged_one_is_read_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(TEXT)
    for at, byte in changes:
        data[at] = byte
    damaged = bytes(data[:cut])
    for one in vmcoreinfo.find(damaged):
        assert one.slide is not None
        assert 0 <= one.slide < 1 << 64
    for read in (vmcoreinfo.parse, vmcoreinfo.of_note):
        try:
            found = read(damaged)
        except VmcoreinfoError:
            continue
        found.symbol("_stext")
        found.number("phys_base")
        assert sum(map(len, found.values)) <= MOST_BYTES


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    vmcoreinfo.find(data)
    for read in (vmcoreinfo.parse, vmcoreinfo.of_note):
        try:
            read(data)
        except VmcoreinfoError:
            continue
