"""Our own debugger on sockets: on a stub that is made up, and on a booted kernel behind a relay."""

from __future__ import annotations

import io
import re
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from bridge_lab import Bridge, Monitor
from rsp.stub import REGISTERS, Machine, memory_at
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import TestCase

from gdbstubs.dialects import KGDB, QEMU
from gdbstubs.target import Breakpoint, BreakpointKind, Ended, Halted, ThreadId
from kbridge.errors import GuestError, KbridgeError
from kbridge.rsp_client import RspClient, connect
from kbridge.transports.endpoints import Unix
from kbridge.transports.streams import Listener, Stream

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "rsp-client.md"
ONE = ThreadId(1)
RIP = int.from_bytes(REGISTERS[24:32], "little")


class Stub:
    """A machine's stub on a socket; time passes when the machine runs."""

    def __init__(self, path: Path, machine: Machine) -> None:
        self.machine = machine
        self.silent = self.advances = False
        self.streams: list[Stream] = []
        self.listener = Listener(reactor, path, self._accepted)

    def _accepted(self, connection: socket.socket) -> None:
        stream = Stream(
            reactor, connection, lambda data: self._received(stream, data), lambda reason: self._left()
        )
        self.streams.append(stream)
        self.machine.connect()
        self._say(stream)

    def _received(self, stream: Stream, data: bytes) -> None:
        if self.silent:
            return
        self.machine.receive(data)
        self._say(stream)
        if self.machine.running:
            self.machine.advance()
            self._say(stream)

    def _say(self, stream: Stream) -> None:
        said = bytes(self.machine.output)
        self.machine.output.clear()
        stream.send(said)

    def _left(self) -> None:
        self.machine.close()

    def close(self) -> None:
        self.listener.close()
        for stream in self.streams:
            stream.abort("the test is over")


class OnAMadeUpStub(TestCase):
    timeout = 30

    def setUp(self) -> None:
        folder = tempfile.mkdtemp(prefix="kb-")
        self.addCleanup(shutil.rmtree, folder)
        self.where = Unix(f"{folder}/gdb")
        self.machine = Machine()
        self.stub = Stub(Path(self.where.path), self.machine)
        self.addCleanup(self.stub.close)

    async def connected(self) -> RspClient:
        client = await connect(reactor, self.where, dialect=QEMU)
        self.addCleanup(lambda: ensureDeferred(client.close()))
        return client

    async def test_the_example_of_the_document_runs(self) -> None:
        blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        assert len(blocks) == 1
        names: dict[str, Any] = {}
        exec(compile(blocks[0], str(DOCUMENT), "exec"), names)
        # It is written for a relay; the made-up stub is one whose features are few.
        self.machine.features = b"qXfer:features:read+"
        self.machine.registers[24:32] = (0x2000).to_bytes(8, "little")
        self.machine.path = [0x2004]
        said = io.StringIO()
        with redirect_stdout(said):
            await names["main"](reactor, str(self.where))
        assert said.getvalue().splitlines() == [
            f"stopped at 0x2000: {memory_at(0x2000, 8).hex(' ')}",
            "thread 1: CPU#0 [running]",
            "thread 2: CPU#0 [running]",
            "thread 1 came there again",
            "and went on to 0x2004",
        ]
        assert not self.machine.breakpoints
        assert self.machine.running, "left as it was found"

    async def test_registers_and_memory_are_read_and_written(self) -> None:
        client = await self.connected()
        assert client.stop == Halted(5, ONE)
        registers = await client.registers()
        assert registers["rip"] == RIP
        assert registers["cs"] == int.from_bytes(REGISTERS[36:40], "little")
        await client.write_register("rax", 0x1234)
        assert b"P0=3412000000000000" in self.machine.seen
        await client.write_memory(0x3000, b"hello")
        assert await client.read_memory(0x3000, 5) == b"hello"
        for wrong in (client.write_register("rax", 1 << 64), client.write_register("nonsense", 1)):
            with pytest.raises(GuestError):
                await wrong
        with pytest.raises(GuestError, match="errno 20"):
            await client.read_memory(0, 8)

    async def test_stops_are_waited_for(self) -> None:
        client = await self.connected()
        self.machine.path = [0x2004, 0x2008, 0x2010]
        assert await client.step_range(0x2000, 0x2010) == Halted(5, ONE)
        assert (await client.registers())["rip"] == 0x2010
        client.resume()
        with pytest.raises(GuestError, match=r"did not answer within 0\.05 s"):
            await client.wait(0.05)
        assert await client.interrupt() == Halted(2, ONE)
        assert await client.wait(0.0) == Halted(2, ONE)
        assert client.stop == Halted(2, ONE)
        with pytest.raises(GuestError, match="backwards"):
            await client.step_back()

    async def test_a_stub_that_vanishes_ends_what_waits(self) -> None:
        client = await self.connected()
        client.resume()
        waiting = ensureDeferred(client.wait(20))
        self.stub.streams[0].abort("gone")
        stop = await waiting
        assert isinstance(stop, Ended)
        with pytest.raises(GuestError):
            await client.registers()
        await client.close()

    async def test_a_stub_that_is_silent_is_given_up(self) -> None:
        self.stub.silent = True
        with pytest.raises(GuestError, match=r"did not answer within 0\.2 s"):
            await connect(reactor, self.where, dialect=QEMU, seconds=0.2)
        with pytest.raises(KbridgeError, match="cannot connect"):
            await connect(reactor, Unix(f"{self.where.path}-2"))

    async def test_closing_detaches(self) -> None:
        client = await self.connected()
        await client.insert(Breakpoint(BreakpointKind.SOFTWARE, 0x1000, 1))
        await client.close()
        await client.close()
        left: Deferred[None] = Deferred()
        reactor.callLater(0, left.callback, None)
        await left
        assert not self.machine.breakpoints
        assert self.machine.running


