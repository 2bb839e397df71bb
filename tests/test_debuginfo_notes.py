"""Which files of a folder have which build-id: found by their notes, remembered, read anew when they change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_debuginfo_finders import ONE, TWO, kernel, module

from kbridge.debuginfo import notes
from kbridge.debuginfo.notes import Notes, build_id_of
from symbols.model import BuildId

FIRST, SECOND = BuildId(ONE.hex()), BuildId(TWO.hex())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "debug"
    (made / "boot").mkdir(parents=True)
    (made / "modules").mkdir()
    (made / "boot/any-name").write_bytes(kernel(ONE))
    (made / "modules/b.ko").write_bytes(module(TWO))
    (made / "modules/a.ko").write_bytes(module(TWO))
    (made / "modules/text").write_bytes(b"no ELF file " * 20)
    (made / "empty").touch()
    return made


def counted(index: Notes, build_id: BuildId) -> tuple[list[Path], int]:
    """What is found, and how many files were read for it."""
    with mock.patch.object(notes, "build_id_of", side_effect=build_id_of) as read:
        found = index.find(build_id)
    return found, read.call_count


def test_files_are_found_by_what_they_say(folder: Path) -> None:
    index = Notes(folder, None)
    assert index.find(FIRST) == [folder / "boot/any-name"]
    assert index.find(SECOND) == [folder / "modules/a.ko", folder / "modules/b.ko"]
    assert index.find(BuildId("ab" * 20)) == []
    assert index.is_complete


def test_each_file_is_read_once(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache/notes.json"
    index = Notes(folder, kept)
    assert counted(index, FIRST) == ([folder / "boot/any-name"], 4)
    assert counted(index, SECOND)[1] == 0
    # Another process reads none of them.
    assert counted(Notes(folder, kept), FIRST) == ([folder / "boot/any-name"], 0)
    assert [one.name for one in kept.parent.iterdir()] == ["notes.json"]


def test_what_changed_is_read_again_and_what_went_is_forgotten(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "notes.json"
    index = Notes(folder, kept)
    index.find(FIRST)
    (folder / "boot/any-name").write_bytes(kernel(TWO))
    os.utime(folder / "boot/any-name", ns=(1, 1))
    (folder / "modules/a.ko").unlink()
    (folder / "new").write_bytes(module(ONE))
    assert counted(index, FIRST) == ([folder / "new"], 2)
    assert Notes(folder, kept).find(SECOND) == [folder / "boot/any-name", folder / "modules/b.ko"]


def test_links_are_not_followed(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "boot/any-name")
    (folder / "circle").symlink_to(folder)
    (folder / "dangling").symlink_to("nowhere")
    assert Notes(folder, None).find(FIRST) == [folder / "boot/any-name"]


def test_a_folder_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert Notes(tmp_path / "absent", tmp_path / "kept").find(FIRST) == []
    assert not (tmp_path / "kept").exists()


def test_more_files_than_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "MOST_FILES", 2)
    index = Notes(folder, None)
    assert index.find(FIRST) == [folder / "boot/any-name"]
    assert index.find(SECOND) == [folder / "modules/a.ko"]
    assert not index.is_complete


def test_what_cannot_be_remembered_is_found_all_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Notes(folder, tmp_path / "file/notes.json").find(FIRST) == [folder / "boot/any-name"]


def test_what_is_remembered_of_another_folder_is_not_believed(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "notes.json"
    Notes(folder, kept).find(FIRST)
    said = json.loads(kept.read_text())
    said["folder"] = "/elsewhere"
    kept.write_text(json.dumps(said))
    assert counted(Notes(folder, kept), FIRST)[1] == 4
    with mock.patch.object(notes, "MOST_REMEMBERED_BYTES", 10):
        assert counted(Notes(folder, kept), FIRST)[1] == 4


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_memory_is_read_anew(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    kept = tmp_path / "notes.json"
    kept.unlink(missing_ok=True)
    Notes(folder, kept).find(FIRST)
    text = bytearray(kept.read_bytes())
    match data.draw(st.sampled_from(["cut", "byte", "other"])):
        case "cut":
            del text[data.draw(st.integers(0, len(text) - 1)) :]
        case "byte":
            # Within the form of it, not within a build-id: that could be another's.
            at = data.draw(
                st.integers(0, len(text) - 1).filter(lambda one: text[one : one + 1] in b'{}[]":,')
            )
            text[at] = data.draw(st.integers(0, 255))
        case _:
            text = bytearray(
                data.draw(st.sampled_from([b"[]", b"3", b'{"version": 1}', b"[" * 100_000, b"\xff"]))
            )
    kept.write_bytes(text)
    assert Notes(folder, kept).find(FIRST) == [folder / "boot/any-name"]


@given(st.binary(max_size=400), st.integers(0, 700), st.integers(0, 255))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_damaged_has_no_build_id_or_some(tmp_path: Path, tail: bytes, at: int, byte: int) -> None:
    path = tmp_path / "file"
    image = bytearray(kernel(ONE))
    image[at % len(image)] = byte
    for contents in (tail, b"\x7fELF\x02\x01" + tail, bytes(image), bytes(image[:at])):
        path.write_bytes(contents)
        own = build_id_of(path)
        assert own is None or len(own) % 2 == 0
