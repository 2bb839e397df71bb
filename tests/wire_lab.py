"""A serial line between the relay and a guest: as fast as its speed allows, with or without noise, and with BREAK.

The relay is at a pseudo terminal, or at an RFC 2217 server; the guest's UART is at QEMU's socket.  BREAK is a
state of a real wire.  A pseudo terminal has none, so the relay's serial driver tells ours of it on a socket beside it
(``wired_relay.py``); RFC 2217 carries it itself.  Ours has QEMU put it on the UART.
"""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
import tty
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bridge_lab import Monitor, wait_for
from serial import rfc2217
from sharing_lab import Shared

if TYPE_CHECKING:
    from collections.abc import Callable

BITS_A_BYTE = 10
STEP_SECONDS = 0.002
MOST_WAITING = 4096


class Direction:
    """One direction of a wire: what waits to go, and when it may."""

    def __init__(self, baud: int, seed: int) -> None:
        self.rate = baud / BITS_A_BYTE
        self.noise = 0.0
        """The chance of a byte to be harmed: a bit flipped, the byte lost, or one added."""
        self.harmed = 0
        self.passed = 0
        self._random = random.Random(seed)
        self._waiting: deque[int] = deque()
        self._credit = 0.0
        self._at = time.monotonic()

    @property
    def room(self) -> int:
        return MOST_WAITING - len(self._waiting)

    def put(self, data: bytes) -> None:
        self._waiting += data

    def take(self) -> bytes:
        """Return what the speed has let through since the last time."""
        now = time.monotonic()
        self._credit = min(self._credit + (now - self._at) * self.rate, self.rate / 10)
        self._at = now
        count = min(int(self._credit), len(self._waiting))
        self._credit -= count
        self.passed += count
        return b"".join(self._carry(self._waiting.popleft()) for _ in range(count))

    def _carry(self, byte: int) -> bytes:
        if not self.noise or self._random.random() >= self.noise:
            return bytes((byte,))
        self.harmed += 1
        match self._random.randrange(3):
            case 0:
                return bytes((byte ^ 1 << self._random.randrange(8),))
            case 1:
                return b""
            case _:
                return bytes((byte, self._random.randrange(256)))


class NearEnd(Protocol):
    """The relay's end: descriptors to read, what was sent on it, BREAK."""

    endpoint: str

    def descriptors(self) -> list[int]: ...

    def read(self, ready: list[int], size: int) -> bytes: ...

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class PtyEnd:
    """A pseudo terminal, with a socket beside it on which BREAK is told."""

    def __init__(self, folder: Path, breaks: Callable[[], None]) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.endpoint = f"serial:{os.ttyname(self._slave)}:115200"
        self._breaks = breaks
        self.beside = folder / "breaks"
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(self.beside))

    def descriptors(self) -> list[int]:
        return [self._master, self._told.fileno()]

    def read(self, ready: list[int], size: int) -> bytes:
        if self._told.fileno() in ready and self._told.recv(10) == b"begins":
            self._breaks()
        return os.read(self._master, size) if self._master in ready else b""

    def write(self, data: bytes) -> None:
        os.write(self._master, data)

    def close(self) -> None:
        os.close(self._master)
        os.close(self._slave)
        self._told.close()


class _Port:
    """What pyserial's RFC 2217 server sets."""

    cts = dsr = cd = ri = False
    rts = dtr = True
    baudrate, bytesize, parity, stopbits = 115200, 8, "N", 1
    xonxoff = rtscts = False

    def __init__(self, breaks: Callable[[], None]) -> None:
        self._breaks = breaks

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "break_condition" and value:
            self._breaks()


