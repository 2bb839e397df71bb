from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.console.index import GapReason, Index, IndexView, Mark, MarkKind

RING = 65536


def test_entries_survive_and_wrap(tmp_path: Path) -> None:
    path = tmp_path / "console.index"
    index = Index.open_writer(path, RING)
    count = index.slots * 2 + 10
    for number in range(count):
        index.add(number * 3, number, number + 1, MarkKind.GAP, GapReason.LINE_LOST, 5)
    expected = [
        Mark(number * 3, number, number + 1, MarkKind.GAP, GapReason.LINE_LOST, 5)
        for number in range(count - index.slots + 1, count)
    ]
    assert list(index.marks()) == expected
    index.sync()
    index.close()
    view = IndexView.open(path)
    assert list(view.marks()) == expected
    assert view.mark(count) is None
    assert view.mark(count - view.slots) is None
    view.close()


@given(st.lists(st.integers(0, 30), max_size=60).map(sorted), st.integers(0, 32))
def test_before_finds_the_last_mark_at_or_before(offsets: list[int], wanted: int) -> None:
    index = Index.anonymous(RING)
    for offset in offsets:
        index.add(offset, 0, 0)
    found = index.before(wanted)
    earlier = [number for number, offset in enumerate(offsets) if offset <= wanted]
    assert found == (earlier[-1] if earlier else 0)


@given(st.lists(st.integers(0, 30), max_size=40).map(sorted), st.integers(0, 32))
@settings(deadline=None)
def test_entries_past_a_shorter_ring_are_dropped(offsets: list[int], head: int) -> None:
    index = Index.anonymous(RING)
    for offset in offsets:
        index.add(offset, 0, 0)
    index.drop_after(head)
    assert [mark.offset for mark in index.marks()] == [offset for offset in offsets if offset <= head]


def test_a_resized_index_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "console.index"
    index = Index.open_writer(path, 1 << 20)
    for number in range(index.slots):
        index.add(number, number, number)
    last = index.slots - 1
    index.close()
    small = Index.open_writer(path, RING)
    assert small.slots < last
    assert [mark.offset for mark in small.marks()] == list(range(last - small.slots + 2, last + 1))
    assert small.last_offset == last
    small.close()


def test_an_entry_that_is_not_its_own_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "console.index"
    index = Index.open_writer(path, RING)
    for number in range(3):
        index.add(number, number, number)
    index._body[40 + 28] ^= 0xFF  # entry 1's own number: a page of another age
    assert [mark.offset for mark in index.marks()] == [0, 2]
    index._body[24] = 0xEE  # an unknown kind
    assert [mark.offset for mark in index.marks()] == [2]
    index.close()


def test_a_damaged_index_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "console.index"
    path.write_bytes(b"not an index")
    index = Index.open_writer(path, RING)
    assert "is kept as console.index.damaged-" in index.damage
    assert [p.read_bytes() for p in tmp_path.glob("*.damaged-*")] == [b"not an index"]
    index.close()
