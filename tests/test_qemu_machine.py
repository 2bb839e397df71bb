"""The machine monitor against a real QEMU that runs no kernel: SeaBIOS is enough."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from kbridge.errors import MachineError
from kbridge.hypervisors.interface import MOST_READ_BYTES, Machine, MachineEvent, MachineState, RunState
from kbridge.hypervisors.qemu import MUCH_BYTES, QemuMachine
from kbridge.transports.endpoints import Tcp, Unix

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.qemu

QEMU = "qemu-system-x86_64"

# Boot sectors, 16-bit code: `mov dx, port; mov ax, value; out dx, ax (or al); hlt`.
SWITCH_OFF = bytes.fromhex("ba0406 b80020 ef f4")  # the ACPI PM1a control port at 0x604: SLP_EN, type 0 (S5)
SLEEP = bytes.fromhex("ba0406 b80024 ef f4")  # the same, type 1 (S3)
COUNT = bytes.fromhex("31c0 8ed8 ff060005 ebfa")  # xor ax, ax; mov ds, ax; again: inc word [0x500]; jmp again
PANIC = bytes.fromhex("ba0505 b80100 ee f4")  # pvpanic at 0x505: bit 0, panicked


async def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    waited = 0.0
    while not condition():
        assert waited < seconds, f"{what} did not come within {seconds} s"
        await deferLater(reactor, 0.02)
        waited += 0.02


async def until_true(attempt: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    waited = 0.0
    while not await attempt():
        assert waited < seconds, f"{what} did not come within {seconds} s"
        await deferLater(reactor, 0.02)
        waited += 0.02


class Monitor:
    """Another client of the machine: a second QMP socket, spoken to without any of kbridge."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.greeting = self.file.readline()

    def execute(self, name: str, **arguments: Any) -> dict[str, Any]:
        self.file.write(json.dumps({"execute": name, "arguments": arguments, "id": name}))
        self.file.flush()
        while True:
            message: dict[str, Any] = json.loads(self.file.readline())
            if message.get("id") == name:
                return message

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class QemuCase(TestCase):
    def setUp(self) -> None:
        if shutil.which(QEMU) is None:
            raise AssertionError(f"{QEMU} is not installed: apt install qemu-system-x86")
        self.folder = tempfile.mkdtemp(prefix="kbridge-qemu-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.qmp = f"{self.folder}/qmp"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.addCleanup(self.kill_all)
        self.machine = QemuMachine(reactor, Unix(self.qmp), greeting_seconds=0.3)
        self.events: list[MachineEvent] = []
        self.machine.subscribe(self.events.append)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.machine.stop()))

    def boot(self, *more: str) -> subprocess.Popen[bytes]:
        other = f"unix:{self.folder}/other,server=on,wait=off"
        process = subprocess.Popen(
            [
                QEMU,
                "-machine",
                "pc",
                "-m",
                "16",
                "-nodefaults",
                "-display",
                "none",
                "-S",
                "-qmp",
                f"unix:{self.qmp},server=on,wait=off",
                "-qmp",
                other,
                *more,
            ],
            stdout=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def boot_sector(self, code: bytes) -> list[str]:
        Path(f"{self.folder}/disk").write_bytes(code.ljust(510, b"\xf4") + b"\x55\xaa" + bytes(1 << 20))
        return ["-drive", f"file={self.folder}/disk,format=raw,if=ide"]

    def is_socket(self, path: str) -> bool:
        return Path(path).is_socket()

    def kill_all(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    async def found(self, *more: str) -> subprocess.Popen[bytes]:
        process = self.boot(*more)
        self.machine.start()
        await until(lambda: self.machine.connected, "the machine")
        return process

    async def other(self) -> Monitor:
        await until(lambda: Path(self.folder, "other").exists(), "the second monitor")
        monitor = Monitor(f"{self.folder}/other")
        self.addCleanup(monitor.close)
        monitor.execute("qmp_capabilities")
        return monitor

    def holds(self, address: int, data: bytes) -> Callable[[], Any]:
        async def attempt() -> bool:
            return await self.machine.read_memory(address, len(data)) == data

        return attempt

    def differs(self, address: int, data: bytes) -> Callable[[], Any]:
        async def attempt() -> bool:
            return await self.machine.read_memory(address, len(data)) != data

        return attempt

    def named(self, name: str) -> list[MachineEvent]:
        return [event for event in self.events if event.name == name]

    def asked_resets(self) -> list[MachineEvent]:
        # A SeaBIOS that is reset while it sets itself up resets the machine once or twice more by itself.
        return [
            event
            for event in self.named("machine.reset")
            if event.data.get("reason") == "host-qmp-system-reset"
        ]

    async def refused(self, coroutine: Any, *words: str) -> str:
        with pytest.raises(MachineError) as caught:
            await coroutine
        for word in words:
            assert word in str(caught.value)
        return str(caught.value)


class CommandTests(QemuCase):
    async def test_it_finds_the_machine_before_its_first_instruction(self) -> None:
        assert self.machine.state == MachineState(RunState.UNKNOWN)
        as_port: Machine = self.machine
        await self.found()
        assert as_port.state == MachineState(RunState.PAUSED, "prelaunch")
        assert as_port.problem == ""
        [event] = self.named("machine.found")
        assert event.data["run"] == "paused"
        assert event.data["version"][0].isdigit()

    async def test_pause_and_resume_are_ours_and_others_are_theirs(self) -> None:
        await self.found()
        await self.machine.power_on()
        assert self.machine.state == MachineState(RunState.RUNNING, "running")
        await self.machine.pause()
        assert self.machine.state == MachineState(RunState.PAUSED, "paused")
        assert self.machine.stopped_by_us
        await self.machine.pause()
        await self.machine.resume()
        other = await self.other()
        other.execute("stop")
        await until(lambda: len(self.named("machine.stop")) == 2, "the other's stop")
        assert not self.machine.stopped_by_us
        await until(lambda: self.machine.state.detail == "paused", "the state after it")
        other.execute("cont")
        await until(lambda: self.machine.state.run.executes, "the other's resume")
        moves = [event for event in self.events if event.name in {"machine.stop", "machine.resume"}]
        assert [(event.name, event.data["ours"]) for event in moves] == [
            ("machine.resume", True),
            ("machine.stop", True),
            ("machine.resume", True),
            ("machine.stop", False),
            ("machine.resume", False),
        ]

    async def test_memory_is_read_while_the_guest_runs(self) -> None:
        await self.found(*self.boot_sector(COUNT))
        await self.machine.resume()
        # The boot sector is where the firmware put it, and what it counts moves on: nothing stands still for us.
        await until_true(self.holds(0x7C00, COUNT), "the boot sector")
        first = await self.machine.read_memory(0x500, 2)
        await until_true(self.differs(0x500, first), "a counter that moves")
        # The processor's first instruction, in the firmware: a far jump to f000:e05b.
        assert await self.machine.read_memory(0xFFFF0, 5) == bytes.fromhex("ea5be000f0")
        assert len(await self.machine.read_memory(0xF0800, 4096)) == 4096
        assert await self.machine.read_memory(0x7C00, 0) == b""
        assert self.machine.state.run is RunState.RUNNING
        assert self.named("machine.stop") == []

    async def test_of_memory_that_is_not_there_only_what_is_is_read(self) -> None:
        await self.found()
        memory = 16 << 20
        assert len(await self.machine.read_memory(memory - 6, 4000)) == 6
        assert await self.machine.read_memory(memory + 64, 64) == b""
        with pytest.raises(ValueError, match="cannot be read at once"):
            await self.machine.read_memory(0, MOST_READ_BYTES + 1)

    async def test_much_memory_is_read_at_once_where_qemu_can_be_handed_a_file(self) -> None:
        """The same bytes come by the human monitor, to which reads of less than a kilobyte go."""
        await self.found(*self.boot_sector(COUNT))
        await self.machine.resume()
        # It runs, and the firmware, which changes what it is made of, is over.
        await until_true(self.holds(0x7C00, COUNT), "the boot sector")

        async def by_text(address: int, length: int) -> bytes:
            return b"".join(
                [
                    await self.machine.read_memory(address + at, min(MUCH_BYTES - 1, length - at))
                    for at in range(0, length, MUCH_BYTES - 1)
                ]
            )

        firmware = await by_text(0xE0000, 0x20000)
        assert await self.machine.read_memory(0xE0000, 0x20000) == firmware
        assert len(await self.machine.read_memory(0, MOST_READ_BYTES)) == MOST_READ_BYTES
        # The page of the reset vector; what lies behind is not there.
        last = await by_text(0xFFFFF000, 4096)
        assert len(last) == 4096
        assert await self.machine.read_memory(0xFFFFF000, 8192) == last
        # QEMU holds one file for it, not one for each read.
        assert len(await self.machine._client.execute("query-fdsets")) == 1

        # A relay that was killed leaves it; whoever comes next has one of its own, and one.  Who stops leaves none.
        other = await self.other()
        await self.machine._client.stop()
        assert len(other.execute("query-fdsets")["return"]) == 1
        for _ in range(2):
            self.machine.start()
            await until(lambda: self.machine.connected, "the machine again")
            assert await self.machine.read_memory(0xE0000, 0x20000) == firmware
            (one,) = other.execute("query-fdsets")["return"]
            assert len(one["fds"]) == 1
            await self.machine.stop()
            assert other.execute("query-fdsets")["return"] == []

    async def test_reads_at_the_same_time_do_not_mix(self) -> None:
        await self.found()
        # QEMU has the file already: what is asked for now it is asked for at once.
        firmware = await self.machine.read_memory(0xF0000, 0x10000)
        places = range(0xF0000, 0x100000, 0x800)
        reads = [Deferred.fromCoroutine(self.machine.read_memory(at, 0x800)) for at in places]
        assert b"".join(await gatherResults(reads)) == firmware

    async def test_where_qemu_may_not_open_its_files_anew_memory_comes_as_text(self) -> None:
        await self.found()
        firmware = await self.machine.read_memory(0xF0000, 0x10000)
        file = self.machine._memory_file
        file._path = "/proc/self/fd/no-such-file"
        assert await self.machine.read_memory(0xF0000, 0x10000) == firmware
        assert file._is_refused
        assert await self.machine.read_memory(0xF0000, 0x10000) == firmware

    async def test_reset_is_over_when_it_returns_and_is_ours(self) -> None:
        await self.found()
        await self.machine.resume()
        await self.machine.reset()
        assert self.machine.state.run is RunState.RUNNING
        (await self.other()).execute("system_reset")
        await until(lambda: len(self.asked_resets()) >= 2, "the other's reset")
        assert [event.data["ours"] for event in self.asked_resets()] == [True, False]
        assert not any(event.data["ours"] for event in self.named("machine.reset")[1:])
        await self.machine.pause()
        await self.machine.reset()
        assert self.machine.state.run is RunState.PAUSED
        await self.machine.cycle()
        assert self.machine.state.run is RunState.RUNNING

    async def test_reset_of_a_machine_that_does_not_reboot_says_so(self) -> None:
        await self.found("-no-reboot", "-no-shutdown")
        await self.machine.resume()
        await self.refused(self.machine.reset(), "shut down instead", "-no-reboot")
        await until(lambda: self.machine.state.run is RunState.OFF, "off")

    async def test_a_machine_that_is_off_is_powered_on_by_reset_and_run(self) -> None:
        await self.found("-no-shutdown", *self.boot_sector(SWITCH_OFF))
        await self.machine.resume()
        await until(lambda: self.machine.state == MachineState(RunState.OFF, "shutdown"), "off")
        assert self.named("machine.shutdown")[0].data["ours"] is False
        await until(lambda: self.named("machine.stop"), "the stop")
        assert self.named("machine.stop")[0].data["cause"] == "shutdown"
        await self.refused(self.machine.resume(), "shutdown", "power it on")
        await self.machine.power_on()
        assert self.machine.state.run is RunState.RUNNING
        await until(lambda: self.machine.state.run is RunState.OFF, "off again")
        await self.machine.cycle()
        assert self.machine.state.run is RunState.RUNNING

    async def test_a_panic_is_told_with_its_cause_and_is_never_ours(self) -> None:
        await self.found("-device", "pvpanic", "-action", "panic=pause", *self.boot_sector(PANIC))
        await self.machine.resume()
        await until(lambda: self.named("machine.stop"), "the stop")
        assert self.machine.state == MachineState(RunState.PANICKED, "guest-panicked")
        assert self.named("machine.panic")[0].data["action"] == "pause"
        stop = self.named("machine.stop")[0].data
        assert (stop["ours"], stop["cause"]) == (False, "panic")
        assert (await self.machine.query()).run is RunState.PANICKED
        assert self.named("machine.state") == []
        await self.refused(self.machine.power_on(), "guest-panicked", "it is on")
        await self.machine.reset()

    async def test_a_guest_that_sleeps_is_woken_by_power_on(self) -> None:
        await self.found(*self.boot_sector(SLEEP))
        await self.machine.resume()
        await until(lambda: self.machine.state.run is RunState.SUSPENDED, "sleep")
        assert (await self.machine.query()) == MachineState(RunState.SUSPENDED, "suspended")
        await self.refused(self.machine.resume(), "suspended", "wakes")
        await self.machine.power_on()
        await until(lambda: self.named("machine.wakeup"), "the wake-up")
        assert self.machine.state.run is RunState.RUNNING

    async def test_the_power_button_is_pressed(self) -> None:
        await self.found()
        await self.machine.resume()
        await self.machine.power_off()
        await until(lambda: self.named("machine.powerdown"), "the power button")
        assert self.named("machine.powerdown")[0].data["ours"] is True
        assert self.machine.state.run is RunState.RUNNING

    async def test_power_button_of_a_resting_machine_is_refused(self) -> None:
        await self.found()
        await self.refused(self.machine.power_off(), "prelaunch", "force")

    async def test_force_ends_the_process_and_power_on_says_who_must_start_it(self) -> None:
        process = await self.found()
        await self.machine.power_off(force=True)
        assert not self.machine.connected
        assert self.machine.state.run is RunState.UNKNOWN
        assert process.wait(10) == 0
        assert self.named("machine.shutdown")[0].data["ours"] is True
        await until(lambda: "start it with" in self.machine.problem, "the reason")
        await self.refused(self.machine.power_on(), "cannot be reached", "start it with")
        await self.refused(self.machine.power_off(force=True), "cannot be reached")

    async def test_nmi(self) -> None:
        await self.found()
        await self.machine.nmi()
        await self.machine.resume()
        await self.machine.nmi()

    async def test_nmi_that_the_machine_has_not_is_an_error(self) -> None:
        await self.found("-machine", "none")
        await self.refused(self.machine.nmi(), "QEMU refused inject-nmi")

    async def test_events_that_we_do_not_know_are_passed_on(self) -> None:
        await self.found("-device", "piix3-usb-uhci", "-device", "usb-tablet,id=tablet")
        (await self.other()).execute("device_del", id="tablet")
        await until(lambda: self.named("machine.event"), "DEVICE_DELETED")
        assert self.named("machine.event")[0].data["event"] == "DEVICE_DELETED"
        assert self.named("machine.event")[0].data["device"] == "tablet"

    async def test_a_listeners_bug_keeps_the_event_from_nobody_else(self) -> None:
        end_bug = self.machine.subscribe(lambda event: 1 // 0)
        later: list[MachineEvent] = []
        end = self.machine.subscribe(later.append)
        await self.found()
        assert [event.name for event in later] == ["machine.found"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        end_bug()
        end()
        end()
        await self.machine.resume()
        assert len(later) == 1


class BreakTests(QemuCase):
    async def test_break_finds_the_line_by_its_endpoint(self) -> None:
        serial = f"{self.folder}/serial"
        await self.found(
            *["-chardev", f"socket,id=one,path={serial},server=on,wait=off", "-serial", "chardev:one"],
            *["-serial", "pty", "-serial", "telnet:127.0.0.1:0,server=on,wait=off"],
            *["-serial", "tcp:127.0.0.1:0,server=on,wait=off"],
        )
        await self.machine.send_break(f"unix:{serial}")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(serial)
            await self.machine.send_break(f"unix:{self.folder}/./serial")
        other = await self.other()
        names = {device["label"]: device["filename"] for device in other.execute("query-chardev")["return"]}
        pty = next(name for name in names.values() if name.startswith("pty:"))
        await self.machine.send_break(pty)
        for kind in ("telnet", "tcp"):
            port = next(n for n in names.values() if f"{kind}:" in n).partition(",")[0].rpartition(":")[2]
            await self.machine.send_break(f"{kind}:127.0.0.1:{port}")
            with socket.create_connection(("127.0.0.1", int(port))):
                await self.machine.send_break(f"{kind}:localhost:{port}")

    async def test_a_line_that_is_not_there_is_named_with_those_that_are(self) -> None:
        serial = f"{self.folder}/serial"
        await self.found("-serial", f"unix:{serial},server=on,wait=off")
        await self.refused(self.machine.send_break("unix:/elsewhere"), "serial0", serial, "SysRq")
        await self.refused(self.machine.send_break("serial:/dev/ttyS0:9600"), "no character device")
        await self.refused(self.machine.send_break("nonsense"), "BREAK was not sent", "no endpoint")


class StubTests(QemuCase):
    async def test_the_stub_is_started_replaced_and_closed_at_run_time(self) -> None:
        await self.found()
        await self.machine.resume()
        first, second = f"{self.folder}/gdb", f'{self.folder}/a "b",c'
        await self.machine.start_stub(first)
        await self.machine.start_stub(first)
        assert self.is_socket(first)
        assert self.machine.state.run is RunState.RUNNING
        await self.machine.start_stub(second)
        assert not self.is_socket(first)
        with socket.socket(socket.AF_UNIX) as gdb:
            gdb.settimeout(10)
            gdb.connect(second)
            # Connecting pauses the guest: that is how we know that a stub answers.
            await until(lambda: self.named("machine.stop"), "the stop")
            assert self.named("machine.stop")[0].data["ours"] is False
            await until(lambda: self.machine.state.detail == "paused", "the state after connecting")
            gdb.sendall(b"+$vCont;s:1#23")
            await until(lambda: self.machine.state.run is RunState.DEBUG, "the state after a step")
            assert [event.data["ours"] for event in self.named("machine.stop")] == [False, False]
            assert b"$T05thread:01;" in gdb.recv(100)
            await self.refused(self.machine.power_on(), "debugger")
            gdb.sendall(b"+$c#63")
            await until(lambda: self.machine.state.run is RunState.RUNNING, "the continue")
            await self.machine.pause()
            assert self.machine.stopped_by_us
        await self.machine.stop_stub()
        assert not self.is_socket(second)
        await self.machine.stop_stub()

    async def test_what_keeps_the_stub_from_starting_is_said_in_words(self) -> None:
        await self.found()
        await self.refused(self.machine.start_stub(f"{self.folder}/none/gdb"), "sees no folder", "container")
        await self.refused(self.machine.start_stub("/" + "x" * 107), "108 bytes", "at most 107")
        await self.refused(self.machine.start_stub("gdb"), "absolute")
        await self.refused(self.machine.start_stub("/a\nb"), "printable")

    async def test_a_folder_that_qemu_may_not_write_is_said_in_words(self) -> None:
        if os.geteuid() == 0:
            # Root may write anywhere but here: the kernel's own files.
            folder = "/proc/sys/kernel"
            await self.found()
            text = await self.refused(
                self.machine.start_stub(f"{folder}/gdb"), "QEMU's gdbstub was not started"
            )
            assert folder in text
            return
        folder = f"{self.folder}/closed"
        Path(folder).mkdir(0o500)  # noqa: ASYNC240
        await self.found()
        await self.refused(self.machine.start_stub(f"{folder}/gdb"), "another user", folder)

    async def test_concurrent_starts_take_turns(self) -> None:
        await self.found()
        paths = [f"{self.folder}/gdb{number}" for number in range(4)]
        started = [Deferred.fromCoroutine(self.machine.start_stub(path)) for path in paths]
        for each in started:
            await each
        assert [self.is_socket(path) for path in paths] == [False, False, False, True]


class ConnectionTests(QemuCase):
    async def test_qemu_killed_and_started_again_is_lost_and_found(self) -> None:
        process = await self.found()
        await self.machine.resume()
        process.send_signal(signal.SIGKILL)
        process.wait()
        await until(lambda: self.named("machine.lost"), "the loss")
        assert self.machine.state.run is RunState.UNKNOWN
        assert not self.machine.connected
        await self.refused(self.machine.pause(), "cannot be reached")
        await until(lambda: "nothing listens" in self.machine.problem, "the reason")
        self.boot()
        await until(lambda: self.machine.connected, "the machine again")
        assert self.machine.state == MachineState(RunState.PAUSED, "prelaunch")
        order = [event.name for event in self.events if event.name in {"machine.lost", "machine.found"}]
        assert order == ["machine.found", "machine.lost", "machine.found"]

    async def test_a_machine_that_starts_later_is_found(self) -> None:
        self.machine.start()
        await until(lambda: "no such socket" in self.machine.problem, "the reason")
        assert self.events == []
        self.boot()
        await until(lambda: self.named("machine.found"), "the machine")

    async def test_another_client_on_the_monitor_is_said_in_words_and_waited_for(self) -> None:
        self.boot()
        await until(lambda: Path(self.qmp).exists(), "the socket")
        holder = Monitor(self.qmp)
        self.addCleanup(holder.close)
        self.machine.start()
        await until(lambda: "holds this monitor" in self.machine.problem, "the reason")
        await self.refused(self.machine.pause(), "holds this monitor", "second monitor")
        holder.close()
        await until(lambda: self.machine.connected, "our turn")
        assert self.machine.problem == ""

    async def test_a_monitor_whose_queue_is_full_is_said_in_words_and_tried_again(self) -> None:
        self.boot()
        await until(lambda: Path(self.qmp).exists(), "the socket")
        holder = Monitor(self.qmp)
        self.addCleanup(holder.close)
        waiting = []
        for _ in range(20):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            self.addCleanup(client.close)
            waiting.append(client)
            if client.connect_ex(self.qmp):
                break
        else:
            raise AssertionError("the queue was never full")
        self.machine.start()
        await until(lambda: "queue is full" in self.machine.problem, "the reason")
        for client in waiting:
            client.close()
        holder.close()
        await until(lambda: self.machine.connected, "our turn")

    async def test_a_command_that_waits_when_qemu_dies_ends(self) -> None:
        process = await self.found()
        process.send_signal(signal.SIGSTOP)
        pausing = Deferred.fromCoroutine(self.machine.pause())
        process.kill()
        await self.refused(pausing, "went away during stop")

    async def test_a_monitor_that_hangs_meets_the_deadline_and_is_of_use_later(self) -> None:
        machine = QemuMachine(reactor, Unix(f"{self.folder}/other"), command_seconds=1.0)
        self.addCleanup(lambda: Deferred.fromCoroutine(machine.stop()))
        process = self.boot()
        machine.start()
        await until(lambda: machine.connected, "the machine")
        process.send_signal(signal.SIGSTOP)
        await self.refused(machine.query(), "did not answer query-status within 1 s")
        process.send_signal(signal.SIGCONT)
        assert (await machine.query()).detail == "prelaunch"

    async def test_over_tcp(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        machine = QemuMachine(reactor, Tcp("127.0.0.1", port))
        self.addCleanup(lambda: Deferred.fromCoroutine(machine.stop()))
        self.boot("-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off")
        machine.start()
        await until(lambda: machine.connected, "the machine")

    async def test_stopping_while_it_waits_for_anything_leaves_nothing(self) -> None:
        never = QemuMachine(reactor, Unix(f"{self.folder}/never"))
        await never.stop()
        never.start()
        await until(lambda: never.problem.startswith("there is no such socket"), "the first failure")
        await never.stop()
        await self.found()
        await self.machine.stop()
        assert not self.machine.connected
        self.machine.start()
        await until(lambda: self.machine.connected, "the machine again")