StartGuest = Callable[..., dict[str, Any]]


@pytest.mark.guest
class OnAKernelsOwnStub(TestCase):
    timeout = 200

    @pytest.fixture(autouse=True)
    def _guests(self, kgdb_guest: StartGuest) -> None:
        self.start_guest = kgdb_guest

    async def test_kgdb_is_broken_into_and_left(self) -> None:
        guest = self.start_guest("--kgdb-port", "--append", "kbridge.tick=0.2")
        monitor = Monitor(guest["qmp"].removeprefix("unix:"))
        self.addCleanup(monitor.close)
        console = socket.socket(socket.AF_UNIX)
        self.addCleanup(console.close)
        console.settimeout(90)
        console.connect(guest["console"].removeprefix("unix:"))

        def ticks(count: int) -> None:
            said = b""
            while said.count(b"tick ") < count:
                said += console.recv(65536)

        def break_in() -> None:
            monitor.command("chardev-send-break", id=guest["console_id"])
            console.sendall(b"g")

        ticks(1)
        line = Unix(guest["kgdb"].removeprefix("unix:"))
        client = await connect(reactor, line, dialect=KGDB, break_in=break_in)
        assert isinstance(client.stop, Halted)
        assert client.stop.thread is not None
        registers = await client.registers()
        assert registers["gs_base"] is None, "kgdb does not tell"
        here = registers["rip"]
        assert here is not None
        assert len(await client.read_memory(here, 1500)) == 1500
        threads = await client.threads()
        assert {"shadowCPU0", "shadowCPU1", "init"} <= {one.extra for one in threads}
        stop = await client.step()
        assert isinstance(stop, Halted)
        registers = await client.registers()
        assert registers["rip"] != here
        pointer = registers["rsp"]
        assert pointer is not None
        stood = await client.read_memory(pointer, 64)
        await client.write_memory(pointer, bytes(64))
        assert await client.read_memory(pointer, 64) == bytes(64)
        await client.write_memory(pointer, stood)
        client.resume()
        ticks(2)
        stop = await client.interrupt()
        assert isinstance(stop, Halted)
        await client.close()
        ticks(2)


INTERRUPT_TABLE = 0xFFFFFE0000000000
TIMER_VECTOR = 0xEC
"""Of each processor's own timer (arch/x86/include/asm/irq_vectors.h, LOCAL_TIMER_VECTOR)."""


def handler(table: bytes, vector: int) -> int:
    """Return where an interrupt is handled, out of the table of gates (Intel SDM volume 3, 6.14.1)."""
    low, _, _, middle, high = struct.unpack_from("<HHHHI", table, 16 * vector)
    return int(high << 32 | middle << 16 | low)


@pytest.mark.guest
class OnARealKernel(TestCase):
    timeout = 200

    @pytest.fixture(autouse=True)
    def _guests(self, cloud_guest: StartGuest) -> None:
        self.start_guest = cloud_guest

    async def test_a_kernel_is_debugged_behind_a_relay(self) -> None:
        with Bridge(self.start_guest) as bridge:
            client = await connect(reactor, Unix(str(bridge.socket)))
            stop = client.stop
            assert isinstance(stop, Halted)
            registers = await client.registers()
            assert registers["rip"]
            assert registers["cr3"]
            assert len(await client.threads()) == 2
            table = await client.read_memory(INTERRUPT_TABLE, 4096)
            assert len(table) == 4096
            # Where it stands it may never come again: it boots.
            here = handler(table, TIMER_VECTOR)
            assert await client.read_memory(here, 16)
            assert "web1" in await client.monitor("status")
            place = Breakpoint(BreakpointKind.HARDWARE, here, 1)
            await client.insert(place)
            client.resume()
            assert isinstance(await client.wait(60), Halted)
            assert (await client.registers())["rip"] == here
            await client.remove(place)
            stop = await client.step_range(here, here + 1)
            assert isinstance(stop, Halted)
            assert (await client.registers())["rip"] != here
            await client.close()
            bridge.goes_on()
            assert bridge.breakpoints() == []
            assert bridge.state() == "running"
