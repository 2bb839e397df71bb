"""Real kgdb on a serial port of its own: broken into by itself, explained when it cannot be, and behind the relay."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bridge_lab import Bridge, Gdb, wait_for
from line_lab import LineTestCase, reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater

from gdbstubs.wire import frame
from kbridge.breakin import BreakIn
from kbridge.breaks import Breaks
from kbridge.config import BreakInWay
from kbridge.console.recorder import Recorder
from kbridge.errors import GuestError
from kbridge.hypervisors.interface import RunState
from kbridge.hypervisors.qemu import QemuMachine
from kbridge.transports.endpoints import parse_endpoint
from kbridge.transports.lines import LineState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.guest

BOOT_SECONDS = 90.0
PROMPT = b"/root # "


async def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    end = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < end, f"{what} did not come within {seconds} s"
        await deferLater(reactor, 0.02)


class Port(Protocol):
    """kgdb's port: all that came, and no connection of a debugger's own."""

    def __init__(self) -> None:
        self.said = b""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 Twisted's
        self.said += data

    def ask(self, payload: bytes) -> None:
        assert self.transport is not None
        self.said = b""
        self.transport.write(frame(payload))

    def acknowledge(self) -> None:
        assert self.transport is not None
        self.transport.write(b"+")


class KgdbTests(LineTestCase):
    @pytest.fixture(autouse=True)
    def _guests(self, kgdb_guest: Callable[..., dict[str, Any]]) -> None:
        self.start_guest = kgdb_guest

    async def begin(self, *arguments: str) -> None:
        self.said = self.start_guest(*arguments)
        self.addCleanup(os.kill, self.said["pid"], signal.SIGKILL)
        folder = Path(tempfile.mkdtemp(prefix="kb-"))
        self.addCleanup(shutil.rmtree, folder)
        self.machine = QemuMachine(reactor, parse_endpoint(self.said["qmp"]))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.machine.stop()))
        self.recorder = Recorder(folder, 1 << 20)
        self.addCleanup(self.recorder.close)
        console = parse_endpoint(self.said["console"])
        self.line = self.open_line(console, self.recorder)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.line.close()))
        self.machine.start()
        self.ways = BreakIn(
            "web1",
            (BreakInWay.SYSRQ,),
            breaks=Breaks(console, lambda: self.line, self.machine),
            machine=self.machine,
            said=self.recorder.ring,
        )
        await until(lambda: self.line.state is LineState.OPEN and self.machine.connected, "line and monitor")
        await until(lambda: PROMPT in self.console(), "the shell", BOOT_SECONDS)

    def console(self) -> bytes:
        ring = self.recorder.ring
        return ring.read(ring.oldest, ring.head - ring.oldest) or b""

    async def run_in_guest(self, command: str) -> None:
        """Have the guest's shell do something, and wait until it has."""
        before = self.console().count(b"DO-NE")
        self.line.write(f'{command}; echo DO"-"NE\r'.encode())
        await until(lambda: self.console().count(b"DO-NE") > before, command)

    async def attach(self) -> Port:
        path = self.said["kgdb"].removeprefix("unix:")
        port: Port = await connectProtocol(UNIXClientEndpoint(reactor, path), Port())
        self.addCleanup(port.transport.abortConnection)
        return port

    async def answered(self, port: Port, text: bytes, seconds: float) -> bool:
        end = reactor.seconds() + seconds
        while text not in port.said:
            if reactor.seconds() > end:
                return False
            await deferLater(reactor, 0.02)
        return True

    async def test_a_running_kernel_is_broken_into_again_and_again(self) -> None:
        await self.begin("--kgdb-port", "--append", "kbridge.tick=0.2")
        port = await self.attach()
        for attempt in range(3):
            # A question that comes early waits in the serial port and is answered at the stop: the only sign of a
            # stop that there always is.
            port.ask(b"?")
            assert not await self.answered(port, b"$", 0.1), port.said
            way = await self.ways.enter(lambda seconds: self.answered(port, b"$S05#b8", seconds))
            assert way is BreakInWay.MONITOR_BREAK
            # kdb's greeting comes before the first packet ever, and never again.
            assert (b"Entering kdb" in port.said) == (attempt == 0), port.said
            port.acknowledge()
            # The machine's monitor sees no stop.
            assert (await self.machine.query()).run is RunState.RUNNING
            ticks = self.console().count(b"tick ")
            port.ask(b"D")
            assert await self.answered(port, b"$OK#9a", 5)
            port.acknowledge()
            await until(lambda ticks=ticks: self.console().count(b"tick ") > ticks, "a guest that runs on")

    async def test_memory_of_a_running_kernel_is_read_by_its_own_page_tables(self) -> None:
        await self.begin("--no-kaslr")
        text = 0xFFFFFFFF81000000
        data = await self.machine.read_memory(text, 4096)
        assert len(data) == 4096
        assert await self.machine.read_memory(text + 16, 8) == data[16:24]
        # Nothing is mapped before the kernel: of what lies across its start, nothing comes.
        assert await self.machine.read_memory(text - 8, 16) == b""
        assert await self.machine.read_memory(0x10, 16) == b""
        assert self.machine.state.run is RunState.RUNNING

    async def test_what_keeps_a_kernel_from_being_broken_into_is_said_in_its_own_words(self) -> None:
        await self.begin("--second-serial")

        async def refused(mark: bytes, expected: str) -> None:
            async def heard(_: float) -> bool:
                await until(lambda: mark in self.console(), repr(mark))
                return False

            with pytest.raises(GuestError) as caught:
                await self.ways.enter(heard)
            assert expected in str(caught.value)

        await refused(b"sysrq: HELP", "boot it with kgdboc=PORT")
        await self.run_in_guest("echo ttyS1 > /sys/module/kgdboc/parameters/kgdboc")
        await self.run_in_guest("echo 4 > /proc/sys/kernel/sysrq")
        await refused(b"This sysrq operation is disabled", "allow it in the guest")
        self.ways = BreakIn(
            "web1",
            (BreakInWay.NMI,),
            breaks=Breaks(None, lambda: None, self.machine),
            machine=self.machine,
            said=self.recorder.ring,
        )
        await refused(b"Uhhuh. NMI received", "the kernel took it for none of its own")
        await self.run_in_guest("uname -r")


