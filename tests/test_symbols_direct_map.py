"""The map of physical memory: found in made-up kernels, and not believed where the kernel is not seen through it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from symbols_lab import Image, note

from symbols import direct_map
from symbols.direct_map import FIXED_OFFSET, IMAGE_MAP, DirectMap, DirectMapError
from symbols.kaslr import Linked
from symbols.model import BuildId

ID = "0123456789abcdef0123456789abcdef01234567"
NOTES = note(b"Xen\0", 6, b"x86") + note(b"GNU\0", 3, bytes.fromhex(ID))
AT = {"page_offset_base": 0xFFFFFFFF9A398480, "phys_base": 0xFFFFFFFF9AA1A010, "max_pfn": 0xFFFFFFFF9B34E5B8}
KERNEL = Linked(BuildId(ID), 0xFFFFFFFF9A5E7000, len(NOTES), None)
GIB = 1 << 30


def words(offset: int, phys_base: int, pages: int) -> dict[int, bytes]:
    values = {"page_offset_base": offset, "phys_base": phys_base, "max_pfn": pages}
    return {AT[name]: struct.pack("<Q", value % (1 << 64)) for name, value in values.items()}


def memory(offset: int, phys_base: int, size: int = GIB, notes: bytes = NOTES) -> Image:
    physical = KERNEL.notes - IMAGE_MAP + phys_base
    return Image({**words(offset, phys_base, size // 4096), offset + physical: notes})


@given(
    offset=st.integers(0xFFFF888000000000 >> 30, 0xFFFFE00000000000 >> 30),
    slide=st.integers(-210, 300),
)
def test_wherever_it_was_put_it_is_found_in_two_batches(offset: int, slide: int) -> None:
    # The kernel's physical address is moved by itself, to below where it was linked too.
    image = memory(offset << 30, slide << 21)
    found = image.run(direct_map.find(AT, KERNEL))
    assert found == DirectMap(offset << 30, GIB)
    assert (image.batches, image.reads) == (2, 4)


def test_what_it_maps() -> None:
    found = DirectMap(0xFFFF9A8000000000, GIB)
    assert found.virtual(0) == 0xFFFF9A8000000000
    assert found.virtual(GIB - 1) == 0xFFFF9A8000000000 + GIB - 1
    assert found.virtual(GIB) is None
    assert found.virtual(-1) is None


def test_five_levels_of_page_tables() -> None:
    offset = 0xFF11000000000000
    assert memory(offset, 0).run(direct_map.find(AT, KERNEL)) == DirectMap(offset, GIB)


def test_a_kernel_that_has_it_at_a_fixed_address() -> None:
    at = {name: address for name, address in AT.items() if name != "page_offset_base"}
    assert memory(FIXED_OFFSET, 0).run(direct_map.find(at, KERNEL)) == DirectMap(FIXED_OFFSET, GIB)


@pytest.mark.parametrize("name", ["phys_base", "max_pfn"])
def test_a_file_without_the_symbols(name: str) -> None:
    at = {one: address for one, address in AT.items() if one != name}
    with pytest.raises(DirectMapError, match=f"no symbol {name}"):
        memory(FIXED_OFFSET, 0).run(direct_map.find(at, KERNEL))


@pytest.mark.parametrize("name", list(AT))
def test_a_variable_that_is_not_mapped(name: str) -> None:
    image = memory(FIXED_OFFSET, 0)
    del image.pieces[AT[name]]
    with pytest.raises(DirectMapError, match=f"{name} at 0x[0-9a-f]+ cannot be read"):
        image.run(direct_map.find(AT, KERNEL))


@pytest.mark.parametrize(
    ("offset", "phys_base", "size"),
    [
        (0, 0, GIB),  # not set yet
        (0x7FFFFFFFF000, 0, GIB),  # a user's address
        (FIXED_OFFSET + 1, 0, GIB),
        (FIXED_OFFSET, 0, 0),
        (FIXED_OFFSET, 0, 1 << 60),
        (FIXED_OFFSET, GIB, GIB),  # the kernel would be beyond the end of memory
        (FIXED_OFFSET, -GIB, GIB),
    ],
)
def test_values_that_cannot_be(offset: int, phys_base: int, size: int) -> None:
    image = Image(words(offset, phys_base, size // 4096))
    with pytest.raises(DirectMapError, match="the kernel says"):
        image.run(direct_map.find(AT, KERNEL))


@pytest.mark.parametrize("notes", [b"", NOTES[:-1] + b"!", note(b"GNU\0", 3, bytes(20))])
def test_a_map_through_which_another_kernel_is_seen_is_not_believed(notes: bytes) -> None:
    with pytest.raises(DirectMapError, match="build-id is not at"):
        memory(FIXED_OFFSET, 0, notes=notes).run(direct_map.find(AT, KERNEL))