class Rfc2217End:
    """pyserial's RFC 2217 server, a console server as many are; it passes telnet's BREAK over."""

    def __init__(self, breaks: Callable[[], None]) -> None:
        self._breaks = breaks
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"rfc2217:127.0.0.1:{self._listener.getsockname()[1]}"
        self._peer: socket.socket | None = None
        self._early = b""

    def descriptors(self) -> list[int]:
        return [(self._peer or self._listener).fileno()]

    def read(self, ready: list[int], size: int) -> bytes:
        if not ready:
            return b""
        if self._peer is None:
            self._peer, _ = self._listener.accept()
            self.begin(self._peer)
            early, self._early = self._early, b""
            self.write(early)
            return b""
        try:
            data = self._peer.recv(size)
        except ConnectionError:
            data = b""
        if not data:
            self._hang_up()
            return b""
        return self.decode(data)

    def _hang_up(self) -> None:
        assert self._peer is not None
        self._peer.close()
        self._peer = None

    def begin(self, peer: socket.socket) -> None:
        class Connection:
            def write(self, data: bytes) -> None:
                peer.sendall(data)

        self._manager = rfc2217.PortManager(_Port(self._breaks), Connection())

    def decode(self, data: bytes) -> bytes:
        return b"".join(self._manager.filter(data))

    def encode(self, data: bytes) -> bytes:
        return b"".join(self._manager.escape(data))

    def write(self, data: bytes) -> None:
        if self._peer is None:
            self._early += data
            return
        try:
            self._peer.sendall(self.encode(data))
        except ConnectionError:
            self._hang_up()

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._listener.close()


class Wire:
    """The line, carried by a thread.  ``make`` makes the relay's end of it, told whom to tell of a BREAK."""

    def __init__(
        self, console: str, monitor: str, make: Callable[[Callable[[], None]], NearEnd], *, baud: int = 115200
    ) -> None:
        self.to_guest, self.to_relay = Direction(baud, 1), Direction(baud, 2)
        self._guest = socket.socket(socket.AF_UNIX)
        self._guest.connect(console.removeprefix("unix:"))
        self._monitor = Monitor(monitor)
        self.breaks = 0
        self.end = make(self._break)
        self._runs = True
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def noise(self, chance: float) -> None:
        self.to_guest.noise = self.to_relay.noise = chance

    def close(self) -> None:
        self._runs = False
        self._thread.join(10)
        self.end.close()
        self._guest.close()
        self._monitor.close()

    def _break(self) -> None:
        self.breaks += 1
        self._monitor.command("chardev-send-break", id="console")

    def _carry(self) -> None:
        while self._runs:
            near = self.end.descriptors() if self.to_guest.room else []
            far = [self._guest.fileno()] if self.to_relay.room else []
            ready, _, _ = select.select([*near, *far], [], [], STEP_SECONDS)
            if self._guest.fileno() in ready:
                self.to_relay.put(self._guest.recv(self.to_relay.room))
            self.to_guest.put(self.end.read([one for one in ready if one in near], self.to_guest.room or 1))
            if data := self.to_relay.take():
                self.end.write(data)
            if data := self.to_guest.take():
                self._guest.sendall(data)
            time.sleep(STEP_SECONDS / 2)


class Wired(Shared):
    """A guest whose only way to the relay is a wire; ``end`` makes the relay's end of it."""

    def __init__(
        self,
        start_guest: Callable[..., dict[str, Any]],
        end: Callable[[Path, Callable[[], None]], NearEnd],
        more: str = "",
    ) -> None:
        self._make_end = end
        self._config = more
        self.wire: Wire | None = None
        super().__init__(start_guest, "--append", "kgdboc=ttyS0", "--no-kaslr")
        self._has_monitor = False

    def start_guest(self) -> None:
        super().start_guest()
        self.wire = Wire(
            self.guest["console"], str(self.dir / "monitor"), lambda breaks: self._make_end(self.dir, breaks)
        )
        config = self.dir / "kbridge.toml"
        config.write_text(
            f'[relay]\nstate_dir = "{self.dir}/state"\nruntime_dir = "{self.dir}/run"\n[guests.web1]\n'
            f'console = "{self.wire.end.endpoint}"\nstub = "kgdb"\nvmlinux = "{self.guest["vmlinux"]}"\n{self._config}'
        )
        self.env["KBRIDGE_BREAKS"] = str(self.dir / "breaks")
        self.command = (sys.executable, str(Path(__file__).with_name("wired_relay.py")), "up")

    def start_relay(self) -> None:
        with (self.dir / "errors.txt").open("ab") as errors:
            self.relay = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stderr=errors,
                cwd=Path(__file__).parent.parent,
            )
        wait_for(lambda: self.state() == "unknown", "a relay that knows the guest")

    def __exit__(self, *ignored: object) -> None:
        try:
            super().__exit__(*ignored)
        finally:
            assert self.wire is not None
            self.wire.close()
