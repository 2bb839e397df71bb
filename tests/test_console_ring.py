from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.console.mapped import Former, Word
from kbridge.console.ring import MAGIC, Ring, RingView
from kbridge.errors import RecordError

PAGE = 4096


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.binary(max_size=6000)),
            st.tuples(st.just("read"), st.binary(min_size=1, max_size=1500)),
            st.tuples(st.just("reopen"), st.just(b"")),
        ),
        max_size=25,
    )
)
@settings(deadline=None, max_examples=60)
def test_ring_equals_a_model_of_all_bytes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("ring") / "console.ring"
    ring = Ring.open_writer(path, 2 * PAGE)
    model = b""
    for what, data in steps:
        if what == "append":
            ring.append(data)
            model += data
        elif what == "read":
            window = ring.window()
            count = min(len(window), len(data))
            window[:count] = data[:count]
            window.release()
            ring.advance(count)
            model += data[:count]
        else:
            ring.sync()
            ring.close()
            ring = Ring.open_writer(path, 2 * PAGE)
            assert ring.opening.former is Former.CLEAN
        assert ring.head == len(model)
        assert ring.oldest == max(0, len(model) - (2 * PAGE - ring.window_bytes))
        held = model[ring.oldest :]
        assert ring.read(ring.oldest, len(held) + 5) == held
        assert b"".join(ring.views(ring.oldest, len(held))) == held
        assert ring.read(ring.head, 10) == b""
        if ring.oldest:
            assert ring.read(ring.oldest - 1, 1) is None
    view = RingView.open(path)
    assert view.read(view.oldest, PAGE * 2) == model[view.oldest :]
    view.close()
    ring.close()


def test_a_read_past_the_head_is_refused() -> None:
    ring = Ring.anonymous(PAGE)
    with pytest.raises(ValueError, match="past the head"):
        ring.read(1, 1)


def test_files_are_private_and_whole_pages(tmp_path: Path) -> None:
    path = tmp_path / "console.ring"
    ring = Ring.open_writer(path, 5000)
    assert ring.capacity == 2 * PAGE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_blocks * 512 >= 3 * PAGE  # reserved: a full disk cannot become a signal
    ring.close()


def test_writer_killed_within_a_read_leaves_a_marked_tail(tmp_path: Path) -> None:
    path = tmp_path / "console.ring"
    ring = Ring.open_writer(path, 4 * PAGE)
    ring.append(b"whole")
    torn = len(ring.window())  # a read began, and the process is no more
    ring.close()
    again = Ring.open_writer(path, 4 * PAGE)
    assert again.opening.former is Former.KILLED
    assert again.opening.torn_bytes == torn
    assert again.read(0, 100) == b"whole"
    again.append(b" more")
    again.close()
    third = Ring.open_writer(path, 4 * PAGE)
    assert third.opening.torn_bytes == 0
    third.close()


def test_a_host_that_went_down_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "console.ring"
    ring = Ring.open_writer(path, PAGE)
    ring._words[Word.BOOT_LOW] ^= 1
    ring.close()
    again = Ring.open_writer(path, PAGE)
    assert again.opening.former is Former.HOST_WENT_DOWN
    again.close()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"", "only 0 bytes"),
        (lambda data: data[:-1], "bytes long where"),
        (lambda data: b"x" + data[1:], "does not start with"),
        (lambda data: data[:16] + b"\x01" + data[17:], "check sum"),
        (lambda data: data[:80] + b"\xff" * 8 + data[88:], "contradict"),
    ],
)
def test_a_damaged_file_is_set_aside_not_guessed(tmp_path: Path, damage: object, why: str) -> None:
    path = tmp_path / "console.ring"
    ring = Ring.open_writer(path, PAGE)
    ring.append(b"history")
    ring.sync()
    ring.close()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    if why != "contradict":
        with pytest.raises(RecordError, match=why):
            RingView.open(path)
    damaged = path.read_bytes()
    ring = Ring.open_writer(path, PAGE, base=77)
    assert why in ring.opening.damage
    assert ring.opening.set_aside is not None
    assert ring.opening.set_aside.read_bytes() == damaged
    assert (ring.head, ring.oldest) == (77, 77)
    ring.append(b"new")
    assert ring.read(77, 10) == b"new"
    ring.close()


@given(st.binary(max_size=40000), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None, max_examples=30)
def test_a_changed_size_carries_the_tail_over(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, old_pages: int, new_pages: int
) -> None:
    path = tmp_path_factory.mktemp("ring") / "console.ring"
    ring = Ring.open_writer(path, old_pages * PAGE)
    ring.append(data)
    ring.sync()
    had = len(data) - ring.oldest
    ring.close()
    ring = Ring.open_writer(path, new_pages * PAGE)
    fits = new_pages * PAGE - ring.window_bytes
    assert ring.head == len(data)
    assert ring.read(ring.oldest, len(data)) == data[ring.oldest :]
    if new_pages != old_pages:
        assert ring.head - ring.oldest == min(had, fits)
        assert ring.opening.dropped_bytes == had - min(had, fits)
    assert not list(path.parent.glob("*.new"))
    ring.close()


