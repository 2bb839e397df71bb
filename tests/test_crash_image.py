"""Images of a real QEMU that runs no kernel: what is in them, and what is left when taking one ends early."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from test_qemu_machine import COUNT, QemuCase, until
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from kbridge.crash.core_file import CoreFile
from kbridge.crash.image import ImageFacts, take_image
from kbridge.crash.image_file import UNFINISHED, ImageLimits
from kbridge.errors import ImageError, MachineError
from kbridge.hypervisors.interface import RunState
from kbridge.hypervisors.qemu import QemuMachine
from kbridge.transports.endpoints import Tcp

pytestmark = pytest.mark.qemu

ENOUGH = ImageLimits(1 << 30, 0)


class TakeImageTest(QemuCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.folder) / "vmcore"

    def take(self, limits: ImageLimits = ENOUGH, **more: Any) -> Deferred[ImageFacts]:
        return Deferred.fromCoroutine(take_image(reactor, self.machine, self.path, limits, **more))

    def nothing_is_left(self) -> None:
        assert not self.path.exists()
        assert not list(Path(self.folder).glob(f"{UNFINISHED}*"))

    def readers(self) -> list[str]:
        return [one.name for one in threading.enumerate() if one.name.startswith("kbridge-image")]

    async def test_it_is_what_qemu_writes_by_itself(self) -> None:
        await self.found()
        seen: list[tuple[int, int]] = []
        facts = await self.take(progress=lambda done, total: seen.append((done, total)))
        other = await self.other()
        plain = Path(self.folder) / "plain"
        other.execute("dump-guest-memory", paging=False, protocol=f"file:{plain}")
        one, two = CoreFile.open(self.path), CoreFile.open(plain)
        assert list(one.scan()) == list(two.scan())
        assert one.processors == two.processors
        assert one.processors[0].registers["rip"] == 0xFFF0
        assert one.size == facts.memory_bytes >= 16 << 20
        assert facts.file_bytes == self.path.stat().st_size < 1 << 20
        assert (facts.processors, facts.vmcoreinfo, facts.encrypted) == (1, None, False)
        assert seen[-1] == (facts.memory_bytes, facts.memory_bytes)
        one.close()
        two.close()

    async def test_a_guest_that_runs_goes_on(self) -> None:
        await self.found(*self.boot_sector(COUNT))
        await self.machine.resume()
        await self.take()
        await until(lambda: self.machine.state.run is RunState.RUNNING, "a guest that runs")
        assert (await self.machine.query()).run is RunState.RUNNING
        # One after the other as often as is wanted.
        await self.take()
        core = CoreFile.open(self.path)
        assert core.tables(0) is None
        core.close()

    async def test_a_limit_leaves_the_machine_to_be_asked_again(self) -> None:
        await self.found()
        with pytest.raises(ImageError, match=r"only .* bytes are left"):
            await self.take(ImageLimits(1 << 30, 1 << 60))
        self.nothing_is_left()
        await self.take()
        assert self.path.exists()

    async def test_a_folder_that_is_not_there(self) -> None:
        await self.found()
        self.path = Path(self.folder) / "absent" / "vmcore"
        with pytest.raises(ImageError, match="cannot be written: No such file"):
            await self.take()

    async def test_who_does_not_want_it_any_more_leaves_nothing(self) -> None:
        await self.found()
        taking = self.take()
        taking.cancel()
        with pytest.raises(CancelledError):
            await taking
        await until(lambda: not self.readers(), "a thread that ended")
        self.nothing_is_left()
        await self.take()

    async def test_a_machine_that_goes_away_meanwhile(self) -> None:
        process = await self.found()
        taking = self.take(progress=lambda done, total: None)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(MachineError, match="went away"):
            await taking
        await until(lambda: not self.readers(), "a thread that ended")
        self.nothing_is_left()

    async def test_one_image_of_a_machine_at_a_time(self) -> None:
        await self.found()
        one, two = self.take(), self.take()
        with pytest.raises(MachineError, match="an image of it is being taken already"):
            await two
        await one
        assert self.path.exists()

    async def test_what_qemu_refuses_is_told_in_its_words(self) -> None:
        await self.found()
        other = await self.other()
        # Somebody else's dump, which goes no further.
        reading, writing = os.pipe()
        array = struct.pack("i", writing)
        other.socket.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array)])
        other.execute("getfd", fdname="theirs")
        other.execute("dump-guest-memory", paging=False, protocol="fd:theirs", detach=True)
        with pytest.raises(MachineError, match="QEMU refused dump-guest-memory: There is a dump in process"):
            await self.take()
        self.nothing_is_left()
        os.close(reading)
        os.close(writing)

    async def test_a_monitor_that_takes_no_file_is_said(self) -> None:
        await self.found("-qmp", "tcp:127.0.0.1:0,server=on,wait=off")
        other = await self.other()
        chardevs = other.execute("query-chardev")["return"]
        name = next(one["filename"] for one in chardevs if "tcp:127.0.0.1" in one["filename"])
        port = int(name.removeprefix("disconnected:").split(",")[0].rsplit(":", 1)[1])
        machine = QemuMachine(reactor, Tcp("127.0.0.1", port))
        self.addCleanup(lambda: Deferred.fromCoroutine(machine.stop()))
        machine.start()
        await until(lambda: machine.connected, "the machine")
        with pytest.raises(MachineError, match="machine monitor on a unix socket"):
            await take_image(reactor, machine, self.path, ENOUGH)
        await until(lambda: not self.readers(), "a thread that ended")
        self.nothing_is_left()