# -- behind the relay ---------------------------------------------------------------------------------------


class KgdbBridge(Bridge):
    """`kbridge up` for a guest whose stub is kgdb."""

    def __init__(self, start_guest: Callable[..., dict[str, Any]]) -> None:
        super().__init__(start_guest, "--kgdb-port", "--no-kaslr", more='stub_kind = "kgdb"\n')

    def start_guest(self) -> None:
        super().start_guest()
        config = self.dir / "kbridge.toml"
        config.write_text(f'{config.read_text()}stub = "{self.guest["kgdb"]}"\n')

    def kgdb(self, *commands: str) -> Gdb:
        return Gdb(self.env, [f"file {self.guest['vmlinux']}", f"target remote {self.socket}", *commands])


@pytest.fixture(scope="module")
def bridge(shared_kgdb_guest: Callable[..., dict[str, Any]]) -> Iterator[KgdbBridge]:
    with KgdbBridge(shared_kgdb_guest) as bridge:
        yield bridge


HIT = 'printf "here %d\\n", $pc == (long)&schedule'
"""gdb's own opinion of where it is, of which a program counter that is one too far makes 0."""


@pytest.mark.gdb
def test_a_kernel_at_kdb_is_taken_over_and_let_go(bridge: KgdbBridge) -> None:
    """The first test on this guest: only its first stop is kdb's."""
    for greeting in ("Entering kdb", "DEBUG"):
        # Nobody is attached: the kernel stops at kdb's prompt, or, after a debugger was there, in kgdb.
        assert greeting in bridge.run("break", "web1", "--sysrq", "g").stdout
        assert "detached" in bridge.kgdb("info symbol $pc", "detach").finish()
        bridge.goes_on()
    assert [one["kind"] for one in bridge.events()].count("debugger.break_in") == 0
    assert "its kgdb has a port of its own" in bridge.run("break", "web1", "--kdb").stderr


@pytest.mark.gdb
def test_a_breakpoint_is_hit_on_both_processors_and_nothing_stays(bridge: KgdbBridge) -> None:
    gdb = bridge.kgdb("break schedule")
    processors = set()
    for _ in range(100):
        gdb.output = b""
        gdb.then("continue")
        gdb.wait_for("hit Breakpoint 1, ")
        gdb.then(HIT)
        gdb.wait_for("here 1")
        # Who runs on one processor only has its number in the name: kworker/1:0, migration/0.
        gdb.then("info threads")
        gdb.then('printf "all %d\\n", 1')
        gdb.wait_for("all 1")
        bound = re.search(rb"\n\* \d+ +Thread \d+ \(\w+/([01])\b", gdb.output)
        processors |= {bound[1]} if bound else set()
        if processors == {b"0", b"1"}:
            break
    assert processors == {b"0", b"1"}
    # Where both processors run into the breakpoint all the time, one does while the other is stepped.
    gdb.then("next")
    gdb.then("info registers rip")
    gdb.wait_for("rip  ")
    gdb.then("detach")
    assert "detached" in gdb.finish()
    bridge.goes_on()
    assert bridge.breakpoints() == []


@pytest.mark.gdb
def test_a_kernel_whose_processors_both_hit_a_breakpoint_runs_on_when_gdb_leaves(bridge: KgdbBridge) -> None:
    for leave in ("detach", "kill"):
        gdb = bridge.kgdb("break schedule")
        for _ in range(6):
            gdb.output = b""
            gdb.then("continue")
            gdb.wait_for("hit Breakpoint 1, ")
        gdb.then("next")
        gdb.then('printf "next %d\\n", 1')
        gdb.wait_for("next 1")
        if leave == "detach":
            gdb.then("detach")
            gdb.finish()
        else:
            gdb.kill()
        wait_for(lambda: not bridge.sessions(), "a session that ended")
        bridge.goes_on()


@pytest.mark.gdb
def test_gdb_killed_while_the_kernel_runs_leaves_no_breakpoint(bridge: KgdbBridge) -> None:
    gdb = bridge.kgdb("break panic", "continue")
    gdb.wait_for("Continuing.")
    bridge.goes_on()
    gdb.kill()
    wait_for(lambda: not bridge.sessions() and not bridge.breakpoints(), "a kernel that was cleaned", 30)
    bridge.goes_on()
    gdb = bridge.kgdb("break schedule", "continue")
    gdb.wait_for("hit Breakpoint 1, ")
    gdb.kill()
    bridge.goes_on()
    assert "detached" in bridge.kgdb("info registers rip", "detach").finish()
    bridge.goes_on()
