"""What the console benchmarks share: the servers side by side, the load, and how both are measured.

The server is pinned to the last core, load and readers to the first.  All lines are unix sockets on which the load
listens, as QEMU's ``server=on`` does.  CPU is utime + stime of a server and its children from /proc/PID/stat (10 ms
steps).  Everything lies on a tmpfs whose pages are touched first: memory that the host has not yet backed is eight
times slower at its first use.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
SERVER_CORE = (os.cpu_count() or 1) - 1
LOAD_CORE = 0
TICKS = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 90.0
MB = 1_000_000


@contextmanager
def workspace(touch_bytes: int) -> Iterator[Path]:
    """Yield a folder on a tmpfs, after touching as much memory as a run will use; remove it at the end."""
    root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="kb", dir=root))
    try:
        block = bytes(1 << 20)
        with (folder / "touch").open("wb") as file:
            for _ in range(touch_bytes >> 20):
                file.write(block)
        (folder / "touch").unlink()
        compile_load(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compile_load(folder: Path) -> None:
    """Compile the load generator and C reader."""
    source = str(HERE / "console_load.c")
    subprocess.run(["cc", "-O2", "-o", str(folder / "load"), source], check=True)


class Child:
    """A process pinned to one core, with lines on its standard streams."""

    def __init__(
        self, core: int, command: Sequence[str], *, pass_fds: Sequence[int] = (), quiet: bool = False
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
        self.process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
            bufsize=1,
            pass_fds=pass_fds,
            start_new_session=True,
            env=environment,
        )

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return text.strip()

    def pids(self) -> list[int]:
        """The process and all below it."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in task.read_text().split()]
        return found

    def cpu(self) -> float:
        """Seconds of CPU used so far, children included."""
        total = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
        return total / TICKS

    def anonymous_mb(self) -> float:
        """Anonymous memory now, children included: what is not a mapped ring."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1])
        return total / 1000

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@dataclass
class Server:
    """One peer, started for the lines at ``sockets``."""

    folder: Path
    sockets: list[str]
    ring_bytes: int = 64 << 20
    most: int = 65536
    child: Child = field(init=False)
    name = ""
    needs_reader = False
    own_words = 0
    """At most so many bytes that it adds to a line's log or to what a reader gets."""

    def start(self) -> None:
        raise NotImplementedError

    def received(self) -> int:
        """How many bytes it has recorded of all lines."""
        raise NotImplementedError

    def reader(self) -> socket.socket:
        """Return a connected reader of the first line."""
        raise NotImplementedError

    def end(self) -> None:
        self.child.end()


class Kbridge(Server):
    name = "kbridge"
    options: tuple[str, ...] = ()

    def start(self) -> None:
        (self.folder / "k").mkdir()
        command = [
            sys.executable,
            str(HERE / "console_server.py"),
            str(self.folder / "k"),
            str(self.ring_bytes),
            *self.options,
        ]
        self.child = Child(SERVER_CORE, command)
        for path in self.sockets:
            self.child.say(f"pty:{path}" if path.startswith("/dev/pts") else f"unix:{path}")
        self.child.say("")
        assert self.child.line() == "ready"

    def received(self) -> int:
        total = 0
        for number in range(len(self.sockets)):
            # The head, as kbridge/console/mapped.py has it.
            with (self.folder / "k" / f"line{number}" / "console.ring").open("rb") as file:
                file.seek(64)
                total += struct.unpack("=Q", file.read(8))[0]
        return total

    def reader(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.folder / "k" / "readers"))
        assert self.child.line() == "reader"
        return sock


class CReader(Server):
    name = "C reader"

    def start(self) -> None:
        command = [
            str(self.folder / "load"),
            "read",
            str(self.ring_bytes),
            str(self.most),
            str(self.folder / "c"),
        ]
        self.child = Child(SERVER_CORE, command)
        for path in self.sockets:
            self.child.say(path)
        self.child.say("")
        assert self.child.line() == "ready"

    def received(self) -> int:
        total = 0
        for number in range(len(self.sockets)):
            with (self.folder / f"c.{number}").open("rb") as file:
                file.seek(self.ring_bytes)
                total += struct.unpack("=q", file.read(8))[0]
        return total


