"""A kernel's command line changed by the debug stub: on kernels that QEMU starts itself, and where it is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from boot_by_stub_lab import RelayCase, reached
from bridge_lab import Monitor
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from gdbstubs.target import Breakpoint, BreakpointKind, Halted
from kbridge.boot.by_stub import why_not
from kbridge.boot.running import BootRun
from kbridge.boot.wishes import Way, Wishes
from kbridge.errors import GuestError
from kbridge.rsp_client import RspClient, connect
from kbridge.transports.endpoints import Unix
from kbridge.transports.lines import LineState

if TYPE_CHECKING:
    from kbridge.guest import Guest


@pytest.mark.guest
class OnKernelsThatQemuStarts(RelayCase):
    timeout = 280

    @pytest.fixture(autouse=True)
    def _guests(self, cloud_guest: Any, kgdb_guest: Any) -> None:
        self.start_cloud, self.start_kgdb = cloud_guest, kgdb_guest

    async def test_a_kernel_starts_with_another_command_line_and_comes_to_a_root_shell(self) -> None:
        guest = await self.serve(reached(self.start_cloud()))
        # SeaBIOS may hang when it is reset before it was ready.
        await self.shows(guest, "Linux version")
        change = await self.change(guest, lambda old: f"{old} rdinit=/bin/sh")
        assert change.old == "console=ttyS0"
        assert (change.place, change.moved) == (0x2_0000, False)
        self.left_alone(guest)
        assert guest.state == "running"
        assert self.said[0] == "the machine was reset"
        await self.shows(guest, "Kernel command line: console=ttyS0 rdinit=/bin/sh")
        await self.shows(guest, "Run /bin/sh as init process")
        await self.shows(guest, "/ # ")
        assert guest.line is not None
        guest.line.write(b"echo u''id=$(id -u)\r")
        await self.shows(guest, "uid=0")
        (entry,) = self.events(guest, "boot.command_line")
        assert '"by":"ann"' in entry

    async def test_the_longest_line_that_a_kernel_takes_is_given_to_one_that_was_never_started(self) -> None:
        # Whatever debuggers leave behind, a guest that was started runs.
        stays = 'on_leave = "stay"\n'
        guest = await self.serve(reached(self.start_kgdb("--stopped", "--smp", "4")) + stays)
        # What stands at the end of so long a line is not printed, but obeyed.
        long = "console=ttyS0 a=".ljust(2047 - 10, "b") + " maxcpus=1"
        change = await self.change(guest, lambda old: long)
        assert change.new == long
        self.left_alone(guest)
        assert self.events(guest, "machine.reset") == []
        await self.shows(guest, f"Kernel command line: {long[:100]}")
        await self.shows(guest, "smp: Brought up 1 node, 1 CPU")

    async def test_a_kernel_whose_line_cannot_be_changed_starts_with_its_loaders(self) -> None:
        guest = await self.serve(reached(self.start_cloud("--stopped")) + 'on_leave = "stay"\n')
        assert "2048 bytes, and this kernel takes 2047" in await self.refused(guest, more="x" * 2035)
        self.left_alone(guest)
        await self.shows(guest, "Kernel command line: console=ttyS0\r\n")

    async def test_a_relay_that_is_killed_at_the_entry_leaves_no_breakpoint_behind(self) -> None:
        said = self.start_cloud("--stopped")
        config = self.write_config(reached(said))
        done = run_killed(config)
        assert done.returncode == -signal.SIGKILL, done.stderr
        monitor = Monitor(said["qmp"].removeprefix("unix:"))
        assert monitor.status() in ("paused", "debug")
        monitor.close()
        assert (self.dir / "state" / "guests" / "web1" / "journal").exists()

        guest = await self.serve(reached(said))
        await self.shows(guest, "Kernel command line: console=ttyS0\r\n")
        self.left_alone(guest)
        # Reset, it passes the kernel's entry again.
        await guest.power("reset", "ann")
        await self.until(lambda: self.console(guest).count("Kernel command line:") == 2, "the next boot")

    async def test_somebody_who_debugs_the_guest_is_not_disturbed(self) -> None:
        guest = await self.serve(reached(self.start_cloud()))
        anna = await connect(reactor, Unix(str(guest.runtime / "gdb")))
        assert " controls it" in await self.refused(guest)
        place = Breakpoint(BreakpointKind.HARDWARE, 0xFFFF_8000_0000_0000, 1)
        await anna.insert(place)
        anna.resume()
        await anna.interrupt()
        await anna.monitor("control release")
        assert "breakpoints of " in why_not(guest)
        assert isinstance(anna.stop, Halted)
        await anna.close()
        assert why_not(guest) == ""

    async def test_one_who_observes_sees_the_stop_and_the_boot_goes_on(self) -> None:
        guest = await self.serve(reached(self.start_cloud("--stopped")))
        observer = await connect(reactor, Unix(str(guest.runtime / "gdb-observe")))
        change = await self.change(guest, lambda old: f"{old} panic=1")
        assert change.new.endswith("panic=1")
        await self.shows(guest, "Kernel command line: console=ttyS0 panic=1")
        await observer.close()
        self.left_alone(guest)


_KILLED = """
import os, signal, sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from kbridge.boot.by_stub import change_command_line
from kbridge.config import load
from kbridge.daemon import Daemon

