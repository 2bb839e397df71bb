"""Which files a guest's symbols are taken from: configured ones, folders, wrong ones, and none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from symbols_lab import Types, note
from test_symbols_skeleton import ALLOC, EXEC, made

from kbridge.debuginfo.finders import Finder, read_kernel, read_layouts
from kbridge.debuginfo.mapping import mapped
from kbridge.debuginfo.separate import link_debug_file
from symbols.errors import SymbolError
from symbols.model import BuildId

BASE = 0xFFFFFFFF81000000
ONE, TWO = bytes(range(20)), bytes(range(1, 21))


def kernel(build_id: bytes, *, types: bytes = b"", more: bytes = b"") -> bytes:
    sections = [
        (".text", 1, ALLOC | EXEC, BASE, bytes(64) + more),
        (".notes", 7, ALLOC, BASE + 0x1000, note(b"Xen\0", 3, b"") + note(b"GNU\0", 3, build_id)),
    ]
    if types:
        sections.append((".BTF", 1, ALLOC, BASE + 0x2000, types))
    symbols = [("asm_exc_divide_error", 18, 1, BASE + 16, 8), ("modules", 17, 1, BASE + 32, 16)]
    return made(sections, symbols)


def module(build_id: bytes) -> bytes:
    own = note(b"GNU\0", 3, build_id)
    sections = [(".text", 1, ALLOC | EXEC, 0, bytes(8)), (".note.gnu.build-id", 7, ALLOC, 0, own)]
    return made(sections, [("go", 18, 1, 0, 8)], kind=1)


def test_what_a_kernels_file_says(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(kernel(ONE))
    found = read_kernel(path)
    assert found.linked.build_id == ONE.hex()
    assert (found.linked.notes, found.linked.notes_size) == (BASE + 0x1000, 52)
    assert found.linked.divide_error == BASE + 16
    assert found.modules == BASE + 32
    assert found.layout is None
    assert found.unwinding is None


def test_types_that_tell_nothing_cost_nothing_else(tmp_path: Path) -> None:
    types = Types()
    types.integer("int", 4)
    for data in (types.data(), b"no types"):
        assert read_layouts(data) == (None, None)
        path = tmp_path / "vmlinux"
        path.write_bytes(kernel(ONE, types=data))
        assert read_kernel(path).linked.build_id == ONE.hex()


def test_the_configured_file_comes_first_and_each_build_id_once(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_bytes(kernel(TWO))
    for name in ("boot/vmlinux-6.1", "lib/modules/6.1/vmlinux", "vmlinux-old"):
        (tmp_path / "debug" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "debug/boot/vmlinux-6.1").write_bytes(kernel(ONE))
    (tmp_path / "debug/lib/modules/6.1/vmlinux").write_bytes(kernel(ONE))
    (tmp_path / "debug/vmlinux-old").write_bytes(kernel(TWO))
    finder = Finder(own, [tmp_path / "debug", tmp_path / "absent"])
    assert [(one.path.name, one.linked.build_id) for one in finder.kernels()] == [
        ("own", TWO.hex()),
        ("vmlinux-6.1", ONE.hex()),
    ]
    assert finder.problems == {}


def test_files_that_cannot_be_used_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"")
    (tmp_path / "vmlinux-1").write_bytes(b"not an ELF file" * 10)
    (tmp_path / "vmlinux-2").write_bytes(made([(".text", 1, ALLOC, BASE, b"x")], []))
    (tmp_path / "vmlinux-3").mkdir()
    finder = Finder(tmp_path / "absent", [tmp_path])
    assert finder.kernels() == []
    assert {Path(path).name for path in finder.problems} == {
        "absent",
        "vmlinux",
        "vmlinux-1",
        "vmlinux-2",
        "vmlinux-3",
    }
    assert "no build-id" in finder.problems[str(tmp_path / "vmlinux-2")]
    (tmp_path / "vmlinux-1").write_bytes(kernel(ONE))
    assert len(finder.kernels()) == 1
    assert str(tmp_path / "vmlinux-1") not in finder.problems


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(kernel(ONE))
    finder = Finder(path, [])
    (first,) = finder.kernels()
    assert finder.kernels()[0] is first
    path.write_bytes(kernel(TWO))
    os.utime(path, ns=(1, 1))
    assert finder.kernels()[0].linked.build_id == TWO.hex()


def test_a_module_is_found_by_its_build_id_or_by_name(tmp_path: Path) -> None:
    debug, modules = tmp_path / "debug", tmp_path / "modules/kernel/drivers"
    modules.mkdir(parents=True)
    linked = debug / ".build-id" / ONE.hex()[:2]
    linked.mkdir(parents=True)
    (linked / f"{ONE.hex()[2:]}.debug").write_bytes(module(ONE))
    (modules / "virtio-net.ko").write_bytes(module(TWO))
    (modules / "broken.ko").write_bytes(b"")
    finder = Finder(None, [debug, tmp_path / "modules"])
    assert finder.module("anything", BuildId(ONE.hex())) == linked / f"{ONE.hex()[2:]}.debug"
    assert finder.module("virtio_net", BuildId(TWO.hex())) == modules / "virtio-net.ko"
    assert finder.module("virtio_net", None) == modules / "virtio-net.ko"
    assert finder.module("virtio_net", BuildId("ab" * 20)) is None
    assert finder.module("broken", BuildId(TWO.hex())) is None
    assert finder.module("absent", None) is None


def test_a_kernel_is_found_by_its_build_id_whatever_it_is_called(tmp_path: Path) -> None:
    named, noted, kept = tmp_path / "named", tmp_path / "noted", tmp_path / "kept"
    link = named / ".build-id" / ONE.hex()[:2] / f"{ONE.hex()[2:]}.debug"
    link.parent.mkdir(parents=True)
    noted.mkdir()
    (noted / "any").write_bytes(kernel(ONE))
    finder = Finder(None, [named, noted], kept)
    # By the notes of all files, which are remembered.
    assert finder.by_build_id(BuildId(ONE.hex())) == noted / "any"
    assert len(list(kept.iterdir())) == 1
    assert finder.by_build_id(BuildId(TWO.hex())) is None
    # A name is looked at before, and not believed.
    link.write_bytes(kernel(TWO))
    assert finder.by_build_id(BuildId(ONE.hex())) == noted / "any"
    assert f"of build-id {TWO.hex()}, not of {ONE.hex()}" in finder.problems[str(link)]
    link.write_bytes(kernel(ONE))
    assert finder.by_build_id(BuildId(ONE.hex())) == link
    # What was found so is a kernel like any other.
    assert finder.kernels() == []
    finder.offer(link)
    assert [one.path for one in finder.kernels()] == [link]


def test_a_file_with_dwarf_is_named_by_its_build_id(tmp_path: Path) -> None:
    build_id = BuildId(ONE.hex())
    path, links = tmp_path / "vmlinux", tmp_path / "links"
    link = links / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    path.write_bytes(kernel(ONE))
    with mapped(path) as image:
        link_debug_file(links, build_id, path, image)
    assert not link.exists()
    for name in ("vmlinux", "other"):
        path = tmp_path / name
        path.write_bytes(made([(".debug_line", 1, 0, 0, bytes(8))], []))
        for _ in range(2):
            with mapped(path) as image:
                link_debug_file(links, build_id, path, image)
            assert link.resolve() == path
    assert [one.name for one in link.parent.iterdir()] == [link.name]


def test_an_empty_configuration_finds_nothing() -> None:
    finder = Finder(None, [])
    assert finder.kernels() == []
    assert finder.module("dummy", None) is None


def test_a_kernel_without_a_build_id_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(made([(".notes", 7, ALLOC, BASE, note(b"Xen\0", 3, ONE))], [("a", 18, 1, BASE, 0)]))
    with pytest.raises(SymbolError, match="no build-id"):
        read_kernel(path)
