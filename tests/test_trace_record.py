"""The record of packets: the mapped ring, its owner, and reading it back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gdbstubs.wire import frame
from kbridge.console.mapped import HEADER_BYTES, MappedFile, Word
from kbridge.trace.reader import LATER, Line, TraceReader, as_json, from_json
from kbridge.trace.record import MOST_KEPT_CHUNKS, WAKE_SECONDS, WRITE_SECONDS, PacketRecord
from kbridge.trace.ring import (
    MAGIC,
    MOST_KEPT,
    SEGMENT_BYTES,
    STUB,
    Chunk,
    ChunkView,
    LostError,
    Note,
    PacketRing,
)
from kbridge.trace.text import TraceText

if TYPE_CHECKING:
    from twisted.logger import LogEvent

ROOT = Path(__file__).resolve().parent.parent
SMALL = 8 * SEGMENT_BYTES


def entries(ring: ChunkView, offset: int | None = None) -> list[Chunk | Note]:
    found: list[Chunk | Note] = []
    at = ring.oldest if offset is None else offset
    while at < ring.head:
        entry, at = ring.read(at)
        if entry is not None:
            found.append(entry)
    return found


def lines(ring: ChunkView, **wanted: object) -> list[Line]:
    reader = TraceReader(ring, **wanted)  # type: ignore[arg-type]
    return rest(reader)


def rest(reader: TraceReader) -> list[Line]:
    found: list[Line] = []
    while (line := reader.next()) is not None:
        if line is not LATER:
            assert isinstance(line, Line)
            found.append(line)
    return found


def talk(ring: PacketRing, count: int, session: str = "ann") -> None:
    """Requests for memory at 0, 1, 2, … and their replies."""
    for number in range(count):
        ring.append(session, False, frame(b"m%x,4" % number))
        ring.append(session, True, b"+" + frame(b"%08x" % number))


# -- the ring ------------------------------------------------------------------------------------------------


def test_chunks_come_back_as_they_passed() -> None:
    ring = PacketRing.anonymous(SMALL)
    ring.append("ann", False, b"$g#67")
    ring.append(STUB, True, bytes(range(256)))
    ring.note("words")
    one, two, note = entries(ring)
    assert isinstance(one, Chunk)
    assert isinstance(two, Chunk)
    assert isinstance(note, Note)
    assert (one.session, one.to_peer, one.data, one.passed) == ("ann", False, b"$g#67", 5)
    assert (two.session, two.to_peer, two.data) == (STUB, True, bytes(range(256)))
    assert two.mono_ns >= one.mono_ns > 0
    assert two.wall_ns >= one.wall_ns > 1_000_000_000 * 10**9
    assert note.words == "words"


def test_long_chunks_end_between_packets_and_a_long_packet_is_cut() -> None:
    ring = PacketRing.anonymous(SMALL)
    short, long = frame(b"00" * 2000), frame(b"11" * 20000)
    ring.append(STUB, False, short + short + b"+" + long + frame(b"OK") + short)
    found = [one for one in entries(ring) if isinstance(one, Chunk)]
    assert [(len(one.data), one.passed) for one in found] == [
        (len(short), len(short)),
        (len(short) + 1, len(short) + 1),
        (MOST_KEPT, len(long)),
        (6 + len(short), 6 + len(short)),
    ]
    assert found[2].data == long[:MOST_KEPT]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(["a", "ann", STUB]), st.binary(max_size=9000)), max_size=120))
def test_what_is_read_is_the_end_of_what_was_written(chunks: list[tuple[str, bytes]]) -> None:
    ring = PacketRing.anonymous(4 * SEGMENT_BYTES)
    for session, data in chunks:
        ring.append(session, False, data)
    found = [one for one in entries(ring) if isinstance(one, Chunk)]
    passed = sum(one.passed for one in found)
    assert passed <= sum(len(data) for _, data in chunks)
    written = b"".join(data for _, data in chunks)
    read = b"".join(one.data + b"?" * (one.passed - len(one.data)) for one in found)
    tail = written[len(written) - passed :]
    assert len(read) == len(tail)
    assert all(mine in (theirs, ord("?")) for mine, theirs in zip(read, tail, strict=True))
    if ring.head < 2 * SEGMENT_BYTES:
        assert passed == len(written)


def test_many_names_take_no_more_memory() -> None:
    ring = PacketRing.anonymous(SMALL)
    for number in range(1000):
        ring.append(f"session-{number}" + "x" * 1000, False, b"+")
    assert len(ring._names) <= 256
    assert all(isinstance(one, Chunk) and len(one.session) == 64 for one in entries(ring))


def test_it_is_there_for_the_next_writer_and_for_readers(tmp_path: Path) -> None:
    path = tmp_path / "packets.ring"
    ring = PacketRing.open_writer(path, SMALL)
    assert path.stat().st_mode & 0o777 == 0o600
    talk(ring, 3)
    view = ChunkView.open(path)
    assert len(entries(view)) == 6
    ring.sync()
    ring.close()
    ring = PacketRing.open_writer(path, SMALL)
    ring.append("bob", False, b"+")
    assert [type(one) for one in entries(view)] == [Chunk] * 6 + [Note, Chunk]
    assert "started again" in entries(view)[6].words  # type: ignore[union-attr]
    view.close()
    ring.close()


def test_another_size_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "packets.ring"
    ring = PacketRing.open_writer(path, 16 * SEGMENT_BYTES)
    talk(ring, 1500)
    before = [one.data for one in entries(ring) if isinstance(one, Chunk)]
    ring.sync()
    ring.close()
    for size in (4, 32):
        ring = PacketRing.open_writer(path, size * SEGMENT_BYTES)
        assert ring.capacity == size * SEGMENT_BYTES
        after = [one.data for one in entries(ring) if isinstance(one, Chunk)]
        assert 0 < len(after) <= len(before)
        assert after == before[-len(after) :]
        before = after
        ring.sync()
        ring.close()


def test_what_a_killed_relay_recorded_is_there(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from kbridge.trace.ring import PacketRing\n"
        "ring = PacketRing.open_writer(Path(sys.argv[1]), 1 << 17)\n"
        "for number in range(5000): ring.append('ann', False, b'$m%x,4#00' % number)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "packets.ring"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL
    ring = PacketRing.open_writer(path, 1 << 17)
    *found, note = entries(ring)
    assert isinstance(found[-1], Chunk)
    assert found[-1].data == b"$m1387,4#00"
    assert isinstance(note, Note)
    assert "killed" in note.words
    ring.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "packets.ring"
    path.write_bytes(b"something else")
    ring = PacketRing.open_writer(path, SMALL)
    (note,) = entries(ring)
    assert isinstance(note, Note)
    assert "set aside" in note.words
    assert len(list(tmp_path.glob("packets.ring.damaged-*"))) == 1
    ring.close()


def test_pages_that_were_lost_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "packets.ring"
    ring = PacketRing.open_writer(path, SMALL)
    talk(ring, 500)
    ring.sync()
    ring.close()
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + SEGMENT_BYTES)
        file.write(bytes(4096))
    view = ChunkView.open(path)
    with pytest.raises(LostError):
        view.read(SEGMENT_BYTES)
    found = lines(view)
    assert [one.words for one in found if one.kind == "record"] == ["this part of the record is damaged"]
    assert found[-1].words == "4 bytes"
    view.close()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_file_makes_a_reader_fail(data: st.DataObject) -> None:
    file = MappedFile.anonymous(4 * SEGMENT_BYTES)
    ring = PacketRing(file)
    talk(ring, 400)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, file.capacity - 300))
        file.body[at : at + 300] = data.draw(st.binary(min_size=300, max_size=300))
    for line in lines(ring):
        assert line.words.isprintable()
        as_json(line)
        TraceText(width=80).line(line)


# -- reading -------------------------------------------------------------------------------------------------


def test_packets_in_words_of_each_session_apart() -> None:
    ring = PacketRing.anonymous(SMALL)
    ring.append("ann", False, b"+" + frame(b"m10,4"))
    ring.append(STUB, True, frame(b"m0,800"))
    ring.append(STUB, False, frame(b"E0e"))
    ring.append("bob", False, frame(b"qC"))
    ring.append("ann", True, frame(b"E0e"))
    ring.append("bob", True, frame(b"QC1"))
    assert [(one.session, one.side, one.packet, one.words) for one in lines(ring)] == [
        ("ann", "debugger", b"m10,4", "read 4 bytes at 10"),
        (STUB, "debugger", b"m0,800", "read 2048 bytes at 0"),
        (STUB, "stub", b"E0e", "refused: EFAULT (bad address)"),
        ("bob", "debugger", b"qC", "which thread stopped?"),
        ("ann", "stub", b"E0e", "refused: EFAULT (bad address)"),
        ("bob", "stub", b"QC1", "thread 1"),
    ]
    assert [one.packet for one in lines(ring, session="bob")] == [b"qC", b"QC1"]
    assert [one.packet for one in lines(ring, session="nobody")] == []


def test_raw_chunks_are_not_decoded() -> None:
    ring = PacketRing.anonymous(SMALL)
    ring.append("ann", False, b"+")
    ring.append("ann", True, frame(b"00" * 3000))
    one, two = lines(ring, raw=True)
    assert (one.kind, one.packet, one.words) == ("bytes", b"+", "")
    assert (len(two.packet), two.length, two.words) == (MOST_KEPT, 6004, "1892 bytes more were not recorded")


@pytest.mark.parametrize("last", [0, 1, 2, 7, 400, 2000, 10**6])
def test_the_last_few(last: int) -> None:
    ring = PacketRing.anonymous(16 * SEGMENT_BYTES)
    talk(ring, 1500)
    everything = lines(ring)
    found = lines(ring, last=last)
    assert found == everything[max(len(everything) - last, 0) :]
    if 1 < last < 1000:
        # Replies are understood by requests that are not shown.
        assert found[-1].words == "4 bytes"


def test_since_a_time() -> None:
    ring = PacketRing.anonymous(16 * SEGMENT_BYTES)
    talk(ring, 1500)
    everything = lines(ring)
    for place in (0, 1, 777, len(everything) - 1):
        since = everything[place].wall_ns
        wanted = [one for one in everything if one.wall_ns >= since]
        assert lines(ring, since_ns=since) == wanted
        assert lines(ring, since_ns=since, last=3) == wanted[-3:]
    assert lines(ring, since_ns=everything[-1].wall_ns + 10**9) == []


def test_one_call_does_a_bounded_amount_of_work() -> None:
    ring = PacketRing.anonymous(16 * SEGMENT_BYTES)
    talk(ring, 1000, "bob")
    reader = TraceReader(ring, session="ann")
    calls = 0
    while reader.next() is LATER:
        calls += 1
    assert calls >= 2000 // 64


def test_following_goes_on_and_tells_what_was_overwritten() -> None:
    ring = PacketRing.anonymous(4 * SEGMENT_BYTES)
    talk(ring, 10)
    reader = TraceReader(ring, last=0, follow=True)
    assert rest(reader) == []
    ring.append("ann", False, frame(b"qC"))
    assert [one.packet for one in rest(reader)] == [b"qC"]
    talk(ring, 2000)
    found = rest(reader)
    assert found[0].kind == "record"
    assert "overwritten" in found[0].words
    assert found[-1].words == "4 bytes"
    assert reader.follows


def test_a_restart_between_request_and_reply_forgets_the_request() -> None:
    ring = PacketRing.anonymous(SMALL)
    ring.append("ann", False, frame(b"m0,10"))
    ring.note("the relay was started again")
    ring.append("ann", True, frame(b"0011"))
    assert [one.words for one in lines(ring)] == [
        "read 16 bytes at 0",
        "the relay was started again",
        "2 bytes",
    ]


def test_json_and_back() -> None:
    ring = PacketRing.anonymous(SMALL)
    ring.append("ann", False, frame(b"X0,2:\xff}\x03"))
    ring.note("words")
    for line in lines(ring):
        again = from_json(as_json(line))
        assert again.wall_ns == line.wall_ns // 1000 * 1000
        assert as_json(again) == as_json(line)


# -- text ----------------------------------------------------------------------------------------------------


def line(packet: bytes, words: str, **more: object) -> Line:
    fields = {"session": "ann", "side": "debugger", "kind": "packet", **more}
    return Line(0, 1_700_000_000_123_456_789, packet=packet, length=len(packet), words=words, **fields)  # type: ignore[arg-type]


def test_columns_fit_the_terminal() -> None:
    for width in (40, 80, 200):
        text = TraceText(width=width).line(line(b"m" * 300, "w" * 300))
        assert len(text) - 1 <= max(width, 60)
        assert text.endswith("…\n")
    whole = TraceText().line(line(b"mffff,40", "w" * 300))
    assert ".123456 ann  -> mffff,40  " in whole
    assert whole.endswith("w" * 300 + "\n")


def test_no_byte_of_a_packet_reaches_the_terminal() -> None:
    evil = b"X0,9:\x1b]0;evil\x07\x9b2J\r\n\xff"
    for kind in ("packet", "bytes", "notification"):
        text = TraceText(color=True).line(line(evil, "", kind=kind, session="a\x1bn"))
        assert text[:-1].isprintable(), text


def test_colour_only_where_it_is_wanted() -> None:
    refused = line(b"E0e", "refused: EFAULT", side="stub")
    assert "\x1b" not in TraceText().line(refused)
    assert "\x1b[31m" in TraceText(color=True).line(refused)


# -- the owner -----------------------------------------------------------------------------------------------


def test_no_file_before_a_debugger_comes(tmp_path: Path) -> None:
    record = PacketRecord(Clock(), tmp_path, SMALL)
    record.close()
    assert list(tmp_path.iterdir()) == []
    clock = Clock()
    record = PacketRecord(clock, tmp_path, SMALL)
    record.tap("ann", False, b"$g#67")
    clock.advance(WRITE_SECONDS)
    assert [one.name for one in tmp_path.iterdir()] == ["packets.ring"]
    record.close()
    record.tap("ann", False, b"late")
    view = ChunkView.open(tmp_path / "packets.ring")
    assert [one.data for one in entries(view) if isinstance(one, Chunk)] == [b"$g#67"]
    view.close()


def test_chunks_are_written_together_with_the_times_at_which_they_passed(tmp_path: Path) -> None:
    clock = Clock()
    record = PacketRecord(clock, tmp_path, SMALL)
    view = record.ring
    first = time.monotonic_ns()
    for number in range(MOST_KEPT_CHUNKS - 1):
        record.tap("ann", number % 2 == 0, b"%d" % number)
    last = time.monotonic_ns()
    assert not [one for one in entries(view) if isinstance(one, Chunk)]
    record.tap("ann", False, b"one more")
    found = [one for one in entries(view) if isinstance(one, Chunk)]
    assert [one.data for one in found] == [*(b"%d" % one for one in range(MOST_KEPT_CHUNKS - 1)), b"one more"]
    times = [one.mono_ns for one in found]
    assert times == sorted(times)
    # Written later, they are some microseconds off.
    assert first - 1_000_000 <= times[0]
    assert times[-2] <= last + 1_000_000
    record.tap("ben", True, b"kept")
    assert isinstance(entries(record.ring)[-1], Chunk), "whoever asks for the ring finds all that passed"
    record.tap("ben", True, b"the end")
    record.close()
    assert not clock.getDelayedCalls()
    record = PacketRecord(clock, tmp_path, SMALL)
    assert b"the end" in [one.data for one in entries(record.ring) if isinstance(one, Chunk)]
    record.close()


def test_watchers_are_woken_together_and_not_too_often() -> None:
    clock = Clock()
    record = PacketRecord(clock, None, SMALL)
    woken: list[int] = []
    stop = record.watch(lambda: woken.append(1))
    for _ in range(100):
        record.tap("ann", False, b"+")
    assert woken == []
    clock.advance(WRITE_SECONDS)
    assert woken == []
    clock.advance(WAKE_SECONDS)
    assert woken == [1]
    clock.advance(1)
    assert woken == [1]
    stop()
    record.tap("ann", False, b"+")
    clock.advance(WRITE_SECONDS)
    assert not clock.getDelayedCalls()
    record.watch(lambda: woken.append(1))
    record.tap("ann", False, b"+")
    record.close()
    assert not clock.getDelayedCalls()


def test_a_disk_that_refuses_does_not_stop_a_debugger(tmp_path: Path, logged_errors: list[LogEvent]) -> None:
    record = PacketRecord(Clock(), tmp_path / "is not there", SMALL)
    record.tap("ann", False, b"$g#67")
    assert len(entries(record.ring)) == 1
    assert len(logged_errors) == 1
    logged_errors.clear()
    record.close()


def test_a_head_before_its_base_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "packets.ring"
    file = MappedFile.create(path, MAGIC, SMALL, 5 * SEGMENT_BYTES)
    file.words[Word.HEAD] = 0
    file.publish()
    file.close()
    ring = PacketRing.open_writer(path, SMALL)
    assert ring.oldest == 0
    ring.close()
