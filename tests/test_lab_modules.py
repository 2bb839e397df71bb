"""The order in which modules load, and the little that is read out of ELF files."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import debugfiles, modules
from lab.errors import LabError


def elf(sections: dict[str, bytes]) -> bytes:
    """A 64-bit little-endian ELF file that has these sections and nothing else."""
    names = b"\0"
    body = b""
    rows = [struct.pack("<IIQQQQIIQQ", *[0] * 10)]
    for name, data in [*sections.items(), (".shstrtab", b"")]:
        at = len(names)
        names += name.encode() + b"\0"
        content = names if name == ".shstrtab" else data
        rows.append(struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, 64 + len(body), len(content), 0, 0, 1, 0))
        body += content
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    fields = (1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(rows), len(rows) - 1)
    return head + struct.pack("<HHIQQQIHHHHHH", *fields) + body + b"".join(rows)


def module(*needs: str) -> bytes:
    return elf({".modinfo": b"license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"})


def test_dependencies_are_read_in_the_kernels_spelling() -> None:
    assert modules.dependencies(module("virtio", "virtio-ring")) == ("virtio", "virtio_ring")
    assert modules.dependencies(module()) == ()
    assert modules.dependencies(elf({".modinfo": b"license=GPL\0"})) == ()


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(LabError):
        modules.dependencies(noise)


@given(st.integers(0, 400), st.binary(max_size=16))
def test_a_damaged_file_is_read_or_refused(at: int, damage: bytes) -> None:
    image = bytearray(module("virtio"))
    image[at : at + len(damage)] = damage
    with contextlib.suppress(LabError):
        modules.dependencies(bytes(image))


@given(st.data())
def test_each_module_comes_after_what_it_needs(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    needs = {
        str(number): [str(n) for n in data.draw(st.sets(st.integers(0, number - 1)))] if number else []
        for number in range(count)
    }
    wanted = data.draw(st.lists(st.sampled_from(sorted(needs))))
    order = modules.load_order(wanted, needs)
    assert len(order) == len(set(order))
    assert set(wanted) <= set(order)
    for place, name in enumerate(order):
        assert set(needs[name]) <= set(order[:place])
        assert name in wanted or any(name in needs[later] for later in order[place:])


def test_a_circle_and_an_unknown_module_are_refused() -> None:
    with pytest.raises(LabError, match="depends on itself"):
        modules.load_order(["a"], {"a": ["b"], "b": ["a"]})
    with pytest.raises(LabError, match="no module b"):
        modules.load_order(["a"], {"a": ["b"]})


def test_files_are_chosen_with_all_they_need(tmp_path: Path) -> None:
    (tmp_path / "drivers").mkdir()
    for name, image in {
        "drivers/virtio-rng": module("virtio_ring"),
        "drivers/virtio_ring": module(),
        "other": module(),
    }.items():
        (tmp_path / f"{name}.ko").write_bytes(image)
    chosen = modules.select(tmp_path, ["virtio_rng"])
    assert [path.name for path in chosen] == ["virtio_ring.ko", "virtio-rng.ko"]
    with pytest.raises(LabError, match="no module absent"):
        modules.select(tmp_path, ["absent"])


def note(owner: bytes, kind: int, data: bytes) -> bytes:
    name = owner + b"\0"
    return (
        struct.pack("<III", len(name), len(data), kind)
        + name + bytes(-len(name) % 4)
        + data + bytes(-len(data) % 4)
    )  # fmt: skip


def test_a_build_id_is_told_from_another_owners_note(tmp_path: Path) -> None:
    notes = note(b"Xen", 3, b"4.19") + note(b"Linux", 0x100, b"x") + note(b"GNU", 3, bytes(range(20)))
    assert debugfiles.parse_notes(notes) == bytes(range(20))
    assert debugfiles.parse_notes(note(b"Xen", 3, b"4.19")) is None
    path = tmp_path / "vmlinux"
    path.write_bytes(elf({".notes": notes}))
    assert debugfiles.build_id(path) == bytes(range(20)).hex()
    path.write_bytes(elf({".text": b"x"}))
    with pytest.raises(LabError, match="no build-id"):
        debugfiles.build_id(path)


@given(st.binary())
def test_notes_of_any_shape_end(noise: bytes) -> None:
    found = debugfiles.parse_notes(noise)
    assert found is None or found in noise


def test_links_lead_to_the_file_wherever_the_folder_is_moved(tmp_path: Path) -> None:
    (tmp_path / "a" / "debug").mkdir(parents=True)
    vmlinux = tmp_path / "a" / "vmlinux"
    vmlinux.write_bytes(elf({".notes": note(b"GNU", 3, b"\xab\xcd\xef\x01")}))
    debugfiles.link(tmp_path / "a" / "debug", [vmlinux])
    moved = (tmp_path / "a").rename(tmp_path / "b")
    link = moved / "debug" / ".build-id" / "ab" / "cdef01.debug"
    assert link.resolve() == moved / "vmlinux"


def test_a_real_program_has_the_build_id_that_readelf_shows() -> None:
    shown = subprocess.run(
        ["readelf", "-n", "/usr/bin/gdb"], capture_output=True, text=True, check=True
    ).stdout
    assert f"Build ID: {debugfiles.build_id(Path('/usr/bin/gdb'))}\n" in shown
