"""Where an image is, and which files its crash's report names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kbridge.crash.image_place import files_named_in, image_in
from kbridge.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path


def test_an_image_is_a_file_or_in_its_crashs_folder(tmp_path: Path) -> None:
    image = tmp_path / "vmcore.zst"
    with pytest.raises(ImageError, match="has no memory image"):
        image_in(tmp_path)
    image.write_bytes(b"x")
    assert image_in(tmp_path) == image_in(image) == image


def test_of_the_files_that_a_report_names_those_that_are_there_count(tmp_path: Path) -> None:
    vmlinux, folder = tmp_path / "vmlinux", tmp_path / "debug"
    report = {"kernel": {"file": str(vmlinux)}, "debug_dirs": [str(folder), str(tmp_path / "gone")]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert files_named_in(tmp_path) == (None, ())
    vmlinux.touch()
    folder.mkdir()
    assert files_named_in(tmp_path) == (vmlinux, (folder,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"kernel": {"file": 1}, "debug_dirs": [2]}',
        '{"kernel": null, "debug_dirs": []}',
        "\0",
    ],
)
def test_a_report_that_is_none_names_nothing(tmp_path: Path, text: str) -> None:
    assert files_named_in(tmp_path) == (None, ())
    (tmp_path / "report.json").write_text(text)
    assert files_named_in(tmp_path) == (None, ())
