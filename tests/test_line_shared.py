"""One line for console and kgdb: what reaches whom, and when, without a guest."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from gdbstubs.demux import AGAIN, DAMAGED, SILENCE, UNFINISHED
from gdbstubs.keys import AT_ONCE, MOST_TYPED, RUNNING, UNECHOED, Told
from gdbstubs.wire import frame
from kbridge.console.recorder import Recorder
from kbridge.errors import GuestError, LineError
from kbridge.transports.endpoints import Break
from kbridge.transports.lines import LineState
from kbridge.transports.shared_line import (
    BREAK_IN_SECONDS,
    MOST_WAITING,
    PAGING_SECONDS,
    SharedLine,
)

STOP = frame(b"T05thread:fffffffd;")


class Line:
    """The other side of the line: what was written to it."""

    def __init__(self) -> None:
        self.reason = ""
        self.written = b""
        self.closed = False
        self.breaks = (Break.SERIAL,)
        self.sent_breaks: list[Break] = []

    @property
    def state(self) -> LineState:
        return LineState.LOST if self.reason else LineState.OPEN

    def write(self, data: bytes) -> None:
        if self.reason:
            raise LineError("nothing was sent", why=self.reason)
        self.written += data

    async def send_break(self, how: Break) -> None:
        self.sent_breaks.append(how)

    async def close(self) -> None:
        self.closed = True

    def subscribe(self, listener: Callable[..., None]) -> Callable[[], None]:
        return lambda: None

    def take(self) -> bytes:
        written, self.written = self.written, b""
        return written


class Descriptors:
    """A reactor's time from a clock, and its descriptors looked at when a test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.callLater = self.clock.callLater
        self.seconds = self.clock.seconds
        self.readers: list[Any] = []

    def addReader(self, one: Any) -> None:  # noqa: N802 (the reactor's name)
        self.readers.append(one)

    def removeReader(self, one: Any) -> None:  # noqa: N802 (the reactor's name)
        if one in self.readers:
            self.readers.remove(one)

    def addWriter(self, one: Any) -> None:  # noqa: N802 (the reactor's name)
        raise AssertionError("a socket pair is never full here")

    def removeWriter(self, one: Any) -> None:  # noqa: N802 (the reactor's name)
        pass

    def turn(self) -> None:
        for one in tuple(self.readers):
            problem = one.doRead()
            if problem is not None:
                one.connectionLost(problem)


