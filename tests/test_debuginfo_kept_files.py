"""Made files on disk: found again, made anew where they are damaged, not without bound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kbridge.debuginfo import kept_files
from kbridge.debuginfo.kept_files import kept


def never() -> bytes:
    raise AssertionError("it is there")


def test_it_is_made_once(tmp_path: Path) -> None:
    place = tmp_path / "new"
    assert kept(place, "a", lambda: b"contents") == b"contents"
    assert kept(place, "a", never) == b"contents"
    assert kept(place, "b", lambda: b"others") == b"others"
    assert kept(place, "a", never) == b"contents"


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"x", lambda data: b""])
def test_a_damaged_one_is_made_anew(tmp_path: Path, damage: object) -> None:
    kept(tmp_path, "a", lambda: b"contents")
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert kept(tmp_path, "a", lambda: b"contents") == b"contents"
    assert kept(tmp_path, "a", never) == b"contents"


def test_those_that_were_not_used_for_longest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_files, "MOST_FILES", 3)
    for number, name in enumerate("abc"):
        kept(tmp_path, name, lambda: b"x")
        os.utime(tmp_path / f"{name}.served", (number, number))
    kept(tmp_path, "a", never)
    kept(tmp_path, "d", lambda: b"x")
    assert sorted(one.stem for one in tmp_path.iterdir()) == ["a", "c", "d"]


def test_what_cannot_be_kept_serves_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert kept(tmp_path / "file" / "folder", "a", lambda: b"contents") == b"contents"
