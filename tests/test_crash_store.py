"""Bundles on disk: whole or not to be seen, within limits, counted; finished by the next relay where one was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.crash.facts import Facts, How, Noticed, Part, PartState
from kbridge.crash.report import as_json, as_markdown
from kbridge.crash.store import KILLED, Bundle, Limits, Store, encoded, read_document

DAY = 86400 * 1_000_000_000
NOW = 1_790_000_000 * 1_000_000_000


def store(folder: Path, now: int = NOW, free: int = 1 << 40) -> Store:
    made = Store(folder / "crashes", lambda: now, lambda _: free)
    made.open()
    return made


def kept(
    made: Store, guest: str = "web1", title: str = "kernel panic: x", when: int = NOW, size: int = 10,
    limits: Limits | None = None, state: PartState = PartState.DONE,
) -> Bundle:  # fmt: skip
    """Keep a crash as a capture does."""
    made.count(guest, title, when)
    bundle = made.begin(guest, when, limits or Limits())
    facts = Facts(bundle.id, guest, Noticed(How.CONSOLE, "panic", title, "it panicked", when))
    facts.parts = {"console": Part(state)}
    bundle.write("console.log", b"x" * size)
    bundle.write("report.json", encoded(as_json(facts)))
    bundle.write("report.md", as_markdown(facts).encode())
    bundle.publish()
    made.note(as_json(facts))
    return bundle


def test_a_bundle_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    made = store(tmp_path)
    bundle = made.begin("web1", NOW, Limits())
    bundle.write("console.log", b"x")
    assert made.listed() == []
    assert made.find(bundle.id) is None
    assert [one.name for one in made.folder.iterdir()] == [f".{bundle.id}.partial"]
    bundle.publish()
    assert made.find(bundle.id) == made.folder / bundle.id
    bundle.write("report.md", b"later")
    assert (made.folder / bundle.id / "report.md").read_bytes() == b"later"


def test_two_of_one_second_have_two_names_in_the_order_of_time(tmp_path: Path) -> None:
    made = store(tmp_path)
    first, second, third = kept(made), kept(made), kept(made, when=NOW + 1_000_000_000)
    assert len({first.id, second.id, third.id}) == 3
    assert [one["id"] for one in made.listed()] == [third.id, second.id, first.id]
    # A guest may be called as a number.
    assert kept(made, "2-web1").id.endswith("-2-web1")
    assert {one["guest"] for one in store(tmp_path).listed()} == {"web1", "2-web1"}


def test_a_title_is_counted_with_its_first_and_last(tmp_path: Path) -> None:
    made = store(tmp_path)
    kept(made, when=NOW - 5 * DAY)
    made.count("web1", "kernel panic: x", NOW - DAY)
    kept(made, when=NOW)
    made.count("web2", "kernel panic: x", NOW)
    # By another relay, later.
    again = store(tmp_path)
    newest = again.listed("web1")[0]
    assert newest["count"] == 3
    assert newest["first"] == "2026-09-16T14:13:20.000000Z"
    assert newest["last"] == "2026-09-21T14:13:20.000000Z"
    count = again.recount("web1", "kernel panic: x", "kernel panic: y", NOW)
    assert count.count == 1
    before = again.counted("web1", "kernel panic: x")
    assert before is not None
    assert before.count == 2


def test_the_oldest_make_room_and_the_newest_stay(tmp_path: Path) -> None:
    made = store(tmp_path)
    limits = Limits(count=3, bytes=1 << 20)
    ids = [kept(made, when=NOW + number * DAY, limits=limits).id for number in range(5)]
    assert [one["id"] for one in made.listed()] == ids[:1:-1]
    # Another guest's are its own.
    other = kept(made, "web2", when=NOW - DAY, limits=limits)
    assert made.find(other.id) is not None
    assert len(made.listed("web1")) == 3


def test_too_large_too_old_and_a_full_disk_make_room_too(tmp_path: Path) -> None:
    made = store(tmp_path)
    for number in range(4):
        kept(made, when=NOW + number, size=1000)
    size = sum(len(one.read_bytes()) for one in made.folder.rglob("*.*") if one.is_file())
    assert len(made.make_room("web1", Limits(bytes=size // 2), spared="")) == 2
    later = Store(made.folder, lambda: NOW + 91 * DAY, lambda _: 1 << 40)
    later.open()
    assert len(later.make_room("web1", Limits(), spared="")) == 2
    kept(made, when=NOW + 10)
    full = store(tmp_path, free=100)
    assert len(full.make_room("web1", Limits(free_bytes=1000), spared="")) == 1


def test_what_a_disk_does_not_take_is_an_error_and_leaves_what_was(tmp_path: Path) -> None:
    made = store(tmp_path, free=100)
    bundle = made.begin("web1", NOW, Limits(free_bytes=0))
    bundle.write("a.txt", b"x" * 50)
    with pytest.raises(OSError, match="No space"):
        bundle.write("a.txt", b"y" * 200)
    assert (bundle.path / "a.txt").read_bytes() == b"x" * 50
    assert [one.name for one in bundle.path.iterdir()] == ["a.txt"]


def test_what_a_killed_relay_left_is_finished_as_incomplete(tmp_path: Path) -> None:
    made = store(tmp_path)
    whole = kept(made)
    pending = kept(made, when=NOW + DAY, state=PartState.PENDING)
    bare = made.begin("web1", NOW + 2 * DAY, Limits())
    bare.write("console.log", b"all there was")
    (bare.path / ".report.json.new").write_bytes(b"{half")
    empty = made.begin("web1", NOW + 3 * DAY, Limits())
    again = store(tmp_path)
    assert {one["id"]: one["state"] for one in again.listed()} == {
        whole.id: "complete",
        pending.id: "incomplete",
        bare.id: "incomplete",
    }
    document = read_document(again.folder / pending.id)
    assert document is not None
    assert document["interrupted"] == KILLED
    assert document["parts"]["console"] == {"state": "missing", "why": KILLED, "file": None, "seconds": None}
    for one in (pending, bare):
        text = (again.folder / one.id / "report.md").read_text()
        assert text.startswith("# ")
        assert KILLED in text
    assert not (again.folder / empty.id).exists()
    assert not list(again.folder.glob(".*"))
    assert not list(again.folder.glob("*/.*"))
    # Once is enough.
    assert store(tmp_path).open() == []


def test_files_of_others_and_damaged_ones_do_no_harm(tmp_path: Path) -> None:
    made = store(tmp_path)
    kept(made)
    (made.folder / "notes.txt").write_text("mine")
    (made.folder / "counts.json").write_text('{"guests": 7}')
    (made.folder / "20260101-000000-web1").mkdir()
    (made.folder / "20260102-000000-web1").mkdir()
    (made.folder / "20260102-000000-web1" / "report.json").write_text("[1, 2")
    (made.folder / "99999999-999999-web1").mkdir()
    again = store(tmp_path)
    assert (made.folder / "notes.txt").read_text() == "mine"
    assert len(again.listed()) >= 1
    again.make_room("web1", Limits(), spared="")
    for name in ("..", "../x", "/etc", "", "notes.txt", "20260101-000000-web1/.."):
        assert again.find(name) is None


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 20), st.integers(0, 3000)), max_size=12),
    st.integers(1, 4),
    st.integers(4000, 30000),
)
def test_limits_hold_whatever_comes(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[tuple[str, int, int]], count: int, most: int
) -> None:
    made = store(tmp_path_factory.mktemp("store"))
    limits = Limits(count=count, bytes=most)
    for guest, day, size in crashes:
        newest = kept(made, guest, when=NOW - day * DAY, size=size, limits=limits)
        assert made.find(newest.id) is not None
        for one in ("a", "b"):
            assert len(made.listed(one)) <= count
    on_disk = {one.name for one in made.folder.iterdir() if one.is_dir()}
    assert on_disk == {one["id"] for one in made.listed()}
    assert json.loads((made.folder / "counts.json").read_bytes())["version"] == 1 if crashes else True


@pytest.mark.parametrize(
    "document",
    [
        b"[" * 100_000,
        b'{"id": []}',
        encoded({"id": "x", "guest": "web1", "title": "t", "time": "", "kind": "", "state": "pending"}),
    ],
    ids=["deep", "lists", "short"],
)
def test_a_report_of_another_form_keeps_no_relay_from_starting(tmp_path: Path, document: bytes) -> None:
    made = store(tmp_path)
    whole = kept(made)
    half = made.begin("web1", NOW + 1_000_000_000, Limits())
    for path in (made.folder / whole.id, half.path):
        (path / "report.json").write_bytes(document)
    (made.folder / "counts.json").write_bytes(b'{"guests": {"web1": [{"title": "t", "count": 1e400}]}}')
    again = Store(made.folder, lambda: NOW)
    # What was begun is finished, with what can be said of it; what is not understood is left alone.
    assert again.open() == [half.id]
    (one,) = again.listed()
    assert (one["id"], one["state"]) == (half.id, "incomplete")
    assert (made.folder / whole.id / "report.json").read_bytes() == document
