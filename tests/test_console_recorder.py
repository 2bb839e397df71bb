from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.console.asciicast import asciicast
from kbridge.console.index import GapReason, MarkKind
from kbridge.console.log import Entry, History, LogCursor, Missing, Text, as_json
from kbridge.console.recorder import INDEX_NAME, RING_NAME, Recorder
from kbridge.console.timeline import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.logger import LogEvent

CAPTURES = sorted((Path(__file__).parent / "data" / "console").glob("*.raw"))
RING = 65536


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.ns = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        return self.ns

    def forward(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


def entries(history: History, **options: Any) -> list[Entry]:
    cursor = LogCursor(history, **options)
    try:
        return list(iter(cursor.next, None))
    finally:
        cursor.close()


def text_of(found: list[Entry]) -> bytes:
    return b"".join(entry.data for entry in found if isinstance(entry, Text))


def record_whole(recorder: Recorder, data: bytes) -> None:
    recorder.append(data)


def record_bytes(recorder: Recorder, data: bytes) -> None:
    for place in range(len(data)):
        recorder.append(data[place : place + 1])


def record_random(recorder: Recorder, data: bytes) -> None:
    chance = random.Random(3)
    while data:
        wanted = chance.randrange(0, 900)

        def read_into(window: memoryview, piece: bytes = data[:wanted]) -> int:
            count = min(len(window), len(piece))
            window[:count] = piece[:count]
            return count

        data = data[recorder.receive(read_into) :]


@pytest.mark.parametrize("how", [record_whole, record_bytes, record_random])
@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_a_capture_is_recorded_the_same_however_it_is_split(
    tmp_path: Path, capture: Path, how: Callable[[Recorder, bytes], None]
) -> None:
    data = capture.read_bytes()
    recorder = Recorder(tmp_path / "g")
    how(recorder, data)
    assert recorder.ring.read(0, len(data) + 1) == data
    assert text_of(entries(History.of(recorder))) == data
    recorder.close()
    history = History.open(tmp_path / "g")
    assert history.ring.read(0, len(data) + 1) == data
    history.close()


def test_there_are_captures() -> None:
    assert len(CAPTURES) >= 5


def test_files_are_private(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "guests" / "web1")
    recorder.record("machine.stop")
    recorder.close()
    for path in (tmp_path / "guests" / "web1").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "guests" / "web1").stat().st_mode) == 0o700


def test_one_ordered_stream(tmp_path: Path) -> None:
    clock = Clock()
    recorder = Recorder(tmp_path / "g", mono_ns=clock, wall_ns=clock)
    clock.forward(1)
    recorder.line_opened("unix:/s")
    clock.forward(1)
    recorder.append(b"early ")
    first = clock.ns
    recorder.record("machine.pause", by="ann")
    recorder.append(b"within 50 ms ")
    clock.forward(0.5)
    recorder.append(b"later\n")
    later = clock.ns
    clock.forward(0.5)
    recorder.line_lost("unix:/s", "the other end closed it")
    recorder.close()
    history = History.open(tmp_path / "g")
    found = entries(history)
    shown = [(e.data, e.wall_ns) if isinstance(e, Text) else getattr(e, "kind", e) for e in found]
    assert shown == [
        "relay.start",
        "line.open",
        (b"early ", first),
        "machine.pause",
        (b"within 50 ms ", first),
        (b"later\n", later),
        "line.lost",
        "relay.stop",
    ]
    assert as_json(found[3]) == {
        "time": "2023-11-14T22:13:22.000000Z", "offset": 6, "kind": "machine.pause", "by": "ann"
    }  # fmt: skip
    assert as_json(found[2])["text"] == "early "
    assert text_of(entries(history, since_ns=later)) == b"later\n"
    assert [type(e) for e in entries(history, since_ns=later)] == [Text, Event, Event]
    history.close()


def test_gaps_are_shown_where_no_event_says_the_same(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "g")
    recorder.append(b"one")
    recorder.close()
    recorder = Recorder(tmp_path / "g")
    recorder.append(b"two")
    found = [e for e in entries(History.of(recorder)) if not isinstance(e, Event)]
    assert [type(e) for e in found] == [Text, Missing, Text]
    assert isinstance(found[1], Missing)
    assert (found[1].offset, found[1].reason) == (3, "relay stopped")
    recorder.close()


def test_without_a_time_line_the_lines_loss_is_still_shown(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "g")
    recorder.append(b"x")
    recorder.line_lost("unix:/s", "gone")
    recorder.close()
    (tmp_path / "g" / "timeline.jsonl").unlink()
    history = History.open(tmp_path / "g")
    assert [e.reason for e in entries(history) if isinstance(e, Missing)] == ["line lost"]
    history.close()