def test_no_room_to_resize_keeps_the_old_size(tmp_path: Path) -> None:
    path = tmp_path / "console.ring"
    ring = Ring.open_writer(path, PAGE)
    ring.append(b"kept")
    ring.close()
    ring = Ring.open_writer(path, 1 << 60)
    assert ring.capacity == PAGE
    assert "its size stays" in ring.opening.damage
    assert ring.read(0, 10) == b"kept"
    ring.close()


def test_no_room_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="lower ring_bytes"):
        Ring.open_writer(tmp_path / "console.ring", 1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_opening_while_a_view_is_still_held_does_not_break_it() -> None:
    ring = Ring.anonymous(PAGE)
    ring.append(b"still here")
    view = ring.view(0, 5)
    ring.close()
    assert bytes(view) == b"still"


def _pattern(offset: int, length: int) -> bytes:
    """Bytes that tell their own offset."""
    first = offset // 8
    whole = b"".join(n.to_bytes(8, "big") for n in range(first, (offset + length) // 8 + 1))
    return whole[offset - first * 8 :][:length]


WRITER = """
import os, sys
from pathlib import Path
from kbridge.console.ring import Ring
ring = Ring.open_writer(Path(sys.argv[1]), 65536)
print("ready", flush=True)
while True:
    view = ring.window()
    count = os.readv(0, [view])
    ring.advance(count)
    if not count:
        sys.exit("end of input")
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing_received(tmp_path: Path) -> None:
    """What the killed writer took from the pipe is in the ring, but for a tail that is marked."""
    path = tmp_path / "console.ring"
    chance = random.Random(7)
    marked = 0
    offset = 0
    for _ in range(12):
        read_end, write_end = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdin=read_end, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            end = time.monotonic() + chance.uniform(0.0, 0.05)
            os.set_blocking(write_end, False)
            sent = offset
            while time.monotonic() < end:
                try:
                    sent += os.write(write_end, _pattern(sent, chance.randrange(1, 4000)))
                except BlockingIOError:
                    continue
            child.send_signal(signal.SIGKILL)
            child.wait()
        os.set_blocking(read_end, False)
        left = b""
        while True:
            try:
                piece = os.read(read_end, 65536)
            except BlockingIOError:
                break
            left += piece
        os.close(read_end)
        os.close(write_end)
        ring = Ring.open_writer(path, 65536)
        received = sent - len(left)  # by the child, as the kernel tells
        assert ring.opening.former is Former.KILLED
        torn = ring.opening.torn_bytes
        marked += torn > 0
        assert ring.head <= received <= ring.head + torn
        assert ring.read(ring.oldest, 65536) == _pattern(ring.oldest, ring.head - ring.oldest)
        # Go on from what is there, as a line would: the next child gets the bytes after the head.
        offset = ring.head
        ring.sync()
        ring.close()
    assert offset > 65536


READER = """
import sys
from pathlib import Path
from kbridge.console.readers import Cursor, Data
from kbridge.console.ring import RingView
view = RingView.open(Path(sys.argv[1]))
cursor = Cursor(view)
got = lost = 0
print("ready", flush=True)
while cursor.offset < int(sys.argv[2]):
    found = cursor.next(10000)
    if isinstance(found, Data):
        first = found.offset // 8
        want = b"".join(n.to_bytes(8, "big") for n in range(first, (found.offset + len(found.data)) // 8 + 1))
        assert want[found.offset - first * 8:][:len(found.data)] == found.data, found.offset
        got += len(found.data)
    elif found is not None:
        lost += found.lost
print(got, lost)
"""


def test_a_reader_in_another_process_gets_right_bytes_or_gaps(tmp_path: Path) -> None:
    path = tmp_path / "console.ring"
    ring = Ring.open_writer(path, 16 * PAGE)
    total = 20_000_000
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path), str(total)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        # Text ready beforehand, so that the writer overtakes the reader.
        block = _pattern(0, total)
        for start in range(0, total, 9973):
            ring.append(block[start : start + 9973])
        answer = child.stdout.read().split()
        assert child.wait(60) == 0
    got, lost = map(int, answer)
    assert got + lost == total
    assert got > 0
    ring.close()


def test_other_kinds_of_file_are_no_ring(tmp_path: Path) -> None:
    path = tmp_path / "console.ring"
    with pytest.raises(RecordError, match="nothing was recorded there"):
        RingView.open(path)
    path.write_bytes(MAGIC)
    with pytest.raises(RecordError, match="only 8 bytes"):
        RingView.open(path)
