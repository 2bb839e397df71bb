"""A relay in the test's own process, with one guest whose kernel gets another command line by the debug stub."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from kbridge.boot.by_stub import change_command_line
from kbridge.config import load
from kbridge.daemon import Daemon
from kbridge.errors import KbridgeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbridge.boot.entry_x86 import Change
    from kbridge.guest import Guest

SECONDS = 120.0


class RelayCase(TestCase):
    """A relay in this process, with one guest: ``web1``."""

    def setUp(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="kb-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.said: list[str] = []

    def write_config(self, table: str) -> Path:
        config = self.dir / "kbridge.toml"
        relay = f'[relay]\nstate_dir = "{self.dir}/state"\nruntime_dir = "{self.dir}/run"\n'
        config.write_text(f"{relay}[guests.web1]\n{table}")
        return config

    async def serve(self, table: str) -> Guest:
        config = load(self.write_config(table), os.environ)
        daemon = Daemon(reactor, config, lambda: config)
        daemon.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(daemon.stop()))
        guest = daemon.guests["web1"]
        if guest.machine is not None:
            machine = guest.machine
            await self.until(lambda: machine.connected, "the machine monitor")
        return guest

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"{what} did not come within {seconds} s"
            await deferLater(reactor, 0.02)
        return found

    async def change(self, guest: Guest, new: Callable[[str], str], seconds: float = SECONDS) -> Change:
        return await change_command_line(guest, new, by="ann", seconds=seconds, said=self.said.append)

    async def refused(self, guest: Guest, seconds: float = SECONDS, more: str = " single") -> str:
        try:
            change = await self.change(guest, lambda old: f"{old}{more}", seconds)
        except KbridgeError as error:
            return str(error)
        raise AssertionError(f"it was not refused: {change}")

    def console(self, guest: Guest) -> str:
        ring = guest.recorder.ring
        return (ring.read(ring.oldest, ring.head - ring.oldest) or b"").decode("latin-1")

    async def shows(self, guest: Guest, words: str) -> None:
        await self.until(lambda: words in self.console(guest), f"{words[-80:]!r} on the console")

    def left_alone(self, guest: Guest) -> None:
        """Fail where anything of ours is left in the guest."""
        assert guest.relay is not None
        assert guest.relay.sessions == ()
        assert guest.relay.breakpoints == ()
        assert not guest.relay.attached
        assert not (guest.state_dir / "journal").exists()

    def events(self, guest: Guest, kind: str) -> list[str]:
        text = (guest.state_dir / "timeline.jsonl").read_text()
        return [line for line in text.splitlines() if f'"{kind}"' in line]


def reached(said: dict[str, Any]) -> str:
    return f'qmp = "{said["qmp"]}"\nconsole = "{said["console"]}"\n'
