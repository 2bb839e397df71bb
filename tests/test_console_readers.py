from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from line_lab import reactor, until
from twisted.trial.unittest import TestCase

from kbridge.console.readers import Cursor, Data, Gap, RingReader, gap_notice
from kbridge.console.recorder import Recorder
from kbridge.console.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable

RING = 1 << 16


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=30))
def test_a_cursor_gives_every_byte_or_says_that_it_is_lost(steps: list[tuple[bool, int]]) -> None:
    ring = Ring.anonymous(4096)
    cursor = Cursor(ring)
    model = b""
    place = 0
    chance = random.Random(5)
    for writes, count in steps:
        if writes:
            piece = chance.randbytes(count)
            ring.append(piece)
            model += piece
            continue
        match cursor.next(count):
            case Data(offset, data):
                assert offset == place
                assert data == model[offset : offset + len(data)]
                assert 0 < len(data) <= count
                place += len(data)
            case Gap(offset, lost):
                assert offset == place
                assert place + lost == ring.oldest
                place += lost
            case None:
                assert place == len(model)
    assert cursor.behind == len(model) - place


class SocketReaders(TestCase):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def setUp(self) -> None:
        self.recorder = Recorder(self.folder / "g", RING)
        self.addCleanup(self.recorder.close)

    def reader(
        self, offset: int | None = None, received: Callable[[bytes], None] | None = None
    ) -> tuple[RingReader, socket.socket, list[str]]:
        near, far = socket.socketpair()
        far.setblocking(False)
        lost: list[str] = []
        reader = RingReader(reactor, near, self.recorder, offset=offset, received=received, lost=lost.append)
        self.addCleanup(far.close)
        self.addCleanup(reader.close)
        return reader, far, lost

    async def test_text_from_an_offset_on_and_input(self) -> None:
        self.recorder.append(b"before ")
        typed: list[bytes] = []
        _, far, _ = self.reader(offset=3, received=typed.append)
        _, late, _ = self.reader()
        self.recorder.append(b"after")
        assert far.recv(100) == b"ore after"
        assert late.recv(100) == b"after"
        far.send(b"ls\r")
        await until(lambda: typed == [b"ls\r"])

    async def test_a_reader_that_leaves_is_let_go(self) -> None:
        reader, far, lost = self.reader()
        far.close()
        await until(lambda: lost)
        assert reader.fileno() == -1
        self.recorder.append(b"goes on")
        assert self.recorder._watchers == ()
        reader.close()
        assert len(lost) == 1

    async def test_a_reader_that_is_closed_is_told_once(self) -> None:
        reader, far, lost = self.reader()
        reader.close()
        reader.close()
        assert lost == ["Connection was closed cleanly: closed by kbridge."]
        assert far.recv(1) == b""

    async def test_a_reader_gone_while_it_is_sent_to(self) -> None:
        _, far, lost = self.reader()
        far.close()
        self.recorder.append(b"x")
        assert len(lost) == 1

    async def test_a_slow_reader_sees_what_it_lost_and_nobody_waits(self) -> None:
        slow, far, _ = self.reader()
        _, quick, _ = self.reader()
        chance = random.Random(2)
        everything = b""
        seen_by_quick = b""
        while len(everything) < 40 * RING:
            piece = chance.randbytes(5000).replace(b"\r", b" ")
            self.recorder.append(piece)
            everything += piece
            seen_by_quick += quick.recv(100_000)
        assert seen_by_quick == everything
        assert slow.lost_bytes == 0  # it is told when it reads again
        got = bytearray()

        def all_read() -> bool:
            try:
                got.extend(far.recv(100_000))
            except BlockingIOError:
                pass
            return slow.offset == len(everything) and everything.endswith(bytes(got[-1000:]))

        await until(all_read)
        lost = slow.lost_bytes
        assert lost > 10 * RING
        assert got.count(b"[kbridge: ") == 1
        head, tail = bytes(got).split(gap_notice(lost))
        assert everything.startswith(head)
        assert everything.endswith(tail)
        assert len(head) + lost + len(tail) == len(everything)

    async def test_a_reader_that_catches_up_does_not_hold_the_reactor(self) -> None:
        self.recorder.append(bytes(RING * 2))
        reader, far, _ = self.reader(offset=0)
        got = 0
        deadline = self.recorder.ring.head - self.recorder.ring.oldest

        def some() -> bool:
            nonlocal got
            try:
                got += len(far.recv(10_000))
            except BlockingIOError:
                pass
            return got >= deadline

        await until(some)
        assert reader.offset == self.recorder.ring.head
