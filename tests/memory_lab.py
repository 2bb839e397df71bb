"""A real guest's memory, straight from its stub, and the shell on its console.

The driver for searches counts what they cost.  Nothing of the relay is between.
"""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING, Self, TypeVar

from gdbstubs.wire import Framer, frame

if TYPE_CHECKING:
    from symbols.reads import Search

_Result = TypeVar("_Result")
PACKET_BYTES = 0x7F0
"""The most that QEMU 7.2's stub gives in one packet."""
WINDOW = 64
"""Requests under way: more would fill both directions of the socket, and nobody would read."""
SECONDS = 60.0


class StubMemory:
    """The guest stands while this is connected, and runs on after it."""

    def __init__(self, endpoint: str, window: int = WINDOW) -> None:
        self._window = window
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(endpoint.removeprefix("unix:"))
        self._framer = Framer(1 << 20)
        self._replies: list[bytes] = []
        self.batches = self.reads = self.packets = self.bytes = 0

    def __enter__(self) -> Self:
        # The stop that connecting made, and what it answers to everybody.
        self.ask(b"?")
        return self

    def __exit__(self, *ignored: object) -> None:
        self.ask(b"D")
        self._socket.close()

    def ask(self, payload: bytes) -> bytes:
        self._socket.sendall(frame(payload))
        return self._reply()

    def _reply(self) -> bytes:
        while not self._replies:
            data = self._socket.recv(1 << 16)
            assert data, "the stub has gone"
            # What it says of its own accord when somebody connects is no reply.
            replies = [one for one in self._framer.feed(data) if isinstance(one, bytes)]
            self._replies += [one for one in replies if not one.startswith(b"T02")]
            self._socket.sendall(b"+" * len(replies))
        return self._replies.pop(0)

    def counter(self) -> int:
        """Return the first processor's program counter."""
        registers = bytes.fromhex(self.ask(b"g").decode().replace("x", "0"))
        return int.from_bytes(registers[16 * 8 : 17 * 8], "little")

    def read(self, places: list[tuple[int, int]]) -> list[bytes]:
        """Return what is there of each, empty where it is not mapped."""
        pieces = [
            (index, address + at, min(PACKET_BYTES, length - at))
            for index, (address, length) in enumerate(places)
            for at in range(0, length, PACKET_BYTES)
        ]
        found: list[list[bytes]] = [[] for _ in places]
        ended: set[int] = set()
        for start in range(0, len(pieces), self._window):
            window = pieces[start : start + self._window]
            self._socket.sendall(b"".join(frame(b"m%x,%x" % (address, size)) for _, address, size in window))
            for index, _, _ in window:
                reply = self._reply()
                if reply.startswith(b"E"):
                    ended.add(index)
                elif index not in ended:
                    found[index].append(bytes.fromhex(reply.decode()))
        self.packets += len(pieces)
        return [b"".join(one) for one in found]

    def run(self, search: Search[_Result]) -> _Result:
        """Drive a search."""
        try:
            batch = next(search)
            while True:
                self.batches += 1
                self.reads += len(batch)
                data = self.read([(one.address, one.length) for one in batch])
                self.bytes += sum(map(len, data))
                batch = search.send(tuple(data))
        except StopIteration as done:
            result: _Result = done.value
            return result

    def cost(self) -> str:
        """Say what was asked since the last time."""
        said = (
            f"{self.batches} batches, {self.reads} reads, {self.packets} packets, {self.bytes / 1e6:.2f} MB"
        )
        self.batches = self.reads = self.packets = self.bytes = 0
        return said


class Shell:
    """The root shell on a test guest's console."""

    def __init__(self, endpoint: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(endpoint.removeprefix("unix:"))
        self._said = b""
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._socket.close()

    def until(self, pattern: bytes, seconds: float = 2 * SECONDS) -> bytes:
        """Return what the guest says up to the end of a pattern."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self._said)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {self._said[-2000:]!r}"
            piece = self._socket.recv(1 << 16)
            assert piece, f"the guest has gone: {self._said[-2000:]!r}"
            self._said += piece
        said, self._said = self._said[: match.end()], self._said[match.end() :]
        return said

    def booted(self) -> None:
        self.until(rb"kbridge-guest: ready")

    def type(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\r")

    def run(self, line: str) -> str:
        """Run a command and return what it printed."""
        self._count += 1
        # In two parts, so that the echo of the command is not taken for its end.
        self.type(f"{line};echo @@'{self._count}'@@")
        end = f"@@{self._count}@@"
        # A long command's echo is wrapped, anywhere, by other ends of lines than what the command prints.
        said = self.until(end.encode()).decode("latin-1").replace("\r\r\n", "")
        _, echo, printed = said.rpartition(f"'{self._count}'@@")
        assert echo, said
        return printed.removesuffix(end).replace("\r", "")
