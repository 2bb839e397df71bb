"""A booted guest, a relay in a process of its own, and real gdbs: the bridge as its users have it."""

from __future__ import annotations

import http.client
import json
import mmap
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from kbridge.console.ring import RingView
from symbols import elf, kaslr

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
TICK = re.compile(rb"tick (\d+)\r?\n")
SECONDS = 60.0


def wait_for(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.02)
    return found


class Monitor:
    """A second machine monitor of the guest: the colleague who also has a hand on it."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(path)
        self._file: IO[str] = self._socket.makefile("rw")
        self._file.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            said = json.loads(self._file.readline())
            if "event" not in said:
                assert "return" in said, said
                return said["return"]

    def status(self) -> str:
        return str(self.command("query-status")["status"])

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class _Control(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Bridge:
    """`kbridge up` for one guest, `web1`, whose console prints `tick N` five times a second."""

    captures = False
    """Whether its crashes are captured: a slow machine's kernel reports stalls, at which it would be paused."""

    def __init__(
        self,
        start_guest: Callable[..., dict[str, Any]],
        *arguments: str,
        more: str = "",
        monitor: bool = True,
        reached: str | None = None,
    ) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="kb-"))
        self._start_guest = start_guest
        self._arguments = arguments
        self._more = more
        self._has_monitor = monitor and reached is None
        self._reached = reached
        """By what the relay reaches the guest, as configured; None: by its monitor, or its stub."""
        self._is_stopped = "--stopped" in arguments
        """Whether the guest waits before its first instruction for somebody to let it go."""
        self.relay: subprocess.Popen[bytes] | None = None
        self._monitors: list[Monitor] = []
        self.start_guest()

    def start_guest(self) -> None:
        self.guest = self._start_guest(
            "--dir", str(self.dir / "vm"), "--append", "kbridge.tick=0.2", *self._arguments,
            "--", "-qmp", f"unix:{self.dir}/monitor,server=on,wait=off",
        )  # fmt: skip
        config = self.dir / "kbridge.toml"
        reached_by = (
            f'qmp = "{self.guest["qmp"]}"\n' if self._has_monitor else f'stub = "{self.guest["stub"]}"\n'
        )
        if self._reached is not None:
            reached_by = self._reached
        config.write_text(
            f'[relay]\nstate_dir = "{self.dir}/state"\nruntime_dir = "{self.dir}/run"\n[guests.web1]\n'
            f'{reached_by}console = "{self.guest["console"]}"\n'
            f"crash_capture = {str(self.captures).lower()}\n{self._more}"
        )
        self.env = {**os.environ, "KBRIDGE_CONFIG": str(config), "DEBUGINFOD_URLS": ""}

    def __enter__(self) -> Self:
        self.start_relay()
        if not self._is_stopped:
            wait_for(self.ticks, "the guest's first tick")
        return self

    def __exit__(self, *ignored: object) -> None:
        for monitor in self._monitors:
            monitor.close()
        if self.relay is not None and self.relay.poll() is None:
            self.relay.terminate()
            assert self.relay.wait(40) == 0, (self.dir / "errors.txt").read_text()
        os.kill(self.guest["pid"], signal.SIGKILL)
        errors = (self.dir / "errors.txt").read_text()
        if ignored[0] is not None:
            # What pytest shows of a failure.
            print(errors[-4000:])
            told = self.dir / "state/guests/web1/timeline.jsonl"
            print(told.read_text()[-8000:] if told.exists() else "no time line")
        shutil.rmtree(self.dir, ignore_errors=True)
        assert "Traceback" not in errors, errors

    # -- the relay ------------------------------------------------------------------------------------------

    def start_relay(self) -> None:
        with (self.dir / "errors.txt").open("ab") as errors:
            self.relay = subprocess.Popen(
                [sys.executable, "-m", "kbridge", "up"], env=self.env, stdin=subprocess.DEVNULL, stderr=errors
            )
        state = "paused" if self._is_stopped else "running" if self._has_monitor else "unknown"
        wait_for(lambda: self.state() == state, "a relay that knows the guest's state")

    def kill_relay(self) -> None:
        assert self.relay is not None
        self.relay.kill()
        self.relay.wait()

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kbridge", *arguments],
            env=self.env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def ask(self, path: str) -> Any:
        connection = _Control(self.dir / "run" / "control")
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            return json.loads(body)
        finally:
            connection.close()

    def addresses(self, *names: str) -> dict[str, int]:
        """Where functions of the running kernel are."""
        with (
            Path(self.guest["vmlinux"]).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image,
        ):
            linked = elf.symbol_values(image, [kaslr.DIVIDE_ERROR_SYMBOL, *names])
        handler = int(self.ask("/guests/web1/kernel")["divide_error"], 16)
        slide = kaslr.slide(handler, linked.pop(kaslr.DIVIDE_ERROR_SYMBOL))
        return {name: address + slide for name, address in linked.items()}

    @property
    def often(self) -> int:
        """Where the guest comes by five times a second: not so the place where it happens to be stopped."""
        return self.addresses("hrtimer_nanosleep")["hrtimer_nanosleep"]

    def listed(self) -> dict[str, Any]:
        done = self.run("ls", "--json")
        if done.returncode != 0:
            return {}
        guests = {one["name"]: one for one in json.loads(done.stdout)}
        found: dict[str, Any] = guests["web1"]
        return found

    def state(self) -> str:
        return str(self.listed().get("state", ""))

    def sessions(self) -> list[Any]:
        return list(self.listed()["debug"]["sessions"])

    def breakpoints(self) -> list[Any]:
        return list(self.listed()["debug"]["breakpoints"])

    @property
    def socket(self) -> Path:
        return self.dir / "run" / "web1" / "gdb"

    def monitor(self) -> Monitor:
        monitor = Monitor(str(self.dir / "monitor"))
        self._monitors.append(monitor)
        return monitor

    def events(self) -> list[dict[str, Any]]:
        path = self.dir / "state" / "guests" / "web1" / "timeline.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    # -- the console ----------------------------------------------------------------------------------------

    def console(self) -> bytes:
        ring = RingView.open(self.dir / "state" / "guests" / "web1" / "console.ring")
        try:
            return ring.read(ring.oldest, ring.head - ring.oldest) or b""
        finally:
            ring.close()

    def ticks(self) -> list[int]:
        path = self.dir / "state" / "guests" / "web1" / "console.ring"
        return [int(number) for number in TICK.findall(self.console())] if path.exists() else []

    def goes_on(self) -> None:
        """Fail unless the guest prints more ticks."""
        before = len(self.ticks())
        wait_for(lambda: len(self.ticks()) >= before + 2, "two more ticks of the guest")

    def stands_still(self, monitor: Monitor) -> None:
        """Fail unless the guest's processors are stopped."""
        wait_for(lambda: monitor.status() != "running", "a guest that stands still", 10)

    # -- debuggers ------------------------------------------------------------------------------------------

    def gdb(self, *commands: str, attach: bool = True) -> Gdb:
        first = (f"target remote {self.socket}",) if attach else ()
        return Gdb(self.env, [*first, *commands])


class Gdb:
    """A real gdb in batch mode, or with `then`, one that is told more commands on its standard input."""

    def __init__(self, env: dict[str, str], commands: list[str]) -> None:
        arguments = ["gdb", "-nx", "-q", "-ex", "set confirm off", "-ex", "set pagination off"]
        for command in commands:
            arguments += ["-ex", command]
        self.process = subprocess.Popen(
            arguments, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.output = b""

    def then(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def wait_for(self, text: str, seconds: float = SECONDS) -> None:
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while text.encode() not in self.output:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.process.stdout], [], [], left)[0]
            piece = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not piece:
                self.kill()
                raise AssertionError(f"gdb did not say {text!r} but {self.output.decode(errors='replace')}")
            self.output += piece

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self._close()

    def finish(self, seconds: float = SECONDS) -> str:
        """End the commands, wait, and return all that gdb said."""
        try:
            said, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            raise AssertionError(f"gdb hangs after {(self.output + said).decode(errors='replace')}") from None
        self.output += said
        return self.output.decode(errors="replace")

    def _close(self) -> None:
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