class Conserver(Server):
    name = "conserver"
    own_words = 400

    def start(self) -> None:
        self.port = free_port()
        lines = ["config * { sslrequired no; }"]  # its readers are on this machine
        lines += ['default * { rw *; ro *; master localhost; timestamp ""; type uds; }']
        for number, path in enumerate(self.sockets):
            lines.append(f"console line{number} {{ uds {path}; logfile {self.folder}/log.{number}; }}")
        lines.append("access * { trusted 127.0.0.1; }")
        (self.folder / "conserver.cf").write_text("\n".join(lines) + "\n")
        config = str(self.folder / "conserver.cf")
        self.child = Child(
            SERVER_CORE, ["conserver", "-C", config, "-M", "127.0.0.1", "-p", str(self.port)], quiet=True
        )

    def received(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("log.*"))

    def reader(self) -> socket.socket:
        port = self.port
        for _ in range(2):  # the master names the child's port
            sock = connected(port)
            sock.settimeout(10)
            talk(sock, None)
            talk(sock, b"login bench\r\n")
            answer = talk(sock, b"call line0\r\n")
            if answer.strip().isdigit():
                port = int(answer)
                sock.close()
        talk(sock, b"\x05c;")  # its client's own word for: send me the console now
        return sock


class Ser2net(Server):
    name = "ser2net"
    needs_reader = True

    def start(self) -> None:
        lines = []
        for number, path in enumerate(self.sockets):
            lines += [
                f"connection: &line{number}",
                f"  accepter: unix,{self.folder}/ser2net.{number}",
                f"  connector: unix,{path}",
                "  options:",
                "    max-connections: 20",
                "    chardelay: false",
                "    dev-to-net-bufsize: 65536",
            ]
        (self.folder / "ser2net.yaml").write_text("\n".join(lines) + "\n")
        self.child = Child(
            SERVER_CORE, ["ser2net", "-n", "-d", "-u", "-c", str(self.folder / "ser2net.yaml")]
        )

    def received(self) -> int:
        raise NotImplementedError("ser2net records nothing; its readers are counted")

    def reader(self, number: int = 0) -> socket.socket:
        path = f"{self.folder}/ser2net.{number}"
        wait_until(Path(path).exists, "ser2net's socket")
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock


class Socat(Server):
    name = "socat"

    def start(self) -> None:
        log = f"CREATE:{self.folder}/socat.log"
        self.child = Child(
            SERVER_CORE, ["socat", "-u", "-b", "65536", f"UNIX-CONNECT:{self.sockets[0]}", log]
        )

    def received(self) -> int:
        path = self.folder / "socat.log"
        return path.stat().st_size if path.exists() else 0


def talk(sock: socket.socket, say: bytes | None) -> bytes:
    """Say one line of conserver's protocol and return its answer."""
    if say is not None:
        sock.sendall(say)
    return sock.recv(1000)


def connected(port: int) -> socket.socket:
    """Connect to a server that may not listen yet."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_until(condition: object, what: str, seconds: float = READY_SECONDS) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.005)


def settled(server: Server, expected: int, seconds: float = READY_SECONDS) -> None:
    """Wait until the server has recorded all; raise when it does not."""
    wait_until(lambda: server.received() >= expected, f"{server.name} to record {expected} bytes", seconds)
    if server.received() > expected + server.own_words * len(server.sockets):
        raise RuntimeError(f"{server.name} recorded {server.received()} of {expected} bytes")


def clean(run: Path, ended: Sequence[Child | Server | None], sockets: Sequence[socket.socket]) -> None:
    """End what a run started, and free the memory that its files take."""
    for child in ended:
        if child is not None:
            child.end()
    for sock in sockets:
        sock.close()
    shutil.rmtree(run)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that also is Markdown."""
    print(f"\n{title}\n")
    widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    sys.stdout.flush()


def verdict(what: str, value: float, goal: float, *, most: bool) -> bool:
    """Print how a figure stands to its goal; return whether it is met."""
    met = value <= goal if most else value >= goal
    print(f"{'met ' if met else 'MISS'}  {what}: {value:.2f} (goal {'≤' if most else '≥'} {goal:g})")
    return met
