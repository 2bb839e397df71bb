"""Page tables, walked: pages of each size, four and five levels, isolation, and tables of nonsense."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_lab import IMAGE_MAP, PAGE, Memory

from kbridge.memory import paging
from kbridge.memory.paging import Page, Tables
from symbols.reads import Search


class Reader:
    """Physical memory, and how many reads were made of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0

    def run(self, search: Search[Page | None]) -> Page | None:
        try:
            batch = next(search)
            while True:
                self.reads += len(batch)
                batch = search.send(tuple(self.data[one.address : one.address + one.length] for one in batch))
        except StopIteration as done:
            found: Page | None = done.value
            return found


@pytest.mark.parametrize("levels", [4, 5])
def test_pages_of_each_size(levels: int) -> None:
    memory = Memory(64 * PAGE, levels)
    memory.map(0x7F00_0000_1000, 0x1234_5000)
    memory.map(IMAGE_MAP + 0x20_0000, 0x4000_0000, level=2)
    memory.map(0xFFFF_8880_4000_0000, 0x1_4000_0000, level=3)
    reader, tables = Reader(bytes(memory.data)), Tables(memory.root, levels)
    assert reader.run(paging.walk(tables, 0x7F00_0000_1234)) == Page(0x7F00_0000_1000, 0x1234_5000, PAGE)
    assert reader.run(paging.walk(tables, IMAGE_MAP + 0x2A_BCDE)) == Page(
        IMAGE_MAP + 0x20_0000, 0x4000_0000, 1 << 21
    )
    assert reader.run(paging.walk(tables, 0xFFFF_8880_7FFF_FFFF)) == Page(
        0xFFFF_8880_4000_0000, 0x1_4000_0000, 1 << 30
    )
    for absent in (0, 0x7F00_0000_2000, IMAGE_MAP, IMAGE_MAP + 0x40_0000, 0xFFFF_8881_0000_0000):
        assert reader.run(paging.walk(tables, absent)) is None


@pytest.mark.parametrize(
    ("levels", "address"), [(4, 0x8000_0000_0000), (4, 0xFF00_0000_0000_0000), (5, 1 << 57)]
)
def test_an_address_that_no_processor_takes_is_not_looked_for(levels: int, address: int) -> None:
    reader = Reader(b"")
    assert reader.run(paging.walk(Tables(0, levels), address)) is None
    assert reader.reads == 0


def test_what_the_tables_are_a_processors_registers_say() -> None:
    assert Tables.of_registers(0x8000_0000_1234_5FFF, 0x6A0) == Tables(0x1234_5000, 4)
    assert Tables.of_registers(0x1000, 0x16A0) == Tables(0x1000, 5)
    assert paging.is_on(0x8005_0033)
    assert not paging.is_on(0x0000_0011)


def test_in_user_mode_under_isolation_the_kernel_is_seen_by_the_table_beside() -> None:
    memory = Memory(64 * PAGE)
    # Both topmost tables side by side, the kernel's at an even page.
    kernel = 2 * PAGE * -(-memory.table() // (2 * PAGE))
    while memory.table() < kernel + PAGE:
        pass
    memory.map(IMAGE_MAP, 0x100_0000, level=2, root=kernel)
    memory.map(0x40_0000, 0x5000, root=kernel)
    memory.map(0x40_0000, 0x5000, root=kernel + PAGE)
    reader, user = Reader(bytes(memory.data)), Tables(kernel + PAGE, 4)
    assert user.is_for_user_mode
    assert reader.run(paging.walk(user, IMAGE_MAP + 5)) is None
    assert reader.run(paging.walk_kernel(user, IMAGE_MAP + 5)) == Page(IMAGE_MAP, 0x100_0000, 1 << 21)
    assert reader.run(paging.walk_kernel(user, 0x40_0123)) == Page(0x40_0000, 0x5000, PAGE)
    # What only the kernel's table has of the lower half is not the process's.
    memory.map(0x60_0000, 0x6000, root=kernel)
    assert Reader(bytes(memory.data)).run(paging.walk_kernel(user, 0x60_0000)) is None


@given(seed=st.integers(0), address=st.integers(0, (1 << 64) - 1), levels=st.sampled_from((4, 5)))
@settings(max_examples=300, deadline=None)
def test_tables_of_nonsense_end_after_as_many_reads_as_there_are_levels(
    seed: int, address: int, levels: int
) -> None:
    folded = bytearray(random.Random(seed).randbytes(4 * PAGE))
    for at in range(2, len(folded), 8):
        # Entries lead back into the same few pages.
        folded[at : at + 5] = bytes(5)
    reader = Reader(bytes(folded))
    page = reader.run(paging.walk(Tables(0, levels), address))
    assert reader.reads <= levels
    if page is not None:
        assert page.virtual <= address < page.virtual + page.size
        assert page.physical % page.size == 0
        assert page.size in (PAGE, 1 << 21, 1 << 30)
