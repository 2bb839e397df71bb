"""A guest that crashes under a relay, and the bundles that come of it; fakes for what is too slow with real ones."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sharing_lab import Shared, wait_for
from twisted.internet.defer import Deferred, succeed

from kbridge.config import GuestConfig
from kbridge.console.pen import Pen
from kbridge.console.recorder import Recorder
from kbridge.errors import MachineError
from kbridge.hypervisors.interface import MachineEvent, MachineState, RunState

SECONDS = 60.0


class Crashing(Shared):
    """`web1` under a relay, with its symbols configured."""

    captures = True

    _keyboard: socket.socket | None = None

    def type(self, line: str) -> None:
        # Kept open: what is typed by somebody who leaves at once may be lost.
        if self._keyboard is None:
            self._keyboard = socket.socket(socket.AF_UNIX)
            self._keyboard.settimeout(SECONDS)
            self._keyboard.connect(str(self.dir / "run" / "web1" / "console"))
        self._keyboard.sendall(line.encode() + b"\r")

    def lay_pen_down(self) -> None:
        """Leave the console, so that somebody else may type."""
        if self._keyboard is not None:
            self._keyboard.close()
            self._keyboard = None

    def __exit__(self, *ignored: object) -> None:
        self.lay_pen_down()
        super().__exit__(*ignored)

    def booted(self) -> None:
        wait_for(lambda: b"/root # " in self.console(), "the guest's shell")

    def start_relay_again(self, state: str) -> None:
        """Start a relay for a guest that is in this state."""
        self.lay_pen_down()
        with (self.dir / "errors.txt").open("ab") as errors:
            self.relay = subprocess.Popen(
                [sys.executable, "-m", "kbridge", "up"], env=self.env, stdin=subprocess.DEVNULL, stderr=errors
            )
        wait_for(lambda: self.state() == state, "a relay that knows the guest's state")

    def provoke(self, what: str) -> None:
        """Have lkdtm crash the kernel."""
        self.type(f"echo {what} > /sys/kernel/debug/provoke-crash/DIRECT")

    def crashes(self) -> list[dict[str, Any]]:
        return list(self.ask("/crashes")["crashes"])

    def crash(self, title: str) -> dict[str, Any]:
        """Wait until a crash of this title is kept, and return the report of the newest when it is finished.

        A slow machine makes kernels report stalls, which are crashes too: they are passed over.
        """

        def kept() -> list[dict[str, Any]]:
            return [one for one in self.crashes() if one["title"] == title]

        wait_for(kept, f"a crash {title!r}")
        path = Path(kept()[0]["path"])
        wait_for(lambda: self.report(path)["state"] != "pending", "a finished bundle")
        return self.report(path)

    def report(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((path / "report.json").read_bytes())
        return found

    def folder(self, report: dict[str, Any]) -> Path:
        return self.dir / "state" / "crashes" / str(report["id"])


class OneLineCrashing(Crashing):
    """The same, with kgdb and kdb on the console's line."""

    def __init__(self, start_guest: Callable[..., dict[str, Any]]) -> None:
        super().__init__(
            start_guest,
            "--append",
            "kbridge.tick=0.2 kgdboc=ttyS0",
            more='stub = "kgdb"\ncrash_quiet_seconds = 0.5\n',
        )


class KgdbOnly(Crashing):
    """A guest of which the relay has nothing but its console, with kgdb and kdb on it."""

    def __init__(self, start_guest: Callable[..., dict[str, Any]], more: str = "") -> None:
        super().__init__(
            start_guest,
            "--append",
            "kbridge.tick=0.2 kgdboc=ttyS0",
            more=f'stub = "kgdb"\ncrash_quiet_seconds = 0.5\n{more}',
            reached="break_in = []\n",
        )


def functions(frames: list[dict[str, Any]]) -> list[str]:
    """The functions of a backtrace, inlined ones too, guesses left out."""
    found: list[str] = []
    for frame in frames:
        if frame["trust"] != "guess":
            found += [one["function"] for one in frame["calls"]] or [frame["symbol"]]
    return found


# ── fakes ───────────────────────────────────────────────────────────────────────────────────────────────────────


class FakeMachine:
    """A machine whose monitor answers at once, or never: ``hangs``."""

    def __init__(self, state: RunState = RunState.PANICKED) -> None:
        self.state = MachineState(state, state.value)
        self.connected = True
        self.problem = ""
        self.stopped_by_us = False
        self.did: list[str] = []
        self.hangs = False
        self._listeners: list[Callable[[MachineEvent], None]] = []

    def subscribe(self, listener: Callable[[MachineEvent], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def says(self, name: str, **data: Any) -> None:
        for one in tuple(self._listeners):
            one(MachineEvent(name, data))

    async def _do(self, what: str, state: RunState) -> None:
        self.did.append(what)
        if self.hangs:
            await Deferred()
        if not self.connected:
            raise MachineError("the monitor is gone")
        self.state = MachineState(state, state.value)
        self.stopped_by_us = what == "pause"

    async def query(self) -> MachineState:
        if self.hangs:
            await Deferred()
        if not self.connected:
            raise MachineError("the monitor is gone")
        return self.state

    async def pause(self) -> None:
        await self._do("pause", RunState.PAUSED)

    async def resume(self) -> None:
        await self._do("resume", RunState.RUNNING)

    async def cycle(self) -> None:
        await self._do("cycle", RunState.RUNNING)

    async def power_off(self, *, force: bool = False) -> None:
        await self._do("off", RunState.OFF)


def fake_guest(folder: Path, name: str = "web1", machine: FakeMachine | None = None, **config: Any) -> Any:
    """A guest with a recorder and perhaps a machine, and nothing else."""
    settings = {"stub": "none", "crash_image": False, **config}
    folder.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        name=name,
        config=GuestConfig.model_validate(settings),
        recorder=Recorder(folder, 1 << 16),
        machine=machine,
        relay=None,
        line=None,
        pen=Pen(),
        state_dir=folder,
        runtime=folder,
        finder=SimpleNamespace(kernels=list, module_with_lines=lambda *_: None),
    )


def controlled_by(name: str) -> Any:
    """A relay with one debugger, which controls the guest."""
    return SimpleNamespace(sessions=(SimpleNamespace(name=name, controls=True),))


def at_once(reactor: Any, pool: Any, work: Callable[[], Any]) -> Deferred[Any]:
    """Stand in for `deferToThreadPool` where no reactor runs."""
    return succeed(work())


def now_ns() -> int:
    return time.time_ns()
