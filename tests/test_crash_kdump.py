"""kdump's compressed format: any pages in it, packed in any way, flattened or not, damaged in any way."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_lab import PHYSICAL, small_machine
from kdump_lab import PAGE, flat, kdump

from kbridge.crash.core_bytes import open_bytes
from kbridge.crash.core_file import CoreFile
from kbridge.crash.elf_core import VMCOREINFO, Note
from kbridge.errors import ImageError

ZEROES = bytes(PAGE)
TEXT = b"OSRELEASE=6.1.0\n"


def page(number: int) -> bytes:
    """Noise, what packs well, or zeroes."""
    match number % 3:
        case 0:
            return random.Random(number).randbytes(PAGE)
        case 1:
            return f"page {number} ".encode().ljust(16, b".") * (PAGE // 16)
        case _:
            return ZEROES


def opened(folder: Path, data: bytes) -> CoreFile:
    path = folder / "vmcore"
    path.write_bytes(data)
    return CoreFile.open(path)


@given(
    there=st.sets(st.integers(0, 90_000), min_size=1, max_size=40),
    missing=st.sets(st.integers(0, 90_000), max_size=20),
    packed=st.sampled_from([0, 1, 0x20]),
    seed=st.integers(0, 1 << 30),
    is_flat=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_each_page_is_what_it_was(
    there: set[int], missing: set[int], packed: int, seed: int, is_flat: bool
) -> None:
    data = kdump({number: page(number) for number in there}, missing, packed=packed)
    with TemporaryDirectory() as folder:
        core = opened(Path(folder), flat(data, random.Random(seed)) if is_flat else data)
        for number in there:
            assert core.read_physical(number * PAGE, PAGE) == page(number)
            assert core.read_physical(number * PAGE + 5, 7) == page(number)[5:12]
        for number in missing - there:
            assert core.read_physical(number * PAGE, PAGE) == b""
        # From one page into the next, up to what is not there.
        first = min(there)
        run = next(number for number in range(first, first + 50) if number not in there)
        assert core.read_physical(first * PAGE, 60 * PAGE) == b"".join(map(page, range(first, run)))
        found = {at // PAGE + n for at, piece in core.scan() for n in range(len(piece) // PAGE)}
        assert found == there
        core.close()


def test_a_machine_in_it_has_its_processors_and_its_text(tmp_path: Path) -> None:
    memory, notes = small_machine()
    pages = {number: memory[at : at + PAGE] for number, at in enumerate(range(0, len(memory), PAGE))}
    core = opened(tmp_path, flat(kdump(pages, notes=[*notes, Note(VMCOREINFO, 0, TEXT)]), random.Random(1)))
    assert core.head.vmcoreinfo() == TEXT
    assert core.read_physical(PHYSICAL, 16) == b"the kernel's tex"
    tables = core.tables(1)
    assert tables is not None
    core.close()


def test_what_is_told_of_the_kernel_may_stand_beside_the_notes(tmp_path: Path) -> None:
    core = opened(tmp_path, kdump({0: page(1)}, text=TEXT))
    assert core.head.vmcoreinfo() == TEXT
    core.close()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (kdump({1: page(1)}, machine=b"aarch64"), "machine 'aarch64'"),
        (kdump({1: page(1)}).replace(b"KDUMP   \6", b"KDUMP   \0"), "no file in kdump's compressed format"),
        (kdump({1: page(1)})[:3000], "cut off"),
        (flat(kdump({1: page(1)}), random.Random(2))[:-16], "cut off"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        opened(tmp_path, data)


def test_a_way_of_packing_that_is_not_known_is_named(tmp_path: Path) -> None:
    data = bytearray(kdump({1: page(1)}))
    data[424:428] = (4).to_bytes(4, "little")
    with pytest.raises(ImageError, match="snappy"):
        opened(tmp_path, bytes(data))


def test_a_page_that_says_it_is_larger_is_not_unpacked(tmp_path: Path) -> None:
    small = zlib.compress(page(1))
    data = kdump({1: page(1)})
    bomb = zlib.compress(bytes(1 << 16))[: len(small)].ljust(len(small), b"\0")
    core = opened(tmp_path, data.replace(small, bomb))
    with pytest.raises(ImageError, match="damaged"):
        core.read_physical(PAGE, PAGE)
    core.close()


@given(
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    cut=st.floats(0, 1),
    is_flat=st.booleans(),
    at_head=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_damage_is_an_error_or_other_bytes(
    damage: list[tuple[float, int]], cut: float, is_flat: bool, at_head: bool
) -> None:
    whole = kdump({number: page(number) for number in (0, 1, 2, 3, 40_000)}, {5})
    data = bytearray(flat(whole, random.Random(3)) if is_flat else whole)
    reach = min(len(data), 600) if at_head else len(data)
    for where, value in damage:
        data[int(where * reach)] = value
    if not at_head:
        del data[int(cut * len(data)) :]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vmcore"
        path.write_bytes(data or b"\0")
        try:
            source = open_bytes(path)
        except ImageError:
            return
        for at in range(0, min(source.size, 1 << 16), PAGE):
            try:
                assert len(source.read(at, PAGE)) <= PAGE
            except ImageError:
                continue
        source.close()
