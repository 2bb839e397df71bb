"""A debugger of our own on a blocking socket, for commands: it looks, and has no way to write or to resume.

    client = BlockingClient.connect("/run/kbridge/web1/gdb-observe", print)
    try:
        print(client.read([(address, 8)]))
    finally:
        client.close()

in:      calls, bytes of the relay
out:     bytes for the relay, results; ``GuestError`` where the relay refused, went away, or did not answer in time
invariant: each call ends within its deadline; one that was broken off (Ctrl-C) spoils none that comes after it
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Self, TypeVar

from gdbstubs.client import State
from gdbstubs.debugger import Debugger
from gdbstubs.errors import LinkFailed, RemoteProtocolError, TargetError
from gdbstubs.target import ANY_THREAD, Ended, Halted, Stop
from kbridge.errors import GuestError

ATTACH_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 30.0
LEAVE_SECONDS: Final = 20.0
PIECE_BYTES: Final = 1 << 16

T = TypeVar("T")


class BlockingClient:
    """One session; ``stop`` is why the guest stands, with signal 0 for an observer beside one that runs.

    It may be used in several threads: one call is carried out after the other.
    """

    def __init__(self, connection: socket.socket, name: str, on_words: Callable[[str], None]) -> None:
        self._socket = connection
        self._name = name
        self._debugger = Debugger(on_words=on_words)
        self._turn = threading.Lock()
        self._lost = ""

        def greet(done: Callable[[Stop | TargetError], None]) -> None:
            self._debugger.connected(done, time.monotonic())

        stop = self._ask(greet, ATTACH_SECONDS)
        assert isinstance(stop, Halted | Ended)
        self.stop: Stop = stop

    @classmethod
    def connect(cls, path: str, on_words: Callable[[str], None]) -> Self:
        """Connect to a relay's debug socket and attach; raises ``GuestError``."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(ATTACH_SECONDS)
            connection.connect(path)
            return cls(connection, path, on_words)
        except OSError as error:
            connection.close()
            raise GuestError(
                f"cannot connect to {path}", why=error.strerror or str(error), todo="is the relay running?"
            ) from error
        except BaseException:
            connection.close()
            raise

    def read(self, places: Sequence[tuple[int, int]]) -> list[bytes | TargetError]:
        """Read virtual memory, each of address and length, all under way together.

        What is there of each, fewer bytes where the rest is not mapped; else why there is nothing.
        """
        if not places:
            return []
        found: list[bytes | TargetError] = [b""] * len(places)
        left = len(places)

        def read(done: Callable[[TargetError | None], None]) -> None:
            def told(index: int, result: bytes | TargetError) -> None:
                nonlocal left
                found[index] = result
                left -= 1
                if not left:
                    done(None)

            for index, (address, length) in enumerate(places):
                self._debugger.read_memory(address, length, partial(told, index), ANY_THREAD)

        self._ask(read)
        return found

    def monitor(self, command: str) -> str:
        """Give the relay a command and return what it printed."""

        def ask(done: Callable[[str | TargetError], None]) -> None:
            self._debugger.monitor(command, done)

        return self._ask(ask)

    def close(self) -> None:
        """Detach and close; safe to call twice."""
        # The connection is closed all the same, which is leaving too.
        with contextlib.suppress(GuestError):
            if self._debugger.state is State.STOPPED and not self._lost:
                self._ask(self._debugger.detach, LEAVE_SECONDS)
        self._socket.close()
        self._lost = self._lost or "this session has left"

    def _ask(
        self, operation: Callable[[Callable[[T | TargetError], None]], None], seconds: float = ANSWER_SECONDS
    ) -> T:
        answers: list[T | TargetError] = []
        with self._turn:
            if self._lost:
                raise GuestError(f"{self._name} is not connected", why=self._lost)
            deadline = time.monotonic() + seconds
            operation(answers.append)
            self._flush()
            while not answers:
                self._wait(deadline, seconds)
        answer = answers[0]
        if isinstance(answer, TargetError):
            raise GuestError(f"{self._name} refused", why=str(answer))
        return answer

    def _wait(self, deadline: float, seconds: float) -> None:
        """Take what comes next; raises ``GuestError`` when nothing may come any more."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise GuestError(f"{self._name} did not answer within {seconds:g} s")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(PIECE_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            self._end(error.strerror or str(error))
            return
        if not data:
            self._end("the relay closed the connection")
            return
        try:
            self._debugger.receive(data, time.monotonic())
        except (RemoteProtocolError, LinkFailed) as error:
            self._end(f"it broke the protocol: {error}")
        else:
            self._flush()

    def _flush(self) -> None:
        data = self._debugger.take_output()
        if not data:
            return
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            self._socket.sendall(data)
        except OSError as error:
            self._end(error.strerror or str(error))

    def _end(self, why: str) -> None:
        """Take note that the connection is gone, and raise it."""
        self._lost = why
        self._debugger.closed(why)
        raise GuestError(f"{self._name} went away", why=why)