class SharedLineTest(TestCase):
    def setUp(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="kb-"))
        self.addCleanup(shutil.rmtree, self.dir)
        self.reactor = Descriptors()
        self.clock = self.reactor.clock
        self.recorder = Recorder(self.dir, 1 << 16)
        self.addCleanup(self.recorder.close)
        self.line = Line()
        self.shared = SharedLine(self.reactor, self.recorder)
        line: Any = self.line
        self.shared.opened(line)
        self.shared.line_opened("a line")
        self.words: list[str] = []
        self.addCleanup(self.shared.on_words(self.words.append))
        self.clock.advance(1)

    async def tearDown(self) -> None:
        await self.shared.close()

    def says(self, data: bytes, *, then: float = 0.0) -> None:
        """The guest says something, and is silent for a while."""

        def read_into(window: memoryview) -> int:
            window[: len(data)] = data
            return len(data)

        assert self.shared.receive(read_into) == len(data)
        self.passes(then)

    def passes(self, seconds: float) -> None:
        self.clock.pump([0.0005] * round(seconds / 0.0005))

    @property
    def console(self) -> bytes:
        ring = self.recorder.ring
        return ring.read(ring.oldest, ring.head - ring.oldest) or b""

    async def client(self, *, is_sought: bool = False) -> socket.socket:
        one = await self.shared.connect(is_sought)
        self.addCleanup(one.close)
        return one

    def sends(self, one: socket.socket, data: bytes) -> None:
        one.send(data)
        self.reactor.turn()

    def is_cut(self, one: socket.socket) -> bool:
        try:
            return one.recv(1) == b""
        except BlockingIOError:
            return False

    def hears(self, one: socket.socket) -> bytes:
        try:
            return one.recv(65536)
        except BlockingIOError:
            return b""

    async def held(self) -> socket.socket:
        """A client whose guest stands."""
        one = await self.client()
        self.says(STOP, then=2 * SILENCE)
        assert self.hears(one) == STOP
        self.sends(one, b"+")
        self.line.take()
        return one

    # -- text and packets ---------------------------------------------------------------------------------------

    async def test_text_is_the_consoles_and_packets_are_the_clients(self) -> None:
        one = await self.client()
        self.says(b"$ ls\r\n" + STOP, then=2 * SILENCE)
        self.sends(one, b"+$g#67")
        self.says(b"+" + frame(b"0011"))
        assert self.console == b"$ ls\r\n"
        assert self.hears(one) == STOP + b"+" + frame(b"0011")
        assert self.line.take() == b"+$g#67"

    async def test_no_silence_is_concluded_from_a_time_in_which_nobody_read(self) -> None:
        one = await self.client()
        self.says(STOP)
        # The process was busy: time has passed, and more of the same text was waiting all the while.
        self.clock.rightNow += 1.0
        self.says(b" is what kgdb would say\r\n", then=1.0)
        assert self.hears(one) == b""
        assert self.console == STOP + b" is what kgdb would say\r\n"

    async def test_a_late_timer_lets_the_line_be_read_first(self) -> None:
        one = await self.client()
        self.says(STOP)
        self.clock.advance(1.0)
        self.says(b"#\r\n", then=1.0)
        assert (self.hears(one), self.console) == (b"", STOP + b"#\r\n")

    async def test_a_stop_that_nobody_hears_is_on_the_time_line(self) -> None:
        self.says(b"oops\r\n" + STOP, then=1.0)
        assert self.console == b"oops\r\n"
        assert b"kgdb.unattended" in (self.dir / "timeline.jsonl").read_bytes()

    # -- what the client sends ----------------------------------------------------------------------------------

    async def test_a_question_waits_until_the_guest_stands(self) -> None:
        for sign in (STOP, b"\r\n[0]kdb> ", b"KGDB: KGDB or $3#33 for KDB\r\n"):
            one = await self.client()
            for _ in range(3):
                self.sends(one, b"$?#3f")
            self.says(b"tick\r\n", then=0.1)
            assert self.line.take() == b""
            self.says(sign, then=2 * SILENCE)
            assert self.line.take() == b"$?#3f"
            self.shared.machine_reset()
            self.says(b"Linux version 6.1\r\n")
            one.close()
            self.reactor.turn()

    async def test_what_waits_has_a_limit(self) -> None:
        one = await self.client()
        for number in range(2 * MOST_WAITING // 8):
            self.sends(one, b"$%04x#00" % number)
        self.says(b"\r\n[0]kdb> ", then=0.1)
        assert MOST_WAITING - 16 < len(self.line.take()) <= MOST_WAITING

    async def test_a_successor_asks_a_guest_that_may_stand_in_silence(self) -> None:
        one = await self.client(is_sought=True)
        self.sends(one, b"$?#3f")
        assert self.line.take() == b"$?#3f"
        self.says(b"+" + frame(b"S05"), then=2 * SILENCE)
        assert self.hears(one) == b"+" + frame(b"S05")

    async def test_a_kernel_that_gives_up_what_a_killed_relay_left_unacknowledged_stands(self) -> None:
        one = await self.client(is_sought=True)
        self.sends(one, b"$?#3f")
        assert self.line.take() == b"$?#3f"
        # At the question's `$`, which is lost with it.
        self.says(b"-", then=2 * UNFINISHED)
        assert self.hears(one) == b"-"
        assert self.shared.stands
        self.sends(one, b"$?#3f")
        assert self.line.take() == b"$?#3f"
        self.says(b"+" + frame(b"S05"))
        assert self.hears(one) == b"+" + frame(b"S05")
        assert self.console == b""

    async def test_a_successor_asks_once_more_when_the_guest_was_not_broken_into(self) -> None:
        (await self.client(is_sought=True)).close()
        self.reactor.turn()
        one = await self.client()
        self.sends(one, b"$?#3f")
        assert self.line.take() == b""
        assert self.shared.seek()
        assert self.line.take() == b"$?#3f"

    async def test_one_client_at_a_time_and_none_without_a_line(self) -> None:
        one = await self.client()
        other = await self.client()
        assert self.is_cut(one)
        self.shared.line_lost("a line", "unplugged")
        assert self.is_cut(other)
        self.line.reason = "unplugged"
        with pytest.raises(GuestError, match="unplugged"):
            await self.client()

    # -- typing -------------------------------------------------------------------------------------------------

    async def test_typing_goes_through_at_once_while_the_guest_runs(self) -> None:
        self.shared.write(b"ls\r")
        assert self.line.take() == b"ls\r"
        self.line.reason = "unplugged"
        with pytest.raises(LineError, match="nothing was sent"):
            self.shared.write(b"x")

    async def test_typing_is_kept_told_and_delivered_when_the_guest_has_run_for_a_while(self) -> None:
        one = await self.held()
        keys = bytes(range(0x41, 0x41 + 40))
        self.shared.write(keys)
        assert (self.line.take(), self.words) == (b"", [Told.KEPT.value])
        # A step: the guest runs for a moment.
        self.sends(one, b"$s#73")
        assert self.line.take() == b"$s#73"
        self.says(b"+")
        self.passes(RUNNING / 2)
        self.says(STOP, then=2 * SILENCE)
        assert self.line.take() == b""
        self.sends(one, b"+$c#63")
        self.line.take()
        self.says(b"+tick\r\n", then=RUNNING + 0.01)
        first = self.line.take()
        assert AT_ONCE <= len(first) < len(keys)
        assert Told.DELIVERED.value not in self.words
        # The guest answers, and gets more; where it does not, later.
        self.says(first, then=0.02)
        second = self.line.take()
        assert len(second) == AT_ONCE
        self.passes(UNECHOED * (len(keys) // AT_ONCE))
        assert first + second + self.line.take() == keys
        assert self.words[-1] == Told.DELIVERED.value

    async def test_a_stop_keeps_what_was_not_delivered_yet(self) -> None:
        one = await self.held()
        keys = b"0123456789abcdef" * 8
        self.shared.write(keys)
        self.sends(one, b"$c#63")
        self.line.take()
        self.says(b"+", then=RUNNING + 0.012)
        first = self.line.take()
        assert 0 < len(first) < len(keys)
        self.says(STOP, then=0.5)
        assert self.line.take() == b""
        self.sends(one, b"+$c#63")
        self.line.take()
        self.says(b"+", then=RUNNING + UNECHOED * (len(keys) // AT_ONCE + 1))
        assert first + self.line.take() == keys

    async def test_more_than_is_kept_is_said_to_be_dropped(self) -> None:
        await self.held()
        for _ in range(100):
            self.shared.write(b"x" * 100)
        assert Told.FULL.value in self.words
        assert self.shared._demux.keys.dropped == 100 * 100 - MOST_TYPED

    # -- breaking in --------------------------------------------------------------------------------------------

    async def test_a_break_ins_key_goes_at_once_and_typing_waits_for_what_comes_of_it(self) -> None:
        sysrq = self.shared.for_sysrq
        await sysrq.send_break(Break.SERIAL)
        sysrq.write(b"g")
        assert (self.line.sent_breaks, self.line.take()) == ([Break.SERIAL], b"g")
        self.shared.write(b"ls\r")
        assert self.line.take() == b""
        self.passes(BREAK_IN_SECONDS + RUNNING + 0.1)
        assert self.line.take() == b"ls\r"

    async def test_another_key_of_sysrq_keeps_no_typing_back(self) -> None:
        await self.shared.for_sysrq.send_break(Break.SERIAL)
        self.shared.for_sysrq.write(b"h")
        self.shared.write(b"ls\r")
        assert self.line.take() == b"hls\r"
        assert not self.shared.is_held
        await self.held()
        assert self.shared.is_held

    async def test_a_reply_that_noise_has_made_text_is_asked_for_again(self) -> None:
        one = await self.held()
        self.sends(one, b"$g#67")
        self.line.take()
        self.says(b"+0102#c3", then=AGAIN + 0.01)
        assert self.hears(one) == b"+" + DAMAGED
        assert self.console.endswith(b"0102#c3")

    async def test_a_stop_that_noise_has_made_text_is_refused_although_the_guest_seems_to_run(self) -> None:
        one = await self.held()
        self.sends(one, b"+$c#63")
        self.says(b"+tick\r\n")
        self.says(STOP.replace(b"d:", b":"), then=UNFINISHED + AGAIN + 0.01)
        assert self.hears(one) == b"+" + DAMAGED
        self.line.take()
        self.sends(one, b"-")
        assert self.line.take() == b"-"
        # Once, and nothing else.
        self.sends(one, b"-")
        self.sends(one, b"$g#67")
        assert self.line.take() == b""
        self.says(STOP, then=2 * SILENCE)
        assert self.hears(one) == STOP

    async def test_keys_that_kgdb_has_read_are_typed_once_more(self) -> None:
        one = await self.client()
        self.shared.write(b"ls\r")
        assert self.line.take() == b"ls\r"
        self.says(STOP * 3, then=2 * SILENCE)
        self.sends(one, b"+$g#67")
        self.says(b"+" + frame(b"00"))
        assert self.words == [Told.KEPT.value]
        self.sends(one, b"+$c#63")
        self.line.take()
        self.says(b"+", then=RUNNING + 0.01)
        assert self.line.take() == b"s\r"
        assert self.words[-1] == Told.DELIVERED.value

    async def test_a_guest_that_has_stood_is_sought_when_it_is_silent(self) -> None:
        assert not self.shared.seek()
        (await self.held()).close()
        self.shared.machine_reset()
        self.reactor.turn()
        assert not self.shared.seek()
        one = await self.client()
        self.sends(one, b"$?#3f")
        assert self.line.take() == b""
        assert self.shared.seek()
        assert self.line.take() == b"$?#3f"

    async def test_the_pages_of_kdb_are_turned_up_to_its_prompt_and_no_further(self) -> None:
        one = await self.client()
        self.sends(one, b"$?#3f")
        self.says(b"RSP: 0018\r\nmore> and less> ")
        assert not self.shared.turn_pages()
        self.says(b"\r\nmore>")
        assert not self.shared.turn_pages()
        self.says(b" ")
        assert self.line.take() == b""
        assert self.shared.turn_pages()
        assert self.line.take() == b" "
        for data in (b"\rCall", b" Trace:\r\n", b"more> ", b"\r\n"):
            self.says(data)
        assert self.line.take() == b" "
        self.says(b"[0]kdb> ")
        assert self.line.take() == b"$?#3f"
        # What a person has printed from now on is his to read.
        self.says(b"bt\r\n0x0\r\nmore> ")
        assert self.line.take() == b""

    async def test_pages_are_not_turned_for_ever(self) -> None:
        self.says(b"\r\nmore> ")
        assert self.shared.turn_pages()
        self.says(b"\r\nmore> ", then=PAGING_SECONDS)
        assert self.line.take() == b"  "
        self.says(b"\r\nmore> ")
        assert self.line.take() == b""
        self.line.reason = "the cable is out"
        assert self.shared.turn_pages()
        self.line.reason = ""
        self.says(b"\r\nmore> ")
        assert self.line.take() == b""

    async def test_closing_leaves_no_timer(self) -> None:
        await self.held()
        self.shared.write(b"x")
        self.says(b"$T05")
        await self.shared.close()
        assert self.line.closed
        assert not self.clock.getDelayedCalls()
