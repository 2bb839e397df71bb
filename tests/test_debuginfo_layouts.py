"""Layouts on disk: the same as the types tell, of those types only, read anew where they are damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from test_symbols_tasks import type_bytes

from kbridge.debuginfo.layouts import Types
from symbols import tasks
from symbols.btf import Btf, BtfError
from symbols.tasks import TaskLayout


@dataclass(frozen=True, slots=True)
class Other:
    """A layout with everything that one may have."""

    number: int
    absent: int | None
    pair: tuple[int, int]
    pairs: tuple[tuple[int, int], ...]


DATA = type_bytes()


def never(btf: Btf) -> TaskLayout:
    raise AssertionError("it is kept")


def test_what_is_kept_is_what_the_types_tell(tmp_path: Path) -> None:
    told = tasks.layout(Btf(DATA))
    assert Types(DATA).layout(TaskLayout, tasks.layout) == told
    assert Types(DATA, tmp_path).layout(TaskLayout, tasks.layout) == told
    assert Types(DATA, tmp_path).layout(TaskLayout, never) == told


def test_tuples_and_what_is_not_there_come_back(tmp_path: Path) -> None:
    made = Other(1 << 40, None, (1, 2), ((3, 4), (5, 6)))
    for _ in range(2):
        assert Types(DATA, tmp_path).layout(Other, lambda btf: made) == made


def test_other_types_have_another(tmp_path: Path) -> None:
    Types(DATA, tmp_path).layout(TaskLayout, tasks.layout)
    with pytest.raises(BtfError, match="no member pid"):
        Types(type_bytes(member="pid"), tmp_path).layout(TaskLayout, tasks.layout)
    # What the types do not tell is not remembered as if it were there.
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("cut", [0, 16, 40])
def test_a_damaged_one_is_read_anew(tmp_path: Path, cut: int) -> None:
    told = Types(DATA, tmp_path).layout(TaskLayout, tasks.layout)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    assert Types(DATA, tmp_path).layout(TaskLayout, tasks.layout) == told
    assert Types(DATA, tmp_path).layout(TaskLayout, never) == told
