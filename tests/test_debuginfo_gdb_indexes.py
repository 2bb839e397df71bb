"""gdb's indexes on disk: lent as they were, made again where they are damaged or of another gdb, within a limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kbridge.debuginfo import gdb_indexes
from kbridge.debuginfo.gdb_indexes import GdbIndex
from symbols.model import BuildId

ONE, TWO = BuildId("1" * 40), BuildId("2" * 40)
CONTENTS = bytes(range(256)) * 64


class Runs:
    """gdb's runs, each with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.kept = folder / "kept"
        self.gdb = folder / "gdb"
        self.gdb.write_text("a program")
        self._folder = folder
        self._count = 0

    def run(self, makes: bytes = b"", build_id: BuildId = ONE) -> bytes | None:
        """Run gdb; return the index that it found, None where it found none and made one, if it makes any."""
        self._count += 1
        session = self._folder / str(self._count)
        session.mkdir()
        index = GdbIndex(self.kept, self.gdb, build_id, session)
        assert index.arguments[1] == f"set index-cache directory {session}"
        index.lend()
        file = session / f"{build_id}.gdb-index"
        found = file.read_bytes() if file.exists() else None
        if found is None and makes:
            file.write_bytes(makes)
        index.keep()
        return found


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_what_one_gdb_made_is_lent_to_the_next(runs: Runs) -> None:
    assert runs.run(CONTENTS) is None
    assert runs.run() == CONTENTS
    assert runs.run() == CONTENTS
    assert runs.run(build_id=TWO) is None
    assert len(list(runs.kept.iterdir())) == 1


def test_a_gdb_that_made_none_leaves_none(runs: Runs) -> None:
    assert runs.run() is None
    assert runs.run(CONTENTS) is None
    assert runs.run() == CONTENTS


def test_another_gdb_is_not_lent_it(runs: Runs) -> None:
    runs.run(CONTENTS)
    runs.gdb.write_text("another program")
    assert runs.run(b"its own") is None
    assert runs.run() == b"its own"


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" + data[1:], lambda data: b""])
def test_a_damaged_one_is_never_lent(runs: Runs, damage: object) -> None:
    runs.run(CONTENTS)
    (path,) = runs.kept.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert runs.run(CONTENTS) is None
    assert runs.run() == CONTENTS
    assert len(list(runs.kept.iterdir())) == 1


def test_those_that_were_not_used_for_longest_go(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdb_indexes, "MOST_BYTES", 2 * len(CONTENTS))
    runs.run(CONTENTS, ONE)
    (one,) = runs.kept.iterdir()
    # A writer was killed.
    left = runs.kept / ".left.index"
    left.write_bytes(CONTENTS)
    os.utime(left, (1, 1))
    os.utime(one, (2, 2))
    runs.run(CONTENTS, TWO)
    assert one.exists()
    assert not left.exists()
    runs.run(CONTENTS[::-1], BuildId("3" * 40))
    assert not one.exists()
    assert runs.run(build_id=TWO) == CONTENTS


def test_one_that_is_larger_than_any_is_not_kept(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdb_indexes, "MOST_FILE_BYTES", 10)
    runs.run(CONTENTS)
    assert runs.run() is None


def test_where_nothing_can_be_kept_gdb_does_without(runs: Runs) -> None:
    runs.kept.write_text("no folder")
    assert runs.run(CONTENTS) is None
    assert runs.run() is None