@given(
    st.lists(st.binary(max_size=30) | st.sampled_from([b"\n", b"a\n", b"\n\n"]), max_size=12).map(b"".join),
    st.integers(0, 6),
)
@settings(deadline=None, max_examples=60)
def test_the_last_lines(tmp_path_factory: pytest.TempPathFactory, data: bytes, count: int) -> None:
    recorder = Recorder(tmp_path_factory.mktemp("r") / "g", RING)
    recorder.append(data)
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
        ending = b"\n"
    else:
        ending = b""
    expected = b"\n".join(lines[-count:]) + ending if count and lines else b""
    assert text_of(entries(History.of(recorder), lines=count)) == expected
    recorder.close()


def test_the_last_lines_of_more_than_the_ring(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "g", 4 * RING)
    data = b"".join(b"%07d\n" % n for n in range(80000))
    recorder.append(data)
    history = History.of(recorder)
    assert text_of(entries(history, lines=10000)) == data[-80000:]
    assert text_of(entries(history, lines=10**6)) == data[recorder.ring.oldest :]
    recorder.close()


def test_following_sees_each_thing_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "g", RING)
    calls: list[int] = []
    stop = recorder.watch(lambda: calls.append(recorder.ring.head))
    cursor = LogCursor(History.of(recorder))
    assert isinstance(cursor.next(), Event)
    assert cursor.next() is None
    recorder.append(b"abc")
    assert calls == [3]
    entry = cursor.next(2)
    assert isinstance(entry, Text)
    assert entry.data == b"ab"
    recorder.record("operator.break")
    rest = list(iter(cursor.next, None))
    assert [getattr(e, "data", getattr(e, "kind", None)) for e in rest] == [b"c", "operator.break"]
    recorder.append(bytes(3 * RING))
    gap = cursor.next()
    assert isinstance(gap, Missing)
    assert gap.lost == recorder.ring.oldest - 3
    assert len(text_of(list(iter(cursor.next, None)))) == recorder.ring.head - recorder.ring.oldest
    stop()
    recorder.append(b"x")
    assert calls[-1] == 3 + 3 * RING
    cursor.close()
    recorder.close()


def test_a_second_writer_keeps_reading_but_does_not_record(
    tmp_path: Path, logged_errors: list[LogEvent]
) -> None:
    first = Recorder(tmp_path / "g")
    first.append(b"first")
    second = Recorder(tmp_path / "g")
    assert not second.recording
    assert f"process {os.getpid()} records there" in second.status
    second.append(b"second")
    second.record("machine.stop")
    assert second.ring.read(0, 10) == b"second"
    second.close()
    assert first.ring.read(0, 10) == b"first"
    assert first.recording
    first.close()
    third = Recorder(tmp_path / "g")
    assert third.recording
    third.close()
    assert len(logged_errors) == 1
    logged_errors.clear()


def test_a_folder_that_cannot_be_made_degrades(tmp_path: Path, logged_errors: list[LogEvent]) -> None:
    (tmp_path / "file").write_text("in the way")
    recorder = Recorder(tmp_path / "file" / "g", RING)
    assert recorder.status.startswith("not recording: cannot make ")
    recorder.append(b"still read")
    recorder.line_opened("x")
    assert text_of(entries(History.of(recorder))) == b"still read"
    recorder.close()
    logged_errors.clear()


