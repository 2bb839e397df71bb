"""Bringing a kernel to kdb's prompt: where it runs, where it stands, where there is no kdb; no kernel here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from line_lab import LineTestCase
from test_line_shared import Descriptors, Line
from twisted.internet.defer import Deferred

from gdbstubs.demux import SILENCE
from gdbstubs.wire import frame
from kbridge import kdb
from kbridge.breakin import BreakIn
from kbridge.breaks import Breaks
from kbridge.config import BreakInWay
from kbridge.console.recorder import Recorder
from kbridge.errors import GuestError
from kbridge.transports.endpoints import Serial
from kbridge.transports.shared_line import SharedLine

STOP = frame(b"T05thread:fffffffd;")
GREETING = (
    b"\r\nEntering kdb (current=0xffff888003a2c000, pid 0) on processor 1 due to Keyboard Entry\r\n[1]kdb> "
)
HINT = b"KGDB: KGDB or $3#33 for KDB\r\n"


class World:
    """A shared line, what its guest answers to what is written, and a clock."""

    def __init__(self, folder: Path, answers: dict[bytes, bytes]) -> None:
        self.reactor = Descriptors()
        self.recorder = Recorder(folder, 1 << 16)
        self.line = Line()
        self.answers = answers
        self.shared = SharedLine(self.reactor, self.recorder)
        line: Any = self.line
        self.shared.opened(line)
        self.shared.line_opened("a line")
        self.said = b""
        self.ways = BreakIn(
            "web1",
            (BreakInWay.SYSRQ,),
            breaks=Breaks(Serial("/dev/ttyS0", 115200), lambda: self.shared.for_sysrq, None),
            machine=None,
            said=self.recorder.ring,
            turn_pages=self.shared.turn_pages,
        )

    def says(self, data: bytes) -> None:
        def read_into(window: memoryview) -> int:
            window[: len(data)] = data
            return len(data)

        if data:
            self.shared.receive(read_into)

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.001)):
            self.reactor.clock.advance(0.001)
            written = self.line.take()
            if written:
                self.said += written
                self.says(self.answers.get(written, b""))

    @property
    def console(self) -> bytes:
        ring = self.recorder.ring
        return ring.read(ring.oldest, ring.head - ring.oldest) or b""


class Kdb(LineTestCase):
    def world(self, **answers: bytes) -> World:
        import tempfile

        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        words = {"g": b"g", "kdb": b"+$3#33", "go": b"+$c#63"}
        world = World(Path(folder.name), {words[name]: said for name, said in answers.items()})
        self.addCleanup(world.recorder.close)
        self.addCleanup(lambda: Deferred.fromCoroutine(world.shared.close()))
        world.passes(0.1)
        return world

    def brought(self, world: World, seconds: float = 10.0) -> BreakInWay | GuestError | None:
        import twisted.internet.task as task

        self.patch(kdb, "deferLater", lambda reactor, wait: task.deferLater(world.reactor, wait))
        found: list[Any] = []
        Deferred.fromCoroutine(kdb.to_prompt(world.reactor, "web1", world.shared, world.ways)).addBoth(
            found.append
        )
        world.passes(seconds)
        assert found, "it hangs"
        result = found[0]
        return result.value if hasattr(result, "value") and isinstance(result.value, GuestError) else result

    async def test_a_kernel_that_runs_is_broken_into_and_is_there(self) -> None:
        world = self.world(g=GREETING)
        assert self.brought(world, 1.0) is BreakInWay.SERIAL_BREAK
        assert world.said == b"g"
        # What is typed at the prompt goes to kdb.
        world.shared.write(b"bt\r")
        world.passes(0.001)
        assert world.said == b"gbt\r"

    async def test_a_kernel_that_has_had_a_debugger_is_led_on_to_kdb(self) -> None:
        for stop in (HINT, STOP):
            world = self.world(g=stop, kdb=b"+" + GREETING)
            assert self.brought(world, 1.0) is BreakInWay.SERIAL_BREAK
            assert world.said == b"g+$3#33"
            # No packet, and no acknowledgement, reaches the console.
            assert world.console == (HINT if stop == HINT else b"") + GREETING
            assert world.shared.at_prompt

    async def test_a_kernel_that_stands_is_not_broken_into(self) -> None:
        for said in (GREETING, HINT, b"kgdb\r\nEntering please attach debugger or use $D#44+ or $3#33\r\n"):
            world = self.world(kdb=b"+" + GREETING)
            world.says(said)
            assert self.brought(world, 1.0) is None
            assert world.said == (b"" if said == GREETING else b"+$3#33")

    async def test_a_kernel_in_the_middle_of_its_words_is_not_broken_into(self) -> None:
        # It would take BREAK for a key, and `g` for the first letter of a command.
        world = self.world()
        world.answers[b" "] = b"\r </TASK>\r\n\r\n[1]kdb> "
        world.says(b"Call Trace:\r\nmore> ")
        assert self.brought(world, 1.0) is None
        assert world.said == b" "
        assert world.line.sent_breaks == []

    async def test_a_kernel_without_kdb_is_let_go(self) -> None:
        world = self.world(g=b"KGDB: Entering KGDB\r\n", kdb=b"+$#00", go=b"+tick\r\n")
        error = self.brought(world)
        assert isinstance(error, GuestError)
        assert "shows no prompt of kdb" in str(error)
        assert "CONFIG_KGDB_KDB" in str(error)
        assert world.said == b"g+$3#33+$c#63"
        assert not world.shared.stands

    async def test_a_debugger_that_is_attached_keeps_the_kernel(self) -> None:
        world = self.world(g=GREETING)
        (await world.shared.connect(False)).close()
        error = self.brought(world)
        assert isinstance(error, GuestError)
        assert "a debugger is attached" in str(error)
        assert world.said == b""

    async def test_a_kernel_that_takes_no_break_in_is_named(self) -> None:
        world = self.world()
        with pytest.raises(GuestError, match="was not broken into"):
            raise self.brought(world)  # type: ignore[misc]

    async def test_a_debugger_that_comes_meanwhile_has_the_kernel(self) -> None:
        world = self.world(g=STOP)
        found: list[Any] = []
        import twisted.internet.task as task

        self.patch(kdb, "deferLater", lambda reactor, wait: task.deferLater(world.reactor, wait))
        Deferred.fromCoroutine(kdb.to_prompt(world.reactor, "web1", world.shared, world.ways)).addBoth(
            found.append
        )
        world.passes(0.002)
        one = await world.shared.connect(False)
        self.addCleanup(one.close)
        world.passes(2 * SILENCE + 5.0)
        assert "a debugger is attached" in str(found[0].value)
        assert b"$3#33" not in world.said
