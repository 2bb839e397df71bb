"""Images as plain core files: the same memory, VMCOREINFO in the notes, nothing left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from image_lab import TEXT, core, packed, small_machine

from kbridge.crash.core_file import CoreFile
from kbridge.crash.elf_core import Note
from kbridge.crash.unpacked import unpacked
from kbridge.errors import ImageError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def image(path: Path, *texts: bytes, noted: bool, as_it_is: bool) -> bytes:
    memory, notes = small_machine(*texts)
    if noted:
        notes.append(Note(b"VMCOREINFO", 0, TEXT))
    whole = core(memory, notes)
    path.write_bytes(whole if as_it_is else packed(whole, 50_000))
    return memory


def ignored(done: int, total: int) -> None:
    """Take no note."""


@pytest.mark.parametrize(("noted", "as_it_is"), [(True, False), (False, False), (False, True)])
def test_it_is_the_same_memory_with_vmcoreinfo_and_is_gone_afterwards(
    tmp_path: Path, temporary: Path, noted: bool, as_it_is: bool
) -> None:
    path = tmp_path / "vmcore"
    memory = image(path, TEXT, noted=noted, as_it_is=as_it_is)
    seen: list[tuple[int, int]] = []
    found = CoreFile.open(path)
    with unpacked(found, path, lambda done, total: seen.append((done, total))) as plain:
        assert plain.parent == temporary
        assert plain.stat().st_mode & 0o777 == 0o600
        # Zeroes take no room.
        assert plain.stat().st_blocks * 512 < len(memory) // 2
        again = CoreFile.open(plain)
        assert b"".join(piece for _, piece in again.scan()) == memory
        assert again.head.vmcoreinfo() == TEXT
        assert again.processors == found.processors
        again.close()
    found.close()
    assert seen[-1] == (len(memory), len(memory))
    assert list(temporary.iterdir()) == []


def test_a_plain_one_with_vmcoreinfo_is_itself(tmp_path: Path, temporary: Path) -> None:
    path = tmp_path / "vmcore"
    image(path, noted=True, as_it_is=True)
    found = CoreFile.open(path)
    with unpacked(found, path, ignored) as plain:
        assert plain == path
    found.close()
    assert path.exists()


def test_what_fails_meanwhile_leaves_nothing(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vmcore"
    image(path, noted=True, as_it_is=False)
    found = CoreFile.open(path)

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kbridge.crash.unpacked.os.pwrite", full)
    with (
        pytest.raises(ImageError, match=r"cannot be unpacked .*: No space left on device; set TMPDIR"),
        unpacked(found, path, ignored),
    ):
        raise AssertionError("it is not there")
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "absent"))
    with pytest.raises(ImageError, match="No such file"), unpacked(found, path, ignored):
        raise AssertionError("it is not there")
    found.close()
    assert list(temporary.iterdir()) == []
