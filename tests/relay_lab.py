"""A real `kbridge up` in a process of its own, beside lines that tests hold the other end of."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 20.0


def wait_for(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.01)
    return found


class FarLine:
    """The guest's side of a console line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(SECONDS)
        self._peer: socket.socket | None = None

    @property
    def peer(self) -> socket.socket:
        if self._peer is None:
            self._peer, _ = self._listener.accept()
            self._peer.settimeout(SECONDS)
        return self._peer

    def say(self, data: bytes) -> None:
        self.peer.sendall(data)

    def hear(self, length: int) -> bytes:
        heard = b""
        while len(heard) < length:
            piece = self.peer.recv(length - len(heard))
            assert piece, "the relay closed the line"
            heard += piece
        return heard

    def is_silent(self, seconds: float = 0.3) -> bool:
        return not select.select([self.peer], [], [], seconds)[0]

    def hang_up(self) -> None:
        """Lose the line; the next use waits for the relay to come back."""
        self.peer.close()
        self._peer = None

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._listener.close()


class RelayProcess:
    """`kbridge up` with one guest, `web1`, whose console line is a `FarLine`, and `bare`, which has nothing."""

    def __init__(self, more: str = "", *, captures: bool = True) -> None:
        # Not pytest's folder: a socket's path has 107 bytes.
        self.dir = Path(tempfile.mkdtemp(prefix="kb-"))
        self.far = FarLine(self.dir / "line")
        self.config = self.dir / "kbridge.toml"
        self.runtime = self.dir / "run"
        self.state = self.dir / "state"
        # What explains crashes is loaded some time after the start: who measures memory does without.
        crashes = "" if captures else "crash_capture = false\n"
        self.write_config(f'[guests.web1]\nconsole = "unix:{self.far.path}"\n{crashes}[guests.bare]\n{more}')
        self.errors = self.dir / "errors.txt"
        self.env = {**os.environ, "KBRIDGE_CONFIG": str(self.config), "PYTHONPATH": str(ROOT)}
        self.env.pop("KBRIDGE_CONTROL", None)
        self.process: subprocess.Popen[bytes] | None = None
        self._connections: list[socket.socket] = []

    def write_config(self, guests: str) -> None:
        relay = f'[relay]\nstate_dir = "{self.dir / "state"}"\nruntime_dir = "{self.dir / "run"}"\n'
        self.config.write_text(relay + guests)

    def start(self, *, line: bool = True) -> None:
        before = self._served()
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kbridge", "up"], env=self.env, stdin=subprocess.DEVNULL, stderr=errors
            )
        wait_for(lambda: self._served() > before or self._died(), "the relay's sockets")
        assert self.process.poll() is None, self.errors.read_text()
        if line:
            assert self.far.peer

    def _died(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def _served(self) -> int:
        """How often it said that all of its sockets are there."""
        return self.errors.read_text().count(f" serves {self.control}\n") if self.errors.exists() else 0

    @property
    def control(self) -> Path:
        return self.runtime / "control"

    @property
    def resident_bytes(self) -> int:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def run(self, *arguments: str, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kbridge", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
            **more,
        )

    def connect(self, path: Path | None = None) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        self._connections.append(connection)
        connection.settimeout(SECONDS)

        def connected() -> bool:
            try:
                connection.connect(str(path or self.control))
            except BlockingIOError:  # its queue is full for the moment
                return False
            return True

        wait_for(connected, "a connection")
        return connection

    def disconnect(self) -> None:
        """Close what `connect` opened."""
        while self._connections:
            self._connections.pop().close()

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Send one request; return the status and the body."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        with self.connect() as connection:
            try:
                connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            except BrokenPipeError:  # it answered before it read
                pass
            answer = read_all(connection)
        head, _, rest = answer.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            rest = unchunk(rest)
        return int(head.split()[1]), rest

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        status, data = self.ask(method, path, b"" if body is None else json.dumps(body).encode(), **headers)
        return status, json.loads(data)

    def offset(self) -> int:
        head: int = self.json("GET", "/guests/web1")[1]["record"]["head"]
        return head

    def recorded(self, data: bytes) -> None:
        """Have the guest say something, and wait until it is recorded."""
        head = self.offset()
        self.far.say(data)
        wait_for(lambda: self.offset() >= head + len(data), "the record of what was said")

    def stop(self) -> str:
        """End it as an operator does; return what it wrote on stderr."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.terminate()
            self.process.wait(SECONDS)
        return self.errors.read_text() if self.errors.exists() else ""

    def close(self) -> None:
        """End it and check that it met no bug."""
        self.disconnect()
        said = self.stop()
        self.far.close()
        shutil.rmtree(self.dir)
        assert "Traceback" not in said, said


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def unchunk(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            break
        whole += data[:length]
        data = data[length + 2 :]
    return whole
