"""`kbridge attach`: bytes through unchanged, and an end with either side."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from relay_lab import ROOT, SECONDS, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stub:
    """A listening socket that plays the stub, and the `kbridge attach` that is connected to it."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self.dir = tempfile.TemporaryDirectory(prefix="kb-")
        self.listener = socket.socket(family)
        if family == socket.AF_UNIX:
            path = str(Path(self.dir.name) / "stub")
            self.listener.bind(path)
            where = f"unix:{path}"
        else:
            self.listener.bind(("127.0.0.1", 0))
            where = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        self.listener.listen(1)
        self.listener.settimeout(SECONDS)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kbridge", "attach", where],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.peer, _ = self.listener.accept()
        self.peer.settimeout(SECONDS)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SECONDS)
        for one in (self.stdout, self.stderr, self.peer, self.listener):
            one.close()
        try:
            self.stdin.close()
        except BrokenPipeError:
            pass
        self.dir.cleanup()


@pytest.fixture(params=[socket.AF_UNIX, socket.AF_INET], ids=["unix", "tcp"])
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    stub = Stub(request.param)
    yield stub
    stub.close()


def test_bytes_go_both_ways_unchanged(stub: Stub) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB: more than any buffer between
    writer = threading.Thread(target=lambda: (stub.stdin.write(data), stub.stdin.flush()))
    writer.start()
    heard = b""
    while len(heard) < len(data):
        heard += stub.peer.recv(65536)
    writer.join()
    assert heard == data
    answerer = threading.Thread(target=stub.peer.sendall, args=(data,))
    answerer.start()
    assert stub.stdout.read(len(data)) == data
    answerer.join()


def test_the_end_of_gdb_is_passed_on_and_what_comes_after_it_too(stub: Stub) -> None:
    stub.stdin.write(b"$D#44")
    stub.stdin.close()
    assert read_all(stub.peer) == b"$D#44"
    stub.peer.sendall(b"+$OK#9a")
    stub.peer.close()
    assert stub.stdout.read() == b"+$OK#9a"
    assert stub.process.wait(SECONDS) == 0


def test_it_ends_with_gdb_even_if_the_stub_does_not(stub: Stub) -> None:
    stub.stdin.close()
    assert stub.process.wait(SECONDS) == 0
    assert read_all(stub.peer) == b""


def test_it_ends_with_the_stub(stub: Stub) -> None:
    stub.peer.sendall(b"$T05#b9")
    stub.peer.close()
    assert stub.stdout.read() == b"$T05#b9"
    assert stub.process.wait(SECONDS) == 0
    assert stub.stderr.read() == b""


def test_it_ends_when_gdb_reads_no_more(stub: Stub) -> None:
    stub.stdout.close()
    try:
        for _ in range(100):
            stub.peer.sendall(bytes(65536))
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert stub.process.wait(SECONDS) == 0


def test_ctrl_c_is_not_its_end(stub: Stub) -> None:
    stub.stdin.write(b"+")
    stub.stdin.flush()
    assert stub.peer.recv(1) == b"+"
    stub.process.send_signal(signal.SIGINT)
    stub.stdin.write(b"\x03")
    stub.stdin.flush()
    assert stub.peer.recv(1) == b"\x03"
    assert stub.process.poll() is None


def test_one_who_does_not_read_is_not_read_for(stub: Stub) -> None:
    stub.peer.settimeout(0.5)
    sent = 0
    try:
        while sent < 64 << 20:
            sent += stub.peer.send(bytes(65536))
    except TimeoutError:
        pass
    assert sent < 16 << 20
    assert select.select([stub.stdout], [], [], 0)[0]
    assert os.get_blocking(stub.stdout.fileno())


@pytest.mark.parametrize(
    "where", ["unix:/nonexistent", "tcp:127.0.0.1:1", "pty:/dev/pts/0", "fly:high", "ssh://host"]
)
def test_a_place_that_is_none_is_said_so_in_a_line(where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kbridge", "attach", where],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("kbridge: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