async def main(reactor):
    config = load(Path(sys.argv[1]), os.environ)
    daemon = Daemon(reactor, config, lambda: config)
    daemon.start()
    guest = daemon.guests["web1"]
    while not guest.machine.connected:
        await deferLater(reactor, 0.02)
    await change_command_line(
        guest, lambda old: os.kill(os.getpid(), signal.SIGKILL), by="ann", seconds=50, said=print
    )

react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""


def run_killed(config: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    return subprocess.run(
        [sys.executable, "-c", _KILLED, str(config)],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# 16-bit code, far from a kernel: it puts a `retf` at 0x100000 and calls it for ever, by 0xffff:0x10.
_CALLS_1_MIB: Final = bytes.fromhex("31c0 8ed8 8ed0 bc0070 b8ffff 8ec0 26c6061000cb 9a1000ffff ebf9")


@pytest.mark.qemu
class WithoutAKernel(RelayCase):
    timeout = 150

    def start(self, *more: str) -> str:
        qmp = f"{self.dir}/qmp"
        process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-machine", "pc", "-m", "32", "-nodefaults", "-display", "none",
                "-qmp", f"unix:{qmp},server=on,wait=off", *more,
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

        def end() -> None:
            process.kill()
            process.wait()

        self.addCleanup(end)
        end_at = time.monotonic() + 20
        while not Path(qmp).exists():
            assert time.monotonic() < end_at
            time.sleep(0.02)
        return f'qmp = "unix:{qmp}"\n'

    async def test_a_machine_in_which_no_kernel_starts_is_let_go_in_time(self) -> None:
        guest = await self.serve(self.start())
        words = await self.refused(guest, 2.0)
        assert "no kernel was seen to start within 2 s" in words
        assert guest.state == "running"
        self.left_alone(guest)

    async def test_what_runs_where_kernels_begin_is_passed_by_but_not_for_ever(self) -> None:
        disk = self.dir / "disk"
        disk.write_bytes(_CALLS_1_MIB.ljust(510, b"\xf4") + b"\x55\xaa" + bytes(1 << 20))
        guest = await self.serve(self.start("-S", "-drive", f"file={disk},format=raw,if=ide"))
        assert "64 times something else ran where kernels begin" in await self.refused(guest)
        assert self.said.count("something else than a kernel runs at 0x100000") == 64
        assert guest.state == "running"
        self.left_alone(guest)

    async def test_a_machine_that_cannot_be_reset_is_said_to_be_so(self) -> None:
        guest = await self.serve(self.start("-no-reboot", "-no-shutdown"))
        assert "-no-reboot" in await self.refused(guest)
        self.left_alone(guest)

    async def test_a_pause_by_somebody_else_ends_it(self) -> None:
        guest = await self.serve(self.start())
        assert guest.machine is not None
        running = Deferred.fromCoroutine(self.refused(guest, 30.0))
        await self.until(lambda: self.events(guest, "machine.reset") and guest.state == "running", "the boot")
        await guest.machine.pause()
        words = await running
        assert "was stopped by something else" in words
        assert guest.state != "running"
        self.left_alone(guest)

    async def test_who_takes_control_by_force_ends_it(self) -> None:
        guest = await self.serve(self.start())
        running = Deferred.fromCoroutine(self.refused(guest, 30.0))
        await self.until(lambda: self.events(guest, "machine.reset") and guest.state == "running", "the boot")
        other: RspClient = await connect(reactor, Unix(str(guest.runtime / "gdb-observe")))
        assert "control" in await other.monitor("control take --force")
        assert "took control" in await running
        await other.close()
        self.left_alone(guest)

    def booting(self, guest: Guest, way: Way) -> BootRun:
        run = BootRun(guest, Wishes(single_user=True), by="ann", alive=lambda: True, way=way)
        run.start()
        return run

    async def with_console(self) -> Guest:
        line = f"unix:{self.dir}/line"
        guest = await self.serve(f'{self.start("-serial", f"{line},server=on,wait=off")}console = "{line}"\n')
        await self.until(lambda: guest.line is not None and guest.line.state is LineState.OPEN, "the line")
        return guest

    async def test_a_boot_that_is_cancelled_leaves_nothing_in_the_guest(self) -> None:
        guest = await self.with_console()
        run = self.booting(guest, Way.STUB)
        await self.until(lambda: guest.relay is not None and guest.relay.breakpoints, "its breakpoints")
        run.cancel("enough")
        await self.until(lambda: guest.relay is not None and not guest.relay.sessions, "its session's end")
        await self.until(lambda: guest.state == "running", "the guest")
        self.left_alone(guest)
        assert guest.pen.holder is None

    async def test_a_boot_by_the_stub_is_refused_where_somebody_debugs(self) -> None:
        guest = await self.with_console()
        anna = await connect(reactor, Unix(str(guest.runtime / "gdb")))
        with pytest.raises(
            GuestError, match=r"cannot be changed by its debug stub: .* controls it; .*--way loader"
        ):
            self.booting(guest, Way.STUB)
        await anna.close()

    async def test_guests_that_lack_what_it_takes_are_refused(self) -> None:
        guest = await self.serve("")
        assert why_not(guest) == "it has no debug stub"
        assert "cannot be changed by its debug stub: it has no debug stub" in await self.refused(guest)

    async def test_a_kernels_own_stub_is_not_there_before_the_kernel(self) -> None:
        guest = await self.serve(
            f'{self.start()}stub = "unix:{self.dir}/none"\nstub_kind = "kgdb"\n'
            f'console = "unix:{self.dir}/line"\n'
        )
        assert "its kernel's own" in why_not(guest)
