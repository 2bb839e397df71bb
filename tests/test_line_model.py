"""A user who types at any moment, a debugger who stops and goes on, a kernel with a UART between: nobody is forgotten.

The line, the keys and the client are real; the kernel follows kernel/debug/gdbstub.c, and stops as its console's driver
reads a key, at a breakpoint, or at BREAK and `g`.  Time is a clock's, and each seed another interleaving.
"""

from __future__ import annotations

import socket
from collections import deque
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rsp.kgdb import Kgdb
from test_line_shared import Descriptors, Line
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from gdbstubs.client import State, StubClient
from gdbstubs.dialects import KGDB
from gdbstubs.keys import Told
from gdbstubs.target import Action, Breakpoint, BreakpointKind, Halted, Motion
from kbridge.console.recorder import Recorder
from kbridge.transports.endpoints import Break
from kbridge.transports.shared_line import SharedLine

BREAK = 256
"""Among the bytes of a UART."""
HINT = b"KGDB: KGDB or $3#33 for KDB\r\n"
DRIVER = 0x2000
LETTERS = b"abcdefgh"
KEYS = LETTERS + b" \r$$+#-\x03"
MILLISECOND = 0.001
MOST_SILENT = 5.0
"""Seconds for which a kernel may stand while its debugger waits for a stop."""


class Uart(Line):
    """What was written to the line, before the kernel reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.fifo: deque[int] = deque()

    def write(self, data: bytes) -> None:
        self.fifo.extend(data)

    async def send_break(self, how: Break) -> None:
        self.fifo.append(BREAK)


class World:
    """All of it, a millisecond at a time."""

    def __init__(self, folder: Path, seed: int, keys: bytes) -> None:
        self.random = Random(seed)
        self.keys = keys
        self.reactor = Descriptors()
        self.recorder = Recorder(folder, 1 << 20)
        self.uart = Uart()
        self.shared = SharedLine(self.reactor, self.recorder)
        line: Any = self.uart
        self.shared.opened(line)
        self.shared.line_opened("a line")
        self.words: list[str] = []
        self.shared.on_words(self.words.append)
        self.kernel = Kgdb()
        self.kernel.is_typed_at = True
        self.socket: socket.socket | None = None
        self.client = StubClient(KGDB, self.words.append, self._break_in)
        self.stops: list[object] = []
        self.wire: deque[int] = deque()
        self.printed = b""
        self.typed = b""
        self.shell = b""
        self._was_break = False
        self._stood = 0.0

    # -- the kernel -------------------------------------------------------------------------------------------

    def _kernel_reads(self) -> None:
        """Read some of what is in the UART, as the driver's interrupt does, or kgdb, which polls."""
        kernel, most = self.kernel, self.random.choice([0, 0, 1, 4, 16])
        while self.uart.fifo and most > 0:
            most -= 1
            byte = self.uart.fifo.popleft()
            if kernel.in_debugger:
                # A framing error is a NUL to who polls.
                kernel.receive(bytes((byte % BREAK,)))
            elif byte == BREAK:
                self._was_break = True
                continue
            elif self._was_break and byte == ord("g"):
                if not kernel.connected:
                    self._prints(HINT)
                kernel.break_in()
            else:
                self.shell += bytes((byte,))
                if kernel.breakpoints:
                    kernel.trap(DRIVER)
                else:
                    self._prints(bytes((byte,)))
            self._was_break = False
        self.wire += kernel.output
        kernel.output.clear()

    def _prints(self, data: bytes) -> None:
        self.printed += data
        self.wire += data

    # -- the relay's side -------------------------------------------------------------------------------------

    def _break_in(self) -> None:
        sysrq = self.shared.for_sysrq
        Deferred.fromCoroutine(sysrq.send_break(Break.SERIAL))
        sysrq.write(b"g")

    def _client_acts(self) -> None:
        assert self.socket is not None
        self.client.now = self.reactor.seconds()
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            data = b""
        if data:
            self.client.receive(data)
        deadline = self.client.deadline
        if deadline is not None and self.client.now >= deadline:
            self.client.expire()
        if output := self.client.take_output():
            self.socket.sendall(output)

    def _line_speaks(self) -> None:
        """Bring some of what the kernel said; a host that is busy finds more at once, and later."""
        data = bytes(
            self.wire.popleft() for _ in range(min(len(self.wire), self.random.choice([0, 1, 7, 12, 60])))
        )

        def read_into(window: memoryview) -> int:
            window[: len(data)] = data
            return len(data)

        if data:
            self.shared.receive(read_into)

    def step(self) -> None:
        self._kernel_reads()
        self._line_speaks()
        self.reactor.turn()
        self._client_acts()
        self.reactor.turn()
        self.reactor.clock.advance(MILLISECOND)
        told = self.client.state is not State.RUNNING
        self._stood = 0.0 if told or not self.kernel.in_debugger else self._stood + MILLISECOND
        assert self._stood < MOST_SILENT, "the guest stands, and its debugger was not told"

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds / MILLISECOND)):
            self.step()

    def until(self, condition: Any, what: str, seconds: float = 40.0) -> None:
        for _ in range(round(seconds / MILLISECOND)):
            if condition():
                return
            self.step()
        raise AssertionError(f"{what} did not come within {seconds} s")

    # -- the people -------------------------------------------------------------------------------------------

    def types(self) -> None:
        data = bytes(self.random.choices(self.keys, k=self.random.choice([1, 3, 8, 20])))
        self.typed += data
        self.shared.write(data)

    async def attach(self) -> None:
        self.socket = await self.shared.connect(False)
        greeted: list[object] = []
        self.client.connected(greeted.append, running=True)
        self.until(lambda: greeted, "a greeting")
        assert isinstance(greeted[0], Halted)

    def asks(self, operation: Any, *arguments: Any) -> object:
        answers: list[object] = []
        operation(*arguments, answers.append)
        self.until(lambda: answers, "an answer")
        return answers[0]

    def goes(self) -> list[object]:
        stops: list[object] = []
        self.client.resume((Action(Motion.CONTINUE),), stops.append)
        return stops

    def gets_a_stop(self, stops: list[object]) -> Halted:
        """Wait for the stop; break in again where BREAK and key were lost on a kernel that stood just then."""
        self.passes(1.5)
        if not stops:
            self.client.interrupt()
        self.until(lambda: stops, "a stop")
        stop = stops[0]
        assert isinstance(stop, Halted)
        return stop


