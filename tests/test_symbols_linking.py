"""Modules' files as if they were linked: real ones against other tools, compressed, and damaged."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_debuginfo_finders import ONE, kernel

from kbridge.debuginfo.building import build
from symbols import elf, linking
from symbols.errors import NotAnElf, SymbolError
from symbols.index import Index
from symbols.model import BuildId

SOURCE = """
#include <stdio.h>
static inline __attribute__((always_inline)) int inner(volatile int *at) { return *at + 1; }
int plain(int one) { return one * 3; }
__attribute__((noinline)) int outer(volatile int *at)
{
    int one = plain(*at);
    return one + inner(at);
}
__attribute__((section(".init.text"))) int first(volatile int *at) { return outer(at) + 2; }
int known = 3;
"""


def compressed(folder: Path, *flags: str) -> Path:
    path = compiled(folder, *flags)
    subprocess.run(["objcopy", "--compress-debug-sections=zlib", path], check=True)
    assert any(one.flags & 0x800 for one in elf.sections(path.read_bytes()))
    return path


def compiled(folder: Path, *flags: str) -> Path:
    source, made, module = folder / "module.c", folder / "module.o", folder / "module.ko"
    source.write_text(SOURCE)
    command = ["gcc", "-c", "-g", "-O2", "-fno-pic", "-mcmodel=kernel", *flags, "-o", made, source]
    subprocess.run(command, check=True)
    subprocess.run(["ld", "-r", "--build-id=sha1", "-o", module, made], check=True)
    return module


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("module"))


def indexed(path: Path) -> Index:
    build_id = elf.build_id(path.read_bytes())
    assert build_id is not None
    return Index(memoryview(b"".join(build(path, build_id))), build_id)


def told_by_addr2line(path: Path, section: str, offset: int) -> list[str]:
    command = ["addr2line", "-i", "-f", "-j", section, "-e", str(path), hex(offset)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return [f"{name} {place.split()[0]}" for name, place in zip(lines[::2], lines[1::2], strict=False)]


@pytest.mark.parametrize("make", [compiled, compressed])
@pytest.mark.parametrize("version", [4, 5])
def test_lines_are_those_of_addr2line(tmp_path: Path, make: Callable[..., Path], version: int) -> None:
    path = make(tmp_path, f"-gdwarf-{version}")
    index = indexed(path)
    assert index.has_lines
    compared = 0
    for name, section in (("plain", ".text"), ("outer", ".text"), ("first", ".init.text")):
        (symbol,) = index.named(name)
        (placed,) = [
            one for one in elf.sections(bytes(linking.link(path.read_bytes()))) if one.name == section
        ]
        for offset in range(symbol.size):
            address = symbol.address + offset
            ours = [f"{one.function} {one.file}:{one.line}" for one in index.frames(address)]
            assert ours == told_by_addr2line(path, section, address - placed.address), hex(address)
            compared += 1
    assert compared > 20


def test_sections_do_not_overlap_and_symbols_are_in_theirs(module: Path) -> None:
    linked = bytes(linking.link(module.read_bytes()))
    placed = sorted(
        (one.address, one.address + one.size) for one in elf.sections(linked) if one.flags & elf.SHF_ALLOC
    )
    assert placed[0][0] == linking.BASE
    assert all(end <= start for (_, end), (start, _) in pairwise(placed))
    values = elf.symbol_values(linked, ["plain", "first", "known"])
    assert len(values) == 3
    assert all(any(start <= value < end for start, end in placed) for value in values.values())
    assert linking.is_relocatable(module.read_bytes())
    assert not linking.is_relocatable(linked)


def test_what_is_no_module_is_refused(module: Path) -> None:
    with pytest.raises(NotAnElf, match="no relocatable file"):
        linking.link(kernel(ONE))
    other = bytearray(module.read_bytes())
    struct.pack_into("<H", other, 18, 183)
    with pytest.raises(NotAnElf, match="for x86-64"):
        linking.link(bytes(other))
    with pytest.raises(NotAnElf, match="ELF"):
        linking.link(b"MZ" * 100)


def test_a_stripped_module_has_no_symbols_to_link(module: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.ko"
    shutil.copy(module, bare)
    subprocess.run(["strip", "--strip-all", bare], check=True)
    with pytest.raises(NotAnElf, match="stripped"):
        linking.link(bare.read_bytes())


def test_a_section_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = compressed(tmp_path).read_bytes()
    monkeypatch.setattr(linking, "MOST_BYTES", len(image) + 10)
    with pytest.raises(NotAnElf, match="larger than any module"):
        linking.link(image)
    monkeypatch.setattr(linking, "MOST_BYTES", 10)
    with pytest.raises(NotAnElf, match="more than any module"):
        linking.link(image)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_modules_are_refused_or_read(module: Path, data: st.DataObject) -> None:
    image = bytearray(module.read_bytes())
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image) - 1)) :]
    headers = struct.unpack_from("<Q", image, 40)[0] if len(image) >= 64 else 0
    for _ in range(data.draw(st.integers(0, 6))):
        # Where it hurts most: in the header and the headers of sections.
        places = (
            st.integers(0, 63) | st.integers(headers, max(len(image) - 1, headers)) | st.integers(0, 1 << 16)
        )
        at = data.draw(places)
        if at < len(image):
            image[at] = data.draw(st.integers(0, 255))
    try:
        linked = bytes(linking.link(bytes(image)))
    except SymbolError:
        return
    assert linked[16:18] == b"\x02\x00"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(64, 1 << 14), byte=st.integers(0, 255))
def test_a_damaged_module_is_indexed_or_refused(module: Path, tmp_path: Path, at: int, byte: int) -> None:
    image = bytearray(module.read_bytes())
    image[at % len(image)] = byte
    path = tmp_path / "damaged.ko"
    path.write_bytes(image)
    try:
        b"".join(build(path, BuildId("ab" * 20)))
    except SymbolError:
        return