def test_a_full_disk_degrades_and_the_line_is_read(
    tmp_path: Path, logged_errors: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    recorder = Recorder(tmp_path / "g", RING)
    assert "No space left on device" in recorder.status
    assert not (tmp_path / "g" / RING_NAME).exists()
    recorder.append(b"still read")
    assert recorder.ring.read(0, 20) == b"still read"
    recorder.close()
    logged_errors.clear()


def test_a_time_line_that_cannot_be_written_is_said_and_recovers(
    tmp_path: Path, logged_errors: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path / "g", RING)
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    recorder.record("machine.stop")
    recorder.record("machine.stop")
    assert recorder.status.startswith("not recording events: ")
    assert len(logged_errors) == 1
    recorder.append(b"text")
    monkeypatch.undo()
    recorder.record("machine.resume")
    assert recorder.status == "recording"
    assert [e.kind for e in entries(History.of(recorder)) if isinstance(e, Event)][-2:] == [
        "timeline.torn",
        "machine.resume",
    ]
    recorder.close()
    logged_errors.clear()


def test_a_damaged_ring_goes_on_at_a_later_offset(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "g")
    recorder.append(b"history")
    recorder.line_lost("x", "y")
    recorder.close()
    (tmp_path / "g" / RING_NAME).write_bytes(b"junk")
    recorder = Recorder(tmp_path / "g")
    assert recorder.recording
    assert recorder.ring.oldest == recorder.ring.head == 7
    assert [m.reason for m in recorder.index.marks()][-1] is GapReason.RING_DAMAGED
    recorder.close()


WRITER = """
import os, sys
from pathlib import Path
from kbridge.console.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]))
recorder.append(b"all that was received")
recorder.record("debugger.attach", name="ann")
if sys.argv[2] == "torn":
    recorder.ring.window()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["whole", "torn"])
def test_a_killed_relay_leaves_all_it_received(tmp_path: Path, how: str) -> None:
    assert (
        subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "g"), how], check=False).returncode == -9
    )
    recorder = Recorder(tmp_path / "g")
    recorder.append(b", and more")
    found = entries(History.of(recorder))
    assert text_of(found) == b"all that was received, and more"
    gaps = [e for e in found if isinstance(e, Missing)]
    assert len(gaps) == 1
    assert gaps[0].offset == 21
    if how == "torn":
        assert gaps[0].reason.startswith("torn tail")
        assert gaps[0].lost == recorder.ring.window_bytes
        assert [m.kind for m in recorder.index.marks()].count(MarkKind.TORN) == 1
    else:
        assert (gaps[0].reason, gaps[0].lost) == ("relay killed", 0)
    starts = [e for e in found if isinstance(e, Event) and e.kind == "relay.start"]
    assert [e.fields["former"] for e in starts] == ["new", "killed"]
    assert any(
        isinstance(e, Event) and e.kind == "debugger.attach" and e.fields == {"name": "ann"} for e in found
    )
    recorder.close()


def test_an_index_younger_than_the_ring_is_cut(tmp_path: Path) -> None:
    """A host that went down may have written the index's page and not the ring's."""
    recorder = Recorder(tmp_path / "g", RING)
    recorder.append(b"x")
    old = (tmp_path / "g" / RING_NAME).read_bytes()
    recorder.append(b"lost with the host")
    recorder.line_lost("a", "b")
    recorder.close()
    (tmp_path / "g" / RING_NAME).write_bytes(old)
    recorder = Recorder(tmp_path / "g", RING)
    assert all(mark.offset <= 1 for mark in recorder.index.marks())
    recorder.append(b"y")
    assert text_of(entries(History.of(recorder))) == b"xy"
    recorder.close()


def test_asciicast(tmp_path: Path) -> None:
    import json

    clock = Clock()
    recorder = Recorder(tmp_path / "g", RING, mono_ns=clock, wall_ns=clock)
    clock.forward(1)
    recorder.append("grü".encode()[:3])
    clock.forward(1)
    recorder.append("grün\xff".encode("utf-8", "surrogateescape")[3:5] + b"\xff!")
    recorder.record("debugger.attach")
    lines = [json.loads(line) for line in asciicast(entries(History.of(recorder)), title="web1")]
    assert lines[0] == {"version": 2, "width": 80, "height": 24, "timestamp": 1_700_000_000, "title": "web1"}
    assert lines[1:] == [
        [0.0, "m", "relay.start"],
        [1.0, "o", "gr"],
        [2.0, "o", "ün\ufffd!"],
        [2.0, "m", "debugger.attach"],
    ]
    recorder.close()
    assert list(asciicast([])) == ['{"version": 2, "width": 80, "height": 24, "timestamp": 0}\n']


def test_asciicast_shows_losses_and_cut_characters() -> None:
    found: list[Entry] = [
        Text(0, 10**9, b"\xe2\x82"),
        Missing(9, 2 * 10**9, "line lost", 7),
        Text(9, 10**9, b"\xe2"),
    ]
    assert list(asciicast(found))[1:] == [
        '[1.0, "o", "\ufffd\\r\\n[kbridge: 7 bytes lost]\\r\\n"]\n',
        '[1.0, "m", "console.gap: line lost"]\n',
        '[1.0, "o", "\ufffd"]\n',
    ]


def test_a_history_needs_both_files(tmp_path: Path) -> None:
    from kbridge.errors import RecordError

    recorder = Recorder(tmp_path / "g", RING)
    recorder.close()
    (tmp_path / "g" / INDEX_NAME).unlink()
    with pytest.raises(RecordError, match="nothing was recorded there"):
        History.open(tmp_path / "g")