async def live(world: World) -> None:
    random, client = world.random, world.client
    driver = Breakpoint(BreakpointKind.SOFTWARE, DRIVER, 1)
    await world.attach()
    for _ in range(4):
        if random.random() < 0.7 and driver not in client.inserted:
            assert world.asks(client.insert, driver) is None
        stops = world.goes()
        for _ in range(random.randrange(3)):
            world.passes(random.choice([0.0, 0.003, 0.02, 0.9, 1.2]))
            world.types()
        stop = world.gets_a_stop(stops)
        if random.random() < 0.5:
            world.types()
        assert stop.thread is not None
        assert not isinstance(world.asks(client.read_memory, stop.thread, 0x1000, 64), Exception)
        if driver in client.inserted and random.random() < 0.7:
            assert world.asks(client.remove, driver) is None
    if driver in client.inserted:
        assert world.asks(client.remove, driver) is None
    world.goes()
    world.until(lambda: not (world.shared._demux.keys.wait or world.uart.fifo or world.wire), "the last key")
    world.passes(1.0)
    assert not world.kernel.in_debugger


def lives(folder: Path, seed: int, keys: bytes) -> World:
    world = World(folder, seed, keys)
    outcome: list[object] = []
    Deferred.fromCoroutine(live(world)).addBoth(outcome.append)
    Deferred.fromCoroutine(world.shared.close())
    world.recorder.close()
    if world.socket is not None:
        world.socket.close()
    if outcome and isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    assert outcome == [None]
    return world


@pytest.mark.parametrize("seed", [*range(20), 79, 137, 390, 399])
def test_nobody_is_forgotten(tmp_path: Path, seed: int) -> None:
    world = lives(tmp_path, seed, KEYS)
    # Nothing is added, and what kgdb swallowed without a sign was said.
    given = iter(world.typed)
    assert all(byte in given for byte in world.shell)
    assert world.shell == world.typed or Told.LOST.value in world.words


@pytest.mark.parametrize("seed", range(10))
def test_letters_arrive_whole_whenever_they_are_typed(tmp_path: Path, seed: int) -> None:
    world = lives(tmp_path, seed, LETTERS)
    assert world.typed
    assert world.shell == world.typed
